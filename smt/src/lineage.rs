//! Lineage: the number of a cluster, and of what it becomes when it is recovered.
//!
//! Invariant: a recovered cluster has a number of its own, so that nothing of the lost one, server
//! or client, is let in by accident: every connection names the number. The last two hexadecimal
//! digits are the generation, the four before them are drawn anew by each recovery, so that two
//! recoveries of the same cluster are two clusters; the others stay.

const GENERATION_BITS: u32 = 8;
/// Generation and draw.
const CHANGING_BITS: u32 = 24;

/// The number of a new cluster, from any number that is its own: generation 0.
#[must_use]
pub fn founded(random: u64) -> u64 {
    ((random >> GENERATION_BITS) << GENERATION_BITS).max(1 << CHANGING_BITS)
}

/// The number of the next generation, told from others of that generation by `draw`, a random
/// number. After 255 the generation begins again at 0.
#[must_use]
pub fn next_generation(cluster: u64, draw: u16) -> u64 {
    let base = (cluster >> CHANGING_BITS) << CHANGING_BITS;
    let generation = (generation(cluster) + 1) % (1 << GENERATION_BITS);
    base | u64::from(draw) << GENERATION_BITS | generation
}

/// How often a cluster was recovered.
#[must_use]
pub fn generation(cluster: u64) -> u64 {
    cluster % (1 << GENERATION_BITS)
}

/// Whether two numbers are of one cluster before and after a recovery, or after two.
#[must_use]
pub fn is_other_generation(one: u64, other: u64) -> bool {
    one != other && one >> CHANGING_BITS == other >> CHANGING_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_of_one_cluster_are_told_apart_from_other_clusters() {
        for random in [0, 1, 0xFF, u64::MAX, 0x1234_5678_9ABC_DEF0] {
            let first = founded(random);
            assert_eq!(generation(first), 0);
            let mut cluster = first;
            for number in 1..=255 {
                let next = next_generation(cluster, 7);
                let twin = next_generation(cluster, 8);
                assert!(is_other_generation(next, twin), "recovered twice, they are two");
                assert!(is_other_generation(cluster, next) && is_other_generation(first, next));
                assert_eq!(generation(next), number);
                cluster = next;
            }
            assert!(!is_other_generation(first, first));
            assert!(!is_other_generation(first, first ^ (1 << 30)));
            assert_ne!(first, 0, "0 is no cluster");
        }
    }
}
