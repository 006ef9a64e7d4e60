//! Members: who is sent the map's log, and who of them votes.
//!
//! Invariant: voters only become more here, but for those that were removed from the cluster, who go.
//! Every server of the map is a member; a server that has no log yet asks the others to be one, and
//! becomes a voter once it has caught up, as long as the cluster should have more of them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use smt::map::ServerState;

use super::{ChangeError, Control, unreachable};
use crate::consensus::{Peer, Role, VoterCandidate, voters_wanted};

/// How often the leader compares.
const EVERY: Duration = Duration::from_secs(1);

/// How long a server without a log waits for a leader to find it, before it asks.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long it waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

impl Control {
    /// Makes a server a member of the log that does not vote yet.
    ///
    /// # Errors
    /// No majority could be asked.
    pub async fn admit(&self, id: u64, data: String, http: String) -> Result<(), ChangeError> {
        tracing::info!(server = id, data, "a server asks for the map's log");
        self.inner.log.add_member(id, Peer { data, http }).await.map_err(unreachable)
    }
}

/// On the leader: every server of the map is a member, and there are as many voters as there should
/// be.
pub(super) async fn keep(control: Control) {
    loop {
        tokio::time::sleep(EVERY).await;
        let log = &control.inner.log;
        let status = log.status();
        if status.role != Role::Leader || !status.has_quorum {
            continue;
        }
        let members = log.members();
        let map = control.snapshot();
        let present = |s: &&smt::map::Server| s.state != ServerState::Removed;
        let missing =
            |s: &&smt::map::Server| !members.contains_key(&s.id.0) && !s.address.is_empty();
        for server in map.servers().filter(present).filter(missing) {
            let peer = Peer { data: server.address.clone(), http: server.http.clone() };
            match log.add_member(server.id.0, peer).await {
                Ok(()) => tracing::info!(server = %server.id, "a member of the map's log now"),
                Err(error) => tracing::debug!(server = %server.id, %error, "not a member yet"),
            }
        }
        let lives = control.inner.scores.lives();
        let up = |id| lives.silent_ms(id).is_some_and(|ms| ms < 3000);
        let candidates: Vec<VoterCandidate> = map
            .servers()
            .filter(present)
            .map(|server| VoterCandidate {
                id: server.id.0,
                zone: server.zone.clone(),
                up: up(server.id),
                votes: status.voters.contains(&server.id.0),
            })
            .collect();
        // Ourselves, too, only once somebody else leads.
        let me = control.inner.config.id;
        let gone = |id: &u64| {
            let server = map.server(smt::ServerId(*id));
            *id != me && server.is_some_and(|s| s.state == ServerState::Removed)
        };
        let staying = status.voters.iter().copied().filter(|id| !gone(id)).collect();
        let wanted = more_voters(&staying, &candidates);
        if wanted != status.voters {
            match log.set_voters(wanted.clone()).await {
                Ok(()) => tracing::info!(voters = ?wanted, "who votes has changed"),
                // It may have to catch up first.
                Err(error) => tracing::debug!(%error, "no other voters yet"),
            }
        }
    }
}

/// The voters there are, and those that should join them: never fewer, nor one that is not up.
fn more_voters(voters: &BTreeSet<u64>, candidates: &[VoterCandidate]) -> BTreeSet<u64> {
    let count = voters_wanted(candidates).len();
    let mut wanted = voters.clone();
    let known = candidates.iter().filter(|c| c.up && !voters.contains(&c.id));
    wanted.extend(known.map(|c| c.id).take(count.saturating_sub(voters.len())));
    wanted
}

/// On a server that has never been sent anything of the log: asks the peers it was configured with.
pub(super) async fn ask_to_join(control: Control) {
    let config = &control.inner.config;
    let ours = config.peers.iter().find(|p| p.id == config.id);
    let (data, http) = ours.map_or_else(
        || (config.listen.to_string(), config.http.to_string()),
        |peer| (peer.data.clone(), peer.http.clone()),
    );
    loop {
        tokio::time::sleep(PATIENCE).await;
        let status = control.inner.log.status();
        if status.last_log > 0 || status.leader.is_some() {
            return;
        }
        let body = json!({
            "id": config.id,
            "data": data,
            "http": http,
            "cluster_id": control.inner.cluster.to_string(),
        });
        for peer in config.peers.iter().filter(|p| p.id != config.id) {
            let (url, body) = (format!("http://{}/v1/servers", peer.http), body.clone());
            let asked = tokio::task::spawn_blocking(move || {
                let agent: ureq::Agent = ureq::Agent::config_builder()
                    .timeout_global(Some(ANSWER_MAX))
                    .http_status_as_error(false)
                    .proxy(None)
                    .build()
                    .into();
                let mut answer = agent.post(&url).send_json(&body)?;
                let text = answer.body_mut().read_to_string()?;
                Ok::<_, ureq::Error>((answer.status().as_u16(), text))
            });
            match asked.await {
                Ok(Ok((200, _))) => {
                    tracing::info!(peer = peer.id, "a peer lets us join the map's log");
                    break;
                }
                Ok(Ok((409, why))) => tracing::error!(peer = peer.id, why, "a peer refuses us"),
                Ok(Ok((status, why))) => tracing::debug!(peer = peer.id, status, why, "not yet"),
                Ok(Err(error)) => tracing::debug!(peer = peer.id, %error, "not asked"),
                Err(error) => tracing::error!(%error, "not asked"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(up: &[(u64, bool)]) -> Vec<VoterCandidate> {
        let zone = |id: &u64| format!("zone-{id}");
        up.iter()
            .map(|(id, up)| VoterCandidate { id: *id, zone: zone(id), up: *up, votes: false })
            .collect()
    }

    #[test]
    fn voters_become_more_as_servers_join_and_never_fewer() {
        let one = BTreeSet::from([3]);
        let alone = candidates(&[(3, true)]);
        assert_eq!(more_voters(&one, &alone), one);
        let three = candidates(&[(3, true), (4, true), (5, true)]);
        assert_eq!(more_voters(&one, &three), BTreeSet::from([3, 4, 5]));
        let away = candidates(&[(3, true), (4, false), (5, true)]);
        assert_eq!(more_voters(&one, &away), BTreeSet::from([3, 5]), "not one that is away");
        let four = candidates(&[(1, true), (2, true), (3, true), (4, true)]);
        let all = BTreeSet::from([1, 2, 3, 4]);
        assert_eq!(more_voters(&all, &four), all, "founded with four, it stays with four");
    }
}
