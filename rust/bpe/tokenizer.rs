//! The tokenizer: added tokens, normalisation, pre-tokenisation, a model, and what is put around the
//! result.

use std::ops::Range;

use super::boundaries::BATCH;
use super::cache::{self, Cache, MOST_IDS};
use super::encode::{ByteLevel, Model};
use super::long_pieces::LongPieces;
use super::lookup::Batch;
use super::merges::Scratch;
use super::normalize::{Normalizer, Text};
use super::offsets::{Place, Trim, characters};
use super::output::Output;
use super::pretokenize::{Split, each_piece};
use super::source::Source;
use super::spares::Spares;
use super::special::{AddedToken, Allowed, Part, Pass};
use super::spelling::{Decoder, Spelling, Start};
use super::vocab::Vocab;
use crate::error::{Error, Result};
use crate::interrupt;

/// The tokens that a model's files give a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Begins a text.
    pub bos: Option<u32>,
    /// End a text or a turn; the first is *the* end token.
    pub eos: Vec<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
}

/// What is done with the tokens of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostProcessor {
    /// Ids before every text, if special tokens are asked for.
    pub prefix: Vec<u32>,
    /// Ids after it.
    pub suffix: Vec<u32>,
    /// Whether offsets leave out the white space of a token.
    pub trim: Option<Trim>,
}

/// The parts that a file describes.
pub struct Parts {
    pub vocab: Vocab,
    pub added: Vec<AddedToken>,
    pub normalizers: Vec<Normalizer>,
    /// Changes to the text between added tokens that the pre-tokeniser makes.
    pub rewrites: Vec<Normalizer>,
    pub splits: Vec<Split>,
    pub model: Model,
    pub post: PostProcessor,
    pub decoder: Decoder,
    pub roles: Roles,
    pub chat_template: Option<String>,
}

impl Parts {
    /// Byte-level BPE and nothing else: what a file of only tokens and merges describes.
    pub fn byte_level(vocab: Vocab, model: ByteLevel, splits: Vec<Split>) -> Self {
        Parts {
            model: Model::Bytes(model),
            decoder: Decoder::new(vocab.iter(), Spelling::Bytes, Start::Keep, false),
            vocab,
            added: Vec::new(),
            normalizers: Vec::new(),
            rewrites: Vec::new(),
            splits,
            post: PostProcessor::default(),
            roles: Roles::default(),
            chat_template: None,
        }
    }
}

/// A tokenizer, immutable and shared by threads.
pub struct Tokenizer {
    pub(super) parts: Parts,
    /// Added tokens found as they are, then those found in the normalised text.
    pub(super) raw: Pass,
    pub(super) normalized: Pass,
    special: Vec<u32>,
    /// Buffers and caches that calls take and give back.
    workspaces: Spares<Box<Workspace>>,
}

#[derive(Default)]
struct Workspace {
    scratch: Scratch,
    cache: Cache,
    long: LongPieces,
    /// Taken while it is in use.
    batch: Option<Box<Batch>>,
}

/// Room is made for an id every so many bytes, which is about what large vocabularies need of English.
const BYTES_AN_ID: usize = 4;

/// Pieces between two looks for Ctrl-C.
const PIECES_BETWEEN_CHECKS: usize = 1 << 12;

/// How to encode.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Whether the ids that the tokenizer puts around a text are added.
    pub add_special_tokens: bool,
    pub allowed: Allowed<'a>,
    pub offsets: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { add_special_tokens: true, allowed: Allowed::All, offsets: false }
    }
}

/// The tokens of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    pub ids: Vec<u32>,
    /// The range of characters of the text that each id stands for, if asked for; empty for the ids
    /// that were put around it.
    pub offsets: Option<Vec<(usize, usize)>>,
}

impl Tokenizer {
    /// The error is what is wrong with the added tokens.
    pub fn new(parts: Parts) -> std::result::Result<Self, String> {
        let (as_they_are, in_normalized): (Vec<_>, Vec<_>) =
            parts.added.iter().cloned().partition(|token| !token.normalized);
        let raw = Pass::new(&as_they_are)?;
        let spelled_normalized: Vec<AddedToken> = in_normalized
            .into_iter()
            .map(|token| {
                let mut text = Text::new(&token.content, 0, false);
                text.normalize(&parts.normalizers).map_err(|error| error.to_string())?;
                let content = text.text.into_owned();
                Ok(AddedToken { content, ..token })
            })
            .collect::<std::result::Result<_, String>>()?;
        let normalized = Pass::new(&spelled_normalized)?;
        let mut special: Vec<u32> =
            parts.added.iter().filter(|token| token.special).map(|token| token.id).collect();
        special.sort_unstable();
        special.dedup();
        Ok(Tokenizer { parts, raw, normalized, special, workspaces: Spares::default() })
    }

    pub fn vocab(&self) -> &Vocab {
        &self.parts.vocab
    }

    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.parts.added
    }

    pub fn decoder(&self) -> &Decoder {
        &self.parts.decoder
    }

    pub fn roles(&self) -> &Roles {
        &self.parts.roles
    }

    pub fn post_processor(&self) -> &PostProcessor {
        &self.parts.post
    }

    pub fn chat_template(&self) -> Option<&str> {
        self.parts.chat_template.as_deref()
    }

    /// The ids of the special tokens, in order.
    pub fn special_ids(&self) -> &[u32] {
        &self.special
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    pub fn encode(&self, text: &str, options: &Options<'_>) -> Result<Encoding> {
        self.encode_chunks(&[Source::Text(text)], text, &[], options, self.parts.post.trim)
    }

    /// Encodes bytes that need not be UTF-8: an invalid sequence is a piece of its own, and with a
    /// byte-level vocabulary that has every byte, decoding gives the bytes back.
    pub fn encode_bytes(&self, bytes: &[u8], options: &Options<'_>) -> Result<Encoding> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.encode(text, options),
            Err(_) if options.offsets => Err(Error::argument(
                "with_offsets",
                "bytes that are not UTF-8",
                "text, whose characters offsets count",
            )),
            Err(_) => self.encode_chunks(&chunks(bytes), "", &[], options, None),
        }
    }

    /// The ids of a text. No offsets.
    pub fn encode_source(&self, text: Source<'_>, options: &Options<'_>) -> Result<Vec<u32>> {
        let encoding = match text {
            Source::Text(text) => self.encode(text, options),
            Source::Bytes(bytes) => self.encode_bytes(bytes, options),
        };
        Ok(encoding?.ids)
    }

    /// Appends the ids of a text, without what is put around it. No offsets.
    pub fn encode_onto(&self, ids: &mut Vec<u32>, text: Source<'_>, allowed: Allowed<'_>) -> Result<()> {
        let options = Options { add_special_tokens: false, allowed, offsets: false };
        let before = std::mem::take(ids);
        (*ids, _) = match text {
            Source::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => self.run(&[Source::Text(text)], &[], &options, before)?,
                Err(_) => self.run(&chunks(bytes), &[], &options, before)?,
            },
            text => self.run(&[text], &[], &options, before)?,
        };
        Ok(())
    }

    /// The byte at which each id of a text starts, without what is put around it.
    pub fn starts(&self, text: &str, allowed: Allowed<'_>) -> Result<Vec<usize>> {
        let options = Options { add_special_tokens: false, allowed, offsets: true };
        let (_, places) = self.run(&[Source::Text(text)], &[], &options, Vec::new())?;
        Ok(places.iter().map(Place::start).collect())
    }

    /// Encodes texts as if they were one, in which added tokens (but white space) are found only
    /// inside the trusted ones. Offsets count in the joined text, and leave out no white space: every
    /// character of it belongs to a token.
    pub fn encode_spans(
        &self,
        spans: &[(&str, bool)],
        add_special_tokens: bool,
        offsets: bool,
    ) -> Result<Encoding> {
        let mut text = String::with_capacity(spans.iter().map(|(text, _)| text.len()).sum());
        let mut untrusted: Vec<Range<usize>> = Vec::new();
        for (span, trusted) in spans {
            let start = text.len();
            text.push_str(span);
            match untrusted.last_mut() {
                _ if *trusted || span.is_empty() => {}
                Some(last) if last.end == start => last.end = text.len(),
                _ => untrusted.push(start..text.len()),
            }
        }
        let options = Options { add_special_tokens, offsets, ..Options::default() };
        self.encode_chunks(&[Source::Text(&text)], &text, &untrusted, &options, None)
    }

    /// Encodes chunks, each a text or an invalid sequence of bytes. `text` is what offsets count in, and what
    /// `untrusted` ranges over; `trim`, what they leave out.
    fn encode_chunks(
        &self,
        chunks: &[Source<'_>],
        text: &str,
        untrusted: &[Range<usize>],
        options: &Options<'_>,
        trim: Option<Trim>,
    ) -> Result<Encoding> {
        let (mut ids, places) = self.run(chunks, untrusted, options, Vec::new())?;
        let mut offsets = options.offsets.then(|| characters(text, &places));
        if let (Some(offsets), Some(trim)) = (&mut offsets, trim) {
            trim.apply(&places, offsets);
        }
        if options.add_special_tokens {
            let PostProcessor { prefix, suffix, .. } = &self.parts.post;
            if !prefix.is_empty() {
                ids.splice(0..0, prefix.iter().copied());
            }
            ids.extend(suffix);
            if let Some(offsets) = &mut offsets {
                offsets.splice(0..0, prefix.iter().map(|_| (0, 0)));
                offsets.extend(suffix.iter().map(|_| (0, 0)));
            }
        }
        Ok(Encoding { ids, offsets })
    }

    /// Appends the ids of chunks, as in `encode_chunks`; with what each of them stands for, if offsets are
    /// wanted.
    fn run(
        &self,
        chunks: &[Source<'_>],
        untrusted: &[Range<usize>],
        options: &Options<'_>,
        mut ids: Vec<u32>,
    ) -> Result<(Vec<u32>, Vec<Place>)> {
        let bytes: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        ids.reserve(bytes / BYTES_AN_ID + room(bytes, BATCH));
        let mut run = Run {
            tokenizer: self,
            options,
            // Normalised text is told apart into trusted and not by where it came from.
            tracked: options.offsets || !untrusted.is_empty(),
            remember: !options.offsets && self.parts.model.has_pieces(),
            workspace: self.workspaces.take(),
            ids: Output::new(ids),
            places: Vec::new(),
            pieces: 0,
        };
        for chunk in chunks {
            match *chunk {
                Source::Text(text) => run.text(text, untrusted)?,
                Source::Bytes([]) => {}
                Source::Bytes(invalid) => run.piece(invalid, 0..invalid.len(), |range| range)?,
            }
        }
        let Run { ids, places, mut workspace, .. } = run;
        workspace.scratch.trim();
        self.workspaces.give(workspace);
        Ok((ids.into_ids(), places))
    }
}

/// The room that is needed to look up some pieces, of so many bytes together.
fn room(bytes: usize, pieces: usize) -> usize {
    bytes.min(MOST_IDS * pieces) + MOST_IDS
}

/// Texts and the invalid sequences between them, which may be empty.
fn chunks(bytes: &[u8]) -> Vec<Source<'_>> {
    bytes
        .utf8_chunks()
        .flat_map(|chunk| [Source::Text(chunk.valid()), Source::Bytes(chunk.invalid())])
        .collect()
}

/// One call of encode.
struct Run<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a Options<'a>,
    tracked: bool,
    /// Whether what short pieces become is remembered: the cache knows ids but not how long each is.
    remember: bool,
    workspace: Box<Workspace>,
    ids: Output,
    /// What each id stands for, if offsets are wanted.
    places: Vec<Place>,
    /// Pieces since the last look for Ctrl-C.
    pieces: usize,
}

impl Run<'_> {
    fn text(&mut self, text: &str, untrusted: &[Range<usize>]) -> Result<()> {
        let tokenizer = self.tokenizer;
        tokenizer.raw.each_part(text, self.options.allowed, untrusted, |Part { range, token }| match token {
            Some(id) => {
                self.token(id, &text[range.clone()], range);
                Ok(())
            }
            None => {
                let mut part = Text::new(&text[range.clone()], range.start, self.tracked);
                part.normalize(&tokenizer.parts.normalizers)?;
                self.normalized(&part, untrusted)
            }
        })
    }

    /// An added token, as which `text` was found at `range`.
    fn token(&mut self, id: u32, text: &str, range: Range<usize>) {
        self.ids.push(id);
        if self.options.offsets {
            self.places.push(Place::new(range, text));
        }
    }

    /// A text between the added tokens that were found as they are.
    fn normalized(&mut self, text: &Text<'_>, untrusted: &[Range<usize>]) -> Result<()> {
        let tokenizer = self.tokenizer;
        let untrusted = text.places_of(untrusted);
        let allowed = self.options.allowed;
        tokenizer.normalized.each_part(&text.text, allowed, &untrusted, |Part { range, token }| match token {
            Some(id) => {
                self.token(id, &text.text[range.clone()], text.origin(range));
                Ok(())
            }
            None => {
                let mut part = text.slice(range);
                part.normalize(&tokenizer.parts.rewrites)?;
                self.split(&part)
            }
        })
    }

    /// A text without added tokens, to cut into pieces.
    fn split(&mut self, text: &Text<'_>) -> Result<()> {
        let bytes = text.text.as_bytes();
        match &self.tokenizer.parts.splits[..] {
            [Split::Scan(scanner)] if self.remember => {
                scanner.each_batch(&text.text, |start, ends| self.pieces(bytes, start, ends))
            }
            splits => each_piece(splits, &text.text, &mut |piece| {
                let start = piece.start;
                self.piece(bytes, piece, |range| text.origin(start + range.start..start + range.end))
            }),
        }
    }

    /// Counts pieces, and now and then looks for Ctrl-C.
    #[inline]
    fn met(&mut self, pieces: usize) -> Result<()> {
        self.pieces += pieces;
        if self.pieces < PIECES_BETWEEN_CHECKS {
            return Ok(());
        }
        self.pieces = 0;
        interrupt::check()
    }

    /// Pieces that follow each other, whose tokens are remembered.
    fn pieces(&mut self, text: &[u8], start: usize, ends: &[usize]) -> Result<()> {
        self.met(ends.len())?;
        let mut batch = self.workspace.batch.take().unwrap_or_default();
        let Workspace { cache, long, .. } = &*self.workspace;
        let room = room(ends.last().map_or(0, |end| end - start), ends.len());
        let (mut met, count) = batch.look_up(text, start, ends, cache, long, self.ids.room(room));
        self.ids.keep(count);
        let mut asked = false;
        while let Some(&end) = ends.get(met) {
            let piece = &text[if met > 0 { ends[met - 1] } else { start }..end];
            let size = self.workspace.cache.size();
            match batch.key(met) {
                Some(key) if self.known(key) => {}
                Some(key) => {
                    // Where pieces are new, they come in crowds; the vocabulary lies far away.
                    if let Model::Bytes(model) = &self.tokenizer.parts.model
                        && !std::mem::replace(&mut asked, true)
                    {
                        let missing = batch.missing(met, ends.len(), &self.workspace.cache);
                        missing.for_each(|key| model.prefetch(key));
                    }
                    self.short_piece(key, piece)?;
                }
                None => self.long_piece(piece)?,
            }
            let cache = &self.workspace.cache;
            if cache.size() != size {
                batch.sets_moved(ends.len(), cache);
            }
            let count;
            (met, count) = batch.collect(met + 1, ends.len(), cache, self.ids.room(room));
            self.ids.keep(count);
        }
        self.workspace.batch = Some(batch);
        Ok(())
    }

    /// The piece `text[range]`, to merge; `origin` says what of the caller's text a range of the piece's
    /// bytes stands for.
    #[inline]
    fn piece(
        &mut self,
        text: &[u8],
        range: Range<usize>,
        origin: impl Fn(Range<usize>) -> Range<usize>,
    ) -> Result<()> {
        self.met(1)?;
        if self.remember
            && let Some(key) = cache::key(text, range.start, range.end)
        {
            if !self.known(key) {
                self.short_piece(key, &text[range])?;
            }
            return Ok(());
        }
        if self.remember {
            return self.long_piece(&text[range]);
        }
        self.merge(&text[range], origin)
    }

    /// Whether a piece is in the cache; then its ids come to the others.
    #[inline]
    fn known(&mut self, key: u128) -> bool {
        let ids = self.workspace.cache.get(key);
        self.ids.extend_from_slice(ids.unwrap_or_default());
        ids.is_some()
    }

    /// A piece that is not in the cache.
    #[inline(never)]
    fn short_piece(&mut self, key: u128, piece: &[u8]) -> Result<()> {
        let Workspace { scratch, cache, .. } = &mut *self.workspace;
        match &self.tokenizer.parts.model {
            Model::Bytes(model) => {
                if let Some(id) = model.word(key) {
                    cache.put(key, std::iter::once(id));
                    self.ids.push(id);
                    return Ok(());
                }
                model.merge(piece, scratch)?;
            }
            model => model.encode(piece, scratch)?,
        }
        let ids = scratch.symbols.iter().map(|symbol| symbol.id);
        cache.put(key, ids.clone());
        self.ids.extend(ids);
        Ok(())
    }

    /// A piece that has no key.
    #[inline(never)]
    fn long_piece(&mut self, piece: &[u8]) -> Result<()> {
        if let Some(ids) = self.workspace.long.get(piece) {
            self.ids.extend(ids);
            return Ok(());
        }
        let before = self.ids.count();
        match &self.tokenizer.parts.model {
            Model::Bytes(model) => self.parts_of(model, piece)?,
            model => {
                model.encode(piece, &mut self.workspace.scratch)?;
                self.ids.extend(self.workspace.scratch.symbols.iter().map(|symbol| symbol.id));
            }
        }
        self.workspace.long.put(piece, self.ids.since(before));
        Ok(())
    }

    /// Cuts a piece where its tokens do not change, and encodes the parts.
    fn parts_of(&mut self, model: &ByteLevel, piece: &[u8]) -> Result<()> {
        let Workspace { scratch, cache, .. } = &mut *self.workspace;
        let ids = &mut self.ids;
        let pairs = model.cuts();
        if pairs.is_some_and(|pairs| piece.len() > 1 && pairs.repeats_alone(piece)) {
            let id = piece.first().and_then(|&byte| model.byte(byte));
            ids.extend(std::iter::repeat_n(id, piece.len()).flatten());
            return Ok(());
        }
        let cuts = pairs.zip(std::str::from_utf8(piece).ok());
        let mut pieces = 0usize;
        let mut encode = |part: Range<usize>| {
            pieces += 1;
            if pieces.is_multiple_of(PIECES_BETWEEN_CHECKS) {
                interrupt::check()?;
            }
            if let [byte] = piece[part.clone()] {
                ids.extend(model.byte(byte));
                return Ok(());
            }
            // The whole may be a token as it stands; then it is not cut.
            if part.len() == piece.len() {
                model.encode(piece, scratch)?;
                ids.extend(scratch.symbols.iter().map(|symbol| symbol.id));
                return Ok(());
            }
            let key = cache::key_of_part(piece, part.start, part.end);
            if let Some(known) = key.and_then(|key| cache.get(key)) {
                ids.extend_from_slice(known);
                return Ok(());
            }
            model.merge(&piece[part], scratch)?;
            let merged = scratch.symbols.iter().map(|symbol| symbol.id);
            if let Some(key) = key {
                cache.put(key, merged.clone());
            }
            ids.extend(merged);
            Ok(())
        };
        match cuts {
            Some((pairs, text)) => pairs.each_part(text, encode),
            None => encode(0..piece.len()),
        }
    }

    #[inline(never)]
    fn merge(&mut self, piece: &[u8], origin: impl Fn(Range<usize>) -> Range<usize>) -> Result<()> {
        let scratch = &mut self.workspace.scratch;
        self.tokenizer.parts.model.encode(piece, scratch)?;
        self.ids.extend(scratch.symbols.iter().map(|symbol| symbol.id));
        if self.options.offsets {
            let mut start = 0;
            for symbol in &scratch.symbols {
                let end = start + symbol.len as usize;
                let token = self.tokenizer.parts.vocab.token(symbol.id).unwrap_or_default();
                self.places.push(Place::new(origin(start..end), token));
                start = end;
            }
        }
        Ok(())
    }
}
