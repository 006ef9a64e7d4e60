//! Taking options apart.
//!
//! Invariant: an option parses only if its inner lengths add up to exactly its own length.

#![deny(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use crate::protocol::{
    BASE_ALLOCATION, BASE_NAMESPACE, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_NAME,
    OPTION_HEADER_BYTES, OPTION_MAGIC, OptionKind,
};
use crate::wire::Cursor;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadMagic;

/// The 16 bytes before an option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionHeader {
    pub(super) kind: OptionKind,
    pub(super) data_bytes: u32,
}

impl OptionHeader {
    /// `Ok(None)` when there are not enough bytes yet. A wrong magic shows after its eight bytes,
    /// so that a client that speaks something else is not waited for.
    pub(super) fn read(inbox: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut cursor = Cursor::new(inbox);
        let Some(magic) = cursor.u64() else {
            return Ok(None);
        };
        if magic != OPTION_MAGIC {
            return Err(BadMagic);
        }
        let (Some(code), Some(data_bytes)) = (cursor.u32(), cursor.u32()) else {
            return Ok(None);
        };
        Ok(Some(Self { kind: OptionKind::from_code(code), data_bytes }))
    }

    pub(super) fn message_bytes(self) -> usize {
        usize::try_from(self.data_bytes).unwrap_or(usize::MAX).saturating_add(OPTION_HEADER_BYTES)
    }

    /// The data and the length of the whole message, once all of it is there.
    pub(super) fn data(self, inbox: &[u8]) -> Option<(&[u8], usize)> {
        let message_bytes = self.message_bytes();
        let data = inbox.get(OPTION_HEADER_BYTES..message_bytes)?;
        Some((data, message_bytes))
    }
}

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub(super) name: &'a [u8],
    pub(super) asks_name: bool,
    pub(super) asks_description: bool,
    pub(super) asks_block_size: bool,
}

impl<'a> InfoRequest<'a> {
    /// Kinds of information that we do not know are ignored, as the protocol demands.
    pub(super) fn read(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let mut request = Self {
            name: cursor.counted()?,
            asks_name: false,
            asks_description: false,
            asks_block_size: false,
        };
        for _ in 0..cursor.u16()? {
            match cursor.u16()? {
                INFO_NAME => request.asks_name = true,
                INFO_DESCRIPTION => request.asks_description = true,
                INFO_BLOCK_SIZE => request.asks_block_size = true,
                _ => {}
            }
        }
        cursor.is_empty().then_some(request)
    }
}

/// The queries of LIST_META_CONTEXT and SET_META_CONTEXT, boiled down to the one context we have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MetaRequest {
    /// No query at all lists everything; `base:` lists its namespace.
    pub(super) lists_allocation: bool,
    /// Only the full name selects.
    pub(super) sets_allocation: bool,
}

impl MetaRequest {
    /// The export's name and the request; queries of namespaces that we do not know are ignored.
    pub(super) fn read(data: &[u8]) -> Option<(&[u8], Self)> {
        let mut cursor = Cursor::new(data);
        let name = cursor.counted()?;
        let queries = cursor.u32()?;
        let mut request = Self { lists_allocation: queries == 0, sets_allocation: false };
        // Every query takes at least four bytes, so a count that lies ends this loop early.
        for _ in 0..queries {
            let query = cursor.counted()?;
            if query == BASE_ALLOCATION.as_bytes() {
                request.lists_allocation = true;
                request.sets_allocation = true;
            } else if query == BASE_NAMESPACE.as_bytes() {
                request.lists_allocation = true;
            }
        }
        cursor.is_empty().then_some((name, request))
    }
}
