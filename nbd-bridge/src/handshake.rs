//! Handshake: fixed newstyle negotiation, from the greeting to the chosen export.
//!
//! Invariant: one call of [`Handshake::feed`] consumes at most one whole message and answers it
//! whole, so the stream never gets out of step, whatever the options contain. What it answers
//! depends on the bytes alone, not on how the socket cut them.
//!
//! Leaves to others: the socket, the time limit ([`crate::limits::HANDSHAKE_MS_MAX`]) and TLS.

#![deny(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod option;
mod replier;

use crate::export::{ExportInfo, Exports};
use crate::limits::{OPTION_BYTES_MAX, OPTION_BYTES_SKIPPED_MAX, OPTIONS_MAX, STRING_BYTES_MAX};
use crate::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, EXPORT_NAME_ZEROES, FIXED_NEWSTYLE, GREETING_MAGIC,
    NO_ZEROES, OPTION_HEADER_BYTES, OPTION_MAGIC, OptionKind, REP_ERR_INVALID, REP_ERR_SHUTDOWN,
    REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP,
};
use option::{InfoRequest, MetaRequest, OptionHeader};
use replier::Replier;

const CLIENT_FLAGS_BYTES: usize = 4;

/// What became of the bytes given to [`Handshake::feed`].
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes to take off the front of the inbox; may be more than zero with any outcome.
    pub consumed: usize,
    pub outcome: Outcome,
}

/// What to do next, after sending whatever was appended to `reply`.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more happens until the inbox, `consumed` taken off, holds this many bytes.
    NeedMore { inbox_bytes: usize },
    /// A message was dealt with; feed what is left.
    Continue,
    /// The client chose; what is left in the inbox belongs to the transmission phase.
    Transmission(Negotiated),
    /// Close the connection once the reply is sent.
    Close(CloseReason),
}

/// What the two sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    pub export: ExportInfo,
    /// READ and BLOCK_STATUS are answered in chunks.
    pub structured_replies: bool,
    /// BLOCK_STATUS may be asked, and reports `base:allocation`.
    pub base_allocation: bool,
    /// The client asked for block sizes, so it will keep to them.
    pub block_sizes_asked: bool,
}

/// Why a handshake ended without an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the client aborted the handshake")]
    ClientAborted,
    #[error("handshake: client flags {flags:#x} contain a bit that was not offered")]
    UnknownClientFlags { flags: u32 },
    #[error("handshake: an option starts with something else than IHAVEOPT")]
    BadOptionMagic,
    #[error("handshake: an option of {bytes} bytes is longer than is worth skipping")]
    OptionTooLong { bytes: u32 },
    #[error("handshake: the client sent more options than it may")]
    TooManyOptions,
    #[error("handshake: EXPORT_NAME for an export that cannot be served, which has no error reply")]
    ExportNameRefused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    Options,
    /// The rest of an option that was refused for its length.
    Skipping {
        bytes: u32,
    },
}

/// The server's side of one connection's negotiation.
#[derive(Debug)]
pub struct Handshake {
    phase: Phase,
    over: bool,
    options: u32,
    no_zeroes: bool,
    structured_replies: bool,
    block_sizes_asked: bool,
    /// The export for which `base:allocation` was selected; selected for no other.
    base_allocation_of: Option<String>,
    stopping: bool,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: Phase::ClientFlags,
            over: false,
            options: 0,
            no_zeroes: false,
            structured_replies: false,
            block_sizes_asked: false,
            base_allocation_of: None,
            stopping: false,
        }
    }

    /// The 18 bytes with which the server opens the connection.
    pub fn greeting(reply: &mut Vec<u8>) {
        reply.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
        reply.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        reply.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    }

    /// From now on every option but ABORT is refused, because the server is shutting down.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Takes at most one message off the front of `inbox` and appends the answer to `reply`.
    ///
    /// # Panics
    /// When fed after it ended in [`Outcome::Transmission`] or [`Outcome::Close`], which no
    /// client can bring about.
    pub fn feed(&mut self, exports: &dyn Exports, inbox: &[u8], reply: &mut Vec<u8>) -> Step {
        assert!(!self.over, "fed a handshake that is over");
        let step = match self.phase {
            Phase::ClientFlags => self.client_flags(inbox),
            Phase::Options => self.option(exports, inbox, reply),
            Phase::Skipping { bytes } => self.skip(bytes, inbox),
        };
        self.over = match step.outcome {
            Outcome::NeedMore { inbox_bytes: _ } | Outcome::Continue => false,
            Outcome::Transmission(_) | Outcome::Close(_) => true,
        };
        step
    }

    fn client_flags(&mut self, inbox: &[u8]) -> Step {
        let Some((bytes, _)) = inbox.split_first_chunk::<CLIENT_FLAGS_BYTES>() else {
            return need(CLIENT_FLAGS_BYTES);
        };
        let flags = u32::from_be_bytes(*bytes);
        let outcome = if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) == 0 {
            self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
            self.phase = Phase::Options;
            // A client without FIXED_NEWSTYLE promised to send nothing but EXPORT_NAME. If it
            // haggles all the same it is answered like any other, as the protocol allows.
            Outcome::Continue
        } else {
            Outcome::Close(CloseReason::UnknownClientFlags { flags })
        };
        Step { consumed: CLIENT_FLAGS_BYTES, outcome }
    }

    fn option(&mut self, exports: &dyn Exports, inbox: &[u8], reply: &mut Vec<u8>) -> Step {
        let header = match OptionHeader::read(inbox) {
            Ok(Some(header)) => header,
            Ok(None) => return need(OPTION_HEADER_BYTES),
            Err(option::BadMagic) => {
                return Step { consumed: 0, outcome: Outcome::Close(CloseReason::BadOptionMagic) };
            }
        };
        if self.options >= OPTIONS_MAX {
            return Step { consumed: 0, outcome: Outcome::Close(CloseReason::TooManyOptions) };
        }
        let OptionHeader { kind, data_bytes } = header;
        let mut replier = Replier::new(kind, reply);
        if data_bytes > OPTION_BYTES_MAX {
            self.options = self.options.saturating_add(1);
            return Step {
                consumed: OPTION_HEADER_BYTES,
                outcome: self.too_long(kind, data_bytes, &mut replier),
            };
        }
        let Some((data, message_bytes)) = header.data(inbox) else {
            return need(header.message_bytes());
        };
        self.options = self.options.saturating_add(1);
        Step { consumed: message_bytes, outcome: self.answer(exports, kind, data, &mut replier) }
    }

    fn too_long(&mut self, kind: OptionKind, bytes: u32, replier: &mut Replier<'_>) -> Outcome {
        match kind {
            OptionKind::ExportName => return Outcome::Close(CloseReason::ExportNameRefused),
            OptionKind::Abort => {
                replier.ack();
                return Outcome::Close(CloseReason::ClientAborted);
            }
            OptionKind::Unknown(_) | OptionKind::StartTls => {
                replier.error(REP_ERR_UNSUP, "this server does not know the option");
            }
            OptionKind::SetMetaContext => {
                self.base_allocation_of = None;
                replier.error(REP_ERR_TOO_BIG, "the option is longer than 64 KiB");
            }
            OptionKind::List
            | OptionKind::Info
            | OptionKind::Go
            | OptionKind::StructuredReply
            | OptionKind::ListMetaContext => {
                replier.error(REP_ERR_TOO_BIG, "the option is longer than 64 KiB");
            }
        }
        if bytes > OPTION_BYTES_SKIPPED_MAX {
            return Outcome::Close(CloseReason::OptionTooLong { bytes });
        }
        self.phase = Phase::Skipping { bytes };
        Outcome::Continue
    }

    fn skip(&mut self, bytes: u32, inbox: &[u8]) -> Step {
        let here = u32::try_from(inbox.len()).unwrap_or(u32::MAX).min(bytes);
        let left = bytes.saturating_sub(here);
        let outcome = if left == 0 {
            self.phase = Phase::Options;
            Outcome::Continue
        } else {
            self.phase = Phase::Skipping { bytes: left };
            Outcome::NeedMore { inbox_bytes: 1 }
        };
        Step { consumed: usize::try_from(here).unwrap_or(inbox.len()), outcome }
    }

    fn answer(
        &mut self,
        exports: &dyn Exports,
        kind: OptionKind,
        data: &[u8],
        replier: &mut Replier<'_>,
    ) -> Outcome {
        match kind {
            OptionKind::ExportName => self.export_name(exports, data, replier),
            OptionKind::Abort => {
                replier.ack();
                Outcome::Close(CloseReason::ClientAborted)
            }
            _ if self.stopping => {
                replier.error(REP_ERR_SHUTDOWN, "the server is shutting down");
                Outcome::Continue
            }
            OptionKind::List => {
                if data.is_empty() {
                    exports.list().iter().for_each(|export| replier.server(export));
                    replier.ack();
                } else {
                    replier.error(REP_ERR_INVALID, "LIST takes no data");
                }
                Outcome::Continue
            }
            OptionKind::Info => {
                self.describe(exports, data, replier);
                Outcome::Continue
            }
            OptionKind::Go => match self.describe(exports, data, replier) {
                Some(export) => Outcome::Transmission(self.negotiated(export)),
                None => Outcome::Continue,
            },
            OptionKind::StructuredReply => {
                if data.is_empty() {
                    self.structured_replies = true;
                    replier.ack();
                } else {
                    replier.error(REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
                }
                Outcome::Continue
            }
            OptionKind::ListMetaContext => {
                self.list_meta_context(exports, data, replier);
                Outcome::Continue
            }
            OptionKind::SetMetaContext => {
                self.set_meta_context(exports, data, replier);
                Outcome::Continue
            }
            OptionKind::StartTls | OptionKind::Unknown(_) => {
                replier.error(REP_ERR_UNSUP, "this server does not know the option");
                Outcome::Continue
            }
        }
    }

    fn export_name(
        &mut self,
        exports: &dyn Exports,
        name: &[u8],
        replier: &mut Replier<'_>,
    ) -> Outcome {
        let export = find(exports, name);
        let export = export.filter(|export| !self.stopping && !export.is_shut_down);
        let Some(export) = export else {
            return Outcome::Close(CloseReason::ExportNameRefused);
        };
        let zeroes = if self.no_zeroes { 0 } else { EXPORT_NAME_ZEROES };
        replier.export_name(&export, self.structured_replies, zeroes);
        Outcome::Transmission(self.negotiated(export))
    }

    /// Answers INFO or GO; the export when the answer was good.
    fn describe(
        &mut self,
        exports: &dyn Exports,
        data: &[u8],
        replier: &mut Replier<'_>,
    ) -> Option<ExportInfo> {
        let Some(request) = InfoRequest::read(data) else {
            replier.error(REP_ERR_INVALID, "the lengths in the option do not add up");
            return None;
        };
        let InfoRequest { name, asks_name, asks_description, asks_block_size } = request;
        if name.len() > STRING_BYTES_MAX {
            replier.error(REP_ERR_TOO_BIG, "the export name is longer than 4096 bytes");
            return None;
        }
        let export = open_to_clients(exports, name, replier)?;
        replier.info_export(&export, self.structured_replies);
        if asks_name {
            replier.info_name(&export);
        }
        if asks_description {
            replier.info_description(&export);
        }
        if asks_block_size {
            self.block_sizes_asked = true;
            replier.info_block_size(&export);
        }
        replier.ack();
        Some(export)
    }

    fn list_meta_context(&self, exports: &dyn Exports, data: &[u8], replier: &mut Replier<'_>) {
        if let Some((request, _export)) = self.meta_request(exports, data, replier) {
            if request.lists_allocation {
                // The protocol wants 0 here: what is only listed has no number yet.
                replier.meta_context(0, BASE_ALLOCATION);
            }
            replier.ack();
        }
    }

    fn set_meta_context(&mut self, exports: &dyn Exports, data: &[u8], replier: &mut Replier<'_>) {
        // Cleared first: a SET that fails leaves nothing selected.
        self.base_allocation_of = None;
        if let Some((request, export)) = self.meta_request(exports, data, replier) {
            if request.sets_allocation {
                replier.meta_context(BASE_ALLOCATION_ID, BASE_ALLOCATION);
                self.base_allocation_of = Some(export.name().to_owned());
            }
            replier.ack();
        }
    }

    /// What LIST and SET of metadata contexts have in common; answers the errors itself.
    fn meta_request(
        &self,
        exports: &dyn Exports,
        data: &[u8],
        replier: &mut Replier<'_>,
    ) -> Option<(MetaRequest, ExportInfo)> {
        if !self.structured_replies {
            replier.error(REP_ERR_INVALID, "metadata contexts need structured replies first");
            return None;
        }
        let Some((name, request)) = MetaRequest::read(data) else {
            replier.error(REP_ERR_INVALID, "the lengths in the option do not add up");
            return None;
        };
        if name.len() > STRING_BYTES_MAX {
            replier.error(REP_ERR_TOO_BIG, "the export name is longer than 4096 bytes");
            return None;
        }
        let export = open_to_clients(exports, name, replier)?;
        Some((request, export))
    }

    fn negotiated(&self, export: ExportInfo) -> Negotiated {
        Negotiated {
            base_allocation: self.base_allocation_of.as_deref() == Some(export.name()),
            structured_replies: self.structured_replies,
            block_sizes_asked: self.block_sizes_asked,
            export,
        }
    }
}

/// A name that is not UTF-8 is no export of ours: ours are Rust strings.
fn find(exports: &dyn Exports, name: &[u8]) -> Option<ExportInfo> {
    exports.resolve(str::from_utf8(name).ok()?)
}

/// The export of this name, if clients are let in to it; else answers why there is none.
fn open_to_clients(
    exports: &dyn Exports,
    name: &[u8],
    replier: &mut Replier<'_>,
) -> Option<ExportInfo> {
    let export = find(exports, name);
    match &export {
        None => replier.error(REP_ERR_UNKNOWN, "there is no such export"),
        Some(export) if export.is_shut_down => {
            replier.error(REP_ERR_SHUTDOWN, "another client has taken the export over");
        }
        Some(_) => {}
    }
    export.filter(|export| !export.is_shut_down)
}

const fn need(inbox_bytes: usize) -> Step {
    Step { consumed: 0, outcome: Outcome::NeedMore { inbox_bytes } }
}
