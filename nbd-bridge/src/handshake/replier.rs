//! Encoding the answers to options.
//!
//! Invariant: every reply carries the option it answers and the exact length of its payload.

#![deny(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use crate::export::ExportInfo;
use crate::limits::STRING_BYTES_MAX;
use crate::protocol::{
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, OPTION_REPLY_MAGIC, OptionKind,
    REP_ACK, REP_INFO, REP_META_CONTEXT, REP_SERVER,
};

/// Writes the answers to one option.
pub(super) struct Replier<'a> {
    option: OptionKind,
    reply: &'a mut Vec<u8>,
}

impl<'a> Replier<'a> {
    pub(super) fn new(option: OptionKind, reply: &'a mut Vec<u8>) -> Self {
        Self { option, reply }
    }

    pub(super) fn ack(&mut self) {
        self.put(REP_ACK, &[]);
    }

    /// `message` is for a person to read; clients print it.
    pub(super) fn error(&mut self, error: u32, message: &str) {
        self.put(error, &[message.as_bytes()]);
    }

    pub(super) fn server(&mut self, export: &ExportInfo) {
        let name = export.name().as_bytes();
        let description = export.description().as_bytes();
        self.put(REP_SERVER, &[&bytes_u32(name).to_be_bytes(), name, description]);
    }

    pub(super) fn info_export(&mut self, export: &ExportInfo, structured_replies: bool) {
        let size = export.size_bytes.to_be_bytes();
        let flags = export.transmission_flags(structured_replies).to_be_bytes();
        self.put(REP_INFO, &[&INFO_EXPORT.to_be_bytes(), &size, &flags]);
    }

    pub(super) fn info_name(&mut self, export: &ExportInfo) {
        self.put(REP_INFO, &[&INFO_NAME.to_be_bytes(), export.name().as_bytes()]);
    }

    pub(super) fn info_description(&mut self, export: &ExportInfo) {
        let description = export.description().as_bytes();
        self.put(REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes(), description]);
    }

    pub(super) fn info_block_size(&mut self, export: &ExportInfo) {
        let sizes = export.block_sizes;
        self.put(
            REP_INFO,
            &[
                &INFO_BLOCK_SIZE.to_be_bytes(),
                &sizes.minimum_bytes().to_be_bytes(),
                &sizes.preferred_bytes().to_be_bytes(),
                &sizes.payload_bytes_max().to_be_bytes(),
            ],
        );
    }

    pub(super) fn meta_context(&mut self, id: u32, name: &str) {
        self.put(REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
    }

    /// EXPORT_NAME is answered in a form of its own, from before options had replies.
    pub(super) fn export_name(
        &mut self,
        export: &ExportInfo,
        structured_replies: bool,
        zeroes: usize,
    ) {
        let flags = export.transmission_flags(structured_replies);
        self.reply.extend_from_slice(&export.size_bytes.to_be_bytes());
        self.reply.extend_from_slice(&flags.to_be_bytes());
        self.reply.extend(std::iter::repeat_n(0, zeroes));
    }

    fn put(&mut self, kind: u32, parts: &[&[u8]]) {
        let bytes: u32 =
            parts.iter().fold(0, |sum, part| u32::saturating_add(sum, bytes_u32(part)));
        self.reply.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.reply.extend_from_slice(&self.option.code().to_be_bytes());
        self.reply.extend_from_slice(&kind.to_be_bytes());
        self.reply.extend_from_slice(&bytes.to_be_bytes());
        for part in parts {
            self.reply.extend_from_slice(part);
        }
    }
}

/// The length of a part, which is a number or a string that [`ExportInfo`] or we made.
fn bytes_u32(part: &[u8]) -> u32 {
    assert!(part.len() <= STRING_BYTES_MAX, "a string of {} bytes", part.len());
    u32::try_from(part.len()).unwrap_or(u32::MAX)
}
