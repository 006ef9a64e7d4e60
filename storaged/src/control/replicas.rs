//! Replicas: which servers have a file of a segment, and how old it is; and forcing one of them to
//! serve when nobody in sync is left (S11).
//!
//! Invariant: asks, and decides nothing by itself: a copy is forced only where an operator accepted
//! the loss, no living server has the segment in sync, and the map is still at the epoch that was
//! looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smt::map::{Command, SegmentConfig, Server, ServerState};
use smt::replica::Role;
use smt::{SegmentId, ServerId};

use super::Control;
use super::times::rfc3339;
use crate::disk::{Header, Identity, headers};

/// How long a server may take to read its headers.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// A server's file of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub segment: u64,
    pub server: u64,
    /// The epoch its header tells of.
    pub epoch: u64,
    /// The last epoch in which it was in sync; 0 when that is not known.
    pub member_epoch: u64,
    /// It was being filled, so it may hold parts of two states.
    pub half_copied: bool,
    /// What it is now: none, activating, primary, backup, joiner or faulted.
    pub role: String,
    /// When a block of it was last changed, RFC 3339.
    pub changed_at: Option<String>,
}

/// What all servers say about one segment.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub held: Vec<Held>,
    /// Servers that answered, with a file or without.
    pub answered: Vec<ServerId>,
    /// Servers that did not, and why.
    pub silent: BTreeMap<ServerId, String>,
}

#[derive(Deserialize)]
struct Answer {
    server: u64,
    cluster_id: String,
    replicas: Vec<Held>,
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::None => "none",
        Role::Activating => "activating",
        Role::Primary => "primary",
        Role::Backup => "backup",
        Role::Joiner => "joiner",
        Role::Faulted => "faulted",
    }
}

impl Control {
    /// This server's files, or those of one segment.
    ///
    /// # Errors
    /// They cannot be listed, or the data plane does not answer.
    pub async fn own_replicas(&self, only: Option<SegmentId>) -> Result<Vec<Held>, String> {
        let roles = self.inner.signals.roles();
        let data_dir = self.inner.config.data_dir.clone();
        let identity = Identity {
            server: self.me(),
            store: self.inner.store,
            incarnation: self.inner.incarnation,
            cluster: self.inner.cluster,
        };
        let found = tokio::task::spawn_blocking(move || headers(&data_dir, &identity)).await;
        let found = found.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let roles = tokio::time::timeout(ANSWER_MAX, roles).await;
        let roles = roles.map_err(|_| "the data plane does not answer")?;
        let roles: BTreeMap<SegmentId, Role> =
            roles.map_err(|_| "the data plane has ended")?.into_iter().collect();
        let held = |Header { meta, member, changed_unix_ms }: &Header| {
            let segment = meta.config.segment;
            Held {
                segment: segment.0,
                server: self.me().0,
                epoch: meta.config.epoch.0,
                member_epoch: member.0,
                half_copied: meta.joining.is_some(),
                role: role_name(roles.get(&segment).copied().unwrap_or(Role::None)).to_owned(),
                changed_at: changed_unix_ms.map(rfc3339),
            }
        };
        let wanted = |h: &&Header| only.is_none_or(|segment| segment == h.meta.config.segment);
        Ok(found.iter().filter(wanted).map(held).collect())
    }

    /// Asks every server of the map for its file of `segment`.
    pub async fn survey(&self, segment: SegmentId) -> Survey {
        let servers: Vec<Server> = self.with_map(|map| {
            map.servers().filter(|s| s.state != ServerState::Removed).cloned().collect()
        });
        let mut asked = tokio::task::JoinSet::new();
        for server in servers {
            let control = self.clone();
            asked.spawn(async move {
                let id = server.id;
                let answer = if id == control.me() {
                    control.own_replicas(Some(segment)).await
                } else {
                    control.ask_replicas(server, segment).await
                };
                (id, answer)
            });
        }
        let mut survey = Survey::default();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((id, Ok(held))) => {
                    survey.answered.push(id);
                    survey.held.extend(held);
                }
                Ok((id, Err(why))) => drop(survey.silent.insert(id, why)),
                Err(error) => tracing::error!(%error, "a server was not asked"),
            }
        }
        // The best first.
        survey.held.sort_by_key(|h| {
            (h.half_copied, std::cmp::Reverse(h.member_epoch), h.role == "faulted", h.server)
        });
        survey
    }

    async fn ask_replicas(&self, server: Server, segment: SegmentId) -> Result<Vec<Held>, String> {
        let cluster = self.inner.cluster.to_string();
        let asked = tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(ANSWER_MAX))
                .proxy(None)
                .build()
                .into();
            let url = format!("http://{}/v1/replicas?segment={segment}", server.http);
            let mut answer = agent.get(url).call().map_err(|error| error.to_string())?;
            let answer: Answer = answer.body_mut().read_json().map_err(|e| e.to_string())?;
            if answer.server != server.id.0 || answer.cluster_id != cluster {
                return Err("another server answers there".to_owned());
            }
            Ok(answer.replicas)
        });
        asked.await.map_err(|error| error.to_string())?
    }
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// None: the best copy there is.
    pub server: Option<ServerId>,
    pub half_copy: bool,
}

/// Whom of the members somebody can still reach in good health, if anybody.
fn living_member(config: &SegmentConfig, survey: &Survey) -> Option<ServerId> {
    let lives = |server: &ServerId| {
        let good = |h: &Held| h.server == server.0 && h.role != "faulted";
        survey.held.iter().any(good)
    };
    config.members.iter().map(|m| m.server).find(lives)
}

/// The change that forces a copy, if it may be; else why not.
///
/// # Errors
/// A sentence for the operator.
pub fn plan(config: &SegmentConfig, survey: &Survey, wish: Wish) -> Result<Command, String> {
    let segment = config.segment;
    if let Some(member) = living_member(config, survey) {
        return Err(format!(
            "server {member} has the segment in sync and answers: nothing has to be lost. It \
             takes over by itself within seconds; if it does not, look at its log"
        ));
    }
    let faulted = |h: &&Held| config.is_member(ServerId(h.server));
    if let Some(held) = survey.held.iter().find(faulted) {
        return Err(format!(
            "server {} has the segment in sync, on a disk that failed: start its daemon anew \
             first, which tries the file again; without it, stop that daemon for good",
            held.server
        ));
    }
    let is_candidate = |h: &&Held| !config.is_member(ServerId(h.server));
    let chosen = match wish.server {
        Some(server) => survey.held.iter().find(|h| h.server == server.0).ok_or_else(|| {
            match survey.silent.get(&server) {
                Some(why) => format!("server {server} does not answer: {why}"),
                None => format!("server {server} has no file of segment {segment}"),
            }
        })?,
        None => survey
            .held
            .iter()
            .find(is_candidate)
            .ok_or("no server that answers has a file of it: nothing can be forced")?,
    };
    if chosen.half_copied && !wish.half_copy {
        return Err(format!(
            "server {}'s copy was being filled when that ended: it may hold parts of two states, \
             and nobody can tell which. Say --half-copy too if that is better than nothing",
            chosen.server
        ));
    }
    if chosen.role == "faulted" {
        return Err(format!(
            "server {}'s disk failed, and it tries nothing again in this life: start its daemon \
             anew first (its file stays), then force it",
            chosen.server
        ));
    }
    Ok(Command::ForcePrimary {
        segment,
        expect: config.epoch,
        server: ServerId(chosen.server),
        at_unix_ms: 0,
    })
}

#[cfg(test)]
mod tests {
    use smt::map::Member;
    use smt::{Epoch, Geometry, Incarnation, VolumeId};

    use super::*;

    fn config() -> SegmentConfig {
        let member = |id| Member { server: ServerId(id), incarnation: Incarnation(1) };
        SegmentConfig {
            segment: SegmentId(7),
            volume: VolumeId(1),
            index: 0,
            epoch: Epoch(9),
            primary: ServerId(1),
            members: vec![member(1), member(2)],
            joining: None,
            transfer: None,
            replicas: 2,
            active: Epoch(9),
            geometry: Geometry::of_segment(1 << 30).expect("1 GiB"),
            writer: 0,
        }
    }

    fn held(server: u64, member_epoch: u64, half_copied: bool, role: &str) -> Held {
        let role = role.to_owned();
        Held { segment: 7, server, epoch: 9, member_epoch, half_copied, role, changed_at: None }
    }

    fn planned(held: Vec<Held>, wish: Wish) -> Result<u64, String> {
        let survey = Survey { held, ..Survey::default() };
        plan(&config(), &survey, wish).map(|command| match command {
            Command::ForcePrimary { segment: SegmentId(7), expect: Epoch(9), server, .. } => {
                server.0
            }
            other => panic!("{other:?}"),
        })
    }

    const ANY: Wish = Wish { server: None, half_copy: false };

    #[test]
    fn no_copy_is_forced_while_a_member_lives_or_may_be_started_anew() {
        let old = held(3, 5, false, "none");
        for role in ["backup", "none", "activating", "primary"] {
            let why = planned(vec![held(2, 9, false, role), old.clone()], ANY);
            assert!(why.expect_err(role).contains("server 2"), "{role}");
        }
        let why = planned(vec![held(2, 9, false, "faulted"), old.clone()], ANY);
        assert!(why.expect_err("faulted").contains("start its daemon anew"));
        assert_eq!(planned(vec![old], ANY), Ok(3));
        let why = planned(vec![held(3, 5, false, "faulted")], ANY);
        assert!(why.expect_err("faulted").contains("start its daemon anew first"));
    }

    #[test]
    fn half_a_copy_is_forced_only_if_that_was_said() {
        let half = held(3, 0, true, "none");
        assert!(planned(vec![half.clone()], ANY).expect_err("half").contains("--half-copy"));
        assert_eq!(planned(vec![half], Wish { half_copy: true, ..ANY }), Ok(3));
        planned(Vec::new(), ANY).expect_err("nobody has one");
        let four = Wish { server: Some(ServerId(4)), ..ANY };
        planned(vec![held(3, 5, false, "none")], four).expect_err("4 has none");
    }
}
