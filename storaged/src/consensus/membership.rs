//! Who is a member of the log, and who of them votes.
//!
//! Invariant: a server becomes a voter only after it was a member that had nearly caught up, and
//! voters are replaced in two majorities (joint consensus), so no moment has two quorums that
//! miss each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, LogIdOptionExt};
use tokio::time::timeout;

use super::types::{Peer, ServerId, TypeConfig};
use super::wire::Change;
use super::{Consensus, ProposeError, StateMachine, Transport};

/// How many entries a member may lack and still become a voter: some seconds of catching up.
const VOTER_LAG_MAX: u64 = 1000;

type Written = Result<
    openraft::raft::ClientWriteResponse<TypeConfig>,
    RaftError<ServerId, ClientWriteError<ServerId, Peer>>,
>;

/// A member as [`voters_wanted`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterCandidate {
    pub id: ServerId,
    /// Failure domain; servers of one zone are expected to fail together.
    pub zone: String,
    /// False once it was away for longer than a restart takes (10 minutes).
    pub up: bool,
    /// Whether it votes now: among equals it goes on.
    pub votes: bool,
}

/// The servers that should vote: 1 of 1, all of 2 or 3, 3 of 4 to 6, 5 of 7 and more. Servers
/// that are up come first, then zones that have no voter yet, then those that vote already.
///
/// Two servers need each other: nothing can be decided while one of them is away.
pub fn voters_wanted(servers: &[VoterCandidate]) -> BTreeSet<ServerId> {
    let wanted = match servers.len() {
        count @ 0..=3 => count,
        4..=6 => 3,
        _ => 5,
    };
    let mut voters = BTreeSet::new();
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    while voters.len() < wanted {
        let best =
            servers.iter().filter(|server| !voters.contains(&server.id)).min_by_key(|server| {
                let crowd = in_zone.get(server.zone.as_str()).copied().unwrap_or(0);
                (!server.up, crowd, !server.votes, server.id)
            });
        let Some(best) = best else {
            // Fewer different ids than entries.
            break;
        };
        voters.insert(best.id);
        *in_zone.entry(best.zone.as_str()).or_default() += 1;
    }
    voters
}

impl<SM: StateMachine, T: Transport> Consensus<SM, T> {
    /// Makes server `id` a member that receives the log but does not vote, or changes where a
    /// member is reached. May be asked on any server, and repeated.
    ///
    /// # Errors
    /// See [`ProposeError`]; repeating is safe in every case.
    pub async fn add_member(&self, id: ServerId, peer: Peer) -> Result<(), ProposeError> {
        self.change_anywhere(Change::Add { id, peer }).await
    }

    /// Takes server `id` out of the membership for ever. May be asked on any server, and
    /// repeated.
    ///
    /// # Errors
    /// See [`ProposeError`]; the last voter is refused. Repeating is safe in every case.
    pub async fn remove_member(&self, id: ServerId) -> Result<(), ProposeError> {
        self.change_anywhere(Change::Remove { id }).await
    }

    /// Makes exactly `voters` vote; who voted and is not among them stays a member. May be asked
    /// on any server, and repeated. Also completes a change that a dead leader left half-way.
    ///
    /// # Errors
    /// See [`ProposeError`]; refused when one of them is no member, or lacks too much of the
    /// log. Repeating is safe in every case.
    pub async fn set_voters(&self, voters: BTreeSet<ServerId>) -> Result<(), ProposeError> {
        self.change_anywhere(Change::SetVoters { voters }).await
    }

    /// Where every member is reached, as far as this server knows.
    pub fn members(&self) -> BTreeMap<ServerId, Peer> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let nodes = metrics.membership_config.nodes();
        nodes.map(|(id, peer)| (*id, peer.clone())).collect()
    }

    /// Carries out a change, as leader.
    pub(super) async fn change_here(&self, change: Change) -> Result<(), ProposeError> {
        let metrics = self.inner.raft.metrics().borrow().clone();
        if !metrics.state.is_leader() {
            let leader = metrics.current_leader.filter(|leader| *leader != metrics.id);
            return Err(ProposeError::NotLeader { leader });
        }
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<ServerId> = membership.voter_ids().collect();
        let (changes, retain) = match change {
            Change::Add { id, peer } => match membership.get_node(&id) {
                Some(known) if *known == peer => return Ok(()),
                Some(_) => (ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), true),
                None => (ChangeMembers::AddNodes(BTreeMap::from([(id, peer)])), true),
            },
            Change::Remove { id } => {
                if membership.get_node(&id).is_none() {
                    return Ok(());
                }
                if !voters.contains(&id) {
                    (ChangeMembers::RemoveNodes(BTreeSet::from([id])), true)
                } else if voters.len() == 1 {
                    let reason = format!("server {id} is the last voter");
                    return Err(ProposeError::Refused(reason));
                } else {
                    (ChangeMembers::RemoveVoters(BTreeSet::from([id])), false)
                }
            }
            Change::SetVoters { voters: wanted } => {
                if wanted.is_empty() {
                    return Err(ProposeError::Refused("a log needs a voter".into()));
                }
                if wanted == voters && membership.get_joint_config().len() == 1 {
                    return Ok(());
                }
                let last = metrics.last_log_index.map_or(0, |last| last.saturating_add(1));
                for id in wanted.difference(&voters) {
                    if membership.get_node(id).is_none() {
                        let reason = format!("server {id} is no member");
                        return Err(ProposeError::Refused(reason));
                    }
                    let matched = metrics
                        .replication
                        .as_ref()
                        .and_then(|followers| followers.get(id))
                        .map_or(0, |matched| matched.next_index());
                    let lag = last.saturating_sub(matched);
                    if lag > VOTER_LAG_MAX || matched == 0 {
                        let reason = format!("server {id} lacks {lag} entries of the log");
                        return Err(ProposeError::Refused(reason));
                    }
                }
                (ChangeMembers::ReplaceAllVoters(wanted), true)
            }
        };
        self.write_membership(changes, retain).await
    }

    async fn write_membership(
        &self,
        changes: ChangeMembers<ServerId, Peer>,
        retain: bool,
    ) -> Result<(), ProposeError> {
        let limit = Duration::from_millis(self.inner.config.request_timeout_ms);
        let write = self.inner.raft.change_membership(changes, retain);
        let written: Written = timeout(limit, write).await.map_err(|_| {
            ProposeError::Unknown(format!("the membership did not change within {limit:?}"))
        })?;
        match written {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(ProposeError::Refused(error.to_string()))
            }
            // Leadership may have been lost between the two steps of a change.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(
                ProposeError::Unknown("leadership was lost while the membership changed".into()),
            ),
            Err(RaftError::Fatal(error)) => Err(ProposeError::Unknown(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: ServerId, zone: &str) -> VoterCandidate {
        VoterCandidate { id, zone: zone.into(), up: true, votes: false }
    }

    fn spread(count: ServerId) -> Vec<VoterCandidate> {
        (1..=count).map(|id| server(id, &format!("zone {id}"))).collect()
    }

    #[test]
    fn the_number_of_voters_follows_the_number_of_servers() {
        let expected = [0, 1, 2, 3, 3, 3, 3, 5, 5, 5];
        for (count, expected) in (0..).zip(expected) {
            assert_eq!(voters_wanted(&spread(count)).len(), expected, "{count} servers");
        }
    }

    #[test]
    fn voters_stand_in_different_zones_when_they_can() {
        let zones = ["a", "a", "a", "b", "c", "c"];
        let servers: Vec<_> = (1..).zip(zones).map(|(id, zone)| server(id, zone)).collect();
        assert_eq!(voters_wanted(&servers), BTreeSet::from([1, 4, 5]));
    }

    #[test]
    fn who_votes_already_goes_on_among_equals() {
        let mut servers = spread(6);
        for id in [2, 4, 6] {
            servers[id - 1].votes = true;
        }
        assert_eq!(voters_wanted(&servers), BTreeSet::from([2, 4, 6]));
    }

    #[test]
    fn a_dead_voter_is_replaced_by_a_server_that_is_up() {
        let mut servers = spread(4);
        for server in &mut servers[..3] {
            server.votes = true;
        }
        servers[1].up = false;
        assert_eq!(voters_wanted(&servers), BTreeSet::from([1, 3, 4]));
    }

    #[test]
    fn a_dead_voter_stays_when_nobody_can_replace_it() {
        let mut servers = spread(4);
        servers[1].up = false;
        servers[3].up = false;
        servers[3].votes = true;
        assert_eq!(voters_wanted(&servers), BTreeSet::from([1, 3, 4]));
        let mut three = spread(3);
        three[0].up = false;
        assert_eq!(voters_wanted(&three), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn a_server_listed_twice_votes_once() {
        let servers = [server(1, "a"), server(1, "a"), server(2, "b")];
        assert_eq!(voters_wanted(&servers), BTreeSet::from([1, 2]));
    }
}
