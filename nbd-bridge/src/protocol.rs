//! The numbers of the NBD protocol: magics, options, commands, flags and error codes.
//!
//! Invariant: an unknown number from a client has a case of its own, so it can be answered; only
//! the eight error codes that the protocol document allows exist here, so no other goes out.
//!
//! Source: `doc/proto.md` of the NetworkBlockDevice/nbd repository.

/// "NBDMAGIC": opens the greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": second half of the greeting, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Opens every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens every request of the transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a reply that is nothing but an error code, with data behind it for a good READ.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens one chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

pub const OPTION_HEADER_BYTES: usize = 16;
pub const REQUEST_HEADER_BYTES: usize = 28;
pub const SIMPLE_REPLY_BYTES: usize = 16;
pub const CHUNK_HEADER_BYTES: usize = 20;

/// Handshake flags: the server's two and the client's two are the same bits.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
pub const NO_ZEROES: u16 = 1 << 1;
/// Zeroes behind the answer to `NBD_OPT_EXPORT_NAME`, unless both sides set [`NO_ZEROES`].
pub const EXPORT_NAME_ZEROES: usize = 124;

/// What the client may ask the server for while haggling (`NBD_OPT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    ExportName,
    Abort,
    List,
    StartTls,
    Info,
    Go,
    StructuredReply,
    ListMetaContext,
    SetMetaContext,
    /// Anything else, including what we know and do not serve, such as extended headers.
    Unknown(u32),
}

impl OptionKind {
    #[must_use]
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            other => Self::Unknown(other),
        }
    }

    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::Unknown(code) => code,
        }
    }
}

/// Types of a reply to an option (`NBD_REP_*`).
pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
const REP_ERROR: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR | 7;
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;

/// Kinds of information about an export (`NBD_INFO_*`).
pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags: what an export can do (`NBD_FLAG_*`).
pub const EXPORT_HAS_FLAGS: u16 = 1 << 0;
pub const EXPORT_READ_ONLY: u16 = 1 << 1;
pub const EXPORT_FLUSH: u16 = 1 << 2;
pub const EXPORT_FUA: u16 = 1 << 3;
pub const EXPORT_ROTATIONAL: u16 = 1 << 4;
pub const EXPORT_TRIM: u16 = 1 << 5;
pub const EXPORT_WRITE_ZEROES: u16 = 1 << 6;
pub const EXPORT_DF: u16 = 1 << 7;
pub const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;
pub const EXPORT_CACHE: u16 = 1 << 10;

/// What a request does (`NBD_CMD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    Unknown(u16),
}

impl Command {
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }

    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(code) => code,
        }
    }
}

/// Flags of a request (`NBD_CMD_FLAG_*`). FAST_ZERO (bit 4) and PAYLOAD_LEN (bit 5) are not
/// among them because we advertise neither.
pub const COMMAND_FUA: u16 = 1 << 0;
pub const COMMAND_NO_HOLE: u16 = 1 << 1;
pub const COMMAND_DF: u16 = 1 << 2;
pub const COMMAND_REQ_ONE: u16 = 1 << 3;

/// Chunks of a structured reply (`NBD_REPLY_*`).
pub const CHUNK_DONE: u16 = 1 << 0;
pub const CHUNK_NONE: u16 = 0;
pub const CHUNK_OFFSET_DATA: u16 = 1;
pub const CHUNK_OFFSET_HOLE: u16 = 2;
pub const CHUNK_BLOCK_STATUS: u16 = 5;
pub const CHUNK_ERROR: u16 = (1 << 15) | 1;
pub const CHUNK_ERROR_OFFSET: u16 = (1 << 15) | 2;

/// The one metadata context we serve, and the number it goes by in replies.
pub const BASE_ALLOCATION: &str = "base:allocation";
pub const BASE_NAMESPACE: &str = "base:";
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Status flags of `base:allocation`; allocated data has neither.
pub const STATE_HOLE: u32 = 1 << 0;
pub const STATE_ZERO: u32 = 1 << 1;

/// The error codes that may travel, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Errno {
    #[error("EPERM")]
    Perm,
    #[error("EIO")]
    Io,
    #[error("ENOMEM")]
    NoMem,
    #[error("EINVAL")]
    Inval,
    #[error("ENOSPC")]
    NoSpc,
    #[error("EOVERFLOW")]
    Overflow,
    #[error("ENOTSUP")]
    NotSup,
    #[error("ESHUTDOWN")]
    Shutdown,
}

impl Errno {
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// The nearest code that may travel, for an errno of Linux. What has no near one is an EIO:
    /// the client's request was good and we failed it.
    #[must_use]
    pub const fn from_linux(errno: i32) -> Self {
        match errno {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Self::Perm,
            12 => Self::NoMem,
            22 => Self::Inval,
            // EFBIG, ENOSPC, EDQUOT
            27 | 28 | 122 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, Errno, OptionKind};

    #[test]
    fn every_option_and_command_number_survives_a_round_trip() {
        for code in 0..64_u16 {
            assert_eq!(Command::from_code(code).code(), code);
            assert_eq!(OptionKind::from_code(u32::from(code)).code(), u32::from(code));
        }
    }

    #[test]
    fn an_errno_that_may_not_travel_becomes_an_eio() {
        assert_eq!(Errno::from_linux(110), Errno::Io);
        for errno in [1, 5, 12, 22, 28, 75, 95, 108] {
            assert_eq!(i64::from(Errno::from_linux(errno).code()), i64::from(errno));
        }
    }
}
