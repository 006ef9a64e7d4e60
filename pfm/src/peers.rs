//! What this server heard of its peers, and what they say about one second together.
//!
//! Invariant: a peer that is idle or silent says nothing, neither "fast" nor "slow". Which
//! servers are peers at all (same tier, same kind of disk) is decided by who feeds us.

use std::collections::{BTreeMap, VecDeque};

use crate::sample::{Kind, PeerSummary, STALLED_LATENCY_US};

/// A minute of silence and a peer is forgotten as evidence.
const SILENT_AFTER_S: u64 = 60;
/// Ten minutes of each peer: enough for its own quiet median, small enough for a big fleet.
const PEER_HISTORY_S: u64 = 600;
/// How far from our second a peer's summary may lie: summaries travel, and a stall of a shared
/// machine reaches each server's sample a little earlier or later.
const NEAR_S: u64 = 2;
const NEAR_SECONDS: usize = 5;
/// Seconds of a kind before a peer's own median means anything.
const PEER_BASELINE_SECONDS_MIN: usize = 10;
const PEER_BASELINE_EVERY_S: u64 = 15;
/// 100 bytes per µs = 100 MB/s: what a larger request may honestly cost more.
pub(crate) const BYTES_PER_US: f64 = 100.0;

#[derive(Debug, Default)]
struct Peer {
    recent: VecDeque<PeerSummary>,
    /// Median p50 by kind, in µs.
    baseline_us: [Option<f64>; 2],
    baseline_due_s: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Peers {
    by_server: BTreeMap<u64, Peer>,
}

/// What the peers say about one second of one kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerView {
    /// Peers that did this kind of operation around this second.
    pub active: usize,
    /// Their median latency, corrected for request size; `None` when `active` is 0.
    pub median_us: Option<f64>,
    /// Their median operations a second; `None` when `active` is 0.
    pub ops_median: Option<f64>,
    /// Their median CPU pressure in percent; `None` when nobody was heard.
    pub cpu_median: Option<f64>,
    /// How many times slower than usual the median peer is, whatever it does; at least 1.
    pub common_slowdown: f64,
}

impl Peers {
    pub(crate) fn observe(&mut self, summary: PeerSummary) {
        let at_s = summary.at_s;
        let peer = self.by_server.entry(summary.server).or_default();
        match peer.recent.back() {
            // A clock set back: what we have cannot be lined up with what comes.
            Some(last) if last.at_s > at_s.saturating_add(SILENT_AFTER_S) => {
                *peer = Peer::default();
            }
            Some(last) if last.at_s > at_s => return,
            Some(_) | None => {}
        }
        peer.recent.push_back(summary);
        while peer.recent.front().is_some_and(|oldest| oldest.at_s + PEER_HISTORY_S < at_s) {
            peer.recent.pop_front();
        }
        if at_s >= peer.baseline_due_s {
            peer.baseline_due_s = at_s + PEER_BASELINE_EVERY_S;
            peer.learn();
        }
    }

    /// Last summary of each peer heard within the last minute.
    pub(crate) fn heard(&self, at_s: u64) -> impl Iterator<Item = &PeerSummary> {
        self.by_server
            .values()
            .filter_map(|peer| peer.recent.back())
            .filter(move |summary| summary.at_s + SILENT_AFTER_S >= at_s)
    }

    /// The peers around second `at_s`: the median of the peers, each by the median of its nearby
    /// seconds.
    pub(crate) fn view(&self, at_s: u64, kind: Kind, own_bytes_per_op: f64) -> PeerView {
        let mut latencies_us = Vec::with_capacity(self.by_server.len());
        let mut ops = Vec::with_capacity(self.by_server.len());
        let mut cpu = Vec::with_capacity(self.by_server.len());
        let mut slowdowns = Vec::with_capacity(self.by_server.len());
        for peer in self.by_server.values() {
            let near = peer
                .recent
                .iter()
                .rev()
                .skip_while(|summary| summary.at_s > at_s + NEAR_S)
                .take_while(|summary| summary.at_s + NEAR_S >= at_s);
            let mut near_us = [0.0_f64; NEAR_SECONDS];
            let mut near_count = 0;
            let mut ops_max: u64 = 0;
            let mut slowdown: Option<f64> = None;
            let mut cpu_max: Option<f64> = None;
            for summary in near {
                cpu_max = Some(cpu_max.unwrap_or(0.0).max(summary.psi_cpu_some_avg10));
                for each in Kind::ALL {
                    let activity = summary.activity(each);
                    let baseline_us = peer.baseline_us[each.index()];
                    let p50_us = if activity.count > 0 {
                        activity.p50_us
                    } else if summary.is_stalled() && baseline_us.is_some() {
                        STALLED_LATENCY_US
                    } else {
                        continue;
                    };
                    if let Some(baseline_us) = baseline_us {
                        let times = p50_us / baseline_us.max(1.0);
                        slowdown = Some(slowdown.unwrap_or(1.0).max(times));
                    }
                    if each == kind {
                        let larger = (own_bytes_per_op - activity.bytes_per_op).max(0.0);
                        let excused_us = p50_us + larger / BYTES_PER_US;
                        if let Some(place) = near_us.get_mut(near_count) {
                            *place = excused_us;
                            near_count += 1;
                        }
                        ops_max = ops_max.max(summary.ops());
                    }
                }
            }
            if let Some(latency_us) = median(&mut near_us[..near_count]) {
                latencies_us.push(latency_us);
                ops.push(ops_max as f64);
            }
            slowdowns.extend(slowdown);
            cpu.extend(cpu_max);
        }
        PeerView {
            active: latencies_us.len(),
            median_us: median(&mut latencies_us),
            ops_median: median(&mut ops),
            cpu_median: median(&mut cpu),
            common_slowdown: median(&mut slowdowns).unwrap_or(1.0).max(1.0),
        }
    }
}

impl Peer {
    fn learn(&mut self) {
        for kind in Kind::ALL {
            let mut p50s_us: Vec<f64> = self
                .recent
                .iter()
                .map(|summary| summary.activity(kind))
                .filter(|activity| activity.count > 0)
                .map(|activity| activity.p50_us)
                .collect();
            if p50s_us.len() >= PEER_BASELINE_SECONDS_MIN {
                self.baseline_us[kind.index()] = median(&mut p50s_us);
            }
        }
    }
}

/// The middle value; of an even number the mean of the two in the middle. Reorders `values`.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let even = values.len().is_multiple_of(2);
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let upper = *upper;
    if !even {
        return Some(upper);
    }
    let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(server: u64, at_s: u64, read_p50_us: u64) -> PeerSummary {
        PeerSummary {
            server,
            at_s,
            read_p50_us,
            read_count: 100,
            bytes_read: 100 * 4096,
            ..PeerSummary::default()
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&mut [9.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn an_idle_or_silent_peer_says_nothing() {
        let mut peers = Peers::default();
        peers.observe(PeerSummary { read_count: 0, ..heard(2, 100, 0) });
        peers.observe(heard(3, 50, 300));
        let view = peers.view(100, Kind::Read, 4096.0);
        assert_eq!(view.active, 0);
        assert_eq!(view.median_us, None);
    }

    #[test]
    fn a_larger_request_may_take_longer() {
        let mut peers = Peers::default();
        peers.observe(heard(2, 100, 300));
        let view = peers.view(100, Kind::Read, 1_048_576.0);
        assert!(view.median_us.expect("one peer read") > 10_000.0);
    }

    #[test]
    fn a_stall_that_everybody_shares_shows_as_a_common_slowdown() {
        let mut peers = Peers::default();
        for at_s in 0..=40 {
            for server in 2..5 {
                peers.observe(heard(server, at_s, if at_s < 38 { 300 } else { 3_000 }));
            }
        }
        let view = peers.view(40, Kind::Write, 4096.0);
        assert!((view.common_slowdown - 10.0).abs() < 0.1, "{view:?}");
    }
}
