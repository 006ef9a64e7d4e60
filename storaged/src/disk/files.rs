//! The three files of one replica: made, opened and deleted. All of it blocks, so it is done at
//! start or on the [`super::syncer`]'s thread.
//!
//! Invariant: a replica exists when its `.meta` does. It is the last to come and the first to go,
//! so that a stop in between leaves no replica, only files that the next start clears away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use reactor::MappedFile;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use smt::store::{ReplicaMeta, Table};
use smt::{BlockRange, Epoch, Geometry, SegmentId, ServerId};

use super::data_dir::{Space, free_bytes, sync_directory};
use super::error::{DiskError, Result, doing};
use super::layout::*;

/// How long to wait for the last writes of a killed process. Its io_uring outlives it for as long
/// as the disk takes; what it still writes must not change what we have already looked at.
const LAST_WRITES_WAIT: Duration = Duration::from_secs(10);

/// Space left to the file system when a replica is made: for its metadata, our tables and the
/// log of consensus beside us.
const HEADROOM_BYTES: u64 = 16 << 20;

/// The checksum table, mapped. Entries are masked ([`entry_mask`]).
#[derive(Debug)]
pub(super) struct DiskTable {
    segment: SegmentId,
    file: MappedFile,
}

impl DiskTable {
    fn at(block: u32) -> usize {
        ENTRIES_AT / 8 + index(block)
    }

    pub(super) fn file(&self) -> &MappedFile {
        &self.file
    }

    /// Puts the header right if it is not; whether it was not.
    pub(super) fn mend_header(&mut self, store: u128) -> bool {
        let header = encode_table_header(store, self.segment);
        let decayed = self.file[..PAGE_BYTES] != header;
        if decayed {
            self.file[..PAGE_BYTES].copy_from_slice(&header);
        }
        decayed
    }

    /// The blocks whose entries in `bytes`, the file's from byte `at` on, are not those in memory.
    pub(super) fn differing(&self, at: usize, bytes: &[u8]) -> Vec<u32> {
        let memory = self.file.get(at..).unwrap_or_default();
        let words = bytes.chunks_exact(8).zip(memory.chunks_exact(8));
        let first = at.saturating_sub(ENTRIES_AT) / 8;
        let header = ENTRIES_AT.saturating_sub(at) / 8;
        words
            .skip(header)
            .zip(first..)
            .filter(|((found, kept), _)| found != kept)
            .filter_map(|(_, block)| u32::try_from(block).ok())
            .collect()
    }

    /// Stores the entry of `block` once more, so that the kernel writes its page to the disk.
    pub(super) fn write_again(&mut self, block: u32) {
        let sum = self.get(block);
        self.set(block, &[sum]);
    }
}

impl Table for DiskTable {
    fn get(&self, block: u32) -> u64 {
        u64::from_le(self.file.as_u64s()[Self::at(block)]) ^ entry_mask(self.segment, block)
    }

    fn set(&mut self, first: u32, sums: &[u64]) {
        let segment = self.segment;
        let entries = &mut self.file.as_u64s_mut()[Self::at(first)..][..sums.len()];
        for ((entry, sum), block) in entries.iter_mut().zip(sums).zip(first..) {
            *entry = (sum ^ entry_mask(segment, block)).to_le();
        }
    }

    fn set_zero(&mut self, range: BlockRange) {
        let segment = self.segment;
        let entries = &mut self.file.as_u64s_mut()[Self::at(range.first)..][..index(range.count)];
        for (entry, block) in entries.iter_mut().zip(range.first..) {
            *entry = entry_mask(segment, block).to_le();
        }
    }
}

/// The header and the intent map, mapped.
#[derive(Debug)]
pub(super) struct MetaFile {
    server: ServerId,
    segment: SegmentId,
    file: MappedFile,
    /// The newest slot.
    slot: MetaSlot,
}

impl MetaFile {
    pub(super) fn file(&self) -> &MappedFile {
        &self.file
    }

    pub(super) fn meta(&self) -> &ReplicaMeta {
        &self.slot.meta
    }

    /// Puts `meta` into the older slot. Durable once the file is synced; until then the newer
    /// slot is not touched.
    ///
    /// # Errors
    /// When it does not fit.
    pub(super) fn set_meta(&mut self, meta: ReplicaMeta) -> Result<(), String> {
        let member = member_epoch(self.server, &meta, self.slot.member);
        let slot = MetaSlot { number: self.slot.number + 1, member, meta, ..self.slot.clone() };
        let page = slot.encode().ok_or("the replica's header does not fit its slot")?;
        self.file[slot_at(slot.number)..][..PAGE_BYTES].copy_from_slice(&page);
        self.slot = slot;
        Ok(())
    }

    /// Puts the newest slot right if it is not what was written; whether it was not.
    pub(super) fn mend_slot(&mut self) -> bool {
        let at = slot_at(self.slot.number);
        let Some(page) = self.slot.encode() else {
            return false;
        };
        let decayed = self.file[at..at + PAGE_BYTES] != page;
        if decayed {
            self.file[at..at + PAGE_BYTES].copy_from_slice(&page);
        }
        decayed
    }

    pub(super) fn set_intent(&mut self, regions: &[u32]) {
        let segment = self.segment;
        let words = self.file.as_u64s_mut();
        for region in regions {
            words[INTENT_AT / 8 + index(*region)] = intent_set(segment, *region).to_le();
        }
    }

    pub(super) fn clear_intent(&mut self, regions: &[u32]) {
        let segment = self.segment;
        let words = self.file.as_u64s_mut();
        for region in regions {
            words[INTENT_AT / 8 + index(*region)] = intent_clear(segment, *region).to_le();
        }
    }

    /// The regions that are set, ascending.
    pub(super) fn intent(&self) -> Vec<u32> {
        let words = &self.file.as_u64s()[INTENT_AT / 8..];
        (0..self.slot.meta.config.geometry.regions())
            .filter(|region| {
                u64::from_le(words[index(*region)]) != intent_clear(self.segment, *region)
            })
            .collect()
    }
}

fn slot_at(number: u64) -> usize {
    if number.is_multiple_of(2) { 0 } else { PAGE_BYTES }
}

/// A replica's files, open.
#[derive(Debug)]
pub(super) struct ReplicaFiles {
    /// With O_DIRECT.
    pub(super) data: File,
    pub(super) meta: MetaFile,
    pub(super) table: DiskTable,
}

/// Where one replica's files are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) segment: SegmentId,
}

impl Place {
    pub(super) fn path(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{:016x}.{extension}", self.segment.0))
    }

    /// The segment and extension a file name is of, if it is one of ours.
    pub(super) fn parse(name: &str) -> Option<(SegmentId, &str)> {
        let (id, extension) = name.split_once('.')?;
        let ours = matches!(extension, "data" | "meta" | "meta.tmp" | "table");
        let lower_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if id.len() != 16 || !id.chars().all(lower_hex) || !ours {
            return None;
        }
        Some((SegmentId(u64::from_str_radix(id, 16).ok()?), extension))
    }
}

/// Makes an empty replica, in place of an older one of the segment; durable on return.
///
/// # Errors
/// [`DiskError::NoSpace`] when it does not fit; then nothing is left of it.
pub(super) fn create(
    place: &Place,
    identity: &Identity,
    space: &Space,
    meta: ReplicaMeta,
) -> Result<ReplicaFiles> {
    delete(place, space)?;
    let wanted_bytes = data_file_bytes(&meta.config.geometry);
    let no_space = || DiskError::NoSpace { segment: place.segment, wanted_bytes };
    // Asked for first: the kernel would fill the disk before it says no.
    let free = free_bytes(&place.directory)?;
    if free < wanted_bytes.saturating_add(HEADROOM_BYTES) || !space.take(wanted_bytes) {
        return Err(no_space());
    }
    create_files(place, identity, meta).map_err(|error| {
        space.give_back(wanted_bytes);
        let full = match &error {
            DiskError::Io { source, .. } => source.kind() == ErrorKind::StorageFull,
            _ => false,
        };
        // The error that counts is the first; what is left is cleared away by the next start.
        if let Err(error) = remove_files(place) {
            tracing::warn!(segment = place.segment.0, %error, "could not clear away a new replica");
        }
        if full { no_space() } else { error }
    })
}

fn create_files(place: &Place, identity: &Identity, meta: ReplicaMeta) -> Result<ReplicaFiles> {
    let geometry = meta.config.geometry;
    let path = place.path("data");
    let data = open_data(&path, true)?;
    rustix::fs::fallocate(&data, FallocateFlags::empty(), 0, data_file_bytes(&geometry))
        .map_err(|error| doing("reserve space for", &path)(error.into()))?;
    data.sync_all().map_err(doing("sync", &path))?;

    let path = place.path("table");
    let file = map(&path, table_file_bytes(&geometry))?;
    let mut table = DiskTable { segment: place.segment, file };
    let header = encode_table_header(identity.store, place.segment);
    table.file[..PAGE_BYTES].copy_from_slice(&header);
    table.set_zero(BlockRange::new(0, geometry.segment_blocks));
    table.file.flush_range(0, table_file_bytes(&geometry)).map_err(doing("sync", &path))?;

    let path = place.path("meta.tmp");
    let file = map(&path, meta_file_bytes(&geometry))?;
    let (store, cluster) = (identity.store, identity.cluster);
    let member = member_epoch(identity.server, &meta, Epoch(0));
    let slot = MetaSlot { number: 1, store, cluster, member, meta };
    let mut meta = MetaFile { server: identity.server, segment: place.segment, file, slot };
    let page = meta.slot.encode().ok_or_else(|| DiskError::Damaged {
        path: path.clone(),
        what: "its fields do not fit".to_owned(),
    })?;
    meta.file[slot_at(1)..][..PAGE_BYTES].copy_from_slice(&page);
    let regions: Vec<u32> = (0..geometry.regions()).collect();
    meta.clear_intent(&regions);
    meta.file.flush_range(0, meta_file_bytes(&geometry)).map_err(doing("sync", &path))?;
    sync_directory(&place.directory)?;
    fs::rename(&path, place.path("meta")).map_err(doing("rename", &path))?;
    sync_directory(&place.directory)?;
    Ok(ReplicaFiles { data, meta, table })
}

/// Opens a replica. Waits for what a killed process may still be writing to it.
///
/// # Errors
/// [`DiskError::Newer`], [`DiskError::Older`] and [`DiskError::OtherStore`] when it is not for us to touch,
/// [`DiskError::Damaged`] when it is, and is of no use.
pub(super) fn open(place: &Place, identity: &Identity) -> Result<ReplicaFiles> {
    let path = place.path("meta");
    let slot = read_slots(place, identity)?;
    let geometry = slot.meta.config.geometry;
    let meta_bytes = meta_file_bytes(&geometry);
    expect_size(&path, meta_bytes)?;
    let file = map(&path, meta_bytes)?;
    let meta = MetaFile { server: identity.server, segment: place.segment, file, slot };

    let path = place.path("table");
    let table_bytes = table_file_bytes(&geometry);
    expect_size(&path, table_bytes)?;
    let file = map(&path, table_bytes)?;
    let mut table = DiskTable { segment: place.segment, file };
    match decode_table_header(&table.file) {
        Ok(header) if header == (identity.store, place.segment) => {}
        Ok(_) => return Err(damaged(&path, "it is another replica's")),
        // The entries vouch for themselves, one by one: should they be another segment's, each
        // reads as a mismatch. So nothing is blessed by going on with them.
        Err(PageError::Damaged(what)) => {
            tracing::warn!(path = %path.display(), what, "the header of a table decayed: written anew");
            table.mend_header(identity.store);
        }
        Err(error) => return Err(page_error(error, path)),
    }

    let path = place.path("data");
    let data_bytes = data_file_bytes(&geometry);
    expect_size(&path, usize::try_from(data_bytes).expect("a segment's bytes fit a usize"))?;
    let data = open_data(&path, false)?;
    Ok(ReplicaFiles { data, meta, table })
}

pub(super) fn read_slots(place: &Place, identity: &Identity) -> Result<MetaSlot> {
    let path = place.path("meta");
    let bytes = fs::read(&path).map_err(doing("read", &path))?;
    let mut newest: Option<MetaSlot> = None;
    let mut first_error = None;
    for at in [0, PAGE_BYTES] {
        match MetaSlot::decode(bytes.get(at..).unwrap_or_default()) {
            Ok(slot) if newest.as_ref().is_none_or(|newest| slot.number > newest.number) => {
                newest = Some(slot);
            }
            Ok(_) => {}
            Err(error @ (PageError::Newer(_) | PageError::Older(_))) => {
                return Err(page_error(error, path));
            }
            Err(error @ PageError::Damaged(_)) => {
                first_error.get_or_insert(error);
            }
        }
    }
    let Some(slot) = newest else {
        let error = first_error.unwrap_or(PageError::Damaged("it is empty"));
        return Err(page_error(error, path));
    };
    if slot.store != identity.store {
        return Err(DiskError::OtherStore { path, found: slot.store, ours: identity.store });
    }
    if slot.meta.config.segment != place.segment {
        return Err(damaged(&path, "it is another segment's"));
    }
    Ok(slot)
}

fn damaged(path: &Path, what: &str) -> DiskError {
    DiskError::Damaged { path: path.to_owned(), what: what.to_owned() }
}

fn page_error(error: PageError, path: PathBuf) -> DiskError {
    match error {
        PageError::Newer(version) => DiskError::Newer { path, version, known: FORMAT_VERSION },
        PageError::Older(version) => DiskError::Older { path, version, known: FORMAT_VERSION },
        PageError::Damaged(what) => damaged(&path, what),
    }
}

fn expect_size(path: &Path, bytes: usize) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if usize::try_from(metadata.len()) == Ok(bytes) => Ok(()),
        Ok(metadata) => Err(DiskError::Damaged {
            path: path.to_owned(),
            what: format!("it has {} bytes instead of {bytes}", metadata.len()),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(damaged(path, "it is missing")),
        Err(error) => Err(doing("look at", path)(error)),
    }
}

/// Deletes a replica, durably; does nothing if there is none.
pub(super) fn delete(place: &Place, space: &Space) -> Result<()> {
    let bytes = counted_bytes(place)?;
    remove_files(place)?;
    space.give_back(bytes);
    Ok(())
}

/// What a replica counts for, whether it can be opened or not; 0 if there is none.
pub(super) fn counted_bytes(place: &Place) -> Result<u64> {
    if !place.path("meta").exists() {
        return Ok(0);
    }
    let path = place.path("data");
    match fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(doing("look at", &path)(error)),
    }
}

/// Removes what there is of a replica, and makes that durable, the `.meta` first.
pub(super) fn remove_files(place: &Place) -> Result<()> {
    for extensions in [&["meta"][..], &["meta.tmp", "table", "data"]] {
        let mut removed = false;
        for extension in extensions {
            let path = place.path(extension);
            match fs::remove_file(&path) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(doing("remove", &path)(error)),
            }
        }
        if removed {
            sync_directory(&place.directory)?;
        }
    }
    Ok(())
}

fn open_data(path: &Path, new: bool) -> Result<File> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).expect("flags fit");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(new)
        .custom_flags(direct)
        .open(path)
        .map_err(doing("open with O_DIRECT", path))?;
    unlocked(path, || match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(ErrorKind::WouldBlock.into()),
        other => other.map_err(io::Error::from),
    })?;
    Ok(file)
}

fn map(path: &Path, bytes: usize) -> Result<MappedFile> {
    static WARNED: Once = Once::new();
    let file = unlocked(path, || MappedFile::create_or_open(path, bytes))?;
    if !file.is_locked() {
        WARNED.call_once(|| {
            tracing::warn!(
                path = %path.display(),
                "checksum tables cannot be kept in memory: should the kernel drop a page of one, and \
                 the disk not give it back, this process dies. Raise its limit of locked memory \
                 (LimitMEMLOCK=infinity, or ulimit -l unlimited)"
            );
        });
    }
    Ok(file)
}

/// Tries until the file's lock is free: a killed process keeps it until its last write has ended.
fn unlocked<T>(path: &Path, mut attempt: impl FnMut() -> io::Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if started.elapsed() > LAST_WRITES_WAIT {
                    return Err(DiskError::Locked { path: path.to_owned() });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other.map_err(doing("open", path)),
        }
    }
}

/// The geometry a replica may have.
pub(super) fn is_creatable(geometry: &Geometry) -> bool {
    geometry.segment_blocks > 0
        && geometry.segment_blocks <= SEGMENT_BLOCKS_MAX
        && geometry.region_blocks > 0
}
