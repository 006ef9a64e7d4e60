//! The types openraft is instantiated with: a log of opaque commands between servers.
//!
//! Invariant: everything here that is stored or sent keeps its byte form; a change of form needs
//! a new [`super::wire::VERSION`] and a new log format number.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A server's number in the log's membership. Never reused, not even for a wiped server (an id
/// with an emptier log than it had would break the quorums it took part in).
pub type ServerId = u64;

openraft::declare_raft_types!(
    /// What openraft is generic over.
    pub TypeConfig:
        D = Command,
        R = Reply,
        NodeId = ServerId,
        Node = Peer,
        SnapshotData = SnapshotImage,
);

pub(super) type LogId = openraft::LogId<ServerId>;
pub(super) type Vote = openraft::Vote<ServerId>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type StorageError = openraft::StorageError<ServerId>;
pub(super) type StoredMembership = openraft::StoredMembership<ServerId, Peer>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<ServerId, Peer>;

/// Where a member is reached. The log stores it; it never dials it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `host:port` of the data port, which also carries the log's own messages.
    pub data: String,
    /// `host:port` of the HTTP port.
    pub http: String,
}

/// A command of the state machine: bytes the log does not look into.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Command {
    bytes: Vec<u8>,
    appended: Appended,
}

/// Tells a proposer whether its command ever reached this server's log, for openraft answers
/// "forward to the leader" both for a command it never took and for one it later lost.
#[derive(Clone, Default)]
struct Appended(Option<Arc<AtomicBool>>);

impl PartialEq for Appended {
    /// The mark is no part of the command.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Appended {}

impl Command {
    /// A command, and the mark that becomes true before it can enter this server's log.
    pub(super) fn tracked(bytes: Vec<u8>) -> (Self, Arc<AtomicBool>) {
        let mark = Arc::new(AtomicBool::new(false));
        let command = Self { bytes, appended: Appended(Some(Arc::clone(&mark))) };
        (command, mark)
    }

    /// Called by the log store before it takes the entry.
    pub(super) fn mark_appended(&self) {
        if let Some(mark) = &self.appended.0 {
            mark.store(true, Ordering::Release);
        }
    }

    /// The bytes the proposer gave.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.bytes.len())
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Blob(bytes) = Blob::deserialize(deserializer)?;
        Ok(Self { bytes, appended: Appended(None) })
    }
}

/// What the state machine answered to a command. Empty for entries that carry no command.
pub type Reply = Blob;

/// Bytes that serialize as one run rather than one element at a time.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a run of bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// A snapshot as it lies on disk and travels: the rolling digest (16 bytes, little endian), then
/// the state machine's own bytes. Shared, because several followers may be sent the same one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SnapshotImage(pub Arc<Vec<u8>>);

impl fmt::Debug for SnapshotImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotImage({} bytes)", self.0.len())
    }
}

/// A length as the 64-bit number that files and frames carry.
pub(super) fn bytes_len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a length in memory fits 64 bits")
}
