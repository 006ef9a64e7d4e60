//! Volumes: creation, which places every segment at once, and deletion.
//!
//! Invariant: a volume is created whole or not at all, and leaves nothing behind when deleted but
//! the records of its migrations.

use super::apply::{Map, not_found, refused};
use super::attach::held_by;
use super::command::{Refused, Reply};
use super::types::*;
use crate::config::Geometry;
use crate::ids::*;
use crate::placement;

/// Segments of one volume: a PiB in segments of a GiB. Bounds the work of one log entry.
pub const VOLUME_SEGMENTS_MAX: u64 = 1 << 20;

/// Replicas of one volume: more only slow writes down.
pub const REPLICAS_MAX: u8 = 5;

/// Bytes of a volume's name: that of a file or a DNS label, so that it can be either.
pub const VOLUME_NAME_BYTES_MAX: usize = 63;

impl Map {
    pub(super) fn create_volume(&mut self, mut volume: Volume) -> Result<Reply, Refused> {
        if self.names.contains_key(&volume.name) {
            return Err(Refused::Exists { what: format!("volume {}", volume.name) });
        }
        let (geometry, count) = judge(&volume)?;
        let placed = placement::place(
            &self.rooms(),
            placement::Wanted {
                segments: count,
                segment_bytes: volume.segment_bytes,
                replicas: volume.replicas,
            },
        )
        .map_err(|error| Refused::NoRoom { why: format!("volume {}: {error}", volume.name) })?;
        for (index, servers) in (0..count).zip(placed) {
            let segment = self.last_segment.next();
            self.last_segment = segment;
            volume.segments.push(segment);
            let members = servers
                .iter()
                .filter_map(|id| self.servers.get(id))
                .map(|server| Member { server: server.id, incarnation: server.incarnation })
                .collect();
            self.put(
                SegmentConfig {
                    segment,
                    volume: volume.id,
                    index,
                    epoch: Epoch(1),
                    primary: servers[0],
                    members,
                    joining: None,
                    transfer: None,
                    replicas: volume.replicas,
                    active: Epoch(0),
                    geometry,
                    writer: 0,
                },
                None,
            );
        }
        let id = volume.id;
        self.names.insert(volume.name.clone(), id);
        self.volumes.insert(id, volume);
        Ok(Reply::VolumeCreated { id })
    }

    pub(super) fn delete_volume(&mut self, name: &str, force: bool) -> Result<Reply, Refused> {
        if let Some(held) = self.volume_by_name(name).and_then(|v| v.attachment.as_ref())
            && !force
        {
            return Err(held_by(name, held));
        }
        let volume = self
            .names
            .remove(name)
            .and_then(|id| self.volumes.remove(&id))
            .ok_or_else(|| not_found(format!("volume {name}")))?;
        let reason = format!("volume {name} was deleted");
        for segment in volume.segments {
            if let Some(mut config) = self.segments.get(&segment).cloned() {
                self.end_migration(&mut config, MigrationState::Aborted, &reason);
            }
            self.take_out(segment);
        }
        Ok(Reply::Done)
    }
}

/// Whether a volume may be what it asks to be; its geometry, and how many segments it takes. The
/// last segment is a whole one on disk, though only the volume's bytes of it can be reached.
fn judge(volume: &Volume) -> Result<(Geometry, u32), Refused> {
    if !is_volume_name(&volume.name) {
        return Err(refused(format!(
            "a volume's name is 1 to {VOLUME_NAME_BYTES_MAX} letters, digits, dots, dashes and \
             underscores, and starts with a letter or digit; {:?} is not",
            volume.name
        )));
    }
    if volume.size_bytes == 0 || !volume.size_bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(refused(format!(
            "a volume's size is a multiple of {BLOCK_BYTES} bytes above 0; {} is not",
            volume.size_bytes
        )));
    }
    let geometry = Geometry::of_segment(volume.segment_bytes).ok_or_else(|| {
        refused(format!(
            "a segment's size is a power of two from 1 MiB to 1 GiB; {} bytes is not",
            volume.segment_bytes
        ))
    })?;
    if !(1..=REPLICAS_MAX).contains(&volume.replicas) {
        return Err(refused(format!(
            "a volume has 1 to {REPLICAS_MAX} replicas, not {}",
            volume.replicas
        )));
    }
    let count = volume.size_bytes.div_ceil(volume.segment_bytes);
    match u32::try_from(count) {
        Ok(segments) if count <= VOLUME_SEGMENTS_MAX => Ok((geometry, segments)),
        Ok(_) | Err(_) => Err(refused(format!(
            "{count} segments are more than the {VOLUME_SEGMENTS_MAX} of the largest volume; \
             choose larger segments than {} bytes",
            volume.segment_bytes
        ))),
    }
}

/// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`
fn is_volume_name(name: &str) -> bool {
    name.len() <= VOLUME_NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
