//! Proposals by the thousand, as when a server dies that has so many segments.

use std::time::{Duration, Instant};

use smt::map::{Command, CopyProgress, MigrationState};
use smt::{MigrationId, ServerId};

use crate::plane::*;

const SEGMENTS: u64 = 4_000;

/// Generous: 4,000 a second were measured, on two busy cores.
const AT_MOST: Duration = Duration::from_secs(15);

#[test]
fn the_death_of_a_server_with_thousands_of_segments_is_worked_off_at_once() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    for id in 2..=3 {
        cluster.register(id, "127.0.0.1:1", 16 * SEGMENTS * MIB);
    }
    cluster.wait_until("there are three", |map| map.servers().count() == 3);
    // Server 1 has no room for them: they are all on 2 and 3.
    let began = Instant::now();
    cluster.create("vol0", SEGMENTS, 2);
    eprintln!("made, and {SEGMENTS} reports that a primary serves taken, in {:?}", began.elapsed());

    let evictions: Vec<Command> = {
        let map = cluster.map.lock().expect("no one panics with it");
        map.segments()
            .map(|config| {
                let (segment, expect) = (config.segment, config.epoch);
                let heir = if config.primary == ServerId(2) { Some(ServerId(3)) } else { None };
                match heir {
                    Some(server) => Command::NewPrimary { segment, expect, server },
                    None => Command::Evict { segment, expect, server: ServerId(2) },
                }
            })
            .collect()
    };
    assert_eq!(evictions.len(), usize::try_from(SEGMENTS).expect("a few thousand"));
    // Before them, more reports of progress than can wait.
    for migration in 0..20_000 {
        cluster.propose(Command::MigrationProgress {
            migration: MigrationId(migration),
            state: MigrationState::Copying,
            progress: CopyProgress::default(),
        });
    }
    let began = Instant::now();
    for command in evictions {
        cluster.propose(command);
    }
    cluster.wait_until("every segment is without server 2", |map| {
        map.segments_of(ServerId(2)).count() == 0
    });
    let took = began.elapsed();
    eprintln!("{SEGMENTS} segments left server 2 in {took:?}");
    assert!(took < AT_MOST, "{took:?}");
}
