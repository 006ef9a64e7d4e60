//! Chance: the one source of randomness of a run, so that a seed is a run.
//!
//! Invariant: the numbers depend on the seed and on the order of the calls, and on nothing else.
//! Probabilities are in parts per million; there are no floats.

/// Certainty, in parts per million.
pub const ALWAYS_PPM: u32 = 1_000_000;

/// xoshiro256**, seeded by splitmix64.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

/// The finaliser of splitmix64: a cheap bijection that spreads every bit.
#[must_use]
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        let mut s = seed;
        let mut next = || {
            s = s.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(s)
        };
        Rng { state: [next(), next(), next(), next()] }
    }

    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let out = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        out
    }

    /// A number below `bound`, which is not 0. The bias of the modulus does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// A number of `low ..= high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub fn range_u32(&mut self, low: u32, high: u32) -> u32 {
        u32::try_from(self.range(u64::from(low), u64::from(high))).expect("between two u32")
    }

    /// An index into something of `len` entries, which is not 0.
    pub fn index(&mut self, len: usize) -> usize {
        let len = u64::try_from(len).expect("a usize fits a u64");
        usize::try_from(self.below(len)).expect("below a usize")
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(&from[self.index(from.len())]) }
    }

    pub fn coin(&mut self) -> bool {
        self.bits() & (1 << 40) != 0
    }

    /// True `ppm` times in a million.
    pub fn chance(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(u64::from(ALWAYS_PPM)) < u64::from(ppm)
    }

    /// Mostly near `typical`, now and then up to ten times as long: how latencies are.
    pub fn around(&mut self, typical: u64) -> u64 {
        let long = self.below(16) == 0;
        let base = typical / 2 + self.below(typical.max(1));
        if long { base + self.below(typical * 9 + 1) } else { base }
    }

    /// A generator of its own, for a part whose draws are not to disturb the others'.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.bits())
    }
}
