//! Reading big-endian fields off the front of a slice.
//!
//! Invariant: a read either succeeds whole or leaves the cursor where it was.

#![deny(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn take(&mut self, bytes: u32) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.rest = rest;
        Some(head)
    }

    /// A string of the protocol: its length in 32 bits, then its bytes.
    pub(crate) fn counted(&mut self) -> Option<&'a [u8]> {
        let before = self.rest;
        let string = self.u32().and_then(|bytes| self.take(bytes));
        if string.is_none() {
            self.rest = before;
        }
        string
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::Cursor;

    #[test]
    fn fields_are_big_endian_and_in_order() {
        let mut cursor = Cursor::new(&[1, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(cursor.u16(), Some(0x0102));
        assert_eq!(cursor.u32(), Some(3));
        assert_eq!(cursor.u64(), Some(4));
        assert!(cursor.is_empty());
    }

    #[test]
    fn a_read_past_the_end_leaves_the_cursor_where_it_was() {
        let mut cursor = Cursor::new(&[0, 0, 0, 9, 7]);
        assert_eq!(cursor.counted(), None);
        assert_eq!(cursor.u64(), None);
        assert_eq!(cursor.take(6), None);
        assert_eq!(cursor.u32(), Some(9));
        assert_eq!(cursor.take(1), Some(&[7][..]));
    }
}
