//! The arguments of `petrel dev`, each judged on its own.
//!
//! Invariant: what was not given stays `None`, because an existing directory remembers its own
//! answers and only what is *said* can contradict them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use crate::args::{parse_positive_bytes, parse_segment_bytes, parse_volume_name};

const EXAMPLES: &str = "\
Examples:
  petrel dev                                          3 servers, volume vol0 of 4GiB, Ctrl-C to stop
  petrel dev --dir /tmp/p --detach                    in the background; it returns once ready
  petrel dev --dir /tmp/p --stop                      stop that one; its data stays
  petrel dev --servers 4 --volume a:1G --volume b:8G  more of everything

It prints `petrel: ready` and then where everything is: one `nbd:` URI a volume, one `http:`
address and one `pid:` a server. A second start with the same --dir finds the data again.
The first cluster on a machine gets the HTTP ports 8001, 8002, …, which `petrel status` and the
other commands ask by default; the next one gets others, so give those --cluster.
To start afresh, stop it and delete its directory.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DevArgs {
    /// Where the cluster keeps its data, logs and socket
    #[arg(long, value_name = "DIR", default_value = "./petrel-dev")]
    pub dir: PathBuf,

    /// Number of servers [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub servers: Option<u16>,

    /// How many servers hold each segment [default: 2]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u16).range(1..))]
    pub replicas: Option<u16>,

    /// Size of a segment, a power of two from 1MiB [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_segment_bytes)]
    pub segment_size: Option<u64>,

    /// A volume to create if it does not exist; repeat for more [default: vol0:4GiB]
    #[arg(long = "volume", value_name = "NAME:SIZE")]
    pub volumes: Vec<VolumeSpec>,

    /// Where the NBD bridge listens [default: unix:DIR/nbd.sock]
    #[arg(long, value_name = "unix:PATH|tcp:HOST:PORT")]
    pub nbd: Option<NbdListen>,

    /// HTTP address of the first server; the others count up [default: free ports from 127.0.0.1:8001]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<HttpListen>,

    /// Rebuild elsewhere what a server held that was silent for this long, such as 3s or 5m [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub down_after: Option<Duration>,

    /// Return once the cluster is ready, and leave it running in the background
    #[arg(long)]
    pub detach: bool,

    /// Stop the cluster that runs in DIR
    #[arg(long, conflicts_with_all = ["detach", "servers", "replicas", "segment_size", "volumes", "nbd", "http", "down_after", "no_restart"])]
    pub stop: bool,

    /// Leave a child that dies dead (otherwise it is started again after 1 s)
    #[arg(long)]
    pub no_restart: bool,

    /// Allow addresses other machines can reach: there is no TLS and no authentication yet
    #[arg(long)]
    pub insecure: bool,

    /// How long the cluster may take to become ready
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub startup_timeout_s: u64,

    /// We are the background half of --detach.
    #[arg(long, hide = true)]
    pub in_background: bool,
}

/// `NAME:SIZE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    pub name: String,
    pub size_bytes: u64,
}

/// The unit a volume's size counts in: NBD clients see 4 KiB blocks.
const BLOCK_BYTES: u64 = 4096;

impl FromStr for VolumeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = text
            .split_once(':')
            .ok_or_else(|| "a volume is NAME:SIZE, such as vol0:4GiB".to_owned())?;
        let size_bytes = parse_positive_bytes(size)?;
        if !size_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(format!("a volume's size is a multiple of 4KiB, not {size}"));
        }
        Ok(Self { name: parse_volume_name(name)?, size_bytes })
    }
}

/// Where the bridge listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdListen {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl NbdListen {
    /// The same with an absolute path: children and clients may run elsewhere.
    pub fn absolute(&self) -> std::io::Result<Self> {
        match self {
            Self::Unix(path) => Ok(Self::Unix(std::path::absolute(path)?)),
            Self::Tcp(address) => Ok(Self::Tcp(*address)),
        }
    }

    pub fn default_in(dir: &Path) -> Self {
        Self::Unix(dir.join("nbd.sock"))
    }

    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(address) => address.ip().is_loopback(),
        }
    }
}

impl FromStr for NbdListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("unix: needs a path after it".to_owned());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Some(address) = text.strip_prefix("tcp:") {
            return parse_address(address).map(Self::Tcp);
        }
        Err("the NBD address is unix:PATH or tcp:HOST:PORT".to_owned())
    }
}

impl fmt::Display for NbdListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// The HTTP address of server 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpListen(pub SocketAddr);

impl FromStr for HttpListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_address(text).map(Self)
    }
}

/// `HOST:PORT` with a fixed port; a name is resolved once, here.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let mut found =
        text.to_socket_addrs().map_err(|why| format!("{text:?} is no HOST:PORT: {why}"))?;
    // `localhost` may mean both loopbacks; the children and the printed lines must agree on one.
    let address = if text.starts_with("localhost:") {
        found.next().map(|a| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), a.port()))
    } else {
        found.next()
    };
    match address {
        Some(address) if address.port() != 0 => Ok(address),
        Some(_) => Err(format!("{text:?}: port 0 is no address to tell others")),
        None => Err(format!("{text:?} has no address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_name_and_a_size() {
        let spec: VolumeSpec = "vol0:4G".parse().expect("valid");
        assert_eq!((spec.name.as_str(), spec.size_bytes), ("vol0", 4 << 30));
        for text in ["vol0", "vol0:", ":4G", "vol0:0", "vol0:4GB", "vol0:1000", "a/b:4G"] {
            assert!(text.parse::<VolumeSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_nbd_address_is_a_path_or_a_port() {
        assert_eq!("unix:/a".parse(), Ok(NbdListen::Unix("/a".into())));
        let tcp: NbdListen = "tcp:127.0.0.1:10809".parse().expect("valid");
        assert_eq!(tcp.to_string(), "tcp:127.0.0.1:10809");
        assert!(tcp.is_local());
        let open: NbdListen = "tcp:0.0.0.0:10809".parse().expect("valid");
        assert!(!open.is_local());
        for text in ["unix:", "tcp:", "tcp:127.0.0.1", "tcp:127.0.0.1:0", "/a"] {
            assert!(text.parse::<NbdListen>().is_err(), "{text}");
        }
    }
}
