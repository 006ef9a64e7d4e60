//! Scores: this server's own, once a second, from what its disks and sockets did; and what the
//! peers say of theirs, and of the load they carry.
//!
//! Invariant: a score comes from telemetry alone. A peer that does not answer keeps its last word
//! and grows older, it does not become healthy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pfm::{PeerSummary, Pfm, Score, ScorePoint};
use serde::{Deserialize, Serialize};
use smt::map::ServerState;
use smt::{Incarnation, SegmentId, ServerId};

use super::heat::{self, Meter, Rates, Told};
use super::state::SharedMap;
use super::times::unix_ms;
use crate::config::Config;
use crate::shard::Traffic;
use crate::telemetry::Sampler;
use crate::telemetry::latency::IoStats;

/// How long a peer may take to answer.
const ANSWER_MAX: Duration = Duration::from_millis(800);

/// What servers tell each other every second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Word {
    /// Whose word: another generation of the cluster is not listened to.
    pub cluster: String,
    pub summary: Option<PeerSummary>,
    pub score: Score,
    /// The segments its clients are busy with, [`heat::TOLD_MAX`] at most.
    #[serde(default)]
    pub heat: Vec<Told>,
}

/// A peer's last word.
#[derive(Clone, Debug)]
struct Heard {
    at: Instant,
    score: Score,
    heat: Vec<Told>,
}

struct State {
    pfm: Pfm,
    own: Score,
    meter: Meter,
    heard: BTreeMap<ServerId, Heard>,
}

/// Who was heard from when, and how they score: one look at all of it.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    silent_ms: BTreeMap<ServerId, u64>,
    scores: BTreeMap<ServerId, f64>,
}

impl Lives {
    /// Milliseconds since a server was heard from; 0 for this one, none if never.
    pub fn silent_ms(&self, server: ServerId) -> Option<u64> {
        self.silent_ms.get(&server).copied()
    }

    /// Servers that were all heard this moment.
    #[cfg(test)]
    pub fn heard(servers: &[ServerId]) -> Lives {
        let silent_ms = servers.iter().map(|id| (*id, 0)).collect();
        Lives { silent_ms, scores: BTreeMap::new() }
    }

    /// None while unknown.
    pub fn score(&self, server: ServerId) -> Option<f64> {
        self.scores.get(&server).copied()
    }
}

/// The scores of the cluster, as this server knows them. Clones are the same ones.
#[derive(Clone)]
pub struct Scores {
    me: ServerId,
    cluster: u64,
    state: Arc<Mutex<State>>,
}

impl Scores {
    /// Starts sampling and asking. The threads end with the process.
    pub fn start(
        (config, cluster): (&Config, u64),
        map: SharedMap,
        stats: Arc<IoStats>,
        traffic: Arc<Traffic>,
        incarnation: Incarnation,
    ) -> Scores {
        let me = ServerId(config.id);
        let mut pfm = Pfm::new(pfm::Config { server: config.id, ..pfm::Config::default() });
        let own = pfm.score(unix_ms() / 1000);
        let state = Arc::new(Mutex::new(State {
            pfm,
            own,
            meter: Meter::default(),
            heard: BTreeMap::new(),
        }));
        let scores = Scores { me, cluster, state };
        match Sampler::new(vec![stats], &config.data_dir, incarnation.0) {
            Ok(sampler) => {
                let scores = scores.clone();
                std::thread::spawn(move || scores.sample_for_ever(sampler));
            }
            Err(error) => tracing::error!(%error, "no telemetry: this server has no score"),
        }
        let asking = scores.clone();
        std::thread::spawn(move || asking.ask_for_ever(&map, &traffic));
        scores
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the scores")
    }

    fn sample_for_ever(&self, mut sampler: Sampler) {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let at_s = unix_ms() / 1000;
            if let Some(sample) = sampler.sample(Instant::now(), at_s) {
                let mut state = self.state();
                state.pfm.observe(sample);
                state.own = state.pfm.score(at_s);
            }
        }
    }

    fn ask_for_ever(&self, map: &SharedMap, traffic: &Traffic) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_MAX))
            .proxy(None)
            .build()
            .into();
        let mut counted = Instant::now();
        loop {
            let began = Instant::now();
            let counts = traffic.counts();
            self.state().meter.observe(began.saturating_duration_since(counted), counts);
            counted = began;
            let peers: Vec<(ServerId, String)> = {
                let map = map.lock().expect("nobody panics while holding the map");
                map.servers()
                    .filter(|s| s.id != self.me && s.state != ServerState::Removed)
                    .map(|s| (s.id, s.http.clone()))
                    .collect()
            };
            std::thread::scope(|scope| {
                for (peer, http) in peers {
                    let agent = agent.clone();
                    scope.spawn(move || self.ask(&agent, peer, &http));
                }
            });
            std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
        }
    }

    fn ask(&self, agent: &ureq::Agent, peer: ServerId, http: &str) {
        let answer = agent
            .get(format!("http://{http}/internal/word"))
            .call()
            .and_then(|mut answer| answer.body_mut().read_json::<Word>());
        match answer {
            Ok(Word { cluster, summary, score, heat })
                if score.server == peer.0 && cluster == self.cluster.to_string() =>
            {
                let mut state = self.state();
                if let Some(summary) = summary {
                    // Its clock is not ours: what counts is when we heard it.
                    let at_s = unix_ms() / 1000;
                    state.pfm.observe_peer(PeerSummary { at_s, ..summary });
                }
                state.heard.insert(peer, Heard { at: Instant::now(), score, heat });
            }
            Ok(_) => tracing::warn!(%peer, http, "another server answers there"),
            Err(error) => tracing::debug!(%peer, %error, "no word from this peer"),
        }
    }

    /// This server's score.
    pub fn own(&self) -> Score {
        self.state().own.clone()
    }

    /// What to tell a peer.
    pub fn word(&self) -> Word {
        let state = self.state();
        let cluster = self.cluster.to_string();
        Word {
            cluster,
            summary: state.pfm.summary(),
            score: state.own.clone(),
            heat: state.meter.told(),
        }
    }

    /// Every server's score as last heard, ours included.
    pub fn all(&self) -> BTreeMap<ServerId, Score> {
        let state = self.state();
        let heard = state.heard.iter().map(|(id, heard)| (*id, heard.score.clone()));
        let mut all: BTreeMap<ServerId, Score> = heard.collect();
        all.insert(self.me, state.own.clone());
        all
    }

    /// What is known of everybody's life now.
    pub fn lives(&self) -> Lives {
        let state = self.state();
        let mut lives = Lives::default();
        for (id, heard) in &state.heard {
            let ms = u64::try_from(heard.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            lives.silent_ms.insert(*id, ms);
            if let Some(score) = heard.score.score {
                lives.scores.insert(*id, score);
            }
        }
        lives.silent_ms.insert(self.me, 0);
        if let Some(score) = state.own.score {
            lives.scores.insert(self.me, score);
        }
        lives
    }

    /// What clients do to each segment, by what all servers say. What is idle is not in it.
    pub fn rates(&self) -> BTreeMap<SegmentId, Rates> {
        let state = self.state();
        let mut sum = BTreeMap::new();
        state.meter.add_to(&mut sum);
        for heard in state.heard.values() {
            heat::add_told(&mut sum, &heard.heat, heard.at.elapsed());
        }
        sum
    }

    /// This server's scores since then (seconds since 1970), oldest first.
    pub fn history(&self, since_s: u64) -> Vec<ScorePoint> {
        self.state().pfm.history(since_s)
    }
}
