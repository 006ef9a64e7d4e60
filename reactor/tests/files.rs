//! Files: what is written with O_DIRECT is read back, synced, punched and zeroed.

mod common;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use common::{Random, cramped_reactor, disk_directory, reactor, until};
use reactor::{AllocateMode, Buffer, Event, FileId, Reactor};

fn direct(path: &Path) -> OwnedFd {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("a small flag");
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .expect("the build's file system takes O_DIRECT");
    OwnedFd::from(file)
}

fn wrote(reactor: &mut Reactor, expected: u64) -> std::io::Result<usize> {
    let mut answer = None;
    until(reactor, |_, event| {
        let Event::Wrote { token, result } = event else {
            panic!("unexpected: {event:?}");
        };
        assert_eq!(token, expected);
        answer = Some(result);
        true
    });
    answer.expect("it was just set")
}

fn read(reactor: &mut Reactor, file: FileId, offset: u64, len: usize) -> Vec<u8> {
    let mut content = None;
    reactor.read(file, offset, Buffer::recycled(len), 77);
    until(reactor, |_, event| {
        let Event::Read { token: 77, mut buffer, result } = event else {
            panic!("unexpected: {event:?}");
        };
        buffer.truncate(result.expect("the disk reads"));
        content = Some(buffer.to_vec());
        true
    });
    content.expect("it was just set")
}

#[test]
fn blocks_written_in_any_order_read_back_and_sync() {
    let directory = disk_directory();
    let path = directory.path().join("blocks");
    // A queue of two, so that a round of 64 writes does not fit.
    let mut reactor = cramped_reactor();
    let file = reactor.add_file(direct(&path));
    let mut random = Random(1);
    let all = random.bytes(64 * 4096);
    let shared = Buffer::from_slice(&all).share();
    let mut order: Vec<usize> = (0..64).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last + 1));
    }
    for block in order {
        let number = u64::try_from(block).expect("small");
        let data = shared.slice(block * 4096, (block + 1) * 4096);
        assert!(data.is_aligned());
        reactor.write(file, number * 4096, data, number);
    }
    let mut seen = [false; 64];
    until(&mut reactor, |_, event| {
        let Event::Wrote { token, result } = event else {
            panic!("unexpected: {event:?}");
        };
        assert_eq!(result.expect("the disk writes"), 4096);
        let block = usize::try_from(token).expect("small");
        assert!(!std::mem::replace(&mut seen[block], true), "told once");
        seen.iter().all(|seen| *seen)
    });
    for (token, data_only) in [(100, true), (101, false)] {
        if data_only {
            reactor.sync_data(file, token);
        } else {
            reactor.sync_all(file, token);
        }
        until(&mut reactor, |_, event| {
            let Event::Synced { token: told, result } = event else {
                panic!("unexpected: {event:?}");
            };
            result.expect("the disk syncs");
            told == token
        });
    }
    assert!(read(&mut reactor, file, 0, all.len()) == all);
    assert!(read(&mut reactor, file, 5 * 4096, 4096) == all[5 * 4096..6 * 4096]);
    assert!(std::fs::read(&path).expect("there") == all);
}

#[test]
fn parts_from_many_places_are_written_as_one_run() {
    let directory = disk_directory();
    let path = directory.path().join("parts");
    let mut reactor = reactor();
    let file = reactor.add_file(direct(&path));
    let all = Random(2).bytes(2500 * 4096);
    let shared = Buffer::from_slice(&all).share();
    // More parts than one operation takes, so it has to go on where the first stopped.
    let parts = (0..2500).map(|block| shared.slice(block * 4096, (block + 1) * 4096));
    reactor.write_vectored(file, 4096, parts.collect(), 5);
    let written = wrote(&mut reactor, 5).expect("the disk writes");
    assert_eq!(written, all.len());
    assert!(std::fs::read(&path).expect("there")[4096..] == all);
    reactor.write_vectored(file, 0, Vec::new(), 6);
    assert_eq!(wrote(&mut reactor, 6).expect("nothing to do"), 0);
}

#[test]
fn a_read_beyond_the_end_says_how_much_there_was() {
    let directory = disk_directory();
    let path = directory.path().join("short");
    std::fs::write(&path, vec![3; 10_000]).expect("writable");
    let mut reactor = reactor();
    let file = reactor.add_file(direct(&path));
    assert_eq!(read(&mut reactor, file, 0, 16384), vec![3; 10_000]);
    assert_eq!(read(&mut reactor, file, 8192, 4096), vec![3; 1_808]);
    assert_eq!(read(&mut reactor, file, 0, 8192), vec![3; 8192]);
    assert!(read(&mut reactor, file, 40960, 4096).is_empty());
}

#[test]
fn a_failed_write_gives_the_kernels_error() {
    let directory = disk_directory();
    let path = directory.path().join("read-only");
    std::fs::write(&path, "content").expect("writable");
    let mut reactor = reactor();
    let file = reactor.add_file(OwnedFd::from(File::open(&path).expect("readable")));
    reactor.write(file, 0, Buffer::zeroed(4096).share(), 1);
    let error = wrote(&mut reactor, 1).expect_err("opened to read");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::BADF.raw_os_error()));
}

#[test]
fn a_removed_file_is_closed_after_its_last_operation() {
    let directory = disk_directory();
    let mut reactor = reactor();
    let file = reactor.add_file(direct(&directory.path().join("removed")));
    reactor.write(file, 0, Buffer::zeroed(4096).share(), 9);
    reactor.remove_file(file);
    assert_eq!(wrote(&mut reactor, 9).expect("the disk writes"), 4096);
}

#[test]
fn ranges_are_reserved_punched_and_zeroed() {
    let directory = disk_directory();
    let path = directory.path().join("ranges");
    let mut reactor = reactor();
    let file = reactor.add_file(direct(&path));
    let mut allocate = |mode, offset, len, token| {
        reactor.allocate(file, mode, offset, len, token);
        until(&mut reactor, |_, event| {
            let Event::Allocated { token: told, result } = event else {
                panic!("unexpected: {event:?}");
            };
            result.expect("the file system knows these");
            told == token
        });
    };
    let size = || std::fs::metadata(&path).expect("there").len();
    allocate(AllocateMode::Reserve, 0, 1 << 20, 1);
    assert_eq!(size(), 1 << 20, "reserving grows the file");
    std::fs::write(&path, vec![9; 1 << 20]).expect("writable");
    allocate(AllocateMode::PunchHole, 4096, 4096, 2);
    allocate(AllocateMode::ZeroRange, 12288, 4096, 3);
    allocate(AllocateMode::ZeroRange, 1 << 20, 4096, 4);
    assert_eq!(size(), 1 << 20, "zeroing does not");
    let content = std::fs::read(&path).expect("there");
    let block = |number: usize| &content[number * 4096..(number + 1) * 4096];
    for (number, byte) in [(0, 9), (1, 0), (2, 9), (3, 0), (4, 9)] {
        assert!(block(number).iter().all(|is| *is == byte), "block {number}");
    }
}
