//! Block: what the load writes into a block, so that a read says whose write it saw.
//!
//! Invariant: every written block names its volume, its number and its write, and all its other
//! bytes follow from these; so a torn block, a misdirected one and one that was never written
//! all differ from what they claim to be. A block of zeroes is value 0.

use sim::rng::mix;

pub const BLOCK: usize = 4096;
const WORD: usize = 8;
const MAGIC: u64 = u64::from_be_bytes(*b"petrelch");

/// One block of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub volume: usize,
    pub block: u32,
}

/// The value of a write: its writer in the upper bits, its number there below. Never 0.
#[must_use]
pub fn value(writer: usize, op: u64) -> u64 {
    assert!(op < 1 << 40, "a writer counts to 2^40");
    let writer = u64::try_from(writer).expect("a usize fits a u64");
    (writer + 1) << 40 | op
}

/// A value for people: `w3#17`.
#[must_use]
pub fn name(value: u64) -> String {
    match value >> 40 {
        0 => "zero".to_owned(),
        writer => format!("w{}#{}", writer - 1, value & ((1 << 40) - 1)),
    }
}

fn words(place: Place, value: u64) -> impl Iterator<Item = [u8; WORD]> {
    let volume = u64::try_from(place.volume).expect("a usize fits a u64");
    let head = [MAGIC, volume, u64::from(place.block), value];
    let mut seed = head.iter().fold(0, |seed, word| mix(seed ^ word));
    let tail = std::iter::repeat_with(move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(seed)
    });
    head.into_iter().chain(tail).take(BLOCK / WORD).map(u64::to_le_bytes)
}

/// Fills a block with `value`.
pub fn fill(block: &mut [u8], place: Place, value: u64) {
    assert_eq!(block.len(), BLOCK, "whole blocks are written");
    for (into, word) in block.chunks_exact_mut(WORD).zip(words(place, value)) {
        into.copy_from_slice(&word);
    }
}

/// The value a block was read with, or what is wrong with its bytes.
pub fn read(block: &[u8], place: Place) -> Result<u64, String> {
    assert_eq!(block.len(), BLOCK, "whole blocks are read");
    if block.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word = |at: usize| {
        let bytes = block[at * WORD..(at + 1) * WORD].try_into().expect("eight bytes");
        u64::from_le_bytes(bytes)
    };
    let value = word(3);
    let mut theirs = block.chunks_exact(WORD);
    let wrong = words(place, value).position(|word| theirs.next() != Some(word.as_slice()));
    match wrong {
        None => Ok(value),
        Some(at) => Err(format!(
            "volume {} block {}: differs from byte {} on; its head says magic {:#x}, volume {}, \
             block {}, value {}",
            place.volume,
            place.block,
            at * WORD,
            word(0),
            word(1),
            word(2),
            name(value),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { volume: 1, block: 77 };

    fn written() -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        fill(&mut block, PLACE, value(2, 9));
        block
    }

    #[test]
    fn a_block_reads_as_it_was_written() {
        assert_eq!(read(&written(), PLACE), Ok(value(2, 9)));
        assert_eq!(read(&vec![0; BLOCK], PLACE), Ok(0));
        assert_eq!(name(value(2, 9)), "w2#9");
    }

    #[test]
    fn a_torn_block_a_misdirected_one_and_a_flipped_bit_are_noticed() {
        let mut other = vec![0; BLOCK];
        fill(&mut other, PLACE, value(2, 10));
        let mut torn = written();
        torn[512..].copy_from_slice(&other[512..]);
        read(&torn, PLACE).expect_err("torn");
        read(&written(), Place { block: 78, ..PLACE }).expect_err("misdirected");
        let mut flipped = written();
        flipped[4095] ^= 1;
        read(&flipped, PLACE).expect_err("flipped");
        let mut half = written();
        half[2048..].fill(0);
        read(&half, PLACE).expect_err("half of it is missing");
    }
}
