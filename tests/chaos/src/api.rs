//! Api: the servers' HTTP side, asked the way an operator's tools ask.
//!
//! Invariant: nobody is waited for longer than a second, and an answer that cannot be used is no
//! answer. What several servers say of a segment is settled by its epoch.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1000);
/// A change goes through consensus, perhaps through an election.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// A segment, as far as a fault must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub volume: String,
    pub index: u64,
    pub epoch: u64,
    pub state: String,
    pub replicas: u64,
    pub primary: Option<u64>,
    pub in_sync: Vec<u8>,
    pub is_migrating: bool,
}

impl Segment {
    fn of(raw: &Value) -> Option<Segment> {
        let replicas = raw["replicas"].as_array()?;
        let in_sync = replicas
            .iter()
            .filter(|r| r["role"] != "joiner")
            .map(|r| u8::try_from(r["server"].as_u64()?).ok())
            .collect::<Option<Vec<u8>>>()?;
        Some(Segment {
            volume: raw["volume"].as_str()?.to_owned(),
            index: raw["index"].as_u64()?,
            epoch: raw["epoch"].as_u64()?,
            state: raw["state"].as_str()?.to_owned(),
            replicas: raw["replicas_target"].as_u64()?,
            primary: raw["primary"].as_u64(),
            in_sync,
            is_migrating: !raw["migration"].is_null(),
        })
    }

    /// Whether it has all the in-sync members it is to have, and is served.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.state == "healthy" && u64::try_from(self.in_sync.len()) == Ok(self.replicas)
    }
}

#[derive(Clone, Debug)]
pub struct Api {
    agent: ureq::Agent,
    /// In order of id, from 1.
    urls: Vec<String>,
}

impl Api {
    #[must_use]
    pub fn new(urls: Vec<String>) -> Api {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build();
        Api { agent: config.new_agent(), urls }
    }

    #[must_use]
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    fn ids(&self) -> impl Iterator<Item = u8> {
        1..=u8::try_from(self.urls.len()).expect("few servers")
    }

    /// One server's answer.
    ///
    /// # Errors
    /// In words, whatever kept it from answering well.
    pub fn ask(&self, id: u8, route: &str) -> Result<Value, String> {
        let url = format!("{}{route}", self.urls[usize::from(id) - 1]);
        let mut answer = self.agent.get(&url).call().map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body: Value = answer.body_mut().read_json().map_err(|error| error.to_string())?;
        if (200..300).contains(&status) { Ok(body) } else { Err(format!("{status}: {body}")) }
    }

    /// Has one server make a change. Ok: its status and what it said.
    ///
    /// # Errors
    /// In words, why there was no answer; the change may have been made.
    pub fn post(&self, id: u8, route: &str, body: &Value) -> Result<(u16, Value), String> {
        let url = format!("{}{route}", self.urls[usize::from(id) - 1]);
        let request = self.agent.post(&url).config().timeout_global(Some(CHANGE_TIMEOUT)).build();
        let mut answer = request.send_json(body).map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().read_json().map_err(|error| error.to_string())?;
        Ok((status, body))
    }

    /// What the servers that pass `ask` say of all segments, each at its latest epoch; with how
    /// many of them answered.
    pub fn segments(&self, ask: impl Fn(u8) -> bool) -> (usize, Vec<Segment>) {
        let mut latest: BTreeMap<(String, u64), Segment> = BTreeMap::new();
        let mut answered = 0;
        for id in self.ids().filter(|id| ask(*id)) {
            let Ok(list) = self.ask(id, "/v1/segments") else { continue };
            answered += 1;
            let list = list["segments"].as_array().cloned().unwrap_or_default();
            for segment in list.iter().filter_map(Segment::of) {
                let key = (segment.volume.clone(), segment.index);
                match latest.get(&key) {
                    Some(known) if known.epoch >= segment.epoch => {}
                    Some(_) | None => {
                        latest.insert(key, segment);
                    }
                }
            }
        }
        (answered, latest.into_values().collect())
    }

    /// Who leads, as the first server says that knows.
    pub fn leader(&self, ask: impl Fn(u8) -> bool) -> Option<u8> {
        self.ids().filter(|id| ask(*id)).find_map(|id| {
            let cluster = self.ask(id, "/v1/cluster").ok()?;
            u8::try_from(cluster["leader"].as_u64()?).ok()
        })
    }
}
