//! Pool: memory of buffers no longer used, kept per thread by size class.
//!
//! A buffer is made and dropped for each request; taking its memory from the allocator each time
//! would mean zeroing it each time, and, for the large ones, faulting it in page by page.
//!
//! Invariant: memory kept here has been initialised once and is owned by nobody else.

use std::cell::RefCell;

use crate::ALIGNMENT_BYTES;
use crate::buffer::Memory;

/// Memory larger than this goes back to the allocator: it is rare, and dear to keep.
const POOLED_BYTES_MAX: usize = 4 << 20;

/// What one class may keep. 32 MiB is 8,192 blocks, more than any queue of ours holds, and eight
/// pieces of the largest class.
const CLASS_BYTES_MAX: usize = 32 << 20;

/// 4 KiB, 8 KiB, ... 4 MiB.
const CLASS_COUNT: usize = (POOLED_BYTES_MAX.ilog2() - ALIGNMENT_BYTES.ilog2()) as usize + 1;

thread_local! {
    static POOL: RefCell<[Vec<Memory>; CLASS_COUNT]> =
        const { RefCell::new([const { Vec::new() }; CLASS_COUNT]) };
}

/// The capacity a buffer of `len` bytes gets.
pub(crate) fn capacity_for(len: usize) -> usize {
    if len <= POOLED_BYTES_MAX {
        len.next_power_of_two().max(ALIGNMENT_BYTES)
    } else {
        len.next_multiple_of(ALIGNMENT_BYTES)
    }
}

fn class_of(capacity: usize) -> Option<usize> {
    if capacity > POOLED_BYTES_MAX {
        return None;
    }
    let class = capacity.ilog2() - ALIGNMENT_BYTES.ilog2();
    Some(usize::try_from(class).expect("a logarithm is small"))
}

/// Used memory of exactly this capacity, if there is some.
pub(crate) fn take(capacity: usize) -> Option<Memory> {
    let class = class_of(capacity)?;
    POOL.try_with(|pool| pool.borrow_mut()[class].pop()).ok().flatten()
}

/// Keeps memory for the next to come, or frees it if there is enough. While the thread ends and
/// its pool is gone, it is freed too.
pub(crate) fn give(memory: Memory) {
    let Some(class) = class_of(memory.capacity()) else {
        return;
    };
    let most = CLASS_BYTES_MAX / memory.capacity();
    let mut memory = Some(memory);
    // The error is that the pool is gone; then the memory is still here and is freed below.
    let _ = POOL.try_with(|pool| {
        let kept = &mut pool.borrow_mut()[class];
        if kept.len() < most {
            kept.extend(memory.take());
        }
    });
}
