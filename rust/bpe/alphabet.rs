//! The printable alphabet of byte-level BPE: 256 characters, one for each byte.
//!
//! A vocabulary file spells tokens as text, yet a byte-level token may be any bytes. GPT-2 therefore
//! writes a printable Latin-1 byte as itself and the other 68 as the characters from U+0100 on, in
//! order (a space is `Ġ`, a newline `Ċ`).

/// The character that stands for a byte.
const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut byte = 0;
    let mut shifted = 0x100;
    while byte < 256 {
        let printable = matches!(byte as u8, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable {
            byte as u32
        } else {
            shifted += 1;
            shifted - 1
        };
        chars[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => unreachable!(),
        };
        byte += 1;
    }
    chars
};

/// How many characters the alphabet spans from U+0000 on: Latin-1 and the shifted ones above it.
const SPAN: usize = 0x100 + 68;

/// The byte of each character, by its code point; `None` for a character outside the alphabet.
const BYTES: [Option<u8>; SPAN] = {
    let mut bytes = [None; SPAN];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

pub fn char_of(byte: u8) -> char {
    CHARS[byte as usize]
}

pub fn byte_of(c: char) -> Option<u8> {
    BYTES.get(c as usize).copied().flatten()
}

/// Spells bytes in the alphabet.
pub fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char_of(byte)).collect()
}

/// The bytes that a token spells, or `None` if a character is outside the alphabet.
pub fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_printable_character() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
            assert!(!char_of(byte).is_whitespace() && !char_of(byte).is_control());
        }
        assert_eq!(spell(b" a\n"), "ĠaĊ");
        assert_eq!(bytes_of("Ġ漢"), None);
    }
}
