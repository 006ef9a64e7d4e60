//! What can keep a development cluster from starting, running or stopping.

use std::io;
use std::path::PathBuf;

use crate::error::{EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE};

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("{doing} {}: {source}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{address} can be reached from other machines, and there is no TLS yet: choose a loopback address, or insist with --insecure"
    )]
    NotLoopback { address: String },
    #[error("the socket path {} has {bytes} bytes, and the kernel takes at most {}: choose a shorter --dir, or give --nbd unix:PATH", path.display(), super::SOCKET_PATH_BYTES_MAX)]
    SocketPathTooLong { path: PathBuf, bytes: usize },
    #[error("{replicas} replicas need as many servers, and there are {servers}")]
    TooFewServers { replicas: u16, servers: u16 },
    #[error("--volume {name} is given twice, with different sizes")]
    VolumeTwice { name: String },
    #[error("--http {first} leaves no room for {servers} ports that count up from it")]
    PortsEnd { first: String, servers: u16 },
    #[error("{} belongs to a cluster with {what} {remembered}, not {asked}: leave that option out, or choose another --dir", dir.display())]
    Contradiction { dir: PathBuf, what: String, remembered: String, asked: String },
    #[error("{} holds server data but no cluster.toml: this is no directory petrel dev made, choose another --dir", dir.display())]
    ForeignDirectory { dir: PathBuf },
    #[error("{} is not a cluster description this version can read: {why}", path.display())]
    BadManifest { path: PathBuf, why: String },
    #[error("petrel dev is already running in {} (pid {pid}); stop it with `petrel dev --stop --dir {}`", dir.display(), dir.display())]
    AlreadyRunning { dir: PathBuf, pid: String },
    #[error("there is no cluster in {}", dir.display())]
    NoCluster { dir: PathBuf },
    #[error("{what} wants {address}, and something else is using it: {source}")]
    PortInUse { what: String, address: String, source: io::Error },
    #[error("something already listens on {}", path.display())]
    SocketInUse { path: PathBuf },
    #[error("{} is in the way of the NBD socket, and it is no socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("no run of {servers} free ports was found for {what}")]
    NoFreePorts { what: &'static str, servers: u16 },
    #[error("{name} is not at {}: build it (`cargo build -p {name}`), or say where it is in {variable}", path.display())]
    MissingProgram { name: &'static str, path: PathBuf, variable: &'static str },
    #[error("start {name} ({}): {source}", program.display())]
    Spawn { name: String, program: PathBuf, source: io::Error },
    #[error("{name} ended before the cluster was ready ({status}); the end of {}:\n{tail}", log.display())]
    ChildDied { name: String, status: String, log: PathBuf, tail: String },
    #[error("the cluster is not ready after {seconds} s: {waiting_for}\n{logs}")]
    NotReady { seconds: u64, waiting_for: String, logs: String },
    #[error("{why}")]
    Volume {
        why: String,
        /// The exit code the server's answer earned.
        code: u8,
    },
    #[error("register for signals: {source}")]
    Signals { source: io::Error },
    #[error("stopped before the cluster was ready")]
    Interrupted,
    #[error("the cluster in {} did not start; see {}", dir.display(), log.display())]
    Background { dir: PathBuf, log: PathBuf },
    /// The background half has said on stderr what is wrong; only its exit code is left to pass on.
    #[error("the cluster did not start")]
    Reported { code: u8 },
    #[error("pid {pid}, which runs the cluster in {}, did not end within {seconds} s", dir.display())]
    WontStop { dir: PathBuf, pid: String, seconds: u64 },
    #[error("signal pid {pid}, which runs the cluster in {}: {source}", dir.display())]
    Signal { dir: PathBuf, pid: String, source: io::Error },
}

impl DevError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotLoopback { .. }
            | Self::SocketPathTooLong { .. }
            | Self::TooFewServers { .. }
            | Self::VolumeTwice { .. }
            | Self::PortsEnd { .. } => EXIT_USAGE,
            Self::Contradiction { .. }
            | Self::ForeignDirectory { .. }
            | Self::AlreadyRunning { .. } => EXIT_REFUSED,
            Self::Volume { code, .. } | Self::Reported { code } => *code,
            Self::File { .. }
            | Self::BadManifest { .. }
            | Self::NoCluster { .. }
            | Self::PortInUse { .. }
            | Self::SocketInUse { .. }
            | Self::NotASocket { .. }
            | Self::NoFreePorts { .. }
            | Self::MissingProgram { .. }
            | Self::Spawn { .. }
            | Self::ChildDied { .. }
            | Self::NotReady { .. }
            | Self::Signals { .. }
            | Self::Interrupted
            | Self::Background { .. }
            | Self::WontStop { .. }
            | Self::Signal { .. } => EXIT_FAILED,
        }
    }

    /// For `map_err` on file operations.
    pub fn file(doing: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { doing, path, source }
    }
}
