//! Hand-written scanners for the pre-tokenisation patterns of well-known models.
//!
//! Each scanner takes a text and a position and returns the end of the piece that its regular
//! expression would match there. These patterns match at every position, so a text falls wholly into
//! pieces. Every scanner looks at a character a bounded number of times.

use std::ops::Range;

use super::boundaries::{BATCH, Fill, Gpt2};
use super::classes::{Classes, LETTER, LOWER, NEWLINE, NUMBER, SPACE, UPPER, classes};

/// A pattern with a scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanner {
    /// GPT-2: words with the space before them, numbers of any length.
    Gpt2,
    /// cl100k, Llama 3, Qwen2: words with one sign before them, contractions in either case.
    Words(Words),
    /// o200k, Tekken: as `Words`, and a capital letter begins a new piece.
    Cased(Cased),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// The longest piece of digits.
    pub digits: usize,
    /// Whether white space that ends the text is one piece even if it holds line breaks.
    pub whole_tail: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cased {
    /// The longest piece of digits.
    pub digits: usize,
    /// Whether a contraction belongs to the word before it.
    pub contractions: bool,
}

pub const CL100K: Scanner = Scanner::Words(Words { digits: 3, whole_tail: true });
pub const LLAMA3: Scanner = Scanner::Words(Words { digits: 3, whole_tail: false });
pub const QWEN2: Scanner = Scanner::Words(Words { digits: 1, whole_tail: false });
pub const O200K: Scanner = Scanner::Cased(Cased { digits: 3, contractions: true });
pub const TEKKEN: Scanner = Scanner::Cased(Cased { digits: 1, contractions: false });

/// Every way in which a scanner's pattern is written in the files of the models, with the scanner.
pub const PATTERNS: [(&str, Scanner); 10] = [
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", Scanner::Gpt2),
    (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", Scanner::Gpt2),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        CL100K,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        LLAMA3,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        QWEN2,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        O200K,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        TEKKEN,
    ),
    (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        LLAMA3,
    ),
    (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        QWEN2,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]+|\s+(?!\S)|\s+",
        CL100K,
    ),
];

impl Scanner {
    /// The scanner of a pattern, if it has one.
    pub fn of(pattern: &str) -> Option<Self> {
        PATTERNS.iter().find(|(known, _)| *known == pattern).map(|(_, scanner)| *scanner)
    }

    /// The pattern of a scanner for a tokenizer.json, whose engine, Oniguruma, lets `$` hold at line
    /// breaks and reads `{1,3}+` as a repetition of repetitions.
    pub fn pattern(self) -> &'static str {
        let may_stand = |pattern: &str| !pattern.contains("++") && !pattern.contains('$');
        let spellings = PATTERNS.iter().filter(|(_, scanner)| *scanner == self);
        spellings.map(|(pattern, _)| *pattern).find(|pattern| may_stand(pattern)).unwrap_or_default()
    }

    /// Calls `batch` with the start of a piece and the ends of it and some that follow it, until all of
    /// the text was given or it fails.
    #[inline]
    pub fn each_batch<E>(
        self,
        text: &str,
        mut batch: impl FnMut(usize, &[usize]) -> Result<(), E>,
    ) -> Result<(), E> {
        let cursor = Cursor { text, classes: classes() };
        let mut start = 0;
        let mut ends = [0; BATCH];
        while start < text.len() {
            let found = match self {
                Scanner::Gpt2 => Fill { pattern: Gpt2, cursor, start, ends: &mut ends }.dispatch(),
                Scanner::Words(pattern) => Fill { pattern, cursor, start, ends: &mut ends }.dispatch(),
                Scanner::Cased(pattern) => Fill { pattern, cursor, start, ends: &mut ends }.dispatch(),
            };
            batch(start, &ends[..found])?;
            start = ends[found - 1];
        }
        Ok(())
    }

    /// Calls `piece` with each piece of the text, in order, until it fails.
    #[inline]
    pub fn each_piece<E>(
        self,
        text: &str,
        piece: &mut (impl FnMut(Range<usize>) -> Result<(), E> + ?Sized),
    ) -> Result<(), E> {
        self.each_batch(text, |mut start, ends| {
            for &end in ends {
                piece(start..end)?;
                start = end;
            }
            Ok(())
        })
    }
}

/// Finds the end of a piece, a character at a time.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    pub text: &'a str,
    pub classes: &'static Classes,
}

/// A character met in the text: itself, its class flags, and where the next one starts.
#[derive(Clone, Copy)]
struct Met {
    c: char,
    flags: u8,
    next: usize,
}

impl Met {
    fn is(self, class: u8) -> bool {
        self.flags & class != 0
    }

    /// `[^\s\p{L}\p{N}]`
    fn is_sign(self) -> bool {
        self.flags & (SPACE | LETTER | NUMBER) == 0
    }

    /// `[^\r\n\p{L}\p{N}]`
    fn may_lead_a_word(self) -> bool {
        self.flags & (NEWLINE | LETTER | NUMBER) == 0
    }
}

impl Cursor<'_> {
    /// The character at a byte position; `None` at the end of the text.
    #[inline(always)]
    fn at(self, position: usize) -> Option<Met> {
        let byte = *self.text.as_bytes().get(position)?;
        if byte.is_ascii() {
            return Some(Met { c: char::from(byte), flags: self.classes.of_ascii(byte), next: position + 1 });
        }
        self.at_beyond_ascii(position)
    }

    #[inline]
    fn at_beyond_ascii(self, position: usize) -> Option<Met> {
        let c = self.text[position..].chars().next()?;
        Some(Met { c, flags: self.classes.of(c), next: position + c.len_utf8() })
    }

    /// The end of the longest run of letters.
    #[inline]
    fn letters(self, mut position: usize) -> usize {
        while let Some(chunk) = self.text.as_bytes()[position..].first_chunk() {
            let others = not_ascii_letters(u64::from_le_bytes(*chunk));
            if others != 0 {
                position += others.trailing_zeros() as usize / 8;
                break;
            }
            position += chunk.len();
        }
        self.run(position, |met| met.is(LETTER))
    }

    /// The end of the longest run of white space.
    #[inline]
    fn spaces(self, mut position: usize) -> usize {
        loop {
            while self.text.as_bytes()[position..].first_chunk() == Some(b"        ") {
                position += 8;
            }
            match self.at(position).filter(|met| met.is(SPACE)) {
                Some(met) => position = met.next,
                None => return position,
            }
        }
    }

    /// The end of the longest run of characters that satisfy `belongs`.
    #[inline]
    fn run(self, mut position: usize, belongs: impl Fn(Met) -> bool) -> usize {
        while let Some(met) = self.at(position).filter(|&met| belongs(met)) {
            position = met.next;
        }
        position
    }

    pub fn gpt2(self, start: usize) -> usize {
        let Some(first) = self.at(start) else { return start };
        if first.c == '\''
            && let Some(end) = self.contraction(start, false)
        {
            return end;
        }
        // ` ?` before a word, a number, or signs.
        let head = match first.c {
            ' ' => self.at(first.next).filter(|met| !met.is(SPACE)),
            _ => Some(first).filter(|met| !met.is(SPACE)),
        };
        match head {
            Some(head) if head.is(LETTER) => self.letters(head.next),
            Some(head) if head.is(NUMBER) => self.run(head.next, |met| met.is(NUMBER)),
            Some(head) => self.run(head.next, Met::is_sign),
            None => self.white(start, self.spaces(start)),
        }
    }

    pub fn words(self, start: usize, options: Words) -> usize {
        let Some(first) = self.at(start) else { return start };
        if first.c == '\''
            && let Some(end) = self.contraction(start, true)
        {
            return end;
        }
        let head = match self.at(first.next) {
            Some(second) if first.may_lead_a_word() && second.is(LETTER) => second,
            _ => first,
        };
        if head.is(LETTER) {
            return self.letters(head.next);
        }
        if first.is(NUMBER) {
            return self.number(first, options.digits);
        }
        match self.signs(first) {
            Some(end) => self.run(end, |met| met.is(NEWLINE)),
            None => self.white_or_lines(start, options.whole_tail),
        }
    }

    pub fn cased(self, start: usize, options: Cased) -> usize {
        let Some(first) = self.at(start) else { return start };
        let after_lead = first.may_lead_a_word().then_some(first.next);
        let word = after_lead
            .and_then(|position| self.word_with_small_end(position))
            .or_else(|| self.word_with_small_end(start))
            .or_else(|| after_lead.and_then(|position| self.word_with_capitals(position)))
            .or_else(|| self.word_with_capitals(start));
        if let Some(end) = word {
            let contraction = options.contractions.then(|| self.contraction(end, true)).flatten();
            return contraction.unwrap_or(end);
        }
        if first.is(NUMBER) {
            return self.number(first, options.digits);
        }
        match self.signs(first) {
            Some(end) => self.run(end, |met| met.is(NEWLINE) || met.c == '/'),
            None => self.white_or_lines(start, false),
        }
    }

    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
    fn word_with_small_end(self, start: usize) -> Option<usize> {
        let mut position = start;
        // The first part is greedy; where no small letter follows it, the second part begins at the
        // last character that belongs to both.
        let mut last_of_both = None;
        while let Some(met) = self.at(position).filter(|met| met.is(UPPER)) {
            position = met.next;
            if met.is(LOWER) {
                last_of_both = Some(position);
            }
        }
        let end = self.run(position, |met| met.is(LOWER));
        if end > position { Some(end) } else { last_of_both }
    }

    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`, where the other word did not match.
    fn word_with_capitals(self, start: usize) -> Option<usize> {
        let end = self.run(start, |met| met.is(UPPER));
        (end > start).then(|| self.run(end, |met| met.is(LOWER)))
    }

    /// `\p{N}{1,most}`, whose first character is `first`.
    fn number(self, first: Met, most: usize) -> usize {
        let mut end = first.next;
        for _ in 1..most {
            match self.at(end).filter(|met| met.is(NUMBER)) {
                Some(met) => end = met.next,
                None => break,
            }
        }
        end
    }

    /// ` ?[^\s\p{L}\p{N}]+`
    fn signs(self, first: Met) -> Option<usize> {
        let head = if first.c == ' ' { self.at(first.next)? } else { first };
        head.is_sign().then(|| self.run(head.next, Met::is_sign))
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`, after `\s+$` if the tail is whole.
    fn white_or_lines(self, start: usize, whole_tail: bool) -> usize {
        let end = self.spaces(start);
        let after_newline = self.text[start..end].rfind(['\r', '\n']).map(|newline| start + newline + 1);
        match after_newline {
            Some(_) if whole_tail && end == self.text.len() => end,
            Some(after_newline) => after_newline,
            None => self.white(start, end),
        }
    }

    /// `\s+(?!\S)|\s+` over the white space `start..end`: what follows keeps one character of it.
    fn white(self, start: usize, end: usize) -> usize {
        if end == self.text.len() {
            return end;
        }
        match self.text[start..end].char_indices().next_back() {
            Some((last, _)) if last > 0 => start + last,
            _ => end,
        }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d`, in small letters only or, `(?i)`, in either case.
    pub fn contraction(self, start: usize, either_case: bool) -> Option<usize> {
        let rest = self.text[start..].strip_prefix('\'')?;
        let mut letters = rest.chars();
        // Case-insensitively, the long s is an s.
        let mut fold = || match letters.next() {
            Some('ſ') if either_case => Some('s'),
            Some(c) if either_case => Some(c.to_ascii_lowercase()),
            other => other,
        };
        let first = fold()?;
        let width = match (first, fold()) {
            ('s' | 't' | 'm' | 'd', _) => 1,
            ('r', Some('e')) | ('v', Some('e')) | ('l', Some('l')) => 2,
            _ => return None,
        };
        let bytes: usize = rest.chars().take(width).map(char::len_utf8).sum();
        Some(start + 1 + bytes)
    }
}

/// Of eight bytes, the highest bit of each that is no ASCII letter.
#[inline]
fn not_ascii_letters(bytes: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * EACH;
    // In either case a small letter; other bytes do not become one. Below 0x80 no sum carries.
    let small = (bytes | (0x20 * EACH)) & !HIGH;
    let from_a = small + (0x80 - u64::from(b'a')) * EACH;
    let after_z = small + (0x80 - u64::from(b'z') - 1) * EACH;
    (!from_a | after_z | bytes) & HIGH
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters of every class that a pattern tells apart, and the letters of the contractions.
    const ALPHABET: &str =
        "  \t\n\r\u{a0}\u{2003}\u{85}sStTrReEvVmMlLdDſ''aZéÉ漢ǅʰªا\u{301}\u{20dd}09٣Ⅷ½!/_-€🙂\0";

    #[test]
    fn letters_are_told_from_all_other_bytes() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                let mut bytes = *b"azAZmMqQ";
                bytes[place] = byte;
                let expected = if byte.is_ascii_alphabetic() { 0 } else { 0x80 << (8 * place) };
                assert_eq!(not_ascii_letters(u64::from_le_bytes(bytes)), expected, "{byte} at {place}");
            }
        }
    }

    /// Texts of up to `most` characters: some of single characters, some of runs.
    fn texts(most: usize, mut each: impl FnMut(&str)) {
        let alphabet: Vec<char> = ALPHABET.chars().collect();
        let mut state = 7u64;
        let mut random = move |bound: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
        for _ in 0..6000 {
            let (length, longest_run) = (random(most), 1 + random(6));
            // Fewer different characters meet more often.
            let few: Vec<char> = (0..2 + random(40)).map(|_| alphabet[random(alphabet.len())]).collect();
            let mut text = String::new();
            while text.chars().count() < length {
                let c = few[random(few.len())];
                text.extend(std::iter::repeat_n(c, 1 + random(longest_run)));
            }
            each(&text);
        }
    }

    #[test]
    fn scanners_equal_their_regular_expressions() {
        for (pattern, scanner) in PATTERNS {
            // The patterns of llama.cpp spell the contractions out and so leave out the long s.
            let spelt_out = pattern.starts_with("(?:'[sS]");
            let regex = fancy_regex::Regex::new(pattern).unwrap();
            texts(90, |text| {
                let text = if spelt_out { text.replace('ſ', "s") } else { text.to_owned() };
                let mut expected = regex.find_iter(&text);
                let mut scan = |piece| {
                    let found = expected.next().map(|found| found.unwrap().range());
                    assert_eq!(Some(piece), found, "{pattern} on {text:?}");
                    Ok::<(), ()>(())
                };
                scanner.each_piece(&text, &mut scan).unwrap();
                assert!(expected.next().is_none(), "{pattern} on {text:?}");
            });
        }
    }

    #[test]
    fn windows_equal_the_cursor() {
        for (_, scanner) in PATTERNS {
            texts(900, |text| {
                let cursor = Cursor { text, classes: classes() };
                let mut end = 0;
                let mut scan = |piece: Range<usize>| {
                    end = match scanner {
                        Scanner::Gpt2 => cursor.gpt2(end),
                        Scanner::Words(options) => cursor.words(end, options),
                        Scanner::Cased(options) => cursor.cased(end, options),
                    };
                    assert_eq!(piece.end, end, "{scanner:?} on {text:?}");
                    Ok::<(), ()>(())
                };
                scanner.each_piece(text, &mut scan).unwrap();
                assert_eq!(end, text.len());
            });
        }
    }
}
