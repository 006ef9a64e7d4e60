//! HTTP: one question at a time, to whichever server answers.
//!
//! Invariant: a volume is called unknown only by a server that looked behind a read barrier. A
//! stale map is taken when no better one is to be had: it costs a redirect, never correctness
//! (C2), and lets a volume be read while consensus is down. A change is asked for only where asking
//! twice does no harm.

use std::net::ToSocketAddrs;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::ControlError;
use super::document::{
    MapDocument, RawCluster, RawMap, RawProblem, RawVolumes, ServerAddress, VolumeSummary,
};
use crate::error::ConnectError;

/// A machine that is up accepts within a round trip, however busy its processes are.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// Until an answer begins. A map is answered from memory, behind one round of consensus at most. A
/// server that is stopped or cut off costs this much once: the one that answered is asked first the
/// next time.
const BEGIN_TIMEOUT: Duration = Duration::from_millis(700);
/// Until all of it is here.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The map of a 64 TiB volume of 1 GiB segments, several times over.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// Servers learnt from maps, beside those given at first.
const URLS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Http {
    agent: ureq::Agent,
    urls: Vec<String>,
    /// The one that answered last.
    preferred: usize,
    cluster: Option<u64>,
}

enum Attempt {
    NotFound,
    Failed(String),
}

/// What came of a change that was asked for.
pub(super) enum Posted<T> {
    Done(T),
    NotFound,
    Refused(RawProblem),
    /// It may have happened.
    Unreachable(String),
}

impl Http {
    pub fn new(urls: &[String]) -> Result<Http, ConnectError> {
        let mut bases = Vec::new();
        for url in urls {
            let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
            match host {
                Some(host) if !host.is_empty() && !host.contains(['/', '?', '#', ' ']) => {
                    bases.push(format!("http://{host}"));
                }
                Some(_) | None => return Err(ConnectError::Url { url: url.clone() }),
            }
        }
        if bases.is_empty() {
            return Err(ConnectError::Url { url: String::new() });
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(BEGIN_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .user_agent(concat!("petrel-client/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Http { agent: config.new_agent(), urls: bases, preferred: 0, cluster: None })
    }

    /// The map of a volume, with a read barrier where one can be had.
    pub fn map(&mut self, name: &str) -> Result<MapDocument, ControlError> {
        let route = format!("/v1/map/{}", escape(name));
        let fresh = self.ask::<RawMap>(&format!("{route}?barrier=true"), true);
        let raw = match fresh {
            Ok(Some(raw)) => raw,
            Ok(None) => {
                return Err(ControlError::UnknownVolume { name: name.to_owned() });
            }
            Err(tried) => match self.ask::<RawMap>(&route, false) {
                Ok(Some(raw)) => raw,
                Ok(None) | Err(_) => return Err(ControlError::Unreachable { tried }),
            },
        };
        let cluster = match raw.cluster.as_ref().map(super::document::Number::value) {
            Some(Some(cluster)) => cluster,
            Some(None) => {
                let tried = format!("{route}: the cluster id is no number");
                return Err(ControlError::Unreachable { tried });
            }
            None => self.cluster()?,
        };
        Ok(self.document(raw, cluster))
    }

    /// Every volume.
    pub fn volumes(&mut self) -> Result<Vec<VolumeSummary>, ControlError> {
        match self.ask::<RawVolumes>("/v1/volumes", false) {
            Ok(Some(raw)) => Ok(raw.volumes),
            Ok(None) => {
                Err(ControlError::Unreachable { tried: "/v1/volumes is not found".to_owned() })
            }
            Err(tried) => Err(ControlError::Unreachable { tried }),
        }
    }

    /// The cluster's number, where the map does not tell.
    fn cluster(&mut self) -> Result<u64, ControlError> {
        if let Some(cluster) = self.cluster {
            return Ok(cluster);
        }
        let raw = self
            .ask::<RawCluster>("/v1/cluster", false)
            .map_err(|tried| ControlError::Unreachable { tried })?;
        let cluster = raw.and_then(|raw| raw.cluster_id.value());
        let none = || "/v1/cluster has no numeric cluster_id".to_owned();
        self.cluster = cluster;
        cluster.ok_or_else(|| ControlError::Unreachable { tried: none() })
    }

    fn document(&mut self, raw: RawMap, cluster: u64) -> MapDocument {
        let RawMap { volume, size_bytes, segment_bytes, version, cluster: _, servers, segments } =
            raw;
        let mut resolved = Vec::new();
        for server in servers {
            if let Some(http) = server.http {
                let url = format!("http://{http}");
                if !self.urls.contains(&url) && self.urls.len() < URLS_MAX {
                    self.urls.push(url);
                }
            }
            match server.address.to_socket_addrs().map(|mut found| found.next()) {
                Ok(Some(address)) => resolved.push(ServerAddress { id: server.id, address }),
                Ok(None) => tracing::warn!(id = %server.id, address = server.address, "no address"),
                Err(error) => {
                    tracing::warn!(%error, id = %server.id, address = server.address, "resolve");
                }
            }
        }
        MapDocument {
            volume,
            size_bytes,
            segment_bytes,
            version,
            cluster,
            servers: resolved,
            segments,
        }
    }

    /// Asks in turn until one answers. `Ok(None)` is a "not found": of the first who answers where
    /// that is authoritative, otherwise of all who do.
    fn ask<T: DeserializeOwned>(
        &mut self,
        route: &str,
        is_authoritative: bool,
    ) -> Result<Option<T>, String> {
        let mut tried = Vec::new();
        let mut missing = false;
        for step in 0..self.urls.len() {
            let position = (self.preferred + step) % self.urls.len();
            let url = &self.urls[position];
            match self.attempt::<T>(&format!("{url}{route}")) {
                Ok(found) => {
                    self.preferred = position;
                    return Ok(Some(found));
                }
                Err(Attempt::NotFound) if is_authoritative => return Ok(None),
                Err(Attempt::NotFound) => missing = true,
                Err(Attempt::Failed(why)) => tried.push(format!("{url}: {why}")),
            }
        }
        if missing { Ok(None) } else { Err(tried.join("; ")) }
    }

    /// Asks for a change of a volume that may be asked for twice, in turn until one answers.
    pub fn post<T: DeserializeOwned>(
        &mut self,
        volume: &str,
        verb: &str,
        body: &serde_json::Value,
    ) -> Posted<T> {
        let route = format!("/v1/volumes/{}/{verb}", escape(volume));
        let mut tried = Vec::new();
        for step in 0..self.urls.len() {
            let position = (self.preferred + step) % self.urls.len();
            let url = &self.urls[position];
            match self.attempt_post(&format!("{url}{route}"), body) {
                Ok(posted) => {
                    self.preferred = position;
                    return posted;
                }
                Err(why) => tried.push(format!("{url}: {why}")),
            }
        }
        Posted::Unreachable(tried.join("; "))
    }

    fn attempt_post<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &serde_json::Value,
    ) -> Result<Posted<T>, String> {
        let sent = self.agent.post(target).send_json(body);
        let mut response = sent.map_err(|why| why.to_string())?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|why| why.to_string())?;
        match status {
            200..300 => {
                serde_json::from_slice(&body).map(Posted::Done).map_err(|why| why.to_string())
            }
            404 => Ok(Posted::NotFound),
            400..500 => Ok(Posted::Refused(serde_json::from_slice(&body).unwrap_or_else(|_| {
                RawProblem { detail: format!("it answered {status}"), ..RawProblem::default() }
            }))),
            _ => Err(format!("it answered {status}")),
        }
    }

    fn attempt<T: DeserializeOwned>(&self, target: &str) -> Result<T, Attempt> {
        let failed = |why: &dyn std::fmt::Display| Attempt::Failed(why.to_string());
        let mut response = self.agent.get(target).call().map_err(|why| failed(&why))?;
        let status = response.status().as_u16();
        if status == 404 {
            return Err(Attempt::NotFound);
        }
        if !(200..300).contains(&status) {
            return Err(failed(&format!("it answered {status}")));
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|why| failed(&why))?;
        serde_json::from_slice(&body).map_err(|why| failed(&why))
    }
}

/// A name as one part of a path.
fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_the_path() {
        assert_eq!(escape("vol0"), "vol0");
        assert_eq!(escape("a/../b c?é"), "a%2F..%2Fb%20c%3F%C3%A9");
    }

    #[test]
    fn a_url_of_another_kind_is_refused_at_once() {
        for url in ["", "127.0.0.1:1", "https://a:1", "http://", "http://a/b", "unix:/x"] {
            let refused = Http::new(&[url.to_owned()]).expect_err(url);
            assert!(matches!(refused, ConnectError::Url { .. }), "{refused}");
        }
        Http::new(&[]).expect_err("nobody to ask");
        let http = Http::new(&["http://a:1/".to_owned()]).expect("a good URL");
        assert_eq!(http.urls, ["http://a:1"]);
    }
}
