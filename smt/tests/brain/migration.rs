//! A primary's patience with a migration, and with its own disk.

use smt::map::{Command, SegmentConfig};
use smt::message::{LeaseMessage, PeerBody, ReplyBody, ServerMessage};
use smt::replica::Role;
use smt::server::{Event, Report};
use smt::wire::checksum::chunk_digest;
use smt::*;

use crate::hands::{Blocks, Hands, SEGMENT, active, config, with_joiner};

fn of_one(epoch: u64) -> SegmentConfig {
    active(config(epoch, &[1]))
}

/// Server 1, alone in its set, serving.
fn primary() -> Hands {
    let mut primary = Hands::of(1);
    primary.learn(config(1, &[1]));
    primary.disk_works();
    assert_eq!(primary.role(), Some(Role::Primary));
    primary.learn(of_one(1));
    primary.link_up(2);
    primary.proposed();
    primary.said();
    primary
}

fn begun(said: &[PeerBody<Blocks>]) -> Option<CopySession> {
    said.iter().find_map(|body| match body {
        PeerBody::JoinBegin { session, .. } => Some(*session),
        _ => None,
    })
}

fn aborts(hands: &mut Hands) -> Vec<String> {
    let reason = |command| match command {
        Command::AbortMigration { reason, .. } => Some(reason),
        _ => None,
    };
    hands.proposed().into_iter().filter_map(reason).collect()
}

/// The patience once counted from the activation. Every migration of a segment that had not moved
/// for a minute was given up by the tick after the wish, and no simulated minute is that long.
#[test]
fn a_primary_that_served_longer_than_the_joiners_timeout_begins_a_migration_and_goes_on_with_it() {
    let mut primary = primary();
    let timeout_ns = primary.settings.joiner_timeout_ns;
    primary.wait_ns(timeout_ns + timeout_ns / 10);
    primary.learn(with_joiner(of_one(1), 2));
    let session = begun(&primary.said()).expect("the migration begins");
    primary.tick();
    assert_eq!(aborts(&mut primary), [""; 0], "given up though the joiner has all its time left");
    primary.answer(2, PeerBody::JoinAck { session, digests: Vec::new() });
    primary.disk_works();
    let copies = primary.said().iter().filter(|b| matches!(b, PeerBody::Copy { .. })).count();
    assert_eq!(copies, 2, "both chunks are copied");
}

#[test]
fn a_joiner_that_never_answers_is_given_up_when_its_timeout_is_over() {
    let mut primary = primary();
    let timeout_ns = primary.settings.joiner_timeout_ns;
    primary.wait_ns(timeout_ns * 2);
    primary.learn(with_joiner(of_one(1), 2));
    primary.wait_ns(timeout_ns * 9 / 10);
    assert_eq!(aborts(&mut primary), [""; 0]);
    primary.wait_ns(timeout_ns / 5);
    assert!(!aborts(&mut primary).is_empty());
}

fn copies(said: &[PeerBody<Blocks>]) -> Vec<BlockRange> {
    said.iter()
        .filter_map(|body| match body {
            PeerBody::Copy { range, .. } => Some(*range),
            _ => None,
        })
        .collect()
}

fn verifies(said: &[PeerBody<Blocks>]) -> Vec<(u64, u32)> {
    said.iter()
        .filter_map(|body| match body {
            PeerBody::Verify { place, chunk, .. } => Some((*place, *chunk)),
            _ => None,
        })
        .collect()
}

/// M2 and M6: a chunk the joiner has already is not sent, only read back there; one that does not
/// read back as its table says is sent after all.
#[test]
fn a_chunk_that_the_joiner_has_is_read_back_there_and_sent_only_if_that_fails() {
    let mut primary = primary();
    primary.learn(with_joiner(of_one(1), 2));
    let session = begun(&primary.said()).expect("the migration begins");
    let digests = vec![chunk_digest(&[0; 4]), chunk_digest(&[7; 4])];
    primary.answer(2, PeerBody::JoinAck { session, digests });
    primary.disk_works();
    let said = primary.said();
    assert_eq!(copies(&said), [BlockRange::new(4, 4)], "only the chunk that differs");
    let first = verifies(&said);
    assert_eq!(first.len(), 1, "the other is read back: {said:?}");
    let (place, chunk) = first[0];
    assert_eq!(chunk, 0);
    primary.answer(2, PeerBody::VerifyAck { session, place, matched: false });
    primary.disk_works();
    assert_eq!(copies(&primary.said()), [BlockRange::new(0, 4)]);
}

/// Through to a joiner in Sync: everything is there, and what is written goes there too.
fn synced(primary: &mut Hands, session: CopySession) {
    primary.answer(2, PeerBody::JoinAck { session, digests: Vec::new() });
    let mut answered = 0;
    loop {
        primary.disk_works();
        let said = primary.said();
        let mut place_of_root = None;
        for body in &said {
            match body {
                PeerBody::Copy { place, .. } => {
                    primary.answer(2, PeerBody::PlaceAck { session, place: *place });
                }
                PeerBody::Verify { place, .. } => {
                    let verified = PeerBody::VerifyAck { session, place: *place, matched: true };
                    primary.answer(2, verified);
                }
                PeerBody::VerifyRoot { place, .. } => place_of_root = Some(*place),
                PeerBody::SyncStart { .. } => {
                    primary.answer(2, PeerBody::SyncStartAck { session });
                    return;
                }
                _ => {}
            }
        }
        if let Some(place) = place_of_root {
            primary.answer(2, PeerBody::VerifyAck { session, place, matched: true });
        }
        answered += 1;
        assert!(answered < 20, "the migration does not get on: {said:?}");
    }
}

fn promotes(commands: &[Command]) -> usize {
    commands.iter().filter(|c| matches!(c, Command::Promote { .. })).count()
}

/// The joiner has all that was ever acknowledged. Given up, it would be lost with the disk.
#[test]
fn a_lone_primary_whose_disk_fails_has_its_whole_joiner_promoted() {
    let mut primary = primary();
    primary.learn(with_joiner(of_one(1), 2));
    let session = begun(&primary.said()).expect("the migration begins");
    synced(&mut primary, session);
    primary.proposed();
    primary.write(1, 0);
    primary.disk_fails();
    assert_eq!(primary.role(), Some(Role::Faulted));
    primary.wait_ns(primary.settings.propose_retry_ns * 3);
    let commands = primary.proposed();
    assert!(promotes(&commands) >= 2, "asked for until the map says: {commands:?}");
    assert!(!commands.iter().any(|c| matches!(c, Command::AbortMigration { .. })), "{commands:?}");
    // A newer epoch that still has the joiner changes nothing of that.
    primary.learn(with_joiner(of_one(2), 2));
    let commands = primary.proposed();
    let at_it = |c: &Command| matches!(c, Command::Promote { expect: Epoch(2), .. });
    assert!(commands.iter().any(at_it), "{commands:?}");
}

#[test]
fn a_lone_primary_whose_disk_fails_gives_up_a_joiner_that_is_not_whole() {
    let mut primary = primary();
    primary.learn(with_joiner(of_one(1), 2));
    let session = begun(&primary.said()).expect("the migration begins");
    primary.answer(2, PeerBody::JoinAck { session, digests: Vec::new() });
    primary.disk_fails();
    assert_eq!(primary.role(), Some(Role::Faulted));
    let commands = primary.proposed();
    assert_eq!(promotes(&commands), 0);
    assert!(commands.iter().any(|c| matches!(c, Command::AbortMigration { .. })), "{commands:?}");
}

/// E4. Told by `cargo sim 1737`: the Promote committed under the joiner's older life, the news of
/// which made the newer one drop its stream, and the primary learned of both at once.
#[test]
fn a_joiners_stream_goes_on_only_in_the_epoch_that_promoted_it() {
    for (epoch, life, goes_on) in [(2, 1, true), (3, 2, false)] {
        let mut primary = primary();
        primary.learn(with_joiner(of_one(1), 2));
        let session = begun(&primary.said()).expect("the migration begins");
        synced(&mut primary, session);
        let (sent, segments) = (Tick(1 << 40), vec![(SEGMENT, Epoch(1))]);
        let message = ServerMessage::Lease(LeaseMessage::Grant { sent, segments });
        primary.tell(Event::Answer { peer: ServerId(2), link: LinkId(1), message });
        primary.disk_works();
        primary.tick();
        assert!(promotes(&primary.proposed()) >= 1);
        primary.said();
        let mut promoted = config(epoch, &[1, 2]);
        promoted.members[1].incarnation = Incarnation(life);
        primary.learn(promoted);
        primary.disk_works();
        let said = primary.said();
        let continues = said.iter().any(|body| matches!(body, PeerBody::Continue { .. }));
        let adopts = said.iter().any(|body| matches!(body, PeerBody::Adopt { .. }));
        assert_eq!((continues, adopts), (goes_on, !goes_on), "{said:?}");
    }
}

/// M4: the joiner owes all it may; the next write takes its chunk back, even where that was
/// verified and the root is already asked for.
#[test]
fn a_write_beyond_the_backlog_takes_its_chunk_back_and_the_root_is_asked_for_again() {
    let mut primary = Hands::with_settings(1, |s| s.forward_backlog_blocks_max = 1);
    primary.learn(config(1, &[1]));
    primary.disk_works();
    primary.learn(of_one(1));
    primary.link_up(2);
    primary.learn(with_joiner(of_one(1), 2));
    let session = begun(&primary.said()).expect("the migration begins");
    primary.answer(2, PeerBody::JoinAck { session, digests: Vec::new() });
    primary.disk_works();
    for body in primary.said() {
        if let PeerBody::Copy { place, .. } = body {
            primary.answer(2, PeerBody::PlaceAck { session, place });
        }
    }
    for (place, _) in verifies(&primary.said()) {
        primary.answer(2, PeerBody::VerifyAck { session, place, matched: true });
    }
    let root = |said: &[PeerBody<Blocks>]| {
        said.iter().find_map(|body| match body {
            PeerBody::VerifyRoot { place, .. } => Some(*place),
            _ => None,
        })
    };
    let first_root = root(&primary.said()).expect("all is verified");
    primary.write(1, 0);
    primary.write(2, 5);
    primary.disk_works();
    let said = primary.said();
    let forwards = said.iter().filter(|b| matches!(b, PeerBody::Forward { .. })).count();
    assert_eq!(forwards, 1, "one block may be owed: {said:?}");
    // The answer to the old root starts no Sync.
    primary.answer(2, PeerBody::VerifyAck { session, place: first_root, matched: true });
    let sync =
        |said: &[PeerBody<Blocks>]| said.iter().any(|b| matches!(b, PeerBody::SyncStart { .. }));
    assert!(!sync(&primary.said()));
    primary.wait_ns(200 * smt::config::MS);
    let said = primary.said();
    assert_eq!(copies(&said), [BlockRange::new(4, 4)], "the second chunk goes again: {said:?}");
}

fn new_primaries(hands: &mut Hands) -> Vec<ServerId> {
    let server = |command| match command {
        Command::NewPrimary { server, .. } => Some(server),
        _ => None,
    };
    hands.proposed().into_iter().filter_map(server).collect()
}

fn tick_for(hands: &mut Hands, ns: u64) {
    for _ in 0..ns.div_ceil(50 * smt::config::MS) {
        hands.tick();
    }
}

/// Nobody else can know: this primary renews its leases and answers, only its disk does not.
#[test]
fn a_primary_whose_own_disk_hangs_asks_a_member_that_keeps_up_to_lead() {
    let mut primary = primary();
    primary.learn(with_joiner(of_one(1), 2));
    let session = begun(&primary.said()).expect("the migration begins");
    synced(&mut primary, session);
    primary.tick();
    primary.grant(2);
    primary.tick();
    assert!(promotes(&primary.proposed()) > 0);
    primary.learn(active(config(2, &[1, 2])));
    primary.disk_works();
    assert_eq!(primary.role(), Some(Role::Primary));
    primary.said();
    primary.proposed();
    primary.reports();
    primary.write(7, 3);
    let said = primary.said();
    let sent = said.iter().find_map(|body| match body {
        PeerBody::Replicate { record, .. } => Some(record.seq),
        _ => None,
    });
    primary.answer(2, PeerBody::ReplicateAck { seq: sent.expect("the write goes to server 2") });
    let limit_ns = primary.settings.own_disk_timeout_ns;
    tick_for(&mut primary, limit_ns * 9 / 10);
    assert_eq!(new_primaries(&mut primary), [], "a disk may be slow");
    tick_for(&mut primary, limit_ns / 5);
    assert_eq!(new_primaries(&mut primary), [ServerId(2)]);
    assert_eq!(primary.reports(), [Report::DiskHangs { segment: SEGMENT }], "said once");
    assert_eq!(primary.replies(), [], "the write is durable at one of two");
}

#[test]
fn a_lone_primary_waits_for_its_disk() {
    let mut primary = primary();
    primary.write(7, 3);
    let limit_ns = primary.settings.own_disk_timeout_ns;
    tick_for(&mut primary, limit_ns * 3);
    assert_eq!((primary.proposed(), primary.replies()), (Vec::new(), Vec::new()));
    primary.disk_works();
    assert_eq!(primary.replies(), [ReplyBody::Done]);
}
