//! Objects: the map as the JSON of DESIGN 4.
//!
//! Invariant: nothing here takes a lock; it works on copies, and on one look at everybody's life.

use serde_json::{Value, json};
use smt::map::{
    Attachment, Forced, Map, Migration, MigrationState, SegmentConfig, Server, ServerState, Volume,
};
use smt::{ServerId, VolumeId};

use crate::control::heat::Rates;
use crate::control::orchestrator::Waits;
use crate::control::scores::Lives;
use crate::control::times::rfc3339;

/// A server not heard from for this long is shown as down.
const SILENT_MS: u64 = 3000;

pub fn is_down(lives: &Lives, server: ServerId) -> bool {
    lives.silent_ms(server).is_none_or(|ms| ms > SILENT_MS)
}

/// `state` of a segment, with what is known of its servers' lives.
pub fn segment_state(lives: &Lives, config: &SegmentConfig) -> &'static str {
    let alive = config.members.iter().filter(|m| !is_down(lives, m.server)).count();
    if alive == 0 || config.active.0 == 0 || is_down(lives, config.primary) {
        "unavailable"
    } else if config.members.len() < usize::from(config.replicas) || alive < config.members.len() {
        "degraded"
    } else if config.active < config.epoch {
        // Being taken over, which is a matter of moments.
        "degraded"
    } else {
        "healthy"
    }
}

/// `waits` is none where the leader could not be asked.
pub fn server(map: &Map, lives: &Lives, server: &Server, waits: Option<&Waits>) -> Value {
    let state = match server.state {
        ServerState::Removed => "removed",
        _ if is_down(lives, server.id) => "down",
        ServerState::Up => "up",
        ServerState::Cordoned => "cordoned",
        ServerState::Draining => "draining",
        ServerState::Down => "down",
    };
    let held = map.segments_of(server.id).filter(|c| c.is_member(server.id)).count();
    let word = format!("server {} ", server.id);
    let waiting: Option<Vec<&String>> =
        waits.map(|waits| waits.waits.iter().filter(|w| w.contains(&word)).collect());
    json!({
        "id": server.id.0,
        "state": state,
        "zone": server.zone,
        "region": server.region,
        "tier": server.tier,
        "address": server.address,
        "http": server.http,
        "capacity_bytes": server.capacity_bytes,
        "used_bytes": map.used_bytes(server.id),
        "segments": held,
        "score": lives.score(server.id),
        "boot_id": server.boot_id,
        "incarnation": server.incarnation.0,
        "store": format!("{:032x}", server.store),
        "waiting_for": waiting,
    })
}

pub fn volume(volume: &Volume) -> Value {
    json!({
        "name": volume.name,
        "id": volume.id.0,
        "size_bytes": volume.size_bytes,
        "segment_bytes": volume.segment_bytes,
        "replicas": volume.replicas,
        "criticality": volume.criticality,
        "durability": volume.durability,
        "attachment": volume.attachment.as_ref().map(|held| attachment(held, volume.writer)),
    })
}

/// A rate to a hundredth: more digits would only look exact.
fn rate(per_second: f64) -> f64 {
    (per_second * 100.0).round() / 100.0
}

/// Who has a volume attached, and under which token. Ids of clients are random, and too large for
/// JSON's numbers.
pub fn attachment(attachment: &Attachment, writer: u64) -> Value {
    let Attachment { mode, clients } = attachment;
    let clients: Vec<Value> = clients
        .iter()
        .map(|client| {
            json!({
                "client_id": client.client.0.to_string(),
                "owner": client.owner,
                "attached_at": rfc3339(client.at_unix_ms),
            })
        })
        .collect();
    json!({ "mode": mode, "writer": writer, "clients": clients })
}

/// A segment of the volume called so.
pub fn segment(
    volume: &str,
    lives: &Lives,
    rates: Rates,
    config: &SegmentConfig,
    forced: Option<&Forced>,
) -> Value {
    let mut replicas: Vec<Value> = config
        .members
        .iter()
        .map(|m| {
            let role = if m.server == config.primary { "primary" } else { "backup" };
            let state = if is_down(lives, m.server) { "stale" } else { "in_sync" };
            json!({ "server": m.server.0, "role": role, "state": state })
        })
        .collect();
    if let Some(joining) = config.joining {
        replicas.push(json!({
            "server": joining.target.0, "role": "joiner", "state": "joining",
        }));
    }
    json!({
        "volume": volume,
        "index": config.index,
        "id": config.segment.0.to_string(),
        "epoch": config.epoch.0,
        "size_bytes": u64::from(config.geometry.segment_blocks) * smt::ids::BLOCK_BYTES,
        "state": segment_state(lives, config),
        "replicas_target": config.replicas,
        "primary": config.primary.0,
        "migration": config.joining.map(|j| j.migration.0),
        "replicas": replicas,
        "data_loss_accepted": forced.is_some(),
        "forced_at": forced.map(|event| rfc3339(event.at_unix_ms)),
        "forced_to": forced.map(|event| event.server.0),
        "forced_epoch": forced.map(|event| event.epoch.0),
        "reads_per_second": rate(rates.reads_per_second),
        "writes_per_second": rate(rates.writes_per_second),
        "read_bytes_per_second": rates.read_bytes_per_second.round(),
        "written_bytes_per_second": rates.written_bytes_per_second.round(),
    })
}

/// What a volume is called, or its number when it was deleted.
pub fn volume_name(map: &Map, volume: VolumeId) -> String {
    map.volume(volume).map_or_else(|| volume.to_string(), |v| v.name.clone())
}

/// A migration in the volume called so.
pub fn migration(name: &str, migration: &Migration) -> Value {
    let Migration {
        id,
        segment: _,
        volume: _,
        index,
        from,
        to,
        cause,
        state,
        progress,
        digest,
        writer_pause_us,
        epoch_before,
        epoch_after,
        started_unix_ms,
        finished_unix_ms,
        reason,
        bytes_per_second_max: _,
    } = migration;
    json!({
        "id": id.0,
        "volume": name,
        "index": index,
        "from": from.map(|s| s.0),
        "to": to.0,
        "cause": {
            "kind": cause.kind,
            "server": cause.server.map(|s| s.0),
            "score": cause.score_hundredths.map(|h| f64::from(h) / 100.0),
            "mode": cause.mode,
        },
        "state": state,
        "bytes_total": progress.bytes_total,
        "bytes_copied": progress.bytes_copied,
        "bytes_reused": progress.bytes_reused,
        "bytes_forwarded": progress.bytes_forwarded,
        "chunks_retried": progress.chunks_retried,
        "digest": digest.map(|d| format!("{d:032x}")),
        // The primary reports the cut-over once every chunk and the root matched (M9 c), and only
        // such a migration is promoted.
        "verified": match state {
            MigrationState::CuttingOver => true,
            MigrationState::Done => digest.is_some(),
            MigrationState::Queued
            | MigrationState::Copying
            | MigrationState::Verifying
            | MigrationState::Aborted
            | MigrationState::Failed => false,
        },
        "writer_pause_us": writer_pause_us,
        "epoch_before": epoch_before.0,
        "epoch_after": epoch_after.map(|e| e.0),
        "started_at": rfc3339(*started_unix_ms),
        "finished_at": finished_unix_ms.map(rfc3339),
        "reason": reason,
    })
}
