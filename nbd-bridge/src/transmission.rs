//! Transmission: parsing requests and judging them at the door.
//!
//! Invariant: a [`Request`] that leaves [`Session::judge`] lies inside the export, is not empty,
//! is allowed on it, and carries only flags that its command knows; whoever serves it need not
//! look again. A refused request is answered and the connection lives on, unless the client and
//! we no longer agree on where its requests start.
//!
//! Leaves to others: receiving payload, serving, and sending replies. DISC is served after
//! everything before it was answered.

#![deny(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use crate::export::BlockSizes;
use crate::handshake::Negotiated;
use crate::limits::PAYLOAD_BYTES_SKIPPED_MAX;
use crate::protocol::{
    BASE_ALLOCATION_ID, COMMAND_DF, COMMAND_FUA, COMMAND_NO_HOLE, COMMAND_REQ_ONE, Command, Errno,
    REQUEST_MAGIC,
};
use crate::reply::{self, Cookie, Extent, Last};
use crate::wire::Cursor;

/// A request's 28 bytes, taken apart and not yet judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    pub flags: u16,
    pub command: Command,
    pub cookie: Cookie,
    pub offset_bytes: u64,
    pub length_bytes: u32,
}

/// What the front of the inbox holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not yet [`crate::protocol::REQUEST_HEADER_BYTES`] of it.
    NeedMore,
    /// Something that is not a request; drop the connection.
    BadMagic,
    /// A request: consume its header, then have it judged.
    Header(RequestHeader),
}

/// Takes the request header off the front of `inbox` apart. A wrong magic shows after its four
/// bytes, so that a client that speaks something else is not waited for.
#[must_use]
pub fn parse(inbox: &[u8]) -> Parsed {
    let mut cursor = Cursor::new(inbox);
    match cursor.u32() {
        None => return Parsed::NeedMore,
        Some(REQUEST_MAGIC) => {}
        Some(_) => return Parsed::BadMagic,
    }
    fields(&mut cursor).map_or(Parsed::NeedMore, Parsed::Header)
}

fn fields(cursor: &mut Cursor<'_>) -> Option<RequestHeader> {
    Some(RequestHeader {
        flags: cursor.u16()?,
        command: Command::from_code(cursor.u16()?),
        cookie: Cookie(cursor.u64()?),
        offset_bytes: cursor.u64()?,
        length_bytes: cursor.u32()?,
    })
}

/// A run of bytes inside the export, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub offset_bytes: u64,
    pub length_bytes: u32,
}

/// Work that makes sense and has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `one_chunk`: the client set DF, so the data must come in a single chunk.
    Read {
        range: Range,
        one_chunk: bool,
    },
    /// As many bytes as the range is long follow the header.
    Write {
        range: Range,
        fua: bool,
    },
    Flush,
    Trim {
        range: Range,
        fua: bool,
    },
    /// `keep_allocated`: the client set NO_HOLE and wants the space kept.
    WriteZeroes {
        range: Range,
        fua: bool,
        keep_allocated: bool,
    },
    /// The client is about to read the range; to do nothing is a good answer.
    Cache {
        range: Range,
    },
    /// `one_extent`: the client set REQ_ONE and wants the first extent, cut to the range.
    BlockStatus {
        range: Range,
        one_extent: bool,
    },
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it, then answer it.
    Serve(Request),
    /// It touches no byte: answer with [`Session::success`] at once.
    Succeed,
    /// Throw `payload_bytes` away, then answer with [`Session::failure`].
    Refuse { error: Errno, payload_bytes: u32 },
    /// DISC: answer what is in flight, then close.
    Disconnect,
    /// A WRITE too large even to throw its payload away: close without an answer.
    Drop { payload_bytes: u32 },
}

/// The rules of one connection after its handshake.
#[derive(Clone, Debug)]
pub struct Session {
    size_bytes: u64,
    read_only: bool,
    structured_replies: bool,
    base_allocation: bool,
    block_sizes: BlockSizes,
    stopping: bool,
}

impl Session {
    #[must_use]
    pub fn new(negotiated: &Negotiated) -> Self {
        let Negotiated { export, structured_replies, base_allocation, block_sizes_asked: _ } =
            negotiated;
        Self {
            size_bytes: export.size_bytes,
            read_only: export.read_only,
            structured_replies: *structured_replies,
            base_allocation: *base_allocation,
            block_sizes: export.block_sizes,
            stopping: false,
        }
    }

    #[must_use]
    pub const fn structured_replies(&self) -> bool {
        self.structured_replies
    }

    /// From now on every request but DISC is refused with ESHUTDOWN.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Decides what becomes of a request before a byte of its payload is read.
    #[must_use]
    pub fn judge(&self, header: &RequestHeader) -> Verdict {
        let payload_bytes = match header.command {
            // The only command with payload; a command that we do not know has none either.
            Command::Write => header.length_bytes,
            Command::Disconnect => return Verdict::Disconnect,
            Command::Read
            | Command::Flush
            | Command::Trim
            | Command::Cache
            | Command::WriteZeroes
            | Command::BlockStatus
            | Command::Unknown(_) => 0,
        };
        if payload_bytes > PAYLOAD_BYTES_SKIPPED_MAX {
            return Verdict::Drop { payload_bytes };
        }
        match self.admit(header) {
            Ok(Some(request)) => Verdict::Serve(request),
            Ok(None) => Verdict::Succeed,
            Err(error) => Verdict::Refuse { error, payload_bytes },
        }
    }

    /// `Ok(None)` is a good request that touches no byte.
    fn admit(&self, header: &RequestHeader) -> Result<Option<Request>, Errno> {
        let RequestHeader { flags, command, cookie: _, offset_bytes, length_bytes } = *header;
        if self.stopping {
            return Err(Errno::Shutdown);
        }
        // FUA is allowed on every command once it is advertised, and means something on some.
        if flags & !(COMMAND_FUA | self.flags_of(command)) != 0 {
            return Err(Errno::Inval);
        }
        let fua = flags & COMMAND_FUA != 0;
        let within = |limit, beyond| self.range(offset_bytes, length_bytes, limit, beyond);
        let payload_bytes_max = self.block_sizes.payload_bytes_max();
        Ok(match command {
            Command::Read => {
                let one_chunk = flags & COMMAND_DF != 0;
                within(payload_bytes_max, Errno::Inval)?
                    .map(|range| Request::Read { range, one_chunk })
            }
            Command::Write => {
                self.writable()?;
                within(payload_bytes_max, Errno::NoSpc)?.map(|range| Request::Write { range, fua })
            }
            // FLUSH's offset and length are reserved, and ignored rather than held against it.
            Command::Flush => Some(Request::Flush),
            Command::Trim => {
                self.writable()?;
                within(u32::MAX, Errno::Inval)?.map(|range| Request::Trim { range, fua })
            }
            Command::WriteZeroes => {
                self.writable()?;
                let keep_allocated = flags & COMMAND_NO_HOLE != 0;
                within(u32::MAX, Errno::NoSpc)?.map(|range| Request::WriteZeroes {
                    range,
                    fua,
                    keep_allocated,
                })
            }
            Command::Cache => within(u32::MAX, Errno::Inval)?.map(|range| Request::Cache { range }),
            Command::BlockStatus if self.base_allocation => {
                let one_extent = flags & COMMAND_REQ_ONE != 0;
                let range = within(u32::MAX, Errno::Inval)?;
                // An answer needs at least one extent, and no extent may be empty.
                let range = range.ok_or(Errno::Inval)?;
                Some(Request::BlockStatus { range, one_extent })
            }
            Command::BlockStatus | Command::Disconnect | Command::Unknown(_) => {
                return Err(Errno::Inval);
            }
        })
    }

    /// The flags that a command knows besides FUA.
    const fn flags_of(&self, command: Command) -> u16 {
        match command {
            Command::Read if self.structured_replies => COMMAND_DF,
            Command::WriteZeroes => COMMAND_NO_HOLE,
            Command::BlockStatus => COMMAND_REQ_ONE,
            Command::Read
            | Command::Write
            | Command::Disconnect
            | Command::Flush
            | Command::Trim
            | Command::Cache
            | Command::Unknown(_) => 0,
        }
    }

    const fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::Perm) } else { Ok(()) }
    }

    fn range(
        &self,
        offset_bytes: u64,
        length_bytes: u32,
        length_bytes_max: u32,
        beyond: Errno,
    ) -> Result<Option<Range>, Errno> {
        if length_bytes > length_bytes_max {
            return Err(Errno::Inval);
        }
        let end = offset_bytes.checked_add(u64::from(length_bytes));
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(beyond);
        }
        let minimum_bytes = self.block_sizes.minimum_bytes();
        if !length_bytes.is_multiple_of(minimum_bytes)
            || !offset_bytes.is_multiple_of(u64::from(minimum_bytes))
        {
            return Err(Errno::Inval);
        }
        Ok((length_bytes > 0).then_some(Range { offset_bytes, length_bytes }))
    }

    /// Answers a request that succeeded and returns no data: anything but a READ or BLOCK_STATUS
    /// that had something to return.
    pub fn success(&self, command: Command, cookie: Cookie, out: &mut Vec<u8>) {
        if self.answers_in_chunks(command) {
            reply::chunk_none(out, cookie);
        } else {
            reply::simple(out, cookie, None);
        }
    }

    /// Answers a request that failed and of which nothing was answered before.
    pub fn failure(&self, command: Command, cookie: Cookie, error: Errno, out: &mut Vec<u8>) {
        if self.answers_in_chunks(command) {
            reply::chunk_error(out, cookie, error, "", Last::Done);
        } else {
            reply::simple(out, cookie, Some(error));
        }
    }

    /// The header of a READ that returns its whole range as data; the data must follow, all of
    /// it, because a simple reply leaves no way to take the header back.
    pub fn read_header(&self, cookie: Cookie, range: Range, out: &mut Vec<u8>) {
        let Range { offset_bytes, length_bytes } = range;
        if self.structured_replies {
            reply::chunk_offset_data(out, cookie, offset_bytes, length_bytes, Last::Done);
        } else {
            reply::simple(out, cookie, None);
        }
    }

    /// Answers a BLOCK_STATUS. `extents` start at the range's offset; with REQ_ONE there is one
    /// and it stays inside the range.
    pub fn block_status(&self, cookie: Cookie, extents: &[Extent], out: &mut Vec<u8>) {
        assert!(self.base_allocation, "block status for a client that did not ask for it");
        reply::chunk_block_status(out, cookie, BASE_ALLOCATION_ID, extents, Last::Done);
    }

    /// READ must be answered in chunks once they are agreed on, errors included. Everything else
    /// gets the shorter simple reply, except BLOCK_STATUS, which has no other form.
    const fn answers_in_chunks(&self, command: Command) -> bool {
        match command {
            Command::Read | Command::BlockStatus => self.structured_replies,
            Command::Write
            | Command::Disconnect
            | Command::Flush
            | Command::Trim
            | Command::Cache
            | Command::WriteZeroes
            | Command::Unknown(_) => false,
        }
    }
}
