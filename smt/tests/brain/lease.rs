//! A backup and the promises its primary asks for (L1, E2).

use smt::message::{LeaseMessage, PeerBody, ServerMessage};
use smt::replica::Role;
use smt::server::Event;
use smt::*;

use crate::hands::{Hands, SEGMENT, config};

fn asks(backup: &mut Hands, epoch: u64) {
    let segments = vec![(SEGMENT, Epoch(epoch))];
    let message = ServerMessage::Lease(LeaseMessage::Request { sent: Tick(1), segments });
    let (peer, incarnation, link) = (ServerId(1), Incarnation(1), LinkId(1));
    backup.tell(Event::Request { peer, incarnation, link, message });
}

/// Told by `primary_cut_from_consensus_after_promote` of the simulator: a Promote was committed, and
/// its primary, cut from consensus alone, had nothing in flight that a peer could have refused. It
/// went on asking for leases at the old epoch, was granted none, and told every client of the new
/// one to come again, for as long as the map did not reach it.
#[test]
fn who_asks_for_a_lease_at_an_older_epoch_is_told_the_newer_one() {
    let mut backup = Hands::of(2);
    backup.learn(config(1, &[1, 2]));
    backup.disk_works();
    let newer = config(2, &[1, 2, 3]);
    backup.learn(newer.clone());
    backup.disk_works();
    assert_eq!(backup.role(), Some(Role::Backup));
    backup.said();
    asks(&mut backup, 1);
    assert_eq!(backup.said(), [PeerBody::Stale { config: newer }]);
    asks(&mut backup, 2);
    assert_eq!(backup.said(), []);
}
