//! State: the Segment Mapping Table as the replicated log's state machine.
//!
//! Invariant: the map changes only by `apply`, in the order of the log; nothing else holds it
//! mutably. Who reads it holds the lock for moments only, and never across an await.

use std::sync::{Arc, Mutex};

use smt::map::{Command, Map, Refused, Reply};
use smt::{MapVersion, Settings};

use crate::consensus::StateMachine;

/// The map, shared by consensus (which changes it), the shards and the HTTP interface.
pub type SharedMap = Arc<Mutex<Map>>;

/// The version of a snapshot's format.
/// * 1: the first; postcard of the map; never in a release.
/// * 2: attachments and writer tokens.
/// * 3: copies that were forced, and the gaps a recovery leaves among the ids.
const SNAPSHOT_VERSION: u8 = 3;

/// See the module's words.
pub struct SmtMachine {
    map: SharedMap,
    settings: Settings,
    /// Called after every change.
    notify: Box<dyn Fn() + Send + Sync>,
}

impl SmtMachine {
    /// A state machine over `map`, which must be empty: snapshot and log will fill it.
    pub fn new(map: SharedMap, notify: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { map, settings: Settings::default(), notify }
    }
}

impl StateMachine for SmtMachine {
    fn apply(&mut self, index: u64, command: &[u8]) -> Vec<u8> {
        let outcome: Result<Reply, Refused> = match postcard::from_bytes::<Command>(command) {
            Ok(command) => {
                let mut map = self.map.lock().expect("nobody panics while holding the map");
                let outcome = map.apply(MapVersion(index), &command, &self.settings);
                if let (Command::ForcePrimary { segment, server, .. }, Ok(_)) = (&command, &outcome)
                {
                    tracing::warn!(%segment, %server, "an operator has forced an older copy of a segment: what its last members had beyond it is lost");
                }
                outcome
            }
            // Every server runs the same code on the same bytes, so all refuse it alike.
            Err(error) => Err(Refused::Refused { why: format!("no command: {error}") }),
        };
        (self.notify)();
        postcard::to_stdvec(&outcome).expect("our own types serialise into memory")
    }

    fn snapshot(&self) -> Vec<u8> {
        let map = self.map.lock().expect("nobody panics while holding the map");
        let mut bytes = vec![SNAPSHOT_VERSION];
        bytes.extend(postcard::to_stdvec(&*map).expect("our own types serialise into memory"));
        bytes
    }

    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String> {
        let (&version, body) = snapshot.split_first().ok_or("an empty snapshot")?;
        if version > SNAPSHOT_VERSION {
            return Err(format!(
                "the map's snapshot at {index} has format {version}, newer than ours \
                 ({SNAPSHOT_VERSION}): upgrade this server"
            ));
        }
        if version < SNAPSHOT_VERSION {
            return Err(format!(
                "the map's snapshot at {index} has format {version}, from before the first \
                 release, and this server reads {SNAPSHOT_VERSION} only"
            ));
        }
        let restored: Map = postcard::from_bytes(body).map_err(|error| error.to_string())?;
        *self.map.lock().expect("nobody panics while holding the map") = restored;
        (self.notify)();
        Ok(())
    }
}
