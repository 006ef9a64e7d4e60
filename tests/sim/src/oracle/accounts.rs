//! I10: what is reserved on a server is the sum over the replicas and the migrations there, and
//! within what a server may take on. Nothing leaks.

use std::collections::BTreeMap;

use smt::map::{Map, SegmentConfig};
use smt::placement::{IN_SLOTS_MAX, OUT_SLOTS_MAX};
use smt::{BLOCK_BYTES, ServerId};

use super::Violation;
use crate::world::Changed;

/// What one server has reserved: bytes, migrations to it, migrations of its replicas away.
type Sum = (u64, u32, u32);

/// After a change of the map: the accounts of every server.
///
/// # Errors
/// When one is not the sum.
pub fn check(map: &Map, changed: &[Changed]) -> Result<(), Violation> {
    if changed.is_empty() { Ok(()) } else { sums(map) }
}

/// At the end, when nobody joins anything: no slot is taken, and the map is sound throughout.
///
/// # Errors
/// When something is left.
pub fn check_all(map: &Map) -> Result<(), Violation> {
    sums(map)?;
    map.check().map_err(broken)?;
    for server in map.servers() {
        let slots = map.slots(server.id);
        if map.migrations_active() == 0 && (slots.incoming, slots.outgoing) != (0, 0) {
            return Err(broken(format!("server {} has {slots:?}, and nothing moves", server.id)));
        }
    }
    Ok(())
}

fn sums(map: &Map) -> Result<(), Violation> {
    let mut sums: BTreeMap<ServerId, Sum> = BTreeMap::new();
    let mut joining = 0;
    for config in map.segments() {
        let bytes = bytes_of(config);
        for member in &config.members {
            sums.entry(member.server).or_default().0 += bytes;
        }
        if let Some(join) = config.joining {
            joining += 1;
            let (used, incoming, _) = sums.entry(join.target).or_default();
            *used += bytes;
            *incoming += 1;
            if let Some(from) = join.replaces {
                sums.entry(from).or_default().2 += 1;
            }
        }
    }
    if map.migrations_active() != joining {
        let running = map.migrations_active();
        return Err(broken(format!("{running} migrations run, {joining} segments have a joiner")));
    }
    for server in map.servers() {
        let slots = map.slots(server.id);
        let has = (map.used_bytes(server.id), slots.incoming, slots.outgoing);
        let sum = sums.get(&server.id).copied().unwrap_or_default();
        if has != sum {
            let what = format!("server {} has reserved {has:?}, the sum is {sum:?}", server.id);
            return Err(broken(what));
        }
        if sum.1 > IN_SLOTS_MAX || sum.2 > OUT_SLOTS_MAX {
            return Err(broken(format!("server {} takes part in too much: {sum:?}", server.id)));
        }
    }
    Ok(())
}

fn bytes_of(config: &SegmentConfig) -> u64 {
    u64::from(config.geometry.segment_blocks) * BLOCK_BYTES
}

fn broken(what: String) -> Violation {
    Violation { invariant: "I10 accounts", segment: None, what }
}
