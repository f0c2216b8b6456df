//! The Unicode classes that pre-tokenisers ask for, one byte of flags a character.
//!
//! The ranges are those of `regex-syntax`, so a hand-written scanner and the regular expression that
//! it replaces see the same characters. The table is made once, on first use: 1,114,112 flags in
//! blocks of 128, equal blocks stored once.

use std::sync::OnceLock;

use regex_syntax::hir::{Class, HirKind};
use rustc_hash::FxHashMap;

/// `\p{L}`
pub const LETTER: u8 = 1;
/// `\p{N}`
pub const NUMBER: u8 = 2;
/// `\s`
pub const SPACE: u8 = 4;
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`: what may stand in the first part of a capitalised word.
pub const UPPER: u8 = 8;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: what may stand in the second part.
pub const LOWER: u8 = 16;
/// `[\r\n]`
pub const NEWLINE: u8 = 32;

const BLOCK: usize = 128;
const CHARACTERS: usize = char::MAX as usize + 1;

pub struct Classes {
    ascii: [u8; BLOCK],
    block_of: Vec<u16>,
    blocks: Vec<[u8; BLOCK]>,
}

/// The table.
pub fn classes() -> &'static Classes {
    static TABLE: OnceLock<Classes> = OnceLock::new();
    TABLE.get_or_init(Classes::new)
}

impl Classes {
    fn new() -> Self {
        let mut flags = vec![0u8; CHARACTERS];
        for (class, flag) in [
            (r"\p{L}", LETTER),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", UPPER),
            (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", LOWER),
            (r"[\r\n]", NEWLINE),
        ] {
            for (first, last) in ranges(class) {
                flags[first as usize..=last as usize].iter_mut().for_each(|f| *f |= flag);
            }
        }
        let mut seen: FxHashMap<[u8; BLOCK], u16> = FxHashMap::default();
        let mut blocks = Vec::new();
        let (whole, _) = flags.as_chunks::<BLOCK>();
        let block_of = whole
            .iter()
            .map(|block| {
                *seen.entry(*block).or_insert_with(|| {
                    blocks.push(*block);
                    (blocks.len() - 1) as u16
                })
            })
            .collect();
        Classes { ascii: whole[0], block_of, blocks }
    }

    /// The flags of an ASCII character.
    #[inline]
    pub fn of_ascii(&self, byte: u8) -> u8 {
        self.ascii[usize::from(byte) % BLOCK]
    }

    /// The flags of a character.
    #[inline]
    pub fn of(&self, c: char) -> u8 {
        self.of_code(u32::from(c))
    }

    /// The flags of the character of a code point; none beyond the last.
    #[inline(always)]
    pub fn of_code(&self, code: u32) -> u8 {
        let code = code as usize;
        let block = self.block_of.get(code / BLOCK).map(|&block| usize::from(block));
        block.and_then(|block| self.blocks.get(block)).map_or(0, |flags| flags[code % BLOCK])
    }
}

/// The ranges of a class written as a regular expression of this file.
fn ranges(class: &str) -> Vec<(u32, u32)> {
    let parsed = regex_syntax::parse(class).expect("a class of this file");
    match parsed.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.iter().map(|range| (range.start() as u32, range.end() as u32)).collect()
        }
        other => unreachable!("{class} is a class, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_equal_the_regular_expressions() {
        for (class, flag) in [(r"^\p{L}$", LETTER), (r"^\p{N}$", NUMBER), (r"^\s$", SPACE)] {
            let class = regex::Regex::new(class).unwrap();
            for c in ('\0'..=char::MAX).step_by(7) {
                let text = c.to_string();
                assert_eq!(class.is_match(&text), classes().of(c) & flag != 0, "{c:?}");
            }
        }
    }
}
