//! What a driver is asked to do, and how it answers.

use reactor::SharedBuffer;
use smallvec::SmallVec;

use crate::error::VolumeError;

/// A volume of one driver, opened once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeHandle(pub(super) usize);

/// An operation on a byte range of a volume. Ranges need no alignment; whole blocks of 4 KiB are
/// served best.
#[derive(Clone, Debug)]
pub enum Request {
    /// Reads a range.
    Read {
        /// Where it starts.
        offset_bytes: u64,
        /// How long it is.
        length_bytes: u64,
    },
    /// Writes a range as long as `data`, which goes to the servers from the memory it is in.
    Write {
        /// Where it starts.
        offset_bytes: u64,
        /// What is written there.
        data: SharedBuffer,
    },
    /// Makes a range read as zeroes.
    Zero {
        /// Where it starts.
        offset_bytes: u64,
        /// How long it is.
        length_bytes: u64,
    },
    /// Tells that a range is not needed any more: its whole blocks read as zeroes from then on,
    /// partial blocks at its edges are left as they are.
    Discard {
        /// Where it starts.
        offset_bytes: u64,
        /// How long it is.
        length_bytes: u64,
    },
    /// Makes everything that was acknowledged before durable, and more than the acknowledgement
    /// promised already: the servers' tables of checksums too.
    Flush,
}

/// The bytes of a read, in order: each piece lies in the memory it was received in. Empty for
/// everything that is no read.
pub type Pieces = SmallVec<[SharedBuffer; 2]>;

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The volume it was for.
    pub volume: VolumeHandle,
    /// The caller's name for it.
    pub token: u64,
    /// What became of it.
    pub result: Result<Pieces, VolumeError>,
}

/// How far an attachment to a volume has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// The map has not come yet; what is submitted waits.
    Opening {
        /// What the last attempt ran into, if there was one.
        last: Option<String>,
    },
    /// It can be used.
    Open {
        /// Its size, in bytes.
        size_bytes: u64,
    },
    /// It can be used no more.
    Closed(VolumeError),
}

impl Request {
    /// Whether it lies inside a volume of `size_bytes`.
    pub(super) fn judge(&self, size_bytes: u64) -> Result<(), VolumeError> {
        let (offset_bytes, length_bytes) = match self {
            Request::Read { offset_bytes, length_bytes }
            | Request::Zero { offset_bytes, length_bytes }
            | Request::Discard { offset_bytes, length_bytes } => (*offset_bytes, *length_bytes),
            Request::Write { offset_bytes, data } => {
                (*offset_bytes, u64::try_from(data.len()).expect("a length fits a u64"))
            }
            Request::Flush => return Ok(()),
        };
        match offset_bytes.checked_add(length_bytes) {
            Some(end) if end <= size_bytes => Ok(()),
            Some(_) | None => {
                Err(VolumeError::OutOfRange { offset_bytes, length_bytes, size_bytes })
            }
        }
    }
}
