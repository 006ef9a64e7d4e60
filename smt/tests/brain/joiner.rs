//! What a replica may do with its file, and when; a joiner's above all.

use smt::message::{Change, PeerBody, Record};
use smt::replica::Role;
use smt::server::Report;
use smt::store::StoreRequest;
use smt::wire::checksum::{chunk_digest, root_digest};
use smt::*;

use crate::hands::{Blocks, CHUNKS, Hands, SEGMENT, active, config, with_joiner};

const SESSION: CopySession = CopySession(5);

/// Server 3 has been filled by server 1 and is a required acker: Promote may be proposed.
fn synced_joiner() -> Hands {
    let mut joiner = Hands::of(3);
    let wish = with_joiner(config(5, &[1, 2]), 3);
    joiner.learn(wish.clone());
    joiner.hear(PeerBody::JoinBegin { session: SESSION, migration: MigrationId(77), config: wish });
    joiner.disk_works();
    assert!(joiner.said().contains(&PeerBody::JoinAck { session: SESSION, digests: Vec::new() }));
    let digest = chunk_digest(&[0; 4]);
    let mut place = 0;
    for chunk in 0..CHUNKS {
        let range = BlockRange::new(chunk * 4, 4);
        let sums = range.blocks().map(|_| 0).collect();
        joiner.hear(PeerBody::Copy { session: SESSION, place: place + 1, range, data: None, sums });
        joiner.hear(PeerBody::Verify { session: SESSION, place: place + 2, chunk, digest });
        joiner.disk_works();
        place += 2;
        let verified = PeerBody::VerifyAck { session: SESSION, place, matched: true };
        assert!(joiner.said().contains(&verified), "chunk {chunk}");
    }
    let root = root_digest(&[digest; 2]);
    joiner.hear(PeerBody::VerifyRoot { session: SESSION, place: place + 1, root });
    joiner.hear(PeerBody::SyncStart {
        session: SESSION,
        place: place + 2,
        next_seq: Seq(1),
        commit: Seq(0),
    });
    joiner.disk_works();
    assert!(joiner.said().contains(&PeerBody::SyncStartAck { session: SESSION }));
    joiner.asked();
    joiner
}

fn replicate(seq: u64) -> PeerBody<Blocks> {
    let record = Record { seq: Seq(seq), range: BlockRange::new(2, 3), change: Change::Zero };
    PeerBody::Replicate { commit: Seq(0), record }
}

/// The same, and then its disk fails a write that it is a required acker of.
fn faulted_joiner() -> Hands {
    let mut joiner = synced_joiner();
    joiner.hear(replicate(1));
    joiner.disk_fails();
    assert_eq!(joiner.role(), Some(Role::Faulted));
    let error = "EIO".to_owned();
    assert_eq!(joiner.reports(), [Report::ReplicaFaulted { segment: SEGMENT, error }]);
    joiner.asked();
    joiner
}

/// `cargo sim 876`: the primary was quicker than the map, which then told of the same epoch from
/// before the wish. The joiner took that for the end of it and left its stream without a word; it
/// was promoted all the same, and nobody noticed before the next write, which waited for it.
#[test]
fn a_joiner_keeps_its_stream_when_the_map_is_behind_its_primary() {
    let mut joiner = synced_joiner();
    joiner.learn(active(config(5, &[1, 2])));
    assert_eq!(joiner.role(), Some(Role::Joiner));
    joiner.hear(replicate(1));
    joiner.disk_works();
    assert!(joiner.said().contains(&PeerBody::ReplicateAck { seq: Seq(1) }));
}

/// Without a word, the migration would wait a minute for a target that never answers.
#[test]
fn a_target_whose_disk_fails_says_so_and_why() {
    let mut joiner = Hands::of(3);
    let wish = with_joiner(config(5, &[1, 2]), 3);
    joiner.learn(wish.clone());
    let begin = |session| {
        let config = wish.clone();
        PeerBody::JoinBegin { session, migration: MigrationId(77), config }
    };
    joiner.hear(begin(SESSION));
    joiner.disk_works();
    joiner.said();
    // It has a file now, which the next session has it mark.
    let session = CopySession(6);
    joiner.hear(begin(session));
    joiner.disk_fails();
    let reason = "its disk failed: EIO".to_owned();
    assert_eq!(joiner.said(), [PeerBody::JoinRefused { session, reason }]);
    assert_eq!(joiner.role(), Some(Role::Faulted));
    // Asked once more, it says no at once; with the end of the wish it is free again.
    let session = CopySession(7);
    joiner.hear(begin(session));
    assert!(
        matches!(joiner.said()[..], [PeerBody::JoinRefused { session: s, .. }] if s == session)
    );
    joiner.learn(config(6, &[1, 2]));
    assert_eq!(deletes(&mut joiner), 1);
}

fn deletes(joiner: &mut Hands) -> usize {
    joiner.asked().iter().filter(|request| **request == StoreRequest::Delete).count()
}

/// Found by `cargo sim 317286`. The map told of the same epoch once more, because its primary had
/// reported it active; the joiner took that for the end of the wish, and deleted blocks that the
/// Promote on its way then made it answer for.
#[test]
fn a_faulted_joiner_keeps_its_file_while_its_promote_may_commit() {
    let mut joiner = faulted_joiner();
    joiner.learn(active(with_joiner(config(5, &[1, 2]), 3)));
    joiner.disk_works();
    assert_eq!(deletes(&mut joiner), 0, "a Promote planned at this epoch may still win");
    joiner.learn(active(config(5, &[1, 2])));
    joiner.disk_works();
    assert_eq!(deletes(&mut joiner), 0, "only a newer epoch refuses a Promote of this one");
    // It does win: the file counts, until the map has done without it.
    joiner.learn(config(6, &[1, 2, 3]));
    joiner.wait_ns(joiner.settings.forget_grace_ns * 2);
    assert_eq!(deletes(&mut joiner), 0, "a member does not delete what it answers for");
    assert_eq!(joiner.role(), Some(Role::Faulted));
    joiner.learn(config(7, &[1, 2]));
    assert_eq!(deletes(&mut joiner), 1);
}

#[test]
fn a_faulted_joiner_deletes_its_file_once_a_newer_epoch_does_without_it() {
    let mut joiner = faulted_joiner();
    joiner.learn(config(6, &[1, 2]));
    assert_eq!(deletes(&mut joiner), 1);
    joiner.disk_works();
    assert_eq!(joiner.role(), None, "the server forgets the replica with its file");
    // And it may be filled anew.
    let wish = with_joiner(config(6, &[1, 2]), 3);
    joiner.learn(wish.clone());
    let session = CopySession(6);
    joiner.hear(PeerBody::JoinBegin { session, migration: MigrationId(77), config: wish });
    joiner.disk_works();
    assert!(joiner.said().contains(&PeerBody::JoinAck { session, digests: Vec::new() }));
}

/// A faulted joiner that is to be filled again in the newer epoch keeps its file too: it may be
/// the same wish, whose Promote is planned anew.
#[test]
fn a_faulted_joiner_keeps_its_file_in_a_newer_epoch_that_still_wishes_for_it() {
    let mut joiner = faulted_joiner();
    joiner.learn(with_joiner(config(6, &[1]), 3));
    joiner.disk_works();
    assert_eq!(deletes(&mut joiner), 0);
}

/// An ex-member whose segment is whole elsewhere, deleting its file (M11).
fn deleting() -> Hands {
    let mut server = Hands::of(3);
    server.learn(config(1, &[1, 2, 3]));
    server.disk_works();
    assert_eq!(server.role(), Some(Role::Backup));
    server.learn(active(config(2, &[1, 2, 4])));
    server.disk_works();
    server.asked();
    // Nothing goes as long as a member is silent.
    let grace_ns = server.settings.forget_grace_ns;
    server.living = vec![1, 4];
    server.wait_ns(3 * grace_ns);
    assert_eq!(deletes(&mut server), 0, "server 2 may be lost, and this the copy to fall back on");
    server.living = vec![1, 2, 4];
    // Up to the tick that asks for the deletion, which the disk does not do yet.
    server.tick();
    server.wait_ns(grace_ns - 50 * smt::config::MS);
    assert_eq!(deletes(&mut server), 0, "the grace is not over");
    server.tick();
    assert_eq!(server.asked(), [StoreRequest::Delete]);
    server
}

/// Mended in 28c594f, found by killing a primary twice in a row under fio: what the joiner asked of
/// the vanished file failed, and the replica was given up for good. `cargo sim 90` told it too.
#[test]
fn a_joiner_is_not_begun_before_its_servers_old_file_is_gone() {
    let mut server = deleting();
    let wish = with_joiner(active(config(3, &[1, 2])), 3);
    server.learn(wish.clone());
    server.hear(PeerBody::JoinBegin { session: SESSION, migration: MigrationId(77), config: wish });
    assert_eq!(server.asked(), [], "nothing is asked of a file that is going");
    // The file is gone; then it is made, and only then anything else is asked of it.
    server.disk_works();
    let asked = server.asked();
    assert!(matches!(asked[0], StoreRequest::Create { .. }), "{asked:?}");
    assert!(server.said().contains(&PeerBody::JoinAck { session: SESSION, digests: Vec::new() }));
    assert_eq!(server.role(), Some(Role::Joiner));
}

#[test]
fn a_newer_epoch_asks_nothing_of_a_file_that_is_going() {
    let mut server = deleting();
    server.learn(active(config(3, &[1, 2, 4])));
    assert_eq!(server.asked(), []);
    server.disk_works();
    assert_eq!(server.role(), None);
}

/// A volume is deleted the moment it was made: its segments' files are still being made. What is
/// asked of one behind its deletion fails, and the disk keeps its failed store for good.
#[test]
fn a_segment_deleted_while_its_file_is_being_made_asks_nothing_more_of_it() {
    let mut server = Hands::of(2);
    server.learn(config(1, &[1, 2]));
    assert!(matches!(server.asked()[..], [StoreRequest::Create { .. }]));
    server.delete();
    assert_eq!(server.asked(), [StoreRequest::Delete]);
    server.disk_works();
    assert_eq!(server.asked(), []);
    assert_eq!(server.role(), None);
}

/// `cargo sim 5518`, 9475 and 25090: a primary that has not heard yet that the epoch has moved on
/// asks an ex-member to adopt. That has deleted its file and forgotten the epoch, takes the old
/// one for news, and gives itself up as a member whose file is missing: until the segment's next
/// change it can be no joiner of it.
#[test]
fn an_adopt_of_an_older_epoch_does_not_fault_a_server_that_forgot_the_segment() {
    let mut server = deleting();
    server.disk_works();
    assert_eq!(server.role(), None);
    let old = active(config(1, &[1, 2, 3]));
    server.hear_at(old.epoch, PeerBody::Adopt { round: 2, config: old });
    assert_eq!(server.reports(), []);
    assert_ne!(server.role(), Some(Role::Faulted));
}

/// M2: a member that was evicted, and is to be filled again, keeps what it has and tells its primary
/// what that is, by the digests of its table.
#[test]
fn an_ex_member_that_joins_again_keeps_its_file_and_tells_what_is_in_it() {
    let mut server = Hands::of(3);
    server.learn(config(1, &[1, 2, 3]));
    server.disk_works();
    server.learn(active(config(2, &[1, 2])));
    server.disk_works();
    server.asked();
    let wish = with_joiner(active(config(2, &[1, 2])), 3);
    server.learn(wish.clone());
    server.hear(PeerBody::JoinBegin { session: SESSION, migration: MigrationId(77), config: wish });
    assert!(!server.said().iter().any(|b| matches!(b, PeerBody::JoinAck { .. })));
    let asked = server.asked();
    let [StoreRequest::SetMeta { meta }] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(meta.joining, Some(MigrationId(77)), "marked before anything else");
    server.disk_works();
    let digests = vec![chunk_digest(&[0; 4]); 2];
    assert!(server.said().contains(&PeerBody::JoinAck { session: SESSION, digests }));
    let range = BlockRange::new(0, 8);
    assert_eq!(server.asked(), [StoreRequest::Sums { range }], "and nothing was emptied");
}

/// A member whose disk failed and that the others went on without. Its file has what was
/// acknowledged until then: an operator may need it (S11).
fn faulted_ex_member() -> Hands {
    let mut server = Hands::of(3);
    server.learn(config(1, &[1, 3]));
    server.disk_works();
    let round = 1;
    server.hear(PeerBody::Adopt { round, config: config(1, &[1, 3]) });
    server.hear(PeerBody::Start { round, next_seq: Seq(1) });
    server.disk_works();
    server.hear(replicate(1));
    server.disk_fails();
    assert_eq!(server.role(), Some(Role::Faulted));
    server.learn(active(config(2, &[1])));
    server.disk_works();
    server.asked();
    server
}

#[test]
fn a_faulted_ex_member_keeps_its_file_until_the_segment_is_whole_without_it() {
    let mut server = faulted_ex_member();
    let grace_ns = server.settings.forget_grace_ns;
    server.living = vec![1, 2, 4];
    server.wait_ns(3 * grace_ns);
    assert_eq!(deletes(&mut server), 0, "one copy of three is left");
    assert_eq!(server.role(), Some(Role::Faulted), "and it takes no part");
    server.learn(active(config(3, &[1, 2, 4])));
    server.wait_ns(3 * grace_ns);
    assert_eq!(deletes(&mut server), 1);
    assert_eq!(server.role(), None);
}

#[test]
fn a_faulted_ex_member_makes_room_for_a_joiner() {
    let mut server = faulted_ex_member();
    let wish = with_joiner(active(config(2, &[1])), 3);
    server.learn(wish.clone());
    server.hear(PeerBody::JoinBegin { session: SESSION, migration: MigrationId(77), config: wish });
    assert_eq!(deletes(&mut server), 1);
    server.disk_works();
    assert!(server.said().contains(&PeerBody::JoinAck { session: SESSION, digests: Vec::new() }));
}

/// S11: an older copy is forced. The ex-member has heard of epochs it had no part in, and leads.
#[test]
fn a_forced_ex_member_activates_alone() {
    let mut server = Hands::of(3);
    server.learn(config(1, &[1, 2, 3]));
    server.disk_works();
    server.learn(active(config(2, &[1, 2])));
    server.disk_works();
    assert_eq!(server.role(), Some(Role::None));
    let mut forced = config(3, &[3]);
    forced.primary = ServerId(3);
    server.learn(forced);
    server.wait_ns(server.settings.lease_ns);
    assert_eq!(server.role(), Some(Role::Primary));
    let activated = Report::Activated { segment: SEGMENT, epoch: Epoch(3) };
    assert!(server.reports().contains(&activated));
}
