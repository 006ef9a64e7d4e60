//! The command line: what can be asked, and the help that teaches it.
//!
//! Invariant: every value is judged here, so that commands only see values that make sense on
//! their own. Whether they make sense to the cluster is the servers' business.

use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use client_lib::size;

use crate::dev::DevArgs;
use crate::model::Id;
use crate::url::BaseUrl;

const EXAMPLES: &str = "\
Examples:
  petrel dev                                   a three-server cluster on this machine
  petrel status                                is everything well?
  petrel volume create vol1 --size 16G         a new volume
  petrel segment list vol1                     where its segments are
  petrel segment move vol1/0 --to 3            move one, live
  petrel scrub vol0                            verify every byte of it on every disk
  petrel fault inject 2 --read-latency-ms 80   make a disk slow, and
  petrel migration watch                       watch the data leave it

Exit codes: 0 ok, 1 failed, 2 usage, 3 refused or conflict, 4 unreachable.
Sizes are binary: 4G = 4GiB = 4×2^30 bytes.";

/// Heading of the options every command takes, so that they do not hide its own.
const COMMON: &str = "Common options";

/// Petrel: block storage that moves data away from a server before that server fails.
#[derive(Debug, Parser)]
#[command(name = "petrel", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// Print JSON (one value a line); errors become RFC 9457 problem details on stderr
    #[arg(long, global = true, help_heading = COMMON)]
    pub json: bool,

    /// HTTP addresses of one or more servers; when one does not answer, the next is asked
    #[arg(
        long,
        global = true,
        help_heading = COMMON,
        env = "PETREL_CLUSTER",
        value_name = "URL[,URL…]",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8001"
    )]
    pub cluster: Vec<BaseUrl>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster on this machine: servers, an NBD bridge, and volumes
    Dev(Box<DevArgs>),
    /// Show the health of the cluster at a glance
    Status,
    /// List servers, keep data off one, or take data off it
    #[command(subcommand)]
    Server(ServerCommand),
    /// Create, list, show and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// List a volume's segments, or move one to another server
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// List, watch and cancel migrations
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// Show how likely servers are to fail, and why
    #[command(after_help = "\
Examples:
  petrel score       every server's score, as last heard
  petrel score 2     server 2's own: what drives it, and the interval around it

The score is 0–100. From 50 a server gets no new data, from 70 its segments leave.")]
    Score {
        /// The server to ask; without it, every server's score
        #[arg(value_name = "ID")]
        id: Option<Id>,
    },
    /// Read and verify every replica now, repair what has rotted, and say what was found
    #[command(after_help = SCRUB_HELP)]
    Scrub(ScrubArgs),
    /// Bring a cluster back whose consensus has lost its majority for good
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Make a server's disk slow or faulty on purpose (where storaged allows it, as in petrel dev)
    #[command(subcommand)]
    Fault(FaultCommand),
}

const SCRUB_HELP: &str = "\
Examples:
  petrel scrub vol0                    read all of vol0, on every server that holds some of it
  petrel scrub vol0 --max-mbps 500     faster; each server at most this fast
  petrel scrub --all --no-wait         everything; `petrel scrub status` shows the rest
  petrel scrub stop                    call it off, on every server

A block that does not match its checksum (BAD) is replaced from another replica, and so is one that
in-sync replicas hold differently (DIVERGED; the majority wins). The volume stays in use: nothing
bad was ever served, and clients go first. Servers scrub by themselves too, once a week.
Exit codes: 0 all is good, or repaired; 1 something is not, and says what; 3 one is scrubbing
already; 4 a server could not be reached (the others were scrubbed).";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ScrubArgs {
    #[command(subcommand)]
    pub command: Option<ScrubCommand>,
    /// The volume
    #[arg(value_name = "VOLUME", value_parser = parse_volume_name, required_unless_present = "all")]
    pub volume: Option<String>,
    /// Every volume, on every server
    #[arg(long, conflicts_with = "volume")]
    pub all: bool,
    /// Each server reads no faster than this many megabytes (10^6 bytes) a second [default: its own
    /// scrub_mbps, 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub max_mbps: Option<u64>,
    /// Return once the servers have begun
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum ScrubCommand {
    /// Show what each server's scrubber does, or did last, and when it is due
    Status,
    /// End the scrub that is under way, on every server
    Stop,
}

#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// List the servers: state, place, space, segments, score
    List,
    /// Place nothing new on a server; what is there stays
    Cordon {
        /// The server
        #[arg(value_name = "ID")]
        id: Id,
    },
    /// Let a cordoned or draining server take data again
    Uncordon {
        /// The server
        #[arg(value_name = "ID")]
        id: Id,
    },
    /// Move every segment off a server, and wait until the last has left
    #[command(after_help = "\
Examples:
  petrel server drain 2              wait for the end, and say what it waits for
  petrel server drain 2 --no-wait    ask and return; `petrel migration watch` shows the rest
  petrel server uncordon 2           call it off

Volumes stay in use meanwhile: a segment's new copy exists, verified, before the old one goes.")]
    Drain {
        /// The server
        #[arg(value_name = "ID")]
        id: Id,
        /// Return once the servers have taken the order
        #[arg(long)]
        no_wait: bool,
        /// Give up waiting after this many seconds (the drain goes on) [default: never]
        #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait")]
        timeout_s: Option<u64>,
    },
    /// Take a drained or dead server out of the cluster for good
    Remove {
        /// The server
        #[arg(value_name = "ID")]
        id: Id,
    },
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume
    #[command(after_help = "\
Examples:
  petrel volume create vol1 --size 16G
  petrel volume create db --size 100GiB --replicas 3 --criticality high")]
    Create(VolumeCreate),
    /// List the volumes
    List,
    /// Show one volume and the state of its segments
    Show {
        /// The volume
        #[arg(value_name = "NAME", value_parser = parse_volume_name)]
        name: String,
    },
    /// Take a volume from whoever has it attached, if he is silent
    Detach {
        /// The volume
        #[arg(value_name = "NAME", value_parser = parse_volume_name)]
        name: String,
        /// Take it though he lives: what he writes fails when he hears of it, or is fenced
        #[arg(long)]
        force: bool,
    },
    /// Delete a volume and everything in it
    Delete {
        /// The volume
        #[arg(value_name = "NAME", value_parser = parse_volume_name)]
        name: String,
        /// Delete it even while something is attached to it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Its name: letters, digits, `.`, `_` and `-`
    #[arg(value_name = "NAME", value_parser = parse_volume_name)]
    pub name: String,
    /// Its size, such as 16G or 512MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_positive_bytes)]
    pub size: u64,
    /// How many servers hold each segment [default: the cluster's]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    pub replicas: Option<u64>,
    /// What weight its data has when a server is about to fail [default: normal]
    #[arg(long, value_enum)]
    pub criticality: Option<Criticality>,
    /// When a write counts as done: on every replica's disk, or on every replica [default: write-through]
    #[arg(long, value_enum)]
    pub durability: Option<Durability>,
    /// Size of its segments, a power of two from 1MiB [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_segment_bytes)]
    pub segment_size: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Criticality {
    Low,
    Normal,
    High,
}

impl Criticality {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Durability {
    WriteThrough,
    WriteBack,
}

impl Durability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WriteThrough => "write-through",
            Self::WriteBack => "write-back",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum SegmentCommand {
    /// List a volume's segments: where their replicas are, which is primary
    List {
        /// The volume
        #[arg(value_name = "VOLUME", value_parser = parse_volume_name)]
        volume: String,
    },
    /// Move one replica of a segment to another server, live, and wait for the end
    #[command(after_help = "\
Examples:
  petrel segment move vol0/3 --to 2              from the server the planner likes best
  petrel segment move vol0/3 --from 1 --to 2
  petrel segment move vol0/3 --to 2 --max-mbps 50 --no-wait

Writers are not stopped: the copy travels in the stream that carries new writes, and is verified
by checksum before the new server takes over.")]
    Move(SegmentMove),
    /// Show which servers have a file of a segment, and how old it is
    Candidates {
        /// The segment: VOLUME/INDEX, counting from 0
        #[arg(value_name = "VOLUME/INDEX")]
        segment: SegmentName,
    },
    /// Give a segment up to an older copy, when nobody who has it in sync will come back
    #[command(after_help = "\
Examples:
  petrel segment candidates vol0/3                           who has a file of it, how old
  petrel segment force-primary vol0/3 --accept-data-loss     the best of them
  petrel segment force-primary vol0/3 --server 2 --accept-data-loss --yes

What its last members acknowledged and that copy has not is lost for good. Make sure that they are
off, and stay off: one that still runs, cut off from the others, goes on serving whoever reaches it.
docs/recovery.md has the whole story.")]
    ForcePrimary(ForcePrimary),
}

#[derive(Debug, Args)]
pub struct ForcePrimary {
    /// The segment: VOLUME/INDEX, counting from 0
    #[arg(value_name = "VOLUME/INDEX")]
    pub segment: SegmentName,
    /// The server whose copy is to serve [default: the one that was in sync last]
    #[arg(long, value_name = "ID")]
    pub server: Option<Id>,
    /// Say that acknowledged writes may be lost
    #[arg(long)]
    pub accept_data_loss: bool,
    /// Take a copy that was only half filled, too
    #[arg(long)]
    pub half_copy: bool,
    /// Do not ask for the segment's name first
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show what a server's directory holds, for a recovery; its daemon must be stopped
    #[command(disable_help_flag = true)]
    Survey(PassedOn),
    /// Make a cluster of the servers that survived; their daemons must be stopped
    #[command(disable_help_flag = true)]
    Recover(PassedOn),
    /// Let a surveyed server's directory join the recovered cluster; its daemon must be stopped
    #[command(disable_help_flag = true)]
    Rejoin(PassedOn),
}

/// Arguments that `storaged` judges, which has the code to read a server's directory.
#[derive(Debug, Args)]
pub struct PassedOn {
    /// See `--help` of the command
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub struct SegmentMove {
    /// The segment: VOLUME/INDEX, counting from 0
    #[arg(value_name = "VOLUME/INDEX")]
    pub segment: SegmentName,
    /// The server whose replica goes; needed when it is not clear
    #[arg(long, value_name = "ID")]
    pub from: Option<Id>,
    /// The server that gets the replica
    #[arg(long, value_name = "ID")]
    pub to: Id,
    /// Copy no faster than this many megabytes (10^6 bytes) a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_mbps: Option<u64>,
    /// Return once the migration is accepted
    #[arg(long)]
    pub no_wait: bool,
}

/// `VOLUME/INDEX` as an operator names a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentName {
    pub volume: String,
    pub index: u64,
}

impl FromStr for SegmentName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "a segment is VOLUME/INDEX, such as vol0/3".to_owned();
        let (volume, index) = text.rsplit_once('/').ok_or_else(expected)?;
        Ok(Self {
            volume: parse_volume_name(volume)?,
            index: index.parse().map_err(|_| expected())?,
        })
    }
}

#[derive(Debug, Subcommand)]
pub enum MigrationCommand {
    /// List migrations, finished ones too
    List {
        /// Only those not finished
        #[arg(long)]
        active: bool,
        /// Only those of this volume
        #[arg(long, value_name = "NAME", value_parser = parse_volume_name)]
        volume: Option<String>,
    },
    /// Follow migrations as they happen: bars on a terminal, else a line per change
    #[command(after_help = "\
Examples:
  petrel migration watch                 until Ctrl-C
  petrel migration watch --until-idle    until none is under way
  petrel migration watch 17 --json       one object a line, until migration 17 ends")]
    Watch {
        /// Follow only this one, and end with it
        #[arg(value_name = "ID")]
        id: Option<Id>,
        /// End when no migration is under way
        #[arg(long)]
        until_idle: bool,
    },
    /// Call a migration off; the segment stays where it was
    Cancel {
        /// The migration
        #[arg(value_name = "ID")]
        id: Id,
    },
}

#[derive(Debug, Subcommand)]
pub enum FaultCommand {
    /// Put faults under a server's disk; those not named stay as they are
    #[command(after_help = "\
Examples:
  petrel fault inject 2 --read-latency-ms 80 --write-latency-ms 80
  petrel fault inject 2 --error-rate 0.01       besides the latency
  petrel fault inject 2 --write-latency-ms 0    only reads are slow from here on
  petrel fault clear 2                          nothing is wrong any more

The score never hears of it: it has to find the fault in its effects.")]
    Inject(FaultInject),
    /// Take all faults away
    Clear {
        /// The server
        #[arg(value_name = "ID")]
        id: Id,
    },
}

#[derive(Debug, Args)]
pub struct FaultInject {
    /// The server
    #[arg(value_name = "ID")]
    pub id: Id,
    #[command(flatten)]
    pub fault: Fault,
}

/// What is wrong with the disk; at least one thing is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Fault {
    /// Every read takes this much longer
    #[arg(long, value_name = "N")]
    pub read_latency_ms: Option<u64>,
    /// Every write, and every sync, takes this much longer
    #[arg(long, value_name = "N")]
    pub write_latency_ms: Option<u64>,
    /// Share of reads and writes that fail, 0 to 1
    #[arg(long, value_name = "F", value_parser = parse_share)]
    pub error_rate: Option<f64>,
    /// Share of reads that come back with a bit flipped, 0 to 1
    #[arg(long, value_name = "F", value_parser = parse_share)]
    pub bit_flip_rate: Option<f64>,
}

/// Longest volume name: it has to fit file names with a suffix, and an NBD export name.
const VOLUME_NAME_BYTES_MAX: usize = 200;

pub fn parse_volume_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || !text.chars().all(plain) || text.starts_with(['.', '-']) {
        return Err(format!(
            "{text:?} is no volume name: letters, digits, `.`, `_` and `-`, and a letter, digit or `_` first"
        ));
    }
    if text.len() > VOLUME_NAME_BYTES_MAX {
        return Err(format!("a volume name has at most {VOLUME_NAME_BYTES_MAX} characters"));
    }
    Ok(text.to_owned())
}

pub fn parse_positive_bytes(text: &str) -> Result<u64, String> {
    let bytes = size::parse_bytes(text).map_err(|why| why.to_string())?;
    if bytes == 0 {
        return Err("a size of 0 holds nothing".to_owned());
    }
    Ok(bytes)
}

/// The smallest segment the map supports; tests use it.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

pub fn parse_segment_bytes(text: &str) -> Result<u64, String> {
    let bytes = size::parse_bytes(text).map_err(|why| why.to_string())?;
    if !bytes.is_power_of_two() || bytes < SEGMENT_BYTES_MIN {
        return Err(format!("a segment size is a power of two from 1MiB, not {text}"));
    }
    Ok(bytes)
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a rate is a number from 0 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_segment_is_named_by_volume_and_index() {
        let name: SegmentName = "vol0/12".parse().expect("valid");
        assert_eq!((name.volume.as_str(), name.index), ("vol0", 12));
        for text in ["vol0", "vol0/", "/3", "vol0/-1", "a/b/1", "vol0/x"] {
            assert!(text.parse::<SegmentName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_segment_size_is_a_power_of_two_from_1_mib() {
        assert_eq!(parse_segment_bytes("64MiB"), Ok(64 << 20));
        for text in ["512KiB", "3MiB", "0", "1GB"] {
            assert!(parse_segment_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_a_share() {
        assert_eq!(parse_share("0.25"), Ok(0.25));
        for text in ["1.1", "-0.1", "NaN", "x"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
