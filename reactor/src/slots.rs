//! Slots: values by a key which is never valid for two of them.
//!
//! Invariant: a slot's generation grows each time its value is removed, so the key of a removed
//! value finds nothing, whoever moved in since.

/// Where a value is, and which of the slot's tenants it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// The key as one number, for the kernel to hand back.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }

    /// The key which [`Key::to_bits`] made the number of.
    pub(crate) fn from_bits(bits: u64) -> Key {
        Key {
            index: u32::try_from(bits >> 32).expect("the upper half of 64 bits"),
            generation: u32::try_from(bits & u64::from(u32::MAX))
                .expect("the lower half of 64 bits"),
        }
    }

    fn slot(self) -> usize {
        usize::try_from(self.index).expect("usize holds 32 bits here")
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A slab whose keys carry generations.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(crate) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[usize::try_from(index).expect("usize holds 32 bits here")];
            assert!(slot.value.is_none(), "slot {index} was free and taken");
            slot.value = Some(value);
            return Key { index, generation: slot.generation };
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 slots");
        // The last index is never used, so that no key's bits are u64::MAX.
        assert!(index < u32::MAX, "out of slots");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Key { index, generation: 0 }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.slot())?;
        if slot.generation != key.generation {
            return None;
        }
        slot.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.slot())?;
        if slot.generation != key.generation {
            return None;
        }
        slot.value.as_mut()
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.slot())?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_removed_value_finds_nothing_after_the_slot_is_reused() {
        let mut slots = Slots::default();
        let old = slots.insert("old");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new");
        assert_eq!(old.index, new.index, "the slot is reused");
        assert_eq!(slots.get(old), None);
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.get_mut(new), Some(&mut "new"));
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn a_key_survives_the_trip_through_the_kernel() {
        let mut slots = Slots::default();
        let first = slots.insert(1);
        slots.remove(first);
        let key = slots.insert(2);
        assert_eq!(Key::from_bits(key.to_bits()), key);
    }
}
