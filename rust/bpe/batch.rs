//! Many texts, and long ones: shared out among the threads.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::seams::Seams;
use super::source::Source;
use super::special::Allowed;
use super::tokenizer::{Options, Tokenizer};
use crate::error::Result;
use crate::memory::prefer_huge_pages;
use crate::threads;

/// Parts of texts that one thread encodes one after the other add up to about so many bytes.
const CHUNK_BYTES: usize = 1 << 16;

/// A long text is cut at the first seam after so many bytes, if there is one in the next `SEARCHED`; else
/// so many bytes later.
const SEARCHED: usize = CHUNK_BYTES / 16;

/// Texts of so many bytes are worth a second thread.
const LONG: usize = 2 * CHUNK_BYTES;

/// Most texts have an id for so many bytes, or for more.
const BYTES_AN_ID: usize = 2;

/// A part of a text.
struct Part<'a> {
    source: Source<'a>,
    row: usize,
    first: bool,
    last: bool,
}

/// The ids of texts, one text after the other.
pub struct Rows {
    /// What one thread encoded each.
    chunks: Vec<Vec<u32>>,
    /// How many ids each text has.
    lens: Vec<usize>,
}

impl Rows {
    /// Where each text starts among the ids, and where the last one ends.
    pub fn starts(&self) -> Vec<i64> {
        let mut end = 0;
        let ends = self.lens.iter().map(|&len| {
            end += len as i64;
            end
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// The ids of each text.
    pub fn iter(&self) -> impl Iterator<Item = Cow<'_, [u32]>> {
        let mut chunks = self.chunks.iter();
        let mut rest: &[u32] = &[];
        self.lens.iter().map(move |&len| {
            if rest.is_empty() {
                rest = chunks.next().map_or(&[], Vec::as_slice);
            }
            if let Some((row, others)) = rest.split_at_checked(len) {
                rest = others;
                return Cow::Borrowed(row);
            }
            // A long text, which the chunks of several threads hold.
            let mut row = rest.to_vec();
            while row.len() < len
                && let Some(chunk) = chunks.next()
            {
                let (more, others) = chunk.split_at(chunk.len().min(len - row.len()));
                row.extend_from_slice(more);
                rest = others;
            }
            Cow::Owned(row)
        })
    }

    /// All ids.
    pub fn into_flat(mut self) -> Vec<u32> {
        match self.chunks.as_mut_slice() {
            [only] => std::mem::take(only),
            chunks => chunks.concat(),
        }
    }
}

impl Tokenizer {
    /// The ids of a text, which all threads encode together if it is long.
    pub fn encode_long(&self, text: Source<'_>, options: &Options<'_>) -> Result<Vec<u32>> {
        if text.len() < LONG || threads::size() == 1 {
            return self.encode_source(text, options);
        }
        Ok(self.encode_rows(&[text], options.add_special_tokens, options.allowed)?.into_flat())
    }

    /// The ids of texts.
    pub fn encode_rows(
        &self,
        texts: &[Source<'_>],
        add_special_tokens: bool,
        allowed: Allowed<'_>,
    ) -> Result<Rows> {
        let post = self.post_processor();
        let plan = self.plan(texts, threads::size() > 1);
        let chunks = each_chunk(&plan, |parts| {
            // At once: pages new to the process cost as much as encoding what fills them, and moving to more
            // takes new ones. Those that are never reached cost nothing.
            let bytes: usize = parts.iter().map(|part| part.source.len()).sum();
            let mut ids = Vec::with_capacity(bytes / BYTES_AN_ID);
            prefer_huge_pages(&mut ids);
            let mut lens = Vec::with_capacity(parts.len());
            for part in parts {
                let before = ids.len();
                if part.first && add_special_tokens {
                    ids.extend(&post.prefix);
                }
                self.encode_onto(&mut ids, part.source, allowed)?;
                if part.last && add_special_tokens {
                    ids.extend(&post.suffix);
                }
                lens.push(ids.len() - before);
            }
            Ok((ids, lens))
        })?;
        let mut lens = vec![0; texts.len()];
        for (parts, (_, lens_of_parts)) in plan.iter().zip(&chunks) {
            for (part, len) in parts.iter().zip(lens_of_parts) {
                lens[part.row] += len;
            }
        }
        Ok(Rows { chunks: chunks.into_iter().map(|(ids, _)| ids).collect(), lens })
    }

    /// How many ids a text has. Never more than those of a part of it are held.
    pub fn count(&self, text: Source<'_>, add_special_tokens: bool, allowed: Allowed<'_>) -> Result<usize> {
        let post = self.post_processor();
        let around = if add_special_tokens { post.prefix.len() + post.suffix.len() } else { 0 };
        let counts = each_chunk(&self.plan(&[text], true), |parts| {
            let mut ids = Vec::new();
            for part in parts {
                self.encode_onto(&mut ids, part.source, allowed)?;
            }
            Ok(ids.len())
        })?;
        Ok(around + counts.iter().sum::<usize>())
    }

    /// What is encoded together; all texts in one if they are not to be `shared` out.
    fn plan<'a>(&self, texts: &[Source<'a>], shared: bool) -> Vec<Vec<Part<'a>>> {
        let chunk_bytes = if shared { CHUNK_BYTES } else { usize::MAX };
        let mut plan: Vec<Vec<Part<'a>>> = vec![Vec::new()];
        let mut bytes = 0usize;
        let seams = match shared && texts.iter().any(|text| text.len() >= LONG) {
            true => Seams::of(self),
            false => None,
        };
        for (row, text) in texts.iter().enumerate() {
            let ranges = cut(text.bytes(), seams.as_ref());
            let last = ranges.len() - 1;
            for (i, range) in ranges.into_iter().enumerate() {
                if bytes > 0 && bytes.saturating_add(range.len()) > chunk_bytes {
                    plan.push(Vec::new());
                    bytes = 0;
                }
                bytes += range.len();
                let part = Part { source: text.part(range), row, first: i == 0, last: i == last };
                if let Some(chunk) = plan.last_mut() {
                    chunk.push(part);
                }
            }
        }
        plan
    }
}

/// The parts that a text may be cut into: one, if it is not long.
fn cut(text: &[u8], seams: Option<&Seams<'_>>) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    let mut wanted = CHUNK_BYTES;
    while let Some(seams) = seams
        && wanted < text.len()
        && text.len() >= LONG
    {
        if let Some(seam) = seams.first(text, wanted..wanted + SEARCHED) {
            ranges.push(start..seam);
            start = seam;
            wanted = seam;
        }
        wanted += CHUNK_BYTES;
    }
    ranges.push(start..text.len());
    ranges
}

/// What `work` makes of each chunk; after an error, of no further one.
pub(super) fn each_chunk<P: Sync, T: Send + Sync>(
    chunks: &[P],
    work: impl Fn(&P) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let done: Vec<OnceLock<Result<T>>> = chunks.iter().map(|_| OnceLock::new()).collect();
    let failed = AtomicBool::new(false);
    threads::for_each(chunks.len(), |i| {
        if !failed.load(Ordering::Relaxed) {
            let result = work(&chunks[i]);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            // Each chunk is run once, so its cell is empty.
            let _ = done[i].set(result);
        }
    });
    // A chunk that was left out comes with one that failed.
    let mut results = Vec::with_capacity(done.len());
    let mut error = None;
    for result in done.into_iter().filter_map(OnceLock::into_inner) {
        match result {
            Ok(result) => results.push(result),
            Err(first) => error = error.or(Some(first)),
        }
    }
    error.map_or(Ok(results), Err)
}
