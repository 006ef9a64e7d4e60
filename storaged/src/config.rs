//! Config: what a storaged is told by its file and its flags.
//!
//! Invariant: an unknown key, a missing one or an address open to the network without
//! `--insecure` is an error that names it, before anything is opened. Read once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use client_lib::size::parse_bytes;
use serde::Deserialize;
use thiserror::Error;

use crate::scrub::SCRUB_MBPS_DEFAULT;

/// One server of the cluster, as every server is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    pub id: u64,
    /// `HOST:PORT` of its data listener.
    pub data: String,
    /// `HOST:PORT` of its HTTP listener.
    pub http: String,
}

/// The flags. Each but `--config` is also a key of the file, and stands above it.
#[derive(Parser, Clone, Debug, Default)]
#[command(
    name = "storaged",
    version,
    about = "One storage server of a Petrel cluster",
    long_about = "One storage server of a Petrel cluster: serves segments, replicates them, scores \
                  its own risk of failing and takes part in the Segment Mapping Table.\n\n\
                  Most people start it through `petrel dev`, which writes the file for it."
)]
pub struct Flags {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This server's id, for ever.
    #[arg(long)]
    pub id: Option<u64>,
    /// Where its replicas, log and identity live.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The data listener, HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// The HTTP listener, HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// The failure domain replicas are spread over.
    #[arg(long)]
    pub zone: Option<String>,
    #[arg(long)]
    pub region: Option<String>,
    /// nvme, ssd or hdd.
    #[arg(long)]
    pub tier: Option<String>,
    /// A server of the cluster, this one included: ID=DATA,HTTP. Once for each.
    #[arg(long = "peer", value_name = "ID=HOST:PORT,HOST:PORT", value_parser = parse_peer)]
    pub peers: Vec<PeerConfig>,
    /// Found the cluster with the peers given, if nobody has yet. On one server only.
    #[arg(long)]
    pub bootstrap: bool,
    /// The cluster this server belongs to, as 16 hex digits; without it, what the first start of
    /// this directory made of the peers.
    #[arg(long, value_name = "HEX")]
    pub cluster: Option<String>,
    /// What replicas may take here, such as 500G; without it, what the file system has.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub capacity: Option<u64>,
    /// Read and verify every replica once in this time, such as 7d, 12h or 30m; 0: only when asked
    /// [default: 7d].
    #[arg(long, value_name = "TIME", value_parser = parse_period)]
    pub scrub_period: Option<ScrubPeriod>,
    /// Read for it no faster than this many megabytes (10^6 bytes) a second [default: 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub scrub_mbps: Option<u64>,
    /// A server not heard from for this long is down: what it held is rebuilt elsewhere. Such as
    /// 30s or 5m; what the leader was given counts, so give all servers the same.
    #[arg(long, value_name = "TIME", value_parser = parse_down_after)]
    pub down_after: Option<Duration>,
    /// Let POST /v1/faults make the disk slow or wrong. For tests.
    #[arg(long)]
    pub allow_faults: bool,
    /// Listen beyond this machine although nothing is encrypted yet.
    #[arg(long)]
    pub insecure: bool,
    /// Stop when standard input closes: how children of `petrel dev` notice its death.
    #[arg(long)]
    pub exit_on_stdin_close: bool,
}

/// The file's keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    id: Option<u64>,
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    http: Option<String>,
    zone: Option<String>,
    region: Option<String>,
    tier: Option<String>,
    peers: Vec<PeerConfig>,
    bootstrap: bool,
    cluster: Option<String>,
    /// A size, or a number of bytes.
    capacity: Option<toml::Value>,
    /// A time, or 0.
    scrub_period: Option<toml::Value>,
    scrub_mbps: Option<u64>,
    down_after: Option<String>,
    allow_faults: bool,
    insecure: bool,
    exit_on_stdin_close: bool,
}

/// Everything, judged.
#[derive(Clone, Debug)]
pub struct Config {
    pub id: u64,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    pub zone: String,
    pub region: String,
    pub tier: String,
    pub peers: Vec<PeerConfig>,
    pub bootstrap: bool,
    pub cluster: Option<u64>,
    pub capacity_bytes: Option<u64>,
    /// None: every replica is read only when somebody asks.
    pub scrub_period: Option<Duration>,
    /// Megabytes (10^6 bytes) a second.
    pub scrub_mbps: u64,
    pub down_after: Duration,
    pub allow_faults: bool,
    pub exit_on_stdin_close: bool,
}

/// What is wrong with the configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration {path} is not right: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("no {key}: give it as --{flag} or as `{key}` in the file")]
    Missing { key: &'static str, flag: &'static str },
    #[error("{key} = {value:?}: {reason}")]
    Bad { key: &'static str, value: String, reason: String },
    #[error(
        "{key} = {value} is open to the network, and nothing is encrypted yet: use a loopback \
         address, or say --insecure"
    )]
    Open { key: &'static str, value: SocketAddr },
}

fn parse_peer(text: &str) -> Result<PeerConfig, String> {
    let wanted = "ID=HOST:PORT,HOST:PORT";
    let (id, rest) = text.split_once('=').ok_or(wanted)?;
    let (data, http) = rest.split_once(',').ok_or(wanted)?;
    let id = id.parse().map_err(|_| wanted)?;
    Ok(PeerConfig { id, data: data.to_owned(), http: http.to_owned() })
}

/// How often to scrub; none is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPeriod(Option<Duration>);

/// A week: a block that rots while it is not read is found before the next one does, and a full
/// drive of 38 TB is read in it at the default rate.
const SCRUB_PERIOD_DEFAULT: ScrubPeriod = ScrubPeriod(Some(Duration::from_secs(7 * 24 * 3600)));

fn parse_period(text: &str) -> Result<ScrubPeriod, String> {
    let wanted = "want a time such as 7d, 12h, 30m or 90s, or 0 for never";
    if text == "0" {
        return Ok(ScrubPeriod(None));
    }
    let unit_s: u64 = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        Some(_) | None => return Err(wanted.to_owned()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wanted)?;
    match number.checked_mul(unit_s) {
        Some(0) => Ok(ScrubPeriod(None)),
        Some(seconds) => Ok(ScrubPeriod(Some(Duration::from_secs(seconds)))),
        None => Err(wanted.to_owned()),
    }
}

fn scrub_period(value: &toml::Value) -> Result<ScrubPeriod, ConfigError> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    parse_period(&text).map_err(|reason| ConfigError::Bad {
        key: "scrub_period",
        value: text,
        reason,
    })
}

fn address(key: &'static str, value: &str, insecure: bool) -> Result<SocketAddr, ConfigError> {
    let bad = |reason: String| ConfigError::Bad { key, value: value.to_owned(), reason };
    let address: SocketAddr = value.parse().map_err(|_| bad("not an IP address:port".into()))?;
    if !address.ip().is_loopback() && !insecure {
        return Err(ConfigError::Open { key, value: address });
    }
    Ok(address)
}

fn capacity(value: &toml::Value) -> Result<u64, ConfigError> {
    let (key, wanted) = ("capacity", "want a size such as \"500G\", or a number of bytes");
    let bad = |value: String, reason: String| ConfigError::Bad { key, value, reason };
    match value {
        toml::Value::String(text) => {
            parse_bytes(text).map_err(|error| bad(text.clone(), error.to_string()))
        }
        toml::Value::Integer(bytes) => {
            u64::try_from(*bytes).map_err(|_| bad(bytes.to_string(), wanted.to_owned()))
        }
        other => Err(bad(other.to_string(), wanted.to_owned())),
    }
}

/// A process that is restarted, or a machine that pauses, is back by then, and its old copies are
/// cheaper than new ones (DESIGN 6).
pub const DOWN_AFTER: Duration = Duration::from_secs(30);
/// Servers say a word a second, and one or two may be late.
const DOWN_AFTER_MIN: Duration = Duration::from_secs(3);

/// A time after which a silent server is down, such as `30s` or `5m`.
///
/// # Errors
/// In words, what is wrong with it.
pub fn parse_down_after(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; want a time such as \"30s\" or \"5m\""))?;
    if time < DOWN_AFTER_MIN {
        let least = DOWN_AFTER_MIN.as_secs();
        return Err(format!("want {least} s at least: servers speak once a second"));
    }
    Ok(time)
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Parse { path: path.to_owned(), reason: error.to_string() })
}

impl Config {
    /// File and flags together, judged.
    ///
    /// # Errors
    /// The first thing that is missing or wrong.
    pub fn load(flags: Flags) -> Result<Config, ConfigError> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let insecure = flags.insecure || file.insecure;
        let missing = |key, flag| ConfigError::Missing { key, flag };
        let listen = flags.listen.or(file.listen).ok_or(missing("listen", "listen"))?;
        let http = flags.http.or(file.http).ok_or(missing("http", "http"))?;
        let id = flags.id.or(file.id).ok_or(missing("id", "id"))?;
        if id == 0 {
            let (value, reason) = ("0".to_owned(), "ids start at 1".to_owned());
            return Err(ConfigError::Bad { key: "id", value, reason });
        }
        let peers = if flags.peers.is_empty() { file.peers } else { flags.peers };
        if !peers.iter().any(|p| p.id == id) {
            let value = format!("{} of them", peers.len());
            let reason = format!("this server, {id}, must be among them");
            return Err(ConfigError::Bad { key: "peers", value, reason });
        }
        let cluster = match flags.cluster.or(file.cluster) {
            None => None,
            Some(text) => match u64::from_str_radix(&text, 16) {
                Ok(cluster) if cluster != 0 => Some(cluster),
                Ok(_) | Err(_) => {
                    let reason = "want 16 hex digits, not all 0".to_owned();
                    return Err(ConfigError::Bad { key: "cluster", value: text, reason });
                }
            },
        };
        let capacity_bytes = match (flags.capacity, &file.capacity) {
            (Some(bytes), _) => Some(bytes),
            (None, Some(value)) => Some(capacity(value)?),
            (None, None) => None,
        };
        let ScrubPeriod(scrub_period) = match (flags.scrub_period, &file.scrub_period) {
            (Some(period), _) => period,
            (None, Some(value)) => scrub_period(value)?,
            (None, None) => SCRUB_PERIOD_DEFAULT,
        };
        let scrub_mbps = flags.scrub_mbps.or(file.scrub_mbps).unwrap_or(SCRUB_MBPS_DEFAULT);
        if scrub_mbps == 0 {
            let reason = "want 1 or more; scrub_period = 0 turns the scrubber off".to_owned();
            return Err(ConfigError::Bad { key: "scrub_mbps", value: "0".to_owned(), reason });
        }
        let down_after =
            match (flags.down_after, file.down_after) {
                (Some(time), _) => time,
                (None, None) => DOWN_AFTER,
                (None, Some(text)) => parse_down_after(&text).map_err(|reason| {
                    ConfigError::Bad { key: "down_after", value: text, reason }
                })?,
            };
        Ok(Config {
            id,
            data_dir: flags.data_dir.or(file.data_dir).ok_or(missing("data_dir", "data-dir"))?,
            listen: address("listen", &listen, insecure)?,
            http: address("http", &http, insecure)?,
            zone: flags.zone.or(file.zone).unwrap_or_else(|| format!("zone-{id}")),
            region: flags.region.or(file.region).unwrap_or_else(|| "local".to_owned()),
            tier: flags.tier.or(file.tier).unwrap_or_else(|| "ssd".to_owned()),
            peers,
            bootstrap: flags.bootstrap || file.bootstrap,
            cluster,
            capacity_bytes,
            scrub_period,
            scrub_mbps,
            down_after,
            allow_faults: flags.allow_faults || file.allow_faults,
            exit_on_stdin_close: flags.exit_on_stdin_close || file.exit_on_stdin_close,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("storaged.toml");
        std::fs::write(&path, text).expect("it can be written");
        Config::load(Flags { config: Some(path), ..Flags::default() })
    }

    const SOUND: &str = r#"
        id = 1
        data_dir = "data"
        listen = "127.0.0.1:7001"
        http = "127.0.0.1:8001"
        peers = [{ id = 1, data = "127.0.0.1:7001", http = "127.0.0.1:8001" }]
    "#;

    #[test]
    fn a_sound_file_is_taken() {
        let config = with_file(SOUND).expect("it is sound");
        assert_eq!((config.id, config.zone.as_str()), (1, "zone-1"));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = with_file(&format!("colour = 3\n{SOUND}")).expect_err("colour is no key");
        assert!(error.to_string().contains("colour"), "{error}");
    }

    #[test]
    fn an_address_open_to_the_network_needs_insecure() {
        let open = SOUND.replace("http = \"127.0.0.1:8001\"\n", "http = \"0.0.0.0:8001\"\n");
        let error = with_file(&open).expect_err("it is open");
        assert!(error.to_string().contains("--insecure"), "{error}");
        with_file(&format!("insecure = true\n{open}")).expect("it was asked for");
    }

    #[test]
    fn a_capacity_is_a_size_in_the_file_and_as_a_flag() {
        for (text, bytes) in [("\"4G\"", 4 << 30), ("\"4GiB\"", 4 << 30), ("4096", 4096)] {
            let config = with_file(&format!("capacity = {text}\n{SOUND}")).expect("it is sound");
            assert_eq!(config.capacity_bytes, Some(bytes), "{text}");
        }
        assert_eq!(with_file(SOUND).expect("it is sound").capacity_bytes, None);
        for text in ["4G", "4GiB", "4294967296"] {
            let flags = Flags::try_parse_from(["storaged", "--capacity", text]).expect("a size");
            assert_eq!(flags.capacity, Some(4 << 30), "{text}");
        }
    }

    #[test]
    fn a_capacity_that_is_no_size_is_refused_by_name_and_with_what_to_write() {
        for (text, said) in [
            ("\"4GB\"", "4GiB"),
            ("\"much\"", "512MiB"),
            ("\"99E\"", "64 bits"),
            ("-1", "500G"),
            ("4.5", "500G"),
            ("[1]", "500G"),
        ] {
            let error = with_file(&format!("capacity = {text}\n{SOUND}")).expect_err(text);
            let error = error.to_string();
            assert!(error.contains("capacity") && error.contains(said), "{error}");
        }
        let flags = Flags::try_parse_from(["storaged", "--capacity", "4GB"]);
        let error = flags.expect_err("GB is ambiguous").to_string();
        assert!(error.contains("--capacity") && error.contains("4GiB"), "{error}");
    }

    #[test]
    fn the_scrubber_has_a_period_in_words_and_can_be_turned_off() {
        let seconds = |s| Some(Duration::from_secs(s));
        for (text, period) in [
            ("\"7d\"", seconds(604_800)),
            ("\"12h\"", seconds(43_200)),
            ("\"90s\"", seconds(90)),
            ("\"0\"", None),
            ("0", None),
            ("\"0d\"", None),
        ] {
            let config = with_file(&format!("scrub_period = {text}\n{SOUND}")).expect("sound");
            assert_eq!(config.scrub_period, period, "{text}");
        }
        let config = with_file(SOUND).expect("it is sound");
        assert_eq!((config.scrub_period, config.scrub_mbps), (seconds(604_800), 64));
        for wrong in ["scrub_period = 7", "scrub_period = \"week\"", "scrub_mbps = 0"] {
            let error = with_file(&format!("{wrong}\n{SOUND}")).expect_err(wrong).to_string();
            assert!(error.contains("scrub_") && error.contains("want"), "{error}");
        }
        let flags = Flags::try_parse_from(["storaged", "--scrub-period", "30m"]).expect("a time");
        assert_eq!(flags.scrub_period, Some(ScrubPeriod(seconds(1800))));
    }

    #[test]
    fn the_time_after_which_a_server_is_down_is_30_s_unless_it_is_said() {
        assert_eq!(with_file(SOUND).expect("it is sound").down_after, Duration::from_secs(30));
        let file = format!("down_after = \"5m\"\n{SOUND}");
        assert_eq!(with_file(&file).expect("it is sound").down_after, Duration::from_secs(300));
        for text in ["1s", "30", "soon", "-3s"] {
            let error = with_file(&format!("down_after = {text:?}\n{SOUND}")).expect_err(text);
            assert!(error.to_string().contains("down_after"), "{error}");
        }
        let flags = Flags::try_parse_from(["storaged", "--down-after", "3s"]).expect("a time");
        assert_eq!(flags.down_after, Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_server_that_is_not_among_its_peers_is_refused() {
        let error = with_file(&SOUND.replacen("id = 1", "id = 2", 1)).expect_err("2 is not");
        assert!(error.to_string().contains("must be among them"), "{error}");
    }
}
