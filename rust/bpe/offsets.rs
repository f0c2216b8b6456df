//! Which characters of a text its tokens stand for.

use std::ops::Range;

/// What a token stands for.
pub struct Place {
    /// Bytes of the caller's text, from character to character.
    bytes: Range<usize>,
    /// How many spaces the token begins and ends with.
    leading: usize,
    trailing: usize,
}

impl Place {
    /// `token` is as the vocabulary spells it, or, for an added token, as the text does.
    pub fn new(bytes: Range<usize>, token: &str) -> Self {
        let space = |c: &char| *c == 'Ġ' || c.is_whitespace();
        let leading = token.chars().take_while(space).count();
        let trailing = token.chars().rev().take_while(space).count();
        Place { bytes, leading, trailing }
    }

    /// The first byte of the caller's text that the token stands for.
    pub fn start(&self) -> usize {
        self.bytes.start
    }
}

/// Offsets that leave out the spaces of a token (`trim_offsets`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// Whether the text was given a space in front, which the first token's offsets do not count.
    pub add_prefix_space: bool,
}

impl Trim {
    pub fn apply(self, places: &[Place], offsets: &mut [(usize, usize)]) {
        for (i, (place, offset)) in places.iter().zip(offsets).enumerate() {
            let in_front = self.add_prefix_space && place.leading == 1 && (i == 0 || offset.0 == 0);
            let leading = if in_front { 0 } else { place.leading };
            offset.0 = (offset.0 + leading).min(offset.1);
            if offset.1 >= place.trailing {
                offset.1 = (offset.1 - place.trailing).max(offset.0);
            }
        }
    }
}

/// The ranges of characters.
pub fn characters(text: &str, places: &[Place]) -> Vec<(usize, usize)> {
    if text.is_ascii() {
        return places.iter().map(|place| (place.bytes.start, place.bytes.end)).collect();
    }
    // The number of characters that start before each byte.
    let mut before = Vec::with_capacity(text.len() + 1);
    let mut count = 0;
    for byte in text.bytes() {
        before.push(count);
        count += usize::from(byte & 0xC0 != 0x80);
    }
    before.push(count);
    places.iter().map(|place| (before[place.bytes.start], before[place.bytes.end])).collect()
}
