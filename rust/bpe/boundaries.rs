//! Where pieces start, a window of 64 bytes at a time.
//!
//! The starts in a window come of a few dozen operations on its masks. A match depends on nothing
//! before its start, so a window needs no memory of the one before: it begins at the last start that is
//! certain. What lies near its end, where the bytes beyond it may change the starts, is left to the next
//! window. Where a window does not give even one start (a piece longer than the window, or one of the
//! rare mixtures that the algebra leaves out), the cursor of `scan` finds the next.

use super::masks::{Masks, after_runs, below, runs_from, starts};
use super::scan::{Cased, Cursor, Words};
use crate::simd::{self, BYTES, Op, Simd};

/// The most starts that are found at a time.
pub const BATCH: usize = 128;

/// So many bytes from a start on may change it: an apostrophe, "re", or the two bytes of "ſ".
const LOOKAHEAD: usize = 4;

/// A pattern whose pieces come of masks.
pub trait Algebra: Copy {
    /// The starts of pieces in the window, which begins with one at the cursor's position `at`, as if
    /// the text ended with it; `None` if it holds what only the cursor can tell. Also the white space that is
    /// cut up in regard to what follows it.
    fn starts(self, masks: &Masks, cursor: Cursor<'_>, at: usize) -> Option<(u64, u64)>;

    /// The end of the piece that starts at `start`.
    fn end(self, cursor: Cursor<'_>, start: usize) -> usize;
}

/// GPT-2's pattern.
#[derive(Clone, Copy)]
pub struct Gpt2;

impl Algebra for Gpt2 {
    #[inline(always)]
    fn starts(self, masks: &Masks, cursor: Cursor<'_>, at: usize) -> Option<(u64, u64)> {
        let &Masks { letters, numbers, spaces, blanks, apostrophes, .. } = masks;
        let signs = masks.besides(letters | numbers | spaces);
        let heads = starts(letters) | starts(numbers) | starts(signs);
        let mut all = starts(spaces) | masks.last_of_white(spaces) | heads & !(blanks << 1);
        let mut quotes = all & apostrophes;
        while quotes != 0 {
            let quote = quotes.trailing_zeros() as usize;
            quotes &= quotes - 1;
            if let Some(end) = cursor.contraction(at + quote, false) {
                all = cut_out(all, masks, quote + 1, end - at);
            }
        }
        Some((all, spaces))
    }

    #[inline]
    fn end(self, cursor: Cursor<'_>, start: usize) -> usize {
        cursor.gpt2(start)
    }
}

/// `starts` without those from `from` up to `to`, where there is one.
#[inline(always)]
fn cut_out(starts: u64, masks: &Masks, from: usize, to: usize) -> u64 {
    let at_end = if to < masks.len { 1 << to } else { 0 };
    starts & !(below(to) & !below(from)) | at_end
}

/// White space and signs, which the patterns `Words` and `Cased` treat alike.
struct Between {
    /// White space but for the line breaks that belong to signs.
    white: u64,
    /// Starts of pieces that begin with white space or signs, whether letters follow or not.
    starts: u64,
    /// Where words begin that have a character of such a piece in front of them.
    led: u64,
}

impl Between {
    #[inline(always)]
    fn new(masks: &Masks, signs: u64) -> Self {
        let &Masks { spaces, newlines, blanks, .. } = masks;
        let heads = starts(signs) & !(blanks << 1);
        let white = spaces & !runs_from(newlines, newlines & signs << 1);
        let rest = white & !newlines;
        // What follows the last line break of a run is a piece of its own.
        let mut after_newline = rest & (white & newlines) << 1;
        let mut not_last = after_runs(rest, after_newline) & newlines;
        while not_last != 0 {
            let before = below(not_last.trailing_zeros() as usize) & after_newline;
            after_newline &= !(1 << before.ilog2());
            not_last &= not_last - 1;
        }
        Between {
            white,
            starts: heads | starts(white) | after_newline | masks.last_of_white(rest),
            // Of signs, one that stands alone and has no blank before it.
            led: rest << 1 | masks.after(heads),
        }
    }
}

impl Algebra for Words {
    #[inline(always)]
    fn starts(self, masks: &Masks, cursor: Cursor<'_>, at: usize) -> Option<(u64, u64)> {
        let &Masks { letters, numbers, spaces, apostrophes, .. } = masks;
        let between = Between::new(masks, masks.besides(letters | numbers | spaces));
        let words = starts(letters) & !between.led;
        let mut all = between.starts | words | masks.starts_of_numbers(self.digits);
        if self.whole_tail && masks.last {
            all &= below(masks.start_of_last_run(between.white) + 1);
        }
        let mut quotes = all & apostrophes;
        while quotes != 0 {
            let quote = quotes.trailing_zeros() as usize;
            quotes &= quotes - 1;
            if let Some(end) = cursor.contraction(at + quote, true) {
                all = cut_out(all, masks, quote + 1, end - at);
            }
        }
        Some((all, between.white))
    }

    #[inline]
    fn end(self, cursor: Cursor<'_>, start: usize) -> usize {
        cursor.words(start, self)
    }
}

impl Algebra for Cased {
    #[inline(always)]
    fn starts(self, masks: &Masks, cursor: Cursor<'_>, at: usize) -> Option<(u64, u64)> {
        let &Masks { numbers, spaces, newlines, capital, small, marks, .. } = masks;
        // A mark behind a letter is one; elsewhere it may be a sign or begin a word.
        let letters = masks.letters | runs_from(marks, marks & masks.letters << 1);
        let signs = masks.besides(letters | numbers | spaces);
        let either = letters & !(capital | small);
        let slash_of_signs = masks.slashes & runs_from(newlines, newlines & signs << 1) << 1;
        // Behind a letter of either case a capital may or may not begin a word.
        if marks & !letters | slash_of_signs | capital & either << 1 != 0 {
            return None;
        }
        let between = Between::new(masks, signs);
        let words = starts(letters) & !between.led | capital & small << 1;
        let mut all = between.starts | words | masks.starts_of_numbers(self.digits);
        if self.contractions {
            let mut quotes = all & masks.apostrophes & letters << 1;
            let mut end_of_last = None;
            while quotes != 0 {
                let quote = quotes.trailing_zeros() as usize;
                quotes &= quotes - 1;
                // Only a word has a contraction, not another contraction.
                if end_of_last != Some(at + quote)
                    && let Some(end) = cursor.contraction(at + quote, true)
                {
                    all = cut_out(all, masks, quote, end - at);
                    end_of_last = Some(end);
                }
            }
        }
        Some((all, between.white))
    }

    #[inline]
    fn end(self, cursor: Cursor<'_>, start: usize) -> usize {
        cursor.cased(start, self)
    }
}

/// Finds up to `BATCH` ends of pieces of the cursor's text, of which the first piece starts at `start`.
pub struct Fill<'a, P> {
    pub pattern: P,
    pub cursor: Cursor<'a>,
    pub start: usize,
    pub ends: &'a mut [usize; BATCH],
}

impl<P: Algebra> Fill<'_, P> {
    /// The number of the ends.
    pub fn dispatch(self) -> usize {
        simd::dispatch_integers(self)
    }
}

impl<P: Algebra> Op for Fill<'_, P> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Fill { pattern, cursor, start: mut at, ends } = self;
        let text = cursor.text.as_bytes();
        let mut count = 0;
        while at < text.len() && count + BYTES < BATCH {
            let masks = Masks::new(s, &text[at..], cursor.classes);
            let Some((starts, white)) = pattern.starts(&masks, cursor, at) else {
                at = pattern.end(cursor, at);
                ends[count] = at;
                count += 1;
                continue;
            };
            let certain = if masks.last {
                masks.len
            } else {
                // A run of white space that may go on is certain to start where it does.
                masks.start_of_last_run(white).min(masks.len - LOOKAHEAD) + 1
            };
            // An end is the start of the next piece; the window's first byte is none.
            let found = starts & below(certain) & !1;
            let window = at;
            let Some(room) = ends[count..].first_chunk_mut() else { break };
            count += s.places_of_bits(found, window, room);
            at = window + (found | 1).ilog2() as usize;
            if masks.last || at == window {
                at = if masks.last { text.len() } else { pattern.end(cursor, window) };
                ends[count] = at;
                count += 1;
            }
        }
        count
    }
}
