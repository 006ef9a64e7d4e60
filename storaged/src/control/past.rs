//! Past: whether the others know a newer life of this server, asked before it takes part in anything.
//!
//! Invariant: a data directory that a peer who answers knows to be an old copy, or not this server's,
//! neither votes nor acknowledges. The map refuses it in any case (S7), but a server votes before it can
//! learn that, and an old copy may have forgotten its vote. Peers that do not answer are not waited for:
//! after a power cut of all there is nobody to ask.

use std::time::Duration;

use serde::Deserialize;
use smt::lineage::is_other_generation;
use smt::map::{Map, Refused};
use smt::{Incarnation, ServerId};

use super::ControlError;
use crate::config::{Config, PeerConfig};

/// How long a peer may take to answer; a start is late by no more than this.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Servers {
    cluster_id: Option<String>,
    servers: Vec<Known>,
}

/// What a peer knows of a server. Fields that are missing are those of an older program.
#[derive(Clone, Debug, Deserialize)]
struct Known {
    id: u64,
    incarnation: u64,
    store: Option<String>,
}

/// What a peer says of this server.
enum Word {
    Nothing,
    /// It is of this cluster, before or after a recovery, and knows this of us.
    Known(Option<Known>),
    /// It is of another cluster, of this number.
    Foreign(String),
}

/// # Errors
/// A peer knows this life, a newer one, or another store under this server's id; or all who answer
/// are of another cluster.
pub(super) async fn ask(
    config: &Config,
    cluster: u64,
    store: u128,
    incarnation: Incarnation,
) -> Result<(), ControlError> {
    let mut asked = tokio::task::JoinSet::new();
    for peer in config.peers.iter().filter(|p| p.id != config.id) {
        let (peer, id) = (peer.clone(), config.id);
        asked.spawn_blocking(move || ask_one(&peer, cluster, id));
    }
    let (mut is_known, mut foreign) = (false, None);
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Word::Known(known)) => {
                is_known = true;
                if let Some(known) = known {
                    judge(&known, store, incarnation).map_err(ControlError::Refused)?;
                }
            }
            Ok(Word::Foreign(theirs)) => foreign = Some(theirs),
            Ok(Word::Nothing) | Err(_) => {}
        }
    }
    match foreign {
        // One line of `peers` may be wrong, or its address somebody else's by now.
        Some(theirs) if !is_known => {
            Err(ControlError::OtherCluster { theirs, ours: cluster.to_string() })
        }
        Some(_) | None => Ok(()),
    }
}

fn ask_one(peer: &PeerConfig, cluster: u64, id: u64) -> Word {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(ANSWER_WAIT)).proxy(None).build().into();
    let servers = agent
        .get(format!("http://{}/v1/servers", peer.http))
        .call()
        .and_then(|mut answer| answer.body_mut().read_json::<Servers>());
    match servers {
        Ok(Servers { cluster_id: Some(theirs), .. }) if !is_ours(&theirs, cluster) => {
            tracing::warn!(peer = peer.id, theirs, "a peer's address leads to another cluster");
            Word::Foreign(theirs)
        }
        Ok(Servers { servers, .. }) => {
            Word::Known(servers.into_iter().find(|known| known.id == id))
        }
        Err(error) => {
            tracing::debug!(peer = peer.id, %error, "could not be asked what it knows of us");
            Word::Nothing
        }
    }
}

fn is_ours(theirs: &str, ours: u64) -> bool {
    theirs.parse().is_ok_and(|theirs| theirs == ours || is_other_generation(theirs, ours))
}

fn judge(known: &Known, store: u128, incarnation: Incarnation) -> Result<(), Refused> {
    let Known { id, incarnation: newest, store: theirs } = known;
    let theirs = theirs.as_deref().and_then(|text| u128::from_str_radix(text, 16).ok());
    Map::judge_life(
        ServerId(*id),
        (theirs.unwrap_or(store), Incarnation(*newest)),
        (store, incarnation),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(newest: u64, store: Option<&str>) -> Result<(), Refused> {
        judge(
            &Known { id: 3, incarnation: newest, store: store.map(str::to_owned) },
            7,
            Incarnation(5),
        )
    }

    #[test]
    fn only_a_newer_life_of_the_same_store_goes_on() {
        let same = format!("{:032x}", 7);
        assert_eq!(judged(4, Some(&same)), Ok(()));
        assert_eq!(judged(4, None), Ok(()), "an older program says nothing of stores");
        for newest in [5, 6] {
            let why = judged(newest, Some(&same)).expect_err("from the past").to_string();
            assert!(why.contains("from the past") && why.contains("bring back"), "{why}");
        }
        let why = judged(4, Some(&format!("{:032x}", 8))).expect_err("another store").to_string();
        assert!(why.contains("belongs to store"), "{why}");
    }
}
