//! Bytes: a byte range cut into whole blocks and the partial blocks at its edges.
//!
//! Invariant: the parts of a cut cover the range exactly, in order, without overlap.

use smt::ids::BLOCK_BYTES;

/// A part of one block, not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub block: u64,
    /// Where in the block it starts.
    pub at_bytes: usize,
    pub len_bytes: usize,
    /// Where in the request it starts.
    pub from_bytes: u64,
}

/// A run of whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub first: u64,
    pub count: u64,
    /// Where in the request it starts.
    pub from_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// A partial block at the start; also a range that lies inside one block.
    pub head: Option<Edge>,
    pub whole: Option<Whole>,
    pub tail: Option<Edge>,
}

impl Cut {
    /// Cuts a range whose end does not exceed a u64.
    pub fn of(offset_bytes: u64, length_bytes: u64) -> Cut {
        let end = offset_bytes + length_bytes;
        let mut cut = Cut::default();
        let mut at = offset_bytes;
        let within = |bytes: u64| usize::try_from(bytes % BLOCK_BYTES).expect("below a block");
        if !at.is_multiple_of(BLOCK_BYTES) && at < end {
            let stop = end.min(at.next_multiple_of(BLOCK_BYTES));
            cut.head = Some(Edge {
                block: at / BLOCK_BYTES,
                at_bytes: within(at),
                len_bytes: usize::try_from(stop - at).expect("below a block"),
                from_bytes: 0,
            });
            at = stop;
        }
        let count = (end - at) / BLOCK_BYTES;
        if count > 0 {
            let from_bytes = at - offset_bytes;
            cut.whole = Some(Whole { first: at / BLOCK_BYTES, count, from_bytes });
            at += count * BLOCK_BYTES;
        }
        if at < end {
            cut.tail = Some(Edge {
                block: at / BLOCK_BYTES,
                at_bytes: 0,
                len_bytes: within(end),
                from_bytes: at - offset_bytes,
            });
        }
        cut
    }

    pub fn edges(self) -> impl Iterator<Item = Edge> {
        self.head.into_iter().chain(self.tail)
    }

    /// How many parts there are.
    pub fn parts(self) -> usize {
        self.edges().count() + usize::from(self.whole.is_some())
    }
}

/// The first block a byte range touches, and how many it touches.
pub(super) fn touched(offset_bytes: u64, length_bytes: u64) -> (u64, u64) {
    let first = offset_bytes / BLOCK_BYTES;
    (first, (offset_bytes + length_bytes).div_ceil(BLOCK_BYTES) - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_cut_cover_the_range_in_order() {
        for offset in [0, 1, 512, 4095, 4096, 4097, 12_288] {
            for length in [1, 511, 512, 4095, 4096, 4097, 8192, 10_000, 1 << 20] {
                let cut = Cut::of(offset, length);
                let mut covered = 0;
                let edge = |edge: Option<Edge>, covered: &mut u64| {
                    if let Some(Edge { block, at_bytes, len_bytes, from_bytes }) = edge {
                        assert_eq!(from_bytes, *covered);
                        let at = u64::try_from(at_bytes).expect("small");
                        assert_eq!(block * 4096 + at, offset + *covered);
                        assert!(len_bytes > 0 && len_bytes < 4096 && at_bytes + len_bytes <= 4096);
                        *covered += u64::try_from(len_bytes).expect("small");
                    }
                };
                edge(cut.head, &mut covered);
                if let Some(Whole { first, count, from_bytes }) = cut.whole {
                    assert_eq!(from_bytes, covered);
                    assert_eq!(first * 4096, offset + covered);
                    covered += count * 4096;
                }
                edge(cut.tail, &mut covered);
                assert_eq!(covered, length, "{offset} {length}");
            }
        }
    }

    #[test]
    fn whole_blocks_have_no_edges() {
        let cut = Cut::of(8192, 1 << 20);
        assert_eq!(cut.edges().count(), 0);
        assert_eq!(cut.whole, Some(Whole { first: 2, count: 256, from_bytes: 0 }));
        assert_eq!(touched(8192, 1 << 20), (2, 256));
        assert_eq!(touched(4095, 2), (0, 2));
    }
}
