//! What can happen to a client's brain, what it can ask for, and what it is told at its making.

use smallvec::SmallVec;
use thiserror::Error;

use crate::config::{MS, Mutant, Settings};
use crate::ids::*;
use crate::map::SegmentConfig;
use crate::message::{ClientReply, ClientRequest, VolumeDelta};

/// The volume a client is attached to, as the map knew it at the attachment.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    pub volume: VolumeId,
    /// The map's version that `configs` are from.
    pub version: MapVersion,
    pub size_blocks: u64,
    pub segment_blocks: u32,
    /// In any order. Requests to a segment that is missing wait until a delta brings it.
    pub configs: Vec<SegmentConfig>,
    /// The attachment's writer token (A1); 0 until attachments exist.
    pub writer: u64,
    /// Writes and zeroes are refused.
    pub read_only: bool,
}

/// Times and limits of a client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// How long a request may go unanswered before the map is asked and it is sent again (C2).
    pub unanswered_ns: u64,
    /// The shortest time between two pulls of the map.
    pub pull_every_ns: u64,
    /// The pause before the first retry of a refused request; it doubles with each.
    pub backoff_min_ns: u64,
    pub backoff_max_ns: u64,
    /// Blocks of one request at most.
    pub piece_blocks_max: u32,
    /// Requests of one operation under way at once: what a large one may have in buffers.
    pub window: u32,
    /// How often data that fails its checksum is read again before the read fails.
    pub mismatches_max: u32,
    /// C4 is in force. Only the simulator's mutant switches it off.
    pub overlap_lock: bool,
    /// C5 is in force, likewise.
    pub never_gives_up: bool,
}

impl Default for ClientSettings {
    fn default() -> Self {
        ClientSettings {
            unanswered_ns: 1000 * MS,
            pull_every_ns: 1000 * MS,
            backoff_min_ns: MS,
            backoff_max_ns: 100 * MS,
            piece_blocks_max: 256,
            window: 64,
            mismatches_max: 3,
            overlap_lock: true,
            never_gives_up: true,
        }
    }
}

impl ClientSettings {
    /// The defaults, without the rule that a mutant in `settings` deletes.
    #[must_use]
    pub fn of(settings: &Settings) -> ClientSettings {
        ClientSettings {
            overlap_lock: settings.holds(Mutant::C4NoOverlapLock),
            never_gives_up: settings.holds(Mutant::C5GivesUp),
            ..ClientSettings::default()
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum ClientEvent<P> {
    /// Time passed: at [`super::Client::next_wake`], or every 10 to 50 ms.
    Tick,
    /// A connection to `server` is up and has said hello under `session`, higher each time (C3).
    LinkUp {
        server: ServerId,
        session: Session,
    },
    /// It fell: nothing more comes from it.
    LinkDown {
        server: ServerId,
        session: Session,
    },
    Reply {
        server: ServerId,
        session: Session,
        reply: ClientReply<P>,
    },
    /// News of the map, pushed or pulled.
    Delta(VolumeDelta),
    /// The user wants something. `op` is the caller's, and not in use.
    Submit {
        op: OpId,
        request: VolumeRequest<P>,
    },
    /// The data for a granted [`VolumeRequest::Hold`], all of its range: it is written, and its
    /// `Complete` ends the hold.
    Merged {
        op: OpId,
        data: P,
    },
    /// A hold ends without a write; no `Complete` follows.
    Release {
        op: OpId,
    },
}

/// What a user asks of a volume, in blocks of the volume.
#[derive(Clone, Debug)]
pub enum VolumeRequest<P> {
    Read {
        first_block: u64,
        count: u32,
    },
    Write {
        first_block: u64,
        data: P,
    },
    Zero {
        first_block: u64,
        count: u64,
    },
    /// Everything completed before it is durable, with its checksums, when it completes.
    Flush,
    /// Makes older attachments harmless in every segment (A1). The attachment is complete when
    /// this completes; what is submitted before may have to wait for it.
    Fence,
    /// Takes the range as a write would (C4) and says `Granted`: for the read, the merge and the
    /// write of partial blocks. Its reads are requests of their own.
    Hold {
        first_block: u64,
        count: u32,
    },
}

/// Something to do, in the order given; sends of one session keep their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAction<P> {
    Send {
        server: ServerId,
        session: Session,
        request: ClientRequest<P>,
    },
    Complete {
        op: OpId,
        result: OpResult<P>,
    },
    /// The hold has its range to itself.
    Granted {
        op: OpId,
    },
    /// Ask a server for a delta from [`super::Client::version`] on, behind a read barrier (C2).
    Pull,
}

/// Runs of blocks: where in the volume each begins, and its data. In order, without gaps.
pub type Runs<P> = SmallVec<[(u64, P); 1]>;

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult<P> {
    Done,
    Data(Runs<P>),
    Failed(ClientError),
}

/// Why an operation failed. It will not happen any more, except after `Fenced` and `Gone`, where
/// what was under way may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    #[error("no copy of the data can be read")]
    Io,
    #[error("another attachment took over the volume")]
    Fenced,
    #[error("the volume was deleted")]
    Gone,
    #[error("the request makes no sense")]
    Invalid,
    #[error("the request reaches beyond the end of the volume")]
    OutOfRange,
    #[error("the volume is attached read-only")]
    ReadOnly,
}
