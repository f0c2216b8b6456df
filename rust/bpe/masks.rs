//! A window of 64 bytes of text as bit masks, one a class of characters.
//!
//! Bit i of a mask is byte i of the window. All bytes of a character have its class, so that runs of
//! characters are runs of bits.

use super::classes::{Classes, LETTER, LOWER, NUMBER, SPACE, UPPER};
use crate::simd::{BYTES, Simd};

/// Classes of the bytes of a window; zero from `len` on.
#[derive(Clone, Copy)]
pub struct Masks {
    /// The bytes of whole characters.
    pub len: usize,
    /// Whether the text ends with the window.
    pub last: bool,
    /// `\p{L}`
    pub letters: u64,
    /// `\p{N}`
    pub numbers: u64,
    /// `\s`
    pub spaces: u64,
    /// `[\r\n]`
    pub newlines: u64,
    /// U+0020
    pub blanks: u64,
    pub apostrophes: u64,
    pub slashes: u64,
    /// `[\p{Lu}\p{Lt}]`
    pub capital: u64,
    /// `\p{Ll}`; letters that are neither capital nor small count as both.
    pub small: u64,
    /// `\p{M}`
    pub marks: u64,
    /// All bytes of a character but its first.
    pub inner: u64,
}

/// The lowest `n` bits.
#[inline(always)]
pub fn below(n: usize) -> u64 {
    if n >= BYTES { u64::MAX } else { (1 << n) - 1 }
}

/// The first bit of every run.
#[inline(always)]
pub fn starts(mask: u64) -> u64 {
    mask & !(mask << 1)
}

/// Those parts of the runs of `mask` that begin at bits of `from`, at most one a run.
#[inline(always)]
pub fn runs_from(mask: u64, from: u64) -> u64 {
    // The sum's carry clears the run from there on.
    mask & !mask.wrapping_add(from)
}

/// The first bits after the runs of `mask` that begin at bits of `from`, at most one a run.
#[inline(always)]
pub fn after_runs(mask: u64, from: u64) -> u64 {
    mask.wrapping_add(from) & !mask
}

impl Masks {
    /// The masks of the first 64 bytes, or fewer if there are not as many. They begin with a character.
    #[inline(always)]
    pub fn new<S: Simd>(s: S, bytes: &[u8], classes: &Classes) -> Self {
        let mut padded = [0; BYTES];
        let block = bytes.first_chunk().unwrap_or_else(|| {
            padded[..bytes.len()].copy_from_slice(bytes);
            &padded
        });
        let len = bytes.len().min(BYTES);
        let all = s.bytes(block);
        let capital = s.between(all, b'A', b'Z');
        let small = s.between(all, b'a', b'z');
        let blanks = s.between(all, b' ', b' ');
        let mut masks = Masks {
            len,
            last: bytes.len() <= BYTES,
            letters: capital | small,
            numbers: s.between(all, b'0', b'9'),
            spaces: s.between(all, b'\t', b'\r') | blanks,
            newlines: s.between(all, b'\n', b'\n') | s.between(all, b'\r', b'\r'),
            blanks,
            apostrophes: s.between(all, b'\'', b'\''),
            slashes: s.between(all, b'/', b'/'),
            capital,
            small,
            marks: 0,
            inner: s.between(all, 0x80, 0xBF),
        };
        let firsts_of_many = s.between(all, 0xC0, 0xFF);
        if firsts_of_many != 0 {
            masks.add_beyond_ascii(block, firsts_of_many, classes);
        }
        masks
    }

    /// Adds the characters that begin at the bits of `firsts`; one that the window cuts ends it.
    #[inline(always)]
    fn add_beyond_ascii(&mut self, block: &[u8; BYTES], mut firsts: u64, classes: &Classes) {
        while firsts != 0 {
            let at = firsts.trailing_zeros() as usize;
            firsts &= firsts - 1;
            let lead = u32::from(block[at % BYTES]);
            let inner = |i: usize| u32::from(block[(at + i) % BYTES] & 0x3F);
            let (width, code) = match lead {
                ..0xE0 => (2, (lead & 0x1F) << 6 | inner(1)),
                0xE0..0xF0 => (3, (lead & 0x0F) << 12 | inner(1) << 6 | inner(2)),
                _ => (4, (lead & 0x07) << 18 | inner(1) << 12 | inner(2) << 6 | inner(3)),
            };
            if at + width > self.len {
                self.len = at;
                self.inner &= below(at);
                return;
            }
            let flags = classes.of_code(code);
            let bits = below(width) << at;
            let if_set = |flag: u8| if flags & flag != 0 { bits } else { 0 };
            self.letters |= if_set(LETTER);
            self.numbers |= if_set(NUMBER);
            self.spaces |= if_set(SPACE);
            match flags & (UPPER | LOWER) {
                UPPER => self.capital |= bits,
                LOWER => self.small |= bits,
                0 => {}
                _ if flags & LETTER == 0 => self.marks |= bits,
                _ => {}
            }
        }
    }

    /// The bytes of none of the classes `others`.
    #[inline(always)]
    pub fn besides(&self, others: u64) -> u64 {
        below(self.len) & !others
    }

    /// The first byte after each character that begins at a bit of `firsts`.
    #[inline(always)]
    pub fn after(&self, firsts: u64) -> u64 {
        // If the next byte is an inner one the carry runs through the rest of the character.
        (firsts << 1).wrapping_add(self.inner) & !self.inner
    }

    /// The last character of each run of `white`, a part of the white space, that other text follows.
    #[inline(always)]
    pub fn last_of_white(&self, white: u64) -> u64 {
        let last_bytes = white & !(self.spaces >> 1) & (below(self.len) >> 1);
        let mut firsts = last_bytes & !self.inner;
        let mut inner = last_bytes & self.inner;
        while inner != 0 {
            let before = below(inner.trailing_zeros() as usize) & !self.inner;
            firsts |= 1 << before.ilog2();
            inner &= inner - 1;
        }
        firsts
    }

    /// Where the run of `mask` starts that reaches the end of the window; `len` if there is none.
    #[inline(always)]
    pub fn start_of_last_run(&self, mask: u64) -> usize {
        self.len - (mask << (BYTES - self.len)).leading_ones() as usize
    }

    /// Where pieces of digits start that hold up to `most` of them.
    #[inline(always)]
    pub fn starts_of_numbers(&self, most: usize) -> u64 {
        let mut all = 0;
        let mut next = starts(self.numbers);
        while next != 0 {
            all |= next;
            for _ in 0..most {
                next = self.after(next) & self.numbers;
            }
        }
        all
    }
}
