//! The JSON documents a client reads, as the servers write them.

use std::net::SocketAddr;

use serde::Deserialize;
use smt::ids::{MapVersion, ServerId, VolumeId};
use smt::map::SegmentConfig;

/// A number that is given as a string where it may exceed what JSON readers keep exactly.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Number {
    Whole(u64),
    Text(String),
}

impl Number {
    pub fn value(&self) -> Option<u64> {
        match self {
            Number::Whole(value) => Some(*value),
            Number::Text(text) => text.parse().ok(),
        }
    }
}

/// `GET /v1/map/{volume}`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawMap {
    pub volume: VolumeId,
    pub size_bytes: u64,
    pub segment_bytes: u64,
    pub version: MapVersion,
    pub cluster: Option<Number>,
    pub servers: Vec<RawServer>,
    pub segments: Vec<SegmentConfig>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawServer {
    pub id: ServerId,
    pub address: String,
    /// Asked for maps too, once the URLs given at first are of no use any more.
    #[serde(default)]
    pub http: Option<String>,
}

/// `POST /v1/volumes/{volume}/attach`, of which only this is of use here.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawAttached {
    pub id: VolumeId,
    pub writer: u64,
    pub version: MapVersion,
}

/// Problem details, with who has a volume where that is the problem.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawProblem {
    pub detail: String,
    pub attachment: Option<RawAttachment>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawAttachment {
    /// The token under which it is held.
    #[serde(default)]
    pub writer: Option<u64>,
    clients: Vec<RawClient>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawClient {
    owner: String,
}

impl RawProblem {
    /// Who has the volume, if it says.
    pub fn holders(&self) -> Option<String> {
        let clients = &self.attachment.as_ref()?.clients;
        let owners: Vec<&str> = clients.iter().map(|client| client.owner.as_str()).collect();
        (!owners.is_empty()).then(|| owners.join(", "))
    }
}

/// `GET /v1/cluster`, of which only this is of use here.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawCluster {
    pub cluster_id: Number,
}

/// `GET /v1/volumes`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawVolumes {
    pub volumes: Vec<VolumeSummary>,
}

/// A volume, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeSummary {
    /// What it is opened by.
    pub name: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
}

/// Where a server takes data connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    pub id: ServerId,
    pub address: SocketAddr,
}

/// All a client has to know of a volume, and of the servers that hold it.
#[derive(Clone, Debug)]
pub(crate) struct MapDocument {
    pub volume: VolumeId,
    pub size_bytes: u64,
    pub segment_bytes: u64,
    pub version: MapVersion,
    pub cluster: u64,
    /// Those whose address could be resolved.
    pub servers: Vec<ServerAddress>,
    pub segments: Vec<SegmentConfig>,
}
