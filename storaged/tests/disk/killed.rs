//! A process that writes, and is killed at any moment.
//!
//! The test runs its own program again as the writer, which says on its standard output what was
//! acknowledged.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use client_lib::Data;
use reactor::Buffer;
use smt::payload::ZERO_SUM;
use smt::store::{StoreRequest, StoreResult};
use smt::{BlockRange, IoId};

use crate::bench::*;

const WRITER: &str = "PETREL_TEST_DISK_WRITER";
const BLOCKS: u32 = 48;

/// A block full of one number; 0 is a zeroed block.
fn numbered(number: u64) -> Data {
    let mut buffer = Buffer::zeroed(4096);
    for word in buffer.chunks_mut(8) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    Data::new(buffer.share()).expect("one block")
}

fn number_of(data: &Data) -> u64 {
    u64::from_le_bytes(data.bytes()[..8].try_into().expect("eight bytes"))
}

/// Writes, or zeroes, until it is killed: blocks in turn, 16 at once, with growing numbers.
fn write_for_ever(directory: &Path, mut number: u64) {
    let mut bench = open(directory);
    if bench.found.is_empty() {
        assert_eq!(bench.create(SEGMENT), StoreResult::Done);
    }
    let mut out = std::io::stdout();
    let mut flying: BTreeMap<IoId, (u32, u64)> = BTreeMap::new();
    loop {
        while flying.len() < 16 {
            number += 1;
            let block = u32::try_from(number % u64::from(BLOCKS)).expect("small");
            let request = if number.is_multiple_of(5) {
                StoreRequest::Zero { range: BlockRange::new(block, 1) }
            } else {
                write(SEGMENT, block, &numbered(number))
            };
            writeln!(out, "asked {block} {number}").expect("the parent listens");
            flying.insert(bench.start(SEGMENT, request), (block, number));
        }
        for (io, result) in bench.answered() {
            assert_eq!(result, StoreResult::Done);
            let (block, number) = flying.remove(&io).expect("asked for");
            writeln!(out, "acked {block} {number}").expect("the parent listens");
        }
    }
}

/// The child's part; by itself it is nothing.
#[test]
fn writer() {
    if let Some(text) = std::env::var_os(WRITER) {
        let text = text.to_str().expect("made by the test below");
        let (number, directory) = text.split_once(' ').expect("made by the test below");
        write_for_ever(Path::new(directory), number.parse().expect("a number"));
    }
}

/// What a line of the writer says: whether acknowledged, of which block, and the number.
fn said(line: &str) -> Option<(bool, u32, u64)> {
    // The test harness speaks too, without ending its line.
    let (acked, rest) = match (line.split_once("acked "), line.split_once("asked ")) {
        (Some((_, rest)), _) => (true, rest),
        (None, Some((_, rest))) => (false, rest),
        (None, None) => return None,
    };
    // The last line may have been cut off.
    let (block, number) = rest.split_once(' ')?;
    Some((acked, block.parse().ok()?, number.parse().ok()?))
}

#[test]
fn a_writer_killed_at_any_moment_loses_nothing_it_acknowledged() {
    let directory = directory();
    // Per block, what it may hold: what was acknowledged last, and what was asked for since.
    let mut may_hold: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut newest = 0;
    for acks in [1, 60, 200, 777, 1500, 400] {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "killed::writer", "--nocapture", "--test-threads=1"])
            .env(WRITER, format!("{newest} {}", directory.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program runs again");
        let output = child.stdout.take().expect("piped");
        let mut seen = 0;
        // After the kill, up to the end of what it had said.
        for line in BufReader::new(output).lines() {
            let Some((acked, block, number)) = said(&line.expect("text")) else {
                continue;
            };
            let numbers = may_hold.entry(block).or_insert_with(|| vec![0]);
            newest = newest.max(number);
            if acked {
                numbers.retain(|n| *n >= number);
                seen += 1;
                if seen == acks {
                    child.kill().expect("it runs");
                }
            } else {
                numbers.push(number);
            }
        }
        child.wait().expect("it was killed");
        assert!(seen >= acks, "the writer ended by itself");

        let mut bench = open(directory.path());
        for (block, numbers) in &mut may_hold {
            let raw = StoreRequest::ReadRaw { range: BlockRange::new(*block, 1) };
            let (data, sums) = match (bench.ask(read(*block, 1)), bench.ask(raw)) {
                (StoreResult::Data { data, sums }, _) => (data, sums),
                (StoreResult::BadBlocks { .. }, StoreResult::Data { data, sums }) => {
                    let in_doubt = &bench.found[0].in_doubt;
                    assert!(in_doubt.iter().any(|range| range.contains(*block)));
                    // Decided as an activation would.
                    bench.ask(write(SEGMENT, *block, &data));
                    (data, sums)
                }
                other => panic!("block {block}: {other:?}"),
            };
            let found = number_of(&data);
            let is_found = |n: &u64| {
                if n.is_multiple_of(5) { sums[0] == ZERO_SUM && found == 0 } else { *n == found }
            };
            let held = numbers.iter().copied().find(is_found);
            *numbers = vec![held.unwrap_or_else(|| {
                panic!("block {block} holds {found}, and may hold {numbers:?}")
            })];
        }
    }
}
