//! Parses arbitrary bytes, and computes checksums in another way than the library does.

/// Reads from the front. Missing bytes are zero.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Returns a number below a bound, which is not zero.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.short()) % bound
    }
}

/// Computes the CRC-32 bit by bit, continuing from a checksum.
pub(super) fn crc32(from: u32, bytes: &[u8]) -> u32 {
    let mut state = !from;
    for byte in bytes {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            state = if state & 1 == 1 { state >> 1 ^ 0xedb8_8320 } else { state >> 1 };
        }
    }
    !state
}
