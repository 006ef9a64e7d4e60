//! Metrics: what Prometheus reads.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use smt::server::Report;

use super::objects;
use crate::control::Control;

/// How often the brain reported what. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct ReportCounters {
    faulted: Counter,
    mismatched_blocks: Counter,
    repaired_blocks: Counter,
    unverified_blocks: Counter,
    /// Equal again, and not.
    divergences: [Counter; 2],
    activations: Counter,
    slow_peers: Counter,
    disk_hangs: Counter,
}

impl ReportCounters {
    pub fn count(&self, report: &Report) {
        match report {
            Report::ReplicaFaulted { .. } | Report::ReplicaMissing { .. } => {
                self.faulted.inc();
            }
            Report::Mismatch { blocks, repaired, .. } => {
                let blocks = u64::try_from(blocks.len()).unwrap_or(u64::MAX);
                let counter =
                    if *repaired { &self.repaired_blocks } else { &self.mismatched_blocks };
                counter.inc_by(blocks);
            }
            Report::Diverged { blocks, repaired, .. } => {
                let [equal_again, unresolved] = &self.divergences;
                let counter = if *repaired { equal_again } else { unresolved };
                counter.inc_by(u64::try_from(blocks.len()).unwrap_or(u64::MAX));
            }
            Report::Unverified { .. } => {
                self.unverified_blocks.inc();
            }
            Report::Activated { .. } => {
                self.activations.inc();
            }
            Report::SlowPeer { .. } => {
                self.slow_peers.inc();
            }
            Report::DiskHangs { .. } => {
                self.disk_hangs.inc();
            }
        }
    }
}

pub async fn metrics(State(control): State<Control>) -> impl IntoResponse {
    let mut registry = Registry::with_prefix("petrel");
    let ReportCounters {
        faulted,
        mismatched_blocks,
        repaired_blocks,
        unverified_blocks,
        divergences,
        activations,
        slow_peers,
        disk_hangs,
    } = control.inner.reports.clone();
    let mismatches = [repaired_blocks.clone(), mismatched_blocks.clone()];
    let by_repair = [
        ("checksum_mismatches", "Blocks that did not match their checksum", mismatches),
        ("replica_divergences", "Blocks in-sync replicas held differently", divergences),
    ];
    for (name, help, [repaired, not]) in by_repair {
        let family = Family::<[(&str, &str); 1], Counter>::default();
        for (label, counter) in [("true", repaired), ("false", not)] {
            family.get_or_create(&[("repaired", label)]).inc_by(counter.get());
        }
        registry.register(name, help, family);
    }
    let scrub = control.inner.scrubber.status();
    let read = ConstCounter::new(scrub.bytes_read);
    registry.register("scrub_bytes", "Bytes of replicas read by the scrubber", read);
    if let Some(ms) = scrub.last_completed_unix_ms {
        let at = ConstGauge::new(i64::try_from(ms / 1000).unwrap_or(i64::MAX));
        let help = "When every replica here had last been read, in seconds since 1970";
        registry.register("scrub_last_completed_seconds", help, at);
    }
    let counters = [
        ("replicas_faulted", "Replicas given up because of their disk", faulted),
        ("blocks_mismatched", "Blocks without a good copy", mismatched_blocks),
        ("blocks_repaired", "Blocks replaced by a good copy", repaired_blocks),
        ("blocks_unverified", "Blocks taken though no copy verified", unverified_blocks),
        ("activations", "Segments this server became primary of", activations),
        ("slow_peers", "Members evicted for silence", slow_peers),
        ("disk_hangs", "Segments given to another primary because our disk hung", disk_hangs),
    ];
    for (name, help, counter) in counters {
        registry.register(name, help, counter);
    }
    let status = control.inner.log.status();
    let score = control.inner.scores.own();
    let (map, lives) = (control.snapshot(), control.inner.scores.lives());
    let states = map.segments().map(|c| objects::segment_state(&lives, c));
    let healthy = states.filter(|s| *s == "healthy").count();
    let gauges = [
        ("segments", "Segments of the cluster", map.segments().count()),
        ("segments_healthy", "Segments with all replicas in sync", healthy),
        ("migrations_active", "Migrations under way", map.migrations_active()),
    ];
    for (name, help, value) in gauges {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        registry.register(name, help, ConstGauge::new(value));
    }
    let version = ConstCounter::new(map.version().0);
    registry.register("smt_version", "Version of the map here", version);
    let quorum = ConstGauge::new(i64::from(status.has_quorum));
    registry.register("consensus_quorum", "1 while the map's servers agree", quorum);
    if let Some(score) = score.score {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(score);
        registry.register("failure_score", "0 to 100; absent while unknown", gauge);
    }
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        tracing::error!(%error, "the metrics could not be written");
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], Arc::<str>::from(text).to_string())
}
