//! Survey: what one directory at rest has to say, and what several of them say together.
//!
//! Invariant: reads only. A survey that travelled as a file is checked whole before it is believed.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smt::map::{FoundCopy, Map, Remains, SegmentConfig, Server, ServerState, Survivor};
use smt::{Incarnation, MapVersion, ServerId};
use xxhash_rust::xxh3::xxh3_64;

use crate::consensus::{StateMachine, offline};
use crate::control::{Catalogue, SmtMachine};
use crate::disk::{AtRest, headers};

/// The version of a survey as a file.
const VERSION: u64 = 1;

/// The end of a consensus log, and the state there as a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    pub term: u64,
    pub index: u64,
    snapshot: Vec<u8>,
}

/// What a directory holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Survey {
    pub server: ServerId,
    pub store: u128,
    pub incarnation: Incarnation,
    pub cluster: u64,
    pub log: Option<Log>,
    catalogue: Option<Catalogue>,
    /// Headers, and whether the copy was being filled.
    copies: Vec<(SegmentConfig, bool)>,
}

/// A state machine for an empty map, and that map.
fn machine() -> (SmtMachine, Arc<Mutex<Map>>) {
    let map = Arc::new(Mutex::new(Map::new()));
    (SmtMachine::new(Arc::clone(&map), Box::new(|| {})), map)
}

/// A runtime for the log's few calls.
pub fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    Ok(runtime.block_on(work))
}

impl Survey {
    /// Reads a directory. Where its log is not `needed`, one that cannot be read is left out.
    ///
    /// # Errors
    /// What cannot be read, with what to do.
    pub fn of(at: &AtRest, needed: bool) -> anyhow::Result<Survey> {
        let identity = at.identity();
        let copies = headers(at.path(), &identity)?
            .into_iter()
            .map(|header| (header.meta.config, header.meta.joining.is_some()))
            .collect();
        let catalogue = match Catalogue::load(at.path()) {
            Ok(catalogue) => catalogue,
            Err(why) => {
                tracing::warn!(why, "the catalogue is of no use");
                None
            }
        };
        let directory = at.path().join("consensus");
        let (machine, _) = machine();
        let log = match block_on(offline::read(&directory, identity.server.0, machine))? {
            Ok(rest) => {
                rest.map(|rest| Log { term: rest.term, index: rest.index, snapshot: rest.snapshot })
            }
            Err(error) if needed => {
                return Err(error).context(
                    "read its consensus log (--from-headers does without any survivor's)",
                );
            }
            Err(error) => {
                tracing::warn!(%error, "its consensus log cannot be read, and is left out");
                None
            }
        };
        Ok(Survey {
            server: identity.server,
            store: identity.store,
            incarnation: identity.incarnation,
            cluster: identity.cluster,
            log: log.filter(|log| log.index > 0),
            catalogue,
            copies,
        })
    }

    /// As it travels: what a person may want to know, and the whole as digits.
    pub fn to_json(&self) -> Value {
        let bytes = postcard::to_stdvec(self).expect("our own types serialise into memory");
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({
            "petrel_survey": VERSION,
            "server": self.server.0,
            "cluster": format!("{:016x}", self.cluster),
            "incarnation": self.incarnation.0,
            "copies": self.copies.len(),
            "log_index": self.log.as_ref().map(|log| log.index),
            "remains": digits,
            "xxh3": format!("{:016x}", xxh3_64(&bytes)),
        })
    }

    /// # Errors
    /// It cannot be read, is damaged, or of another version.
    pub fn load(path: &Path) -> anyhow::Result<Survey> {
        let value: Value = serde_json::from_slice(&fs::read(path)?)?;
        match value["petrel_survey"].as_u64() {
            Some(VERSION) => {}
            Some(version) => bail!("its version is {version}, and this program reads {VERSION}"),
            None => bail!("it is no survey"),
        }
        let digits = value["remains"].as_str().unwrap_or_default().as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| Some(digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?))
            .collect();
        let bytes = bytes.context("it is damaged")?;
        if value["xxh3"].as_str() != Some(&format!("{:016x}", xxh3_64(&bytes))) {
            bail!("it does not match its checksum");
        }
        Ok(postcard::from_bytes(&bytes)?)
    }

    /// Its server, as the catalogue knows it, or as far as the directory tells.
    fn entry(&self) -> Server {
        let known = self.catalogue.iter().flat_map(|c| &c.servers).find(|s| s.id == self.server);
        let mut entry = known.cloned().unwrap_or_else(|| Server {
            id: self.server,
            store: self.store,
            incarnation: self.incarnation,
            state: ServerState::Up,
            address: String::new(),
            http: String::new(),
            zone: format!("zone-{}", self.server),
            region: "local".to_owned(),
            tier: "ssd".to_owned(),
            capacity_bytes: 0,
            boot_id: String::new(),
        });
        entry.store = self.store;
        entry.incarnation = self.incarnation;
        entry
    }
}

/// What the surveys say together: with the newest log's map, or without any; a term above every
/// log's, and where the map is from, in words.
///
/// # Errors
/// There is no log, and headers were not asked for; or the newest does not read back.
pub fn remains(surveys: &[Survey], from_headers: bool) -> anyhow::Result<(Remains, u64, String)> {
    let survivors = surveys
        .iter()
        .map(|survey| Survivor {
            server: survey.entry(),
            copies: survey
                .copies
                .iter()
                .map(|(config, is_joining)| FoundCopy {
                    config: config.clone(),
                    is_joining: *is_joining,
                })
                .collect(),
        })
        .collect();
    let logs = || surveys.iter().filter_map(|s| Some((s.server, s.log.as_ref()?)));
    let term = logs().map(|(_, log)| log.term).max().unwrap_or(0) + 1;
    let mut remains = Remains { survivors, ..Remains::default() };
    if from_headers {
        let catalogues = surveys.iter().filter_map(|s| s.catalogue.as_ref());
        let newest = catalogues.max_by_key(|c| c.version).cloned().unwrap_or_default();
        let source = if newest.version == MapVersion(0) {
            "made from the headers of the replicas; volumes have lost their names, and are of \
             normal criticality"
                .to_owned()
        } else {
            format!(
                "made from the headers of the replicas, and a catalogue of version {}",
                newest.version
            )
        };
        Catalogue {
            version: remains.version,
            volumes: remains.volumes,
            servers: remains.servers,
        } = newest;
        return Ok((remains, term, source));
    }
    // A later term's log is the newer one, however long the others are.
    let Some((server, log)) = logs().max_by_key(|(_, log)| (log.term, log.index)) else {
        bail!(super::Refused(
            "no survivor given has a consensus log: say --from-headers to make the map from the \
             headers of the replicas"
                .to_owned()
        ));
    };
    let (mut machine, map) = machine();
    machine.restore(log.index, &log.snapshot).map_err(anyhow::Error::msg)?;
    let mut map = map.lock().expect("nobody else has it").clone();
    // The log has entries that are no commands.
    map.skip_to(MapVersion(log.index));
    let source = format!("server {server}'s, at version {}", map.version());
    remains.map = Some(map);
    Ok((remains, term, source))
}
