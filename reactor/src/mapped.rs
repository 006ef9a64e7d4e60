//! MappedFile: a file of our own seen as memory.
//!
//! For small tables that change often: a store costs nothing until it has to be durable, and
//! then one `flush_range`.
//!
//! Invariant: the whole mapping is backed by disk space reserved when the file was opened, so
//! that a store never meets a full disk (which would be a signal, not an error). All of it was read
//! before it was mapped, and is kept in memory from then on, so that no look at it meets a bad
//! sector, which would be a signal too. What remains: a store into a page that the kernel has written
//! back is a signal when the file system itself has shut down.
#![expect(unsafe_code, reason = "a mapping is sound only as long as nobody shortens the file")]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, FlockOperation};

/// A file mapped shared and writable. Locked against other processes which use this type too.
#[derive(Debug)]
pub struct MappedFile {
    map: MmapMut,
    file: File,
    is_locked: bool,
}

impl MappedFile {
    /// Opens the file, or creates it full of zeroes, and maps its first `len` bytes, reserving
    /// space for all of them. A shorter file grows by zeroes; its size is durable on return,
    /// its name only once the caller has synced the directory.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds the file; `InvalidInput` for a length of zero;
    /// what the kernel says otherwise, a full disk for example.
    pub fn create_or_open(path: &Path, len: usize) -> io::Result<MappedFile> {
        if len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("map nothing of {}", path.display()),
            ));
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let len_bytes = u64::try_from(len).expect("usize fits 64 bits");
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len_bytes)?;
        file.sync_all()?;
        read_through(&file, len_bytes)?;
        let mut options = MmapOptions::new();
        options.len(len).populate();
        // SAFETY: the file is ours: it is at least `len` long, and the lock keeps whoever else
        // would map it through this type away. That no stranger shortens or writes the files of
        // a running daemon is what every database asks of its administrator.
        let map = unsafe { options.map_mut(&file) }?;
        let is_locked = map.lock().is_ok();
        Ok(MappedFile { map, file, is_locked })
    }

    /// Whether the mapping stays in memory whatever happens. Not where this process may lock less
    /// (`RLIMIT_MEMLOCK`): then the kernel may drop pages of it, and read them again.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// Makes `len` bytes from `offset` durable; blocks until they are.
    ///
    /// # Errors
    /// What the disk says. The pages may then be lost though memory still shows them.
    ///
    /// # Panics
    /// When the range is not within the mapping.
    pub fn flush_range(&self, offset: usize, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.map.len()),
            "flush {len} bytes at {offset} of {}",
            self.map.len()
        );
        if len == 0 {
            return Ok(());
        }
        self.map.flush_range(offset, len)
    }

    /// The file, for instance to sync it through a reactor.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The mapping as numbers of this machine's byte order; bytes beyond the last whole one are
    /// left out.
    pub fn as_u64s_mut(&mut self) -> &mut [u64] {
        // SAFETY: any eight bytes are a u64 and any u64 is eight bytes.
        let (before, numbers, _) = unsafe { self.map.align_to_mut::<u64>() };
        assert!(before.is_empty(), "a mapping starts on a page");
        numbers
    }

    /// As [`MappedFile::as_u64s_mut`], to read.
    pub fn as_u64s(&self) -> &[u64] {
        // SAFETY: any eight bytes are a u64.
        let (before, numbers, _) = unsafe { self.map.align_to::<u64>() };
        assert!(before.is_empty(), "a mapping starts on a page");
        numbers
    }
}

/// Reads `len_bytes` from the start, for the errors there are.
fn read_through(file: &File, len_bytes: u64) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    let mut at = 0;
    while at < len_bytes {
        match file.read_at(&mut piece, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => at += u64::try_from(count).expect("usize fits 64 bits"),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for MappedFile {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_there_when_the_file_is_opened_again() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("table");
        let mut table = MappedFile::create_or_open(&path, 10_000).expect("created");
        assert!(table.iter().all(|byte| *byte == 0));
        table[9_999] = 7;
        table.as_u64s_mut()[2] = u64::MAX;
        table.flush_range(9_999, 1).expect("flushed");
        table.flush_range(16, 8).expect("flushed");
        drop(table);

        let table = MappedFile::create_or_open(&path, 20_000).expect("opened and grown");
        assert_eq!(table[9_999], 7);
        assert_eq!(&table[15..25], [0, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
        assert_eq!(table.as_u64s().len(), 2_500);
        assert!(table[10_000..].iter().all(|byte| *byte == 0));
        let size = std::fs::metadata(&path).expect("there").len();
        assert_eq!(size, 20_000);
    }

    /// The kernel keeps a locked page though it is told that nobody needs it.
    #[test]
    fn a_mapping_stays_in_memory() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let table = MappedFile::create_or_open(&directory.path().join("table"), 4096);
        let table = table.expect("created");
        assert!(table.is_locked(), "a page is within every limit");
        let address = format!("{:x}-", table.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("there");
        let ours = maps.split_once(&address).expect("it is mapped").1;
        let locked = ours.lines().find(|line| line.starts_with("Locked:")).expect("it says");
        assert!(locked.contains(" 4 kB"), "{locked}");
    }

    #[test]
    fn a_file_is_mapped_by_one_at_a_time() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("table");
        let _first = MappedFile::create_or_open(&path, 4096).expect("created");
        let error = MappedFile::create_or_open(&path, 4096).expect_err("held");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
