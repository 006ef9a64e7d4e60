//! From running processes to a cluster: wait until it has formed, see to its volumes, wait for
//! the bridge.
//!
//! Invariant: whoever waits here notices within one poll that a child has died or that we were
//! told to stop, and gives up at the deadline with what it was waiting for.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::NbdListen;
use super::daemon::{Daemon, describe_end};
use super::error::DevError;
use super::manifest::Manifest;
use crate::client::Client;
use crate::error::{EXIT_FAILED, EXIT_REFUSED, Error};
use crate::model::{Cluster, Volumes};
use client_lib::size::display_bytes;

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Asking for a connection on this machine is answered at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A start under way.
pub struct Startup<'a> {
    pub client: &'a Client,
    pub stop: &'a AtomicBool,
    pub deadline: Instant,
    pub timeout_s: u64,
}

impl Startup<'_> {
    /// Waits until the cluster has a leader and every server is up.
    pub fn wait_until_formed(
        &self,
        daemons: &mut [Daemon],
        manifest: &Manifest,
    ) -> Result<(), DevError> {
        self.wait(daemons, || {
            let cluster = self.client.get_as("look at the cluster", "/v1/cluster");
            let cluster: Cluster = match cluster {
                Ok(cluster) => cluster,
                Err(error) => return Ok(Look::NotYet(error.to_string())),
            };
            Ok(match what_is_missing(&cluster, manifest.servers) {
                None => Look::Ready(()),
                Some(missing) => Look::NotYet(missing),
            })
        })
    }

    /// Creates what volumes are wanted and missing; returns what the cluster then has.
    pub fn see_to_volumes(
        &self,
        daemons: &mut [Daemon],
        manifest: &Manifest,
    ) -> Result<Vec<(String, u64)>, DevError> {
        self.wait(daemons, || {
            let actual = match volumes(self.client) {
                Ok(actual) => actual,
                Err(error) if error.is_transient() => return Ok(Look::NotYet(error.to_string())),
                Err(error) => return Err(refused(&error)),
            };
            for wanted in manifest.volumes.iter().filter(|volume| !volume.created) {
                match actual.iter().find(|(name, _)| *name == wanted.name) {
                    Some((_, size_bytes)) if *size_bytes == wanted.size_bytes => {}
                    Some((name, size_bytes)) => {
                        return Err(DevError::Volume {
                            why: format!(
                                "volume {name} exists, and has {}, not {}",
                                display_bytes(*size_bytes),
                                display_bytes(wanted.size_bytes)
                            ),
                            code: EXIT_REFUSED,
                        });
                    }
                    None => return self.create(manifest, &wanted.name, wanted.size_bytes),
                }
            }
            Ok(Look::Ready(actual))
        })
    }

    /// One more volume; the next look will find it.
    fn create<T>(
        &self,
        manifest: &Manifest,
        name: &str,
        size_bytes: u64,
    ) -> Result<Look<T>, DevError> {
        let body = json!({
            "name": name,
            "size_bytes": size_bytes,
            "replicas": manifest.replicas,
            "segment_bytes": manifest.segment_bytes,
        });
        let doing = format!("create volume {name}");
        match self.client.post(&doing, "/v1/volumes", &body) {
            Ok(_) => Ok(Look::NotYet(format!("volume {name} to be listed"))),
            // It may exist now all the same; the next look tells.
            Err(error) if error.is_transient() => Ok(Look::NotYet(error.to_string())),
            Err(error) => Err(refused(&error)),
        }
    }

    /// Waits until the bridge takes connections.
    pub fn wait_for_bridge(
        &self,
        daemons: &mut [Daemon],
        listen: &NbdListen,
    ) -> Result<(), DevError> {
        self.wait(daemons, || {
            let connected = match listen {
                NbdListen::Unix(path) => UnixStream::connect(path).map(drop),
                NbdListen::Tcp(address) => {
                    let address = super::report::reachable(*address);
                    TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map(drop)
                }
            };
            Ok(match connected {
                Ok(()) => Look::Ready(()),
                Err(why) => Look::NotYet(format!("nbd-bridge to listen on {listen} ({why})")),
            })
        })
    }

    fn wait<T>(
        &self,
        daemons: &mut [Daemon],
        mut look: impl FnMut() -> Result<Look<T>, DevError>,
    ) -> Result<T, DevError> {
        loop {
            let waiting_for = match look() {
                Ok(Look::Ready(found)) => {
                    // The others may not have missed it yet.
                    check_children(daemons)?;
                    return Ok(found);
                }
                Ok(Look::NotYet(waiting_for)) => waiting_for,
                Err(error) => {
                    // A refusal of a server that just died is the lesser news.
                    check_children(daemons)?;
                    return Err(error);
                }
            };
            if self.stop.load(Ordering::Relaxed) {
                return Err(DevError::Interrupted);
            }
            check_children(daemons)?;
            if Instant::now() >= self.deadline {
                return Err(DevError::NotReady {
                    seconds: self.timeout_s,
                    waiting_for,
                    logs: logs(daemons),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// One look at something that is waited for.
enum Look<T> {
    Ready(T),
    /// What it still waits for, for the error at the deadline.
    NotYet(String),
}

fn what_is_missing(cluster: &Cluster, servers: u16) -> Option<String> {
    if cluster.leader.is_none() {
        return Some("no leader has been elected".to_owned());
    }
    let missing: Vec<String> = (1..=servers)
        .map(|id| id.to_string())
        .filter(|id| {
            let known = cluster.servers.iter().find(|server| server.id.0 == *id);
            // A removed server was removed by the operator, who will not wait for it.
            known.is_none_or(|server| server.state == "down")
        })
        .collect();
    if missing.is_empty() {
        None
    } else {
        Some(format!("not up yet: server {}", missing.join(", ")))
    }
}

/// The cluster's volumes: name and size in bytes.
pub fn volumes(client: &Client) -> Result<Vec<(String, u64)>, Error> {
    let listed: Volumes = client.get_as("list volumes", "/v1/volumes")?;
    Ok(listed.volumes.into_iter().map(|volume| (volume.name, volume.size_bytes)).collect())
}

fn refused(error: &Error) -> DevError {
    let code = match error.exit_code() {
        // The arguments were judged before; what the cluster dislikes about them is a refusal.
        EXIT_REFUSED => EXIT_REFUSED,
        _ => EXIT_FAILED,
    };
    DevError::Volume { why: error.to_string(), code }
}

/// A child that dies now will not get better: its log says why.
fn check_children(daemons: &mut [Daemon]) -> Result<(), DevError> {
    for daemon in daemons {
        if let Some(status) = daemon.reap() {
            return Err(DevError::ChildDied {
                name: daemon.name(),
                status: describe_end(status),
                log: daemon.log.clone(),
                tail: daemon.log_tail(),
            });
        }
    }
    Ok(())
}

fn logs(daemons: &[Daemon]) -> String {
    let ends: Vec<String> = daemons
        .iter()
        .filter(|daemon| daemon.pid().is_some())
        .map(|daemon| format!("the end of {}:\n{}", daemon.log.display(), daemon.log_tail()))
        .collect();
    ends.join("\n")
}
