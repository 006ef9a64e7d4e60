//! Rot: who may write over it, with what, and when members are compared (R3).

use std::collections::BTreeSet;

use smt::message::{
    BlockCheck, Change, LeaseMessage, PeerBody, Record, ReplyBody, RequestBody, ServerMessage,
};
use smt::server::{Comparison, Event, Report};
use smt::store::{StoreRequest, StoreResult};
use smt::*;

use crate::hands::{Blocks, Hands, SEGMENT, config};

const BLOCK: BlockRange = BlockRange { first: 3, count: 1 };

/// What block 3 holds, and the sum of it.
const GOOD: u64 = 40;
const GOOD_SUM: u64 = GOOD + 1;

fn data(value: u64) -> (Blocks, Sums) {
    let data = Blocks::of(value);
    let sums = smt::payload::sums_of(&data, SEGMENT, BLOCK.first);
    (data, sums)
}

fn suspect(server: &mut Hands) {
    server.tell(Event::Suspect { segment: SEGMENT, range: BLOCK });
}

fn compare(server: &mut Hands) {
    server.tell(Event::Compare { segment: SEGMENT, range: BLOCK, io: IoId(7) });
}

/// The disk says that the block it was asked to check is bad.
fn is_bad(server: &mut Hands) {
    assert_eq!(server.asked(), [StoreRequest::Check { ranges: vec![BLOCK] }]);
    let checks = vec![BlockCheck::Bad { actual: 99 }];
    server.disk_answers(StoreResult::Checks { checks });
}

/// Server 1 leads servers 2 and 3, and knows their links.
fn primary() -> Hands {
    primary_with(|_| {})
}

fn primary_with(change: impl FnOnce(&mut Settings)) -> Hands {
    let mut primary = Hands::with_settings(1, change);
    primary.link_up(2);
    primary.link_up(3);
    primary.learn(config(5, &[1, 2, 3]));
    primary.disk_works();
    let round = primary.said().iter().find_map(|body| match body {
        PeerBody::Adopt { round, .. } => Some(*round),
        _ => None,
    });
    let round = round.expect("it asks its members to adopt");
    let (max_seq, tail, in_doubt) = (Seq(0), Vec::new(), Vec::new());
    for peer in [2, 3] {
        let (tail, in_doubt) = (Vec::clone(&tail), Vec::clone(&in_doubt));
        primary.answer(peer, PeerBody::AdoptAck { round, max_seq, tail, in_doubt });
    }
    primary.disk_works();
    for peer in [2, 3] {
        primary.answer(peer, PeerBody::StartAck { round });
    }
    assert_eq!(primary.role(), Some(smt::replica::Role::Primary));
    primary.said();
    primary.asked();
    primary.reports();
    primary
}

/// Server 2, whose stream from server 1 begins at 1.
fn backup() -> Hands {
    let mut backup = Hands::of(2);
    backup.learn(config(5, &[1, 2, 3]));
    backup.disk_works();
    backup.hear(PeerBody::Adopt { round: 1, config: config(5, &[1, 2, 3]) });
    backup.hear(PeerBody::Start { round: 1, next_seq: Seq(1) });
    backup.disk_works();
    assert!(backup.said().contains(&PeerBody::StartAck { round: 1 }));
    backup.asked();
    backup
}

fn sums_asked(said: &[PeerBody<Blocks>]) -> u64 {
    let asked = said.iter().find_map(|body| match body {
        PeerBody::SumsOf { id, range: BLOCK } => Some(*id),
        _ => None,
    });
    asked.expect("the members are asked for their sums")
}

/// The record on its way to the members, if there is one; the same to all.
fn replicated(said: &[PeerBody<Blocks>]) -> Option<Record<Blocks>> {
    said.iter().find_map(|body| match body {
        PeerBody::Replicate { record, .. } => Some(record.clone()),
        _ => None,
    })
}

#[test]
fn a_backup_tells_of_its_rot_and_writes_nothing_by_itself() {
    let mut backup = backup();
    suspect(&mut backup);
    is_bad(&mut backup);
    assert_eq!(backup.said(), [PeerBody::Rotten { ranges: vec![BLOCK] }]);
    assert_eq!(backup.asked(), [], "the stream orders its writes");
    assert_eq!(backup.reports(), [], "nothing is known of its repair yet");
    let (data, sums) = data(GOOD);
    let record = Record { seq: Seq(1), range: BLOCK, change: Change::Write { data, sums } };
    backup.hear(PeerBody::Replicate { commit: Seq(0), record });
    backup.disk_works();
    let (segment, blocks) = (SEGMENT, vec![BLOCK.first]);
    assert_eq!(backup.reports(), [Report::Mismatch { segment, blocks, repaired: true }]);
}

/// The reader outside takes no lock, and saw a write half done.
#[test]
fn a_suspicion_that_is_unfounded_leaves_no_trace() {
    let mut backup = backup();
    suspect(&mut backup);
    backup.disk_works();
    assert_eq!((backup.said(), backup.reports()), (Vec::new(), Vec::new()));
}

#[test]
fn a_backup_that_is_not_mended_says_so_in_the_end() {
    let mut backup = backup();
    suspect(&mut backup);
    is_bad(&mut backup);
    let ack_ns = backup.settings.ack_timeout_ns;
    backup.wait_ns(ack_ns * 9);
    let told = backup.said();
    let times = told.iter().filter(|b| matches!(b, PeerBody::Rotten { .. })).count();
    assert_eq!(times, 3, "the primary may have forgotten it");
    let (segment, blocks) = (SEGMENT, vec![BLOCK.first]);
    assert_eq!(backup.reports(), [Report::Mismatch { segment, blocks, repaired: false }]);
    backup.wait_ns(ack_ns * 9);
    assert_eq!((backup.said(), backup.reports()), (Vec::new(), Vec::new()), "and rests");
}

#[test]
fn rot_of_a_backup_is_written_over_by_an_ordinary_record() {
    let mut primary = primary();
    primary.answer(2, PeerBody::Rotten { ranges: vec![BLOCK] });
    let id = sums_asked(&primary.said());
    for peer in [2, 3] {
        primary.answer(peer, PeerBody::Summed { id, sums: vec![GOOD_SUM] });
    }
    primary.disk_answers(StoreResult::Sums { sums: vec![GOOD_SUM] });
    primary.asked();
    let (data, sums) = data(GOOD);
    primary.disk_answers(StoreResult::Data { data: data.clone(), sums: sums.clone() });
    let record = replicated(&primary.said()).expect("a record");
    assert_eq!(record.seq, Seq(1));
    assert_eq!(record.change, Change::Write { data, sums });
}

/// The primary is the one that went astray: its own copy must not be what mends the others.
#[test]
fn the_majority_is_asked_for_what_the_primary_does_not_hold() {
    let mut primary = primary();
    compare(&mut primary);
    let id = sums_asked(&primary.said());
    primary.disk_answers(StoreResult::Sums { sums: vec![77] });
    for peer in [2, 3] {
        primary.answer(peer, PeerBody::Summed { id, sums: vec![GOOD_SUM] });
    }
    // The first to be asked gives something else than it said, which must not be taken.
    assert_eq!(primary.said(), [PeerBody::Fetch { id, range: BLOCK, raw: false }]);
    primary.answer(3, PeerBody::Fetched { id, content: Some(data(12)) });
    assert_eq!(primary.said(), [PeerBody::Fetch { id, range: BLOCK, raw: false }]);
    let good = data(GOOD);
    primary.answer(2, PeerBody::Fetched { id, content: Some(good.clone()) });
    let record = replicated(&primary.said()).expect("a record");
    assert_eq!(record.change, Change::Write { data: good.0, sums: good.1 });
    primary.disk_works();
    assert_eq!(primary.compared(), [], "it is not committed yet");
    primary.answer(2, PeerBody::ReplicateAck { seq: Seq(1) });
    primary.answer(3, PeerBody::ReplicateAck { seq: Seq(1) });
    let blocks = vec![BLOCK.first];
    assert_eq!(primary.compared(), [Comparison::Repaired { blocks: blocks.clone() }]);
    let report = Report::Diverged { segment: SEGMENT, blocks, repaired: true };
    assert_eq!(primary.reports(), [report]);
}

#[test]
fn a_tie_goes_to_the_primarys_copy() {
    let mut primary = primary();
    compare(&mut primary);
    let id = sums_asked(&primary.said());
    primary.disk_answers(StoreResult::Sums { sums: vec![GOOD_SUM] });
    primary.answer(2, PeerBody::Summed { id, sums: vec![8] });
    primary.answer(3, PeerBody::Summed { id, sums: vec![9] });
    assert_eq!(primary.asked().last(), Some(&StoreRequest::Read { range: BLOCK }));
}

/// Tables of members that are all rotten in the same way are a majority of nothing.
#[test]
fn a_sum_that_nobody_has_blocks_for_loses_its_vote() {
    let mut primary = primary();
    compare(&mut primary);
    let id = sums_asked(&primary.said());
    primary.disk_answers(StoreResult::Sums { sums: vec![GOOD_SUM] });
    for peer in [2, 3] {
        primary.answer(peer, PeerBody::Summed { id, sums: vec![8] });
    }
    for peer in [3, 2] {
        primary.answer(peer, PeerBody::Fetched { id, content: None });
    }
    assert_eq!(primary.asked().last(), Some(&StoreRequest::Read { range: BLOCK }));
}

#[test]
fn members_are_compared_only_once_a_write_in_flight_is_committed() {
    let mut primary = primary();
    primary.write(1, BLOCK.first);
    primary.said();
    compare(&mut primary);
    primary.write(2, BLOCK.first);
    primary.disk_works();
    primary.answer(2, PeerBody::ReplicateAck { seq: Seq(1) });
    assert_eq!(primary.said(), [], "server 3 may not have the write yet");
    primary.answer(3, PeerBody::ReplicateAck { seq: Seq(1) });
    let said = primary.said();
    sums_asked(&said);
    assert_eq!(replicated(&said), None, "and the next write waits for the comparison");
    assert_eq!(primary.replies(), [ReplyBody::Done]);
}

/// A member that says nothing must not keep writers waiting, nor whoever asked.
#[test]
fn a_comparison_ends_though_a_member_is_mute() {
    let mut primary = primary();
    compare(&mut primary);
    primary.disk_works();
    primary.write(1, BLOCK.first);
    assert_eq!(replicated(&primary.said()), None);
    let ack_ns = primary.settings.ack_timeout_ns;
    primary.wait_ns(ack_ns);
    assert_eq!(primary.compared(), [Comparison::Busy]);
    assert!(replicated(&primary.said()).is_some(), "the write goes on");
}

#[test]
fn an_epoch_change_ends_a_comparison() {
    let mut primary = primary();
    compare(&mut primary);
    primary.learn(config(6, &[1, 2]));
    assert_eq!(primary.compared(), [Comparison::Busy]);
    let mut backup = backup();
    compare(&mut backup);
    assert_eq!(backup.compared(), [Comparison::NotPrimary]);
}

/// Two members are rotten, each in another block of the run: nobody has all of it, and each block
/// is good somewhere.
#[test]
fn a_run_of_bad_blocks_is_repaired_block_by_block_where_nobody_has_all_of_it() {
    let mut primary = primary();
    let run = BlockRange::new(3, 2);
    primary.ask(1, 0, RequestBody::Read { range: run });
    primary.disk_answers(StoreResult::BadBlocks { blocks: vec![3, 4] });
    primary.disk_answers(StoreResult::Sums { sums: vec![GOOD_SUM, 2] });
    let id = fetched_for(&mut primary, run);
    primary.answer(3, PeerBody::Fetched { id, content: None });
    fetched_for(&mut primary, run);
    primary.answer(2, PeerBody::Fetched { id, content: None });
    primary.disk_answers(StoreResult::Sums { sums: vec![GOOD_SUM] });
    let id = fetched_for(&mut primary, BLOCK);
    primary.asked();
    let (data, sums) = data(GOOD);
    primary.answer(3, PeerBody::Fetched { id, content: Some((data.clone(), sums.clone())) });
    assert_eq!(primary.asked(), [StoreRequest::Write { range: BLOCK, data, sums }]);
    primary.disk_answers(StoreResult::Done);
    assert_eq!(primary.asked(), [StoreRequest::Read { range: run }], "and then read again");
}

fn fetched_for(primary: &mut Hands, wanted: BlockRange) -> u64 {
    let said = primary.said();
    let [PeerBody::Fetch { id, range, raw: false }] = said[..] else { panic!("{said:?}") };
    assert_eq!(range, wanted);
    id
}

/// The disk takes what it is given and does not give it back. Told by `cargo sim 198`: the client
/// was answered with an error, though two members had its block.
#[test]
fn a_read_of_what_does_not_stay_repaired_is_answered_with_another_members_copy() {
    let mut primary = primary();
    let sent = Tick(1 << 40);
    for peer in [2, 3] {
        let segments = vec![(SEGMENT, Epoch(5))];
        let message = ServerMessage::Lease(LeaseMessage::Grant { sent, segments });
        primary.tell(Event::Answer { peer: ServerId(peer), link: LinkId(1), message });
    }
    let (data, sums) = data(GOOD);
    let write = StoreRequest::Write { range: BLOCK, data: data.clone(), sums: sums.clone() };
    primary.ask(1, 0, RequestBody::Read { range: BLOCK });
    for written in [Some(write.clone()), Some(write), None] {
        primary.disk_answers(StoreResult::BadBlocks { blocks: vec![BLOCK.first] });
        primary.disk_answers(StoreResult::Sums { sums: vec![GOOD_SUM] });
        let id = fetched_for(&mut primary, BLOCK);
        primary.asked();
        let content = Some((data.clone(), sums.clone()));
        primary.answer(3, PeerBody::Fetched { id, content });
        assert_eq!(primary.asked(), Vec::from_iter(written.clone()));
        if written.is_some() {
            assert_eq!(primary.replies(), []);
            primary.disk_answers(StoreResult::Done);
        }
    }
    assert_eq!(primary.replies(), [ReplyBody::Data { data, sums }]);
}

/// The numbers of the records that went out since this was asked last.
fn numbers(primary: &mut Hands) -> BTreeSet<Seq> {
    let said = primary.said();
    let number = |body: &PeerBody<Blocks>| match body {
        PeerBody::Replicate { record, .. } => Some(record.seq),
        _ => None,
    };
    said.iter().filter_map(number).collect()
}

/// I11. Four blocks of the primary's are to be zero, each by itself: a mend of four records. They
/// were all in the tail at once, beyond its limit, and clients were told to come again for it.
#[test]
fn mends_have_two_places_in_the_tail_and_take_none_of_the_clients() {
    let mut primary = primary_with(|settings| settings.inflight_records_max = 2);
    let range = BlockRange::new(0, 7);
    primary.tell(Event::Compare { segment: SEGMENT, range, io: IoId(7) });
    let said = primary.said();
    let asked = said.iter().find_map(|body| match body {
        PeerBody::SumsOf { id, .. } => Some(*id),
        _ => None,
    });
    let id = asked.expect("the members are asked for their sums");
    primary.disk_answers(StoreResult::Sums { sums: vec![5, 6, 5, 6, 5, 6, 5] });
    for peer in [2, 3] {
        primary.answer(peer, PeerBody::Summed { id, sums: vec![0, 6, 0, 6, 0, 6, 0] });
    }
    assert_eq!(numbers(&mut primary), BTreeSet::from([Seq(1), Seq(2)]));
    primary.write(1, 7);
    primary.write(2, 0);
    assert_eq!(numbers(&mut primary), BTreeSet::from([Seq(3)]), "the other waits for the mend");
    assert_eq!(primary.replies(), []);
    primary.write(3, 7);
    assert!(matches!(primary.replies()[..], [ReplyBody::Retry { .. }]));
    primary.disk_works();
    for peer in [2, 3] {
        primary.answer(peer, PeerBody::ReplicateAck { seq: Seq(1) });
    }
    assert_eq!(numbers(&mut primary), BTreeSet::from([Seq(4)]), "one place is free again");
}

/// A member's copy that verifies, but is not what our table wants, may be an old one: it is taken
/// only where nobody has what our table wants.
#[test]
fn a_repair_prefers_what_our_own_table_wants() {
    let mut primary = primary();
    suspect(&mut primary);
    is_bad(&mut primary);
    primary.disk_answers(StoreResult::Sums { sums: vec![GOOD_SUM] });
    let id = fetched_for(&mut primary, BLOCK);
    primary.asked();
    primary.answer(3, PeerBody::Fetched { id, content: Some(data(12)) });
    assert_eq!(primary.asked(), [], "not yet");
    fetched_for(&mut primary, BLOCK);
    let (data, sums) = data(GOOD);
    primary.answer(2, PeerBody::Fetched { id, content: Some((data.clone(), sums.clone())) });
    assert_eq!(primary.asked(), [StoreRequest::Write { range: BLOCK, data, sums }]);
}

/// F2 in a hot region: a block in doubt that has rotted here does not win over the copy that
/// verifies; where none verifies, it is reported.
#[test]
fn rot_in_a_region_in_doubt_is_not_blessed_by_an_activation() {
    for their_check in [BlockCheck::Good(GOOD_SUM), BlockCheck::Bad { actual: 55 }] {
        let mut primary = Hands::of(1);
        primary.link_up(2);
        primary.learn(config(5, &[1, 2]));
        primary.disk_works();
        let round = primary.said().iter().find_map(|body| match body {
            PeerBody::Adopt { round, .. } => Some(*round),
            _ => None,
        });
        let round = round.expect("it asks its member to adopt");
        primary.answer(
            2,
            PeerBody::AdoptAck { round, max_seq: Seq(4), tail: Vec::new(), in_doubt: vec![BLOCK] },
        );
        primary.asked();
        primary.disk_answers(StoreResult::Checks { checks: vec![BlockCheck::Bad { actual: 99 }] });
        primary.said();
        primary.answer(2, PeerBody::Collected { round, checks: vec![their_check] });
        let said = primary.said();
        let blamed = Report::Unverified { segment: SEGMENT, block: BLOCK.first };
        if let BlockCheck::Good(_) = their_check {
            let [PeerBody::Fetch { id, range: BLOCK, raw: false }] = said[..] else {
                panic!("{said:?}")
            };
            primary.asked();
            let (data, sums) = data(GOOD);
            primary
                .answer(2, PeerBody::Fetched { id, content: Some((data.clone(), sums.clone())) });
            assert_eq!(primary.asked(), [StoreRequest::Write { range: BLOCK, data, sums }]);
            assert!(!primary.reports().contains(&blamed));
        } else {
            assert!(primary.reports().contains(&blamed), "nobody's copy verifies");
        }
    }
}
