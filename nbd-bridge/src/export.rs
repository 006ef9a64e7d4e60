//! Export: what a client is told about one volume before it attaches to it.
//!
//! Invariant: names and descriptions fit the protocol's strings, and block sizes obey its rules,
//! from construction on; no reply needs to check them again.
//!
//! Leaves to others: where exports come from, and keeping them while a client is attached.

use crate::limits::{PAYLOAD_BYTES_MAX, STRING_BYTES_MAX};
use crate::protocol::{
    EXPORT_CACHE, EXPORT_CAN_MULTI_CONN, EXPORT_DF, EXPORT_FLUSH, EXPORT_FUA, EXPORT_HAS_FLAGS,
    EXPORT_READ_ONLY, EXPORT_ROTATIONAL, EXPORT_TRIM, EXPORT_WRITE_ZEROES,
};

/// Why an export cannot be offered. These are mistakes of whoever configures, not of a client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    #[error("export an empty name: the empty name means the default export")]
    EmptyName,
    #[error("export '{start}...': the name has {bytes} bytes, the protocol allows 4096")]
    NameTooLong { start: String, bytes: usize },
    #[error("export '{name}': the description has {bytes} bytes, the protocol allows 4096")]
    DescriptionTooLong { name: String, bytes: usize },
    #[error(
        "block sizes {minimum_bytes}/{preferred_bytes}/{payload_bytes_max}: need powers of two, \
         minimum up to 64 KiB, preferred from 512 bytes to 32 MiB and not under the minimum, \
         and a multiple of both as payload, from 1 MiB to 32 MiB"
    )]
    BlockSizes { minimum_bytes: u32, preferred_bytes: u32, payload_bytes_max: u32 },
}

/// What requests must be multiples of, what they had better be, and how large they may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    minimum_bytes: u32,
    preferred_bytes: u32,
    payload_bytes_max: u32,
}

impl BlockSizes {
    /// Any byte range is served, whole blocks of 4 KiB are served best. A minimum of 1 keeps
    /// clients that never ask for block sizes correct.
    pub const DEFAULT: Self =
        Self { minimum_bytes: 1, preferred_bytes: 4096, payload_bytes_max: PAYLOAD_BYTES_MAX };

    /// # Errors
    /// When the three do not obey the protocol's rules, or exceed what this library serves.
    pub fn new(
        minimum_bytes: u32,
        preferred_bytes: u32,
        payload_bytes_max: u32,
    ) -> Result<Self, ExportError> {
        let good = minimum_bytes.is_power_of_two()
            && minimum_bytes <= 64 << 10
            && preferred_bytes.is_power_of_two()
            && preferred_bytes >= 512
            && preferred_bytes >= minimum_bytes
            && payload_bytes_max.is_multiple_of(preferred_bytes)
            && (1 << 20..=PAYLOAD_BYTES_MAX).contains(&payload_bytes_max);
        if good {
            Ok(Self { minimum_bytes, preferred_bytes, payload_bytes_max })
        } else {
            Err(ExportError::BlockSizes { minimum_bytes, preferred_bytes, payload_bytes_max })
        }
    }

    #[must_use]
    pub const fn minimum_bytes(self) -> u32 {
        self.minimum_bytes
    }

    #[must_use]
    pub const fn preferred_bytes(self) -> u32 {
        self.preferred_bytes
    }

    #[must_use]
    pub const fn payload_bytes_max(self) -> u32 {
        self.payload_bytes_max
    }
}

/// One export, as offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    name: String,
    description: String,
    pub size_bytes: u64,
    pub read_only: bool,
    /// FLUSH and FUA on any connection cover the writes acknowledged on all of them.
    pub can_multi_conn: bool,
    pub rotational: bool,
    /// It is known, and nobody is let in to it any more.
    pub is_shut_down: bool,
    pub block_sizes: BlockSizes,
}

impl ExportInfo {
    /// A writable export with [`BlockSizes::DEFAULT`] that one connection at a time should use.
    ///
    /// # Errors
    /// When a string does not fit the protocol, or the name is empty.
    pub fn new(name: &str, description: &str, size_bytes: u64) -> Result<Self, ExportError> {
        if name.is_empty() {
            return Err(ExportError::EmptyName);
        }
        if name.len() > STRING_BYTES_MAX {
            return Err(ExportError::NameTooLong {
                start: name.chars().take(32).collect(),
                bytes: name.len(),
            });
        }
        if description.len() > STRING_BYTES_MAX {
            return Err(ExportError::DescriptionTooLong {
                name: name.to_owned(),
                bytes: description.len(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            description: description.to_owned(),
            size_bytes,
            read_only: false,
            can_multi_conn: false,
            rotational: false,
            is_shut_down: false,
            block_sizes: BlockSizes::DEFAULT,
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The transmission flags. DF exists only where reads are answered in chunks; what changes
    /// data is not offered on a read-only export.
    #[must_use]
    pub fn transmission_flags(&self, structured_replies: bool) -> u16 {
        let Self {
            name: _,
            description: _,
            size_bytes: _,
            read_only,
            can_multi_conn,
            rotational,
            is_shut_down: _,
            block_sizes: _,
        } = *self;
        let when = |condition: bool, flags: u16| if condition { flags } else { 0 };
        EXPORT_HAS_FLAGS
            | EXPORT_FLUSH
            | EXPORT_FUA
            | EXPORT_CACHE
            | when(read_only, EXPORT_READ_ONLY)
            | when(!read_only, EXPORT_TRIM | EXPORT_WRITE_ZEROES)
            | when(rotational, EXPORT_ROTATIONAL)
            | when(structured_replies, EXPORT_DF)
            | when(can_multi_conn, EXPORT_CAN_MULTI_CONN)
    }
}

/// Where a handshake finds exports: a snapshot, so that neither method waits.
pub trait Exports {
    /// Every export a client may be told about, in the order to tell.
    fn list(&self) -> Vec<ExportInfo>;

    /// The export of exactly this name, which is not empty.
    fn find(&self, name: &str) -> Option<ExportInfo>;

    /// The export a client means by `name`. The empty name is the only export; where there are
    /// several it is none of them, because a client that did not choose must not get to format a
    /// volume that we chose for it.
    fn resolve(&self, name: &str) -> Option<ExportInfo> {
        if !name.is_empty() {
            return self.find(name);
        }
        let mut all = self.list();
        let only = all.pop();
        if all.is_empty() { only } else { None }
    }
}

impl Exports for &[ExportInfo] {
    fn list(&self) -> Vec<ExportInfo> {
        self.to_vec()
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.iter().find(|export| export.name == name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockSizes, ExportError, ExportInfo, Exports};

    fn export(name: &str) -> ExportInfo {
        ExportInfo::new(name, "", 1 << 20).expect("a short name")
    }

    #[test]
    fn the_empty_name_means_the_only_export_and_never_one_of_several() {
        let (a, b) = (export("a"), export("b"));
        assert_eq!([].as_slice().resolve(""), None);
        assert_eq!([a.clone()].as_slice().resolve(""), Some(a.clone()));
        assert_eq!([a.clone(), b.clone()].as_slice().resolve(""), None);
        assert_eq!([a, b.clone()].as_slice().resolve("b"), Some(b));
    }

    #[test]
    fn block_sizes_obey_the_protocols_rules() {
        let default = BlockSizes::DEFAULT;
        assert_eq!(
            BlockSizes::new(
                default.minimum_bytes(),
                default.preferred_bytes(),
                default.payload_bytes_max()
            ),
            Ok(default)
        );
        for (minimum, preferred, payload) in [
            (0, 4096, 1 << 20),
            (3, 4096, 1 << 20),
            (128 << 10, 128 << 10, 1 << 20),
            (1, 256, 1 << 20),
            (4096, 512, 1 << 20),
            (1, 4096, 512 << 10),
            (1, 4096, (1 << 20) + 1),
            (1, 4096, 64 << 20),
        ] {
            assert!(
                BlockSizes::new(minimum, preferred, payload).is_err(),
                "{minimum}/{preferred}/{payload}"
            );
        }
    }

    #[test]
    fn strings_that_do_not_fit_the_protocol_are_refused() {
        let long = "x".repeat(4097);
        assert_eq!(ExportInfo::new("", "", 0), Err(ExportError::EmptyName));
        assert!(ExportInfo::new(&long, "", 0).is_err());
        assert!(ExportInfo::new("a", &long, 0).is_err());
    }
}
