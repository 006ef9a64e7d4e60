//! I11: what waits at a replica stays within its limits: the tail, what clients asked for, what a
//! joiner owes, and how long a seal that can be taken back may last.

use smt::replica::Load;
use smt::{SegmentId, ServerId, Settings, Tick};

use super::Violation;

/// Blocks one write may have, at most, in one chunk: what may come behind a chunk being read beyond
/// the joiner's limit (M3 before M4) is that much for each request a primary takes on.
const BLOCKS_BEHIND: u64 = 4;

/// Records in a tail that mend, besides those of clients.
const MENDS: usize = 2;

/// Ranges being compared or mended, or waiting for that.
const MENDS_WAITING: usize = 10;

/// Judges the load of a replica at `now`, by its server's clock. `slack_ns`: how late its server
/// may look at the clock.
///
/// # Errors
/// Which limit was passed.
pub fn check(
    server: ServerId,
    segment: SegmentId,
    load: &Load,
    settings: &Settings,
    now: Tick,
    slack_ns: u64,
) -> Result<(), Violation> {
    let Load { tail, requests, reads, mends, mends_waiting, forward_blocks, sealed_at } = *load;
    let most = settings.inflight_records_max;
    let behind = BLOCKS_BEHIND * u64::try_from(most + MENDS).expect("a usize fits a u64");
    let sealed_ns = sealed_at.map_or(0, |at| now.since(at));
    let passed = [
        ("records in its tail", tail > most + MENDS),
        ("requests of clients", requests + reads > most),
        ("records that mend", mends > MENDS),
        ("ranges to mend", mends_waiting > MENDS_WAITING),
        ("blocks owed by a joiner", forward_blocks > settings.forward_backlog_blocks_max + behind),
        ("ns under a seal", sealed_ns > settings.seal_timeout_ns + slack_ns),
    ];
    match passed.into_iter().find(|(_, passed)| *passed) {
        None => Ok(()),
        Some((what, _)) => {
            let what = format!("server {server} has too many {what}: {load:?}, {sealed_ns} ns");
            Err(Violation::of("I11 limits", segment, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_its_own_complaint() {
        let settings = Settings { inflight_records_max: 4, ..Settings::default() };
        let judge =
            |load: Load| check(ServerId(1), SegmentId(1), &load, &settings, Tick(2_000_000_000), 0);
        let fine = Load { tail: 6, requests: 3, reads: 1, mends: 2, ..Load::default() };
        assert!(judge(fine).is_ok());
        assert!(judge(Load { tail: 7, ..fine }).is_err());
        assert!(judge(Load { mends: 3, ..fine }).is_err());
        assert!(judge(Load { mends_waiting: 11, ..fine }).is_err());
        assert!(judge(Load { reads: 2, ..fine }).is_err());
        assert!(judge(Load { forward_blocks: 1 << 20, ..fine }).is_err());
        assert!(judge(Load { sealed_at: Some(Tick(1_000_000_000)), ..fine }).is_err());
        assert!(judge(Load { sealed_at: Some(Tick(1_900_000_000)), ..fine }).is_ok());
    }
}
