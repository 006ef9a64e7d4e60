//! Placement: which servers get the replicas of a new segment, and where an old one can move.
//!
//! Invariant: replicas of a segment are on distinct servers; in distinct zones as long as there is
//! room in distinct zones; only on servers that are up; never above the soft limit. Integers only,
//! ties by id: the same on every server, because it runs inside the map's `apply`.
//!
//! Leaves to others: whether a server is fit to be a target (scores: `exclude`).

use std::cmp::Reverse;

use smallvec::SmallVec;
use thiserror::Error;

use crate::ids::*;
use crate::map::{Map, ServerState};

/// How full a server may be made by new volumes and migrations: the rest is for rebuilds that
/// cannot choose, and for file systems, which get slow when full.
pub const SOFT_LIMIT_PERCENT: u64 = 85;

/// Migrations towards one server at once. A second one keeps the disk busy while the first
/// verifies; more would only make each of them take longer, and be longer at risk.
pub const IN_SLOTS_MAX: u32 = 2;

/// Migrations of replicas away from one server at once; the same reasons. A rebuild, which
/// replaces nobody, takes none.
pub const OUT_SLOTS_MAX: u32 = 2;

/// What of `capacity_bytes` may be used by placement.
#[must_use]
pub fn soft_limit_bytes(capacity_bytes: u64) -> u64 {
    capacity_bytes / 100 * SOFT_LIMIT_PERCENT + capacity_bytes % 100 * SOFT_LIMIT_PERCENT / 100
}

/// A server that replicas can be placed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room<'a> {
    pub server: ServerId,
    /// Region and zone: what fails together.
    pub zone: (&'a str, &'a str),
    /// Below the soft limit.
    pub free_bytes: u64,
    /// Segments it is primary of already.
    pub primaries: u64,
}

/// Segments to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub segments: u32,
    pub segment_bytes: u64,
    pub replicas: u8,
}

/// Why they cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlaceError {
    #[error("{replicas} replicas need {replicas} servers that are up, there are {servers}")]
    TooFewServers { replicas: u8, servers: usize },
    #[error(
        "{segments} segments of {segment_bytes} bytes in {replicas} replicas need {needed_bytes} \
         bytes; {free_bytes} bytes are free on {servers} servers below the limit of {limit} %, \
         room for {fit} such segments",
        limit = SOFT_LIMIT_PERCENT
    )]
    NoRoom {
        segments: u32,
        segment_bytes: u64,
        replicas: u8,
        needed_bytes: u128,
        free_bytes: u128,
        servers: usize,
        /// How many of the segments would have fitted.
        fit: u32,
    },
}

/// The servers of one segment, its primary first.
pub type Placed = SmallVec<[ServerId; 4]>;

struct Bin {
    server: ServerId,
    zone: usize,
    free_bytes: u64,
    primaries: u64,
    taken: bool,
}

/// Places `wanted` on `rooms`: for each segment the zones with fewest of its replicas first, then
/// the server with most room, then the lowest id; the primary is the one of them that leads least.
///
/// # Errors
/// [`PlaceError`]; nothing is placed then.
pub fn place(rooms: &[Room<'_>], wanted: Wanted) -> Result<Vec<Placed>, PlaceError> {
    let Wanted { segments, segment_bytes, replicas } = wanted;
    if rooms.len() < usize::from(replicas) {
        return Err(PlaceError::TooFewServers { replicas, servers: rooms.len() });
    }
    let needed_bytes = u128::from(segments) * u128::from(segment_bytes) * u128::from(replicas);
    let free_bytes: u128 = rooms.iter().map(|room| u128::from(room.free_bytes)).sum();
    let mut zones: Vec<(&str, &str)> = rooms.iter().map(|room| room.zone).collect();
    zones.sort_unstable();
    zones.dedup();
    let mut bins: Vec<Bin> = rooms
        .iter()
        .map(|room| Bin {
            server: room.server,
            zone: zones.partition_point(|zone| *zone < room.zone),
            free_bytes: room.free_bytes,
            primaries: room.primaries,
            taken: false,
        })
        .collect();
    let mut in_zone = vec![0_u32; zones.len()];
    let mut placed = Vec::new();
    for fit in 0..segments {
        let mut chosen: SmallVec<[usize; 8]> = SmallVec::new();
        for _ in 0..replicas {
            let best = (0..bins.len())
                .filter(|&i| !bins[i].taken && bins[i].free_bytes >= segment_bytes)
                .min_by_key(|&i| {
                    let bin = &bins[i];
                    (in_zone[bin.zone], Reverse(bin.free_bytes), bin.server)
                });
            let Some(best) = best else {
                return Err(PlaceError::NoRoom {
                    segments,
                    segment_bytes,
                    replicas,
                    needed_bytes,
                    free_bytes,
                    servers: rooms.len(),
                    fit,
                });
            };
            bins[best].taken = true;
            bins[best].free_bytes -= segment_bytes;
            in_zone[bins[best].zone] += 1;
            chosen.push(best);
        }
        for &i in &chosen {
            bins[i].taken = false;
            in_zone[bins[i].zone] = 0;
        }
        if let Some(first) = (0..chosen.len()).min_by_key(|&at| (bins[chosen[at]].primaries, at)) {
            bins[chosen[first]].primaries += 1;
            chosen.swap(0, first);
        }
        placed.push(chosen.iter().map(|&i| bins[i].server).collect());
    }
    Ok(placed)
}

/// A server that a new replica of `segment` can be put on: see [`choose_target_replacing`].
///
/// # Errors
/// What stands against each server, in words for an operator.
pub fn choose_target(
    map: &Map,
    segment: SegmentId,
    exclude: &dyn Fn(ServerId) -> bool,
) -> Result<ServerId, String> {
    choose_target_replacing(map, segment, None, exclude)
}

/// A server that a replica of `segment` can be put on while the one on `leaving` goes: up, not
/// excluded, without a replica, with a free slot and room. In a zone without another replica if
/// there is one, then in the zone that `leaving` leaves, then with most room.
///
/// # Errors
/// What stands against each server, in words for an operator.
pub fn choose_target_replacing(
    map: &Map,
    segment: SegmentId,
    leaving: Option<ServerId>,
    exclude: &dyn Fn(ServerId) -> bool,
) -> Result<ServerId, String> {
    let config = map.segment(segment).ok_or_else(|| format!("there is no segment {segment}"))?;
    let segment_bytes = u64::from(config.geometry.segment_blocks) * BLOCK_BYTES;
    let zone_of = |id: ServerId| map.server(id).map(|s| (&*s.region, &*s.zone));
    let joiner = config.joining.map(|j| j.target);
    let against = |id: ServerId, state: ServerState| -> Option<&'static str> {
        if config.is_member(id) {
            Some("has a replica")
        } else if joiner == Some(id) {
            Some("is getting a replica")
        } else if state != ServerState::Up {
            match state {
                ServerState::Up => None,
                ServerState::Cordoned => Some("is cordoned"),
                ServerState::Draining => Some("is draining"),
                ServerState::Down => Some("is down"),
                ServerState::Removed => Some("was removed"),
            }
        } else if exclude(id) {
            Some("is not fit to be a target")
        } else if map.slots(id).incoming >= IN_SLOTS_MAX {
            Some("has no free slot")
        } else if map.free_bytes(id) < segment_bytes {
            Some("has too little room")
        } else {
            None
        }
    };
    let best = map.servers().filter(|s| against(s.id, s.state).is_none()).min_by_key(|server| {
        let zone = zone_of(server.id);
        let sharing = config
            .members
            .iter()
            .map(|m| m.server)
            .chain(joiner)
            .filter(|&other| Some(other) != leaving && zone_of(other) == zone)
            .count();
        let left_zone = leaving.is_some_and(|gone| zone_of(gone) == zone);
        // Without another replica beats everything; a zone that `leaving` is still in comes
        // second to one that has none at all.
        (sharing, left_zone, Reverse(map.free_bytes(server.id)), server.id)
    });
    best.map(|server| server.id).ok_or_else(|| {
        let reasons: Vec<String> = map
            .servers()
            .filter(|s| s.state != ServerState::Removed)
            .filter_map(|s| against(s.id, s.state).map(|why| format!("server {} {why}", s.id)))
            .collect();
        if reasons.is_empty() {
            "there are no servers".to_owned()
        } else {
            format!("no server can take a replica of segment {segment}: {}", reasons.join(", "))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: u64 = 1 << 20;

    fn room(server: u64, zone: &str, segments: u64) -> Room<'_> {
        Room {
            server: ServerId(server),
            zone: ("r", zone),
            free_bytes: segments * SEGMENT_BYTES,
            primaries: 0,
        }
    }

    fn wanted(segments: u32, replicas: u8) -> Wanted {
        Wanted { segments, segment_bytes: SEGMENT_BYTES, replicas }
    }

    fn sorted(placed: &Placed) -> Vec<u64> {
        let mut ids: Vec<u64> = placed.iter().map(|s| s.0).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn zones_are_distinct_as_long_as_they_have_room() {
        let rooms = [room(1, "a", 9), room(2, "a", 9), room(3, "b", 2), room(4, "a", 9)];
        let placed = place(&rooms, wanted(3, 2)).expect("there is room");
        for segment in &placed[..2] {
            assert!(segment.contains(&ServerId(3)), "the only server of zone b: {segment:?}");
        }
        assert!(!placed[2].contains(&ServerId(3)), "it is full by now");
    }

    #[test]
    fn the_emptiest_server_comes_first_and_ties_go_by_id() {
        let rooms = [room(3, "a", 5), room(1, "b", 5), room(2, "c", 7)];
        let placed = place(&rooms, wanted(1, 2)).expect("there is room");
        assert_eq!(placed[0].as_slice(), [ServerId(2), ServerId(1)]);
    }

    #[test]
    fn primaries_go_to_those_who_lead_least() {
        let mut rooms = [room(1, "a", 99), room(2, "b", 99), room(3, "c", 99)];
        rooms[0].primaries = 4;
        let placed = place(&rooms, wanted(8, 3)).expect("there is room");
        let led = |id: u64| placed.iter().filter(|p| p[0] == ServerId(id)).count();
        assert_eq!((led(1), led(2), led(3)), (0, 4, 4));
    }

    #[test]
    fn all_room_is_used_before_it_is_refused() {
        let rooms = [room(1, "a", 4), room(2, "b", 3), room(3, "c", 3)];
        let placed = place(&rooms, wanted(5, 2)).expect("ten replicas in room for ten");
        assert!(placed.iter().all(|p| sorted(p).windows(2).all(|pair| pair[0] != pair[1])));
        match place(&rooms, wanted(6, 2)) {
            Err(PlaceError::NoRoom { fit: 5, needed_bytes, free_bytes, .. }) => {
                assert!(needed_bytes > free_bytes);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn fewer_servers_than_replicas_are_too_few() {
        let error = place(&[room(1, "a", 9)], wanted(1, 2)).expect_err("one server");
        assert_eq!(error, PlaceError::TooFewServers { replicas: 2, servers: 1 });
    }

    #[test]
    fn the_soft_limit_does_not_overflow() {
        assert_eq!(soft_limit_bytes(100), 85);
        assert_eq!(soft_limit_bytes(199), 169);
        assert!(soft_limit_bytes(u64::MAX) > u64::MAX / 2);
    }
}
