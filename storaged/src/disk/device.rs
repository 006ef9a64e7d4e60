//! Device: the files of one replica as its store sees them; executes its steps on the reactor.
//!
//! Invariant: steps that touch the same file's memory take effect there in the order they were
//! given, before `start` returns; what is to be durable is so when the step's answer comes.

use std::os::fd::OwnedFd;

use client_lib::Data;
use reactor::{Buffer, FileId, Reactor};
use smt::store::{DeviceOp, ReplicaMeta, Table};
use smt::{BLOCK_BYTES, BlockRange};

use super::error::{DiskError, Result, doing};
use super::files::{DiskTable, MetaFile, Place, ReplicaFiles};
use super::layout::index;

/// What was asked of the reactor under a token.
#[derive(Debug)]
pub(super) enum Started {
    Read {
        range: BlockRange,
        zero: Vec<u32>,
    },
    Write {
        range: BlockRange,
    },
    /// Of the file with this extension.
    Sync {
        extension: &'static str,
    },
}

/// A replica's files, in the hands of a reactor.
#[derive(Debug)]
pub(super) struct Device {
    place: Place,
    data: FileId,
    meta_file: FileId,
    table_file: FileId,
    meta: MetaFile,
    table: DiskTable,
}

impl Device {
    pub(super) fn new(place: Place, files: ReplicaFiles, reactor: &mut Reactor) -> Result<Device> {
        let ReplicaFiles { data, meta, table } = files;
        let meta_fd = duplicate(&meta.file().file(), &place, "meta")?;
        let table_fd = duplicate(&table.file().file(), &place, "table")?;
        Ok(Device {
            place,
            data: reactor.add_file(data.into()),
            meta_file: reactor.add_file(meta_fd),
            table_file: reactor.add_file(table_fd),
            meta,
            table,
        })
    }

    /// Closes the files.
    pub(super) fn close(self, reactor: &mut Reactor) {
        let Device { place: _, data, meta_file, table_file, meta: _, table: _ } = self;
        for file in [data, meta_file, table_file] {
            reactor.remove_file(file);
        }
    }

    pub(super) fn table(&mut self) -> &mut DiskTable {
        &mut self.table
    }

    pub(super) fn look_at_table(&self) -> &DiskTable {
        &self.table
    }

    /// Puts the headers right that decayed; how many.
    pub(super) fn mend_headers(&mut self, store: u128) -> u32 {
        u32::from(self.table.mend_header(store)) + u32::from(self.meta.mend_slot())
    }

    pub(super) fn meta(&self) -> &ReplicaMeta {
        self.meta.meta()
    }

    pub(super) fn intent(&self) -> Vec<u32> {
        self.meta.intent()
    }

    /// Starts a step, to end with an event under `token`; none if it is done already.
    ///
    /// # Errors
    /// What is wrong with the step. Making and deleting replicas is not done here.
    pub(super) fn start(
        &mut self,
        reactor: &mut Reactor,
        what: DeviceOp<Data>,
        token: u64,
    ) -> Result<Option<Started>, String> {
        match what {
            DeviceOp::Intent { regions } => {
                self.meta.set_intent(&regions);
                reactor.sync_data(self.meta_file, token);
                Ok(Some(Started::Sync { extension: "meta" }))
            }
            DeviceOp::ClearIntent { regions } => {
                self.meta.clear_intent(&regions);
                Ok(None)
            }
            DeviceOp::SetMeta { meta } => {
                self.meta.set_meta(meta)?;
                reactor.sync_data(self.meta_file, token);
                Ok(Some(Started::Sync { extension: "meta" }))
            }
            DeviceOp::WriteData { range, data } => {
                let buffer = data.into_buffer();
                // O_DIRECT takes whole blocks at block addresses only. What comes from a socket
                // does, but it is not ours to choose.
                let buffer =
                    if buffer.is_aligned() { buffer } else { Buffer::from_slice(&buffer).share() };
                reactor.write(self.data, offset_bytes(range.first), buffer, token);
                Ok(Some(Started::Write { range }))
            }
            DeviceOp::SyncData => {
                reactor.sync_data(self.data, token);
                Ok(Some(Started::Sync { extension: "data" }))
            }
            // All of the file: what else is dirty there is written too, which costs little and
            // saves the next ones.
            DeviceOp::SyncTable { ranges: _ } => {
                reactor.sync_data(self.table_file, token);
                Ok(Some(Started::Sync { extension: "table" }))
            }
            DeviceOp::ReadData { range, zero } => {
                let bytes = index(range.count) * block_bytes();
                let buffer = Buffer::recycled(bytes);
                reactor.read(self.data, offset_bytes(range.first), buffer, token);
                Ok(Some(Started::Read { range, zero }))
            }
            DeviceOp::Create { .. } | DeviceOp::Delete => {
                unreachable!("the syncer makes and deletes replicas")
            }
        }
    }

    /// What was being done to which file, for the error of an operation.
    pub(super) fn doing(&self, started: &Started) -> String {
        let (what, extension) = match started {
            Started::Read { range, .. } => (format!("read block {}", range.first), "data"),
            Started::Write { range } => (format!("write block {}", range.first), "data"),
            Started::Sync { extension } => ("sync".to_owned(), *extension),
        };
        format!("{what} of {}", self.place.path(extension).display())
    }
}

/// What a store without files sees: blocks that are not there, so that any read of them goes to
/// the device and fails there.
pub(super) struct NoTable;

impl Table for NoTable {
    fn get(&self, _block: u32) -> u64 {
        1
    }
    fn set(&mut self, _first: u32, _sums: &[u64]) {}
    fn set_zero(&mut self, _range: BlockRange) {}
}

/// Puts zeroes where the table says that there is no data, and gives up writing.
pub(super) fn as_read(mut buffer: Buffer, range: BlockRange, zero: &[u32]) -> Option<Data> {
    let size = block_bytes();
    for block in zero {
        let at = index(block.checked_sub(range.first)?) * size;
        buffer.get_mut(at..at + size)?.fill(0);
    }
    Data::new(buffer.share())
}

fn offset_bytes(block: u32) -> u64 {
    u64::from(block) * BLOCK_BYTES
}

fn block_bytes() -> usize {
    usize::try_from(BLOCK_BYTES).expect("4096 fits a usize")
}

fn duplicate(
    file: &std::os::fd::BorrowedFd<'_>,
    place: &Place,
    extension: &str,
) -> Result<OwnedFd, DiskError> {
    file.try_clone_to_owned().map_err(doing("duplicate the descriptor of", &place.path(extension)))
}
