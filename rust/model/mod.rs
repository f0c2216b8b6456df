//! A compiled model with its parameters, and the sequences that it keeps keys and values for.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use crate::blocks::builder::Builder;
use crate::blocks::decoder::Decoder;
use crate::blocks::pass::{Memory, Pass, Scratch, Segment};
use crate::blocks::spec::{AdaptersSpec, RopeSpec, Spec};
use crate::cache::KvPool;
use crate::error::{Error, Result, room};
use crate::formats::TensorSource;
use crate::kernels::attention::KvDtype;
use crate::kernels::{Precision, log_sum_exp};
use crate::parameters::{ParamInfo, Parameters, Storage, View};
use crate::sites::{Hook, Sites};
use crate::step::{SeqId, Step, Wanted, Work};

mod training;

use training::Training;
pub use training::{Arena, Batch, Loss};

/// Rows of a pass where the caller did not choose: enough for the products to run at full speed.
pub const CHUNK: usize = 512;

/// The tree, what it needs to run, and its sequences.
pub struct Model {
    decoder: Decoder,
    parameters: Parameters,
    sites: Sites,
    ropes: Vec<RopeSpec>,
    max_positions: usize,
    cache: KvPool,
    scratch: Scratch,
    training: Option<Training>,
}

/// How a model that trains is loaded: what `python/llmcore/training/model.py` sends.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Trainable {
    /// Where the tensors of the checkpoint that will be saved have the parameters.
    tensors: HashMap<String, View>,
    /// Tensors that get no gradients.
    frozen: HashSet<String>,
    /// What the factors of products are rounded to while training.
    precision: Precision,
    /// Adapters that are added; they begin as zeros.
    adapters: Option<AdaptersSpec>,
}

/// The parameters of a description, as [`Model::load`] takes it, without any checkpoint.
///
/// Errors: a description that is wrong, by path.
pub fn parameters_of(description: &str) -> Result<Vec<ParamInfo>> {
    Ok(compile(description, None)?.1.layout.params().to_vec())
}

fn compile(description: &str, adapters: Option<AdaptersSpec>) -> Result<(Decoder, Builder)> {
    let spec: Spec = serde_json::from_str(description)
        .map_err(|error| Error::argument("description", error, "what llmcore.blocks.describe gives"))?;
    let Spec::Decoder(spec) = spec else {
        return Err(Error::argument("description", spec.default_name(), "a Decoder"));
    };
    let mut builder = Builder::with_adapters(adapters);
    let decoder = Decoder::compile(&spec, &mut builder)?;
    Ok((decoder, builder))
}

impl Model {
    /// Compiles a description (JSON, as `llmcore.blocks.describe` gives) and loads its parameters.
    /// No sequence may be longer than `max_positions`. Unless `kv_dtype` says it, keys and values are kept in
    /// bfloat16 where any matrix has fewer bits than float32, else in float32.
    ///
    /// Errors: a description that is wrong, by path; see also [`Parameters::load`] and [`Parameters::load_flat`].
    pub fn load(
        description: &str,
        source: &dyn TensorSource,
        views: &HashMap<String, View>,
        max_positions: usize,
        storage: Storage,
        kv_dtype: Option<KvDtype>,
        trainable: Option<Trainable>,
    ) -> Result<Self> {
        let adapters = trainable.as_ref().and_then(|trainable| trainable.adapters.clone());
        let (decoder, builder) = compile(description, adapters)?;
        let max_positions = decoder.positions.map_or(max_positions, |learned| learned.min(max_positions));
        let (parameters, training) = match trainable {
            None => (Parameters::load(builder.layout, source, views, storage)?, None),
            Some(Trainable { tensors, frozen, precision, .. }) => {
                let parameters =
                    Parameters::load_flat(builder.layout, source, views, &tensors, &frozen, storage)?;
                let training = Training::new(parameters.flat(), precision)?;
                (parameters, Some(training))
            }
        };
        let kv_dtype = kv_dtype.unwrap_or(match &parameters {
            Parameters::Packed(packed) if !packed.is_float32() => KvDtype::Bfloat16,
            _ => KvDtype::Float32,
        });
        Ok(Model {
            decoder,
            parameters,
            training,
            sites: builder.sites,
            ropes: builder.ropes,
            max_positions,
            cache: KvPool::new(&builder.kv, kv_dtype),
            scratch: Scratch::default(),
        })
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// Bytes of keys and values that one position of a sequence takes.
    pub fn cache_bytes_per_position(&self) -> usize {
        self.cache.bytes_per_position()
    }

    /// As [`Step::forward`], with a hook that looks at sites. It sees every row, and changes no bits.
    pub fn forward_hooked(
        &mut self,
        work: &[Work<'_>],
        logits: &mut Vec<f32>,
        hook: Option<&mut dyn Hook>,
    ) -> Result<()> {
        self.check(work)?;
        let mut tokens = Vec::new();
        let mut segments = Vec::new();
        let mut wanted = Vec::new();
        for piece in work {
            let rows = tokens.len()..tokens.len() + piece.tokens.len();
            match piece.wanted {
                Wanted::None => {}
                Wanted::Last => wanted.extend(rows.clone().last()),
                Wanted::All => wanted.extend(rows.clone()),
            }
            tokens.extend_from_slice(piece.tokens);
            segments.push(Segment { seq: piece.seq, first_position: self.cache.len(piece.seq), rows });
        }
        let passed = self.pass(work, segments, wanted, &tokens, hook);
        for piece in work {
            match passed {
                Ok(_) => self.cache.commit(piece.seq, piece.tokens.len()),
                // Gives back what was reserved for the rows that were not written.
                Err(_) => self.cache.truncate(piece.seq, self.cache.len(piece.seq)),
            }
        }
        *logits = passed?;
        Ok(())
    }

    /// Reserves room in the cache for the rows of `work`, and runs the tree.
    fn pass(
        &mut self,
        work: &[Work<'_>],
        segments: Vec<Segment>,
        wanted: Vec<usize>,
        tokens: &[u32],
        hook: Option<&mut dyn Hook>,
    ) -> Result<Vec<f32>> {
        for piece in work {
            self.cache.reserve(piece.seq, piece.tokens.len())?;
        }
        let mut pass = Pass::new(
            &self.parameters,
            Memory::Cache(&mut self.cache),
            segments,
            wanted,
            &self.ropes,
            // The trait object's lifetime shortens to that of the pass.
            hook.map(|hook| hook as &mut dyn Hook),
            &mut self.scratch,
        );
        Ok(self.decoder.forward(&mut pass, tokens)?.values)
    }

    /// The logits after every token of a new sequence, `[tokens, vocab_size]`, `chunk` rows a pass.
    pub fn logits(&mut self, ids: &[u32], chunk: usize) -> Result<Vec<f32>> {
        self.check_sequence(ids.len())?;
        self.check_tokens(ids)?;
        let mut logits = room(ids.len() * self.decoder.vocab_size, "logits")?;
        self.in_chunks(ids, chunk, |_, rows| logits.extend_from_slice(rows))?;
        Ok(logits)
    }

    /// The logits after every token of several new sequences in one pass, which the hook looks at.
    pub fn logits_hooked(&mut self, sequences: &[Vec<u32>], hook: &mut dyn Hook) -> Result<Vec<Vec<f32>>> {
        let seqs: Vec<SeqId> = sequences.iter().map(|_| self.start()).collect();
        let work: Vec<Work<'_>> = seqs
            .iter()
            .zip(sequences)
            .map(|(&seq, tokens)| Work { seq, tokens, wanted: Wanted::All })
            .collect();
        let mut rows = Vec::new();
        let result = self.forward_hooked(&work, &mut rows, Some(hook));
        seqs.into_iter().for_each(|seq| self.release(seq));
        result?;
        let mut rest = &rows[..];
        Ok(sequences
            .iter()
            .map(|ids| {
                let (own, others) = rest.split_at(ids.len() * self.decoder.vocab_size);
                rest = others;
                own.to_vec()
            })
            .collect())
    }

    /// `log P(ids[t] | ids[..t])` for t = 1, 2, …; more tokens than a sequence can hold are cut into windows,
    /// each of which begins with the last token of the one before.
    pub fn token_logprobs(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let vocab = self.decoder.vocab_size;
        let mut logprobs = Vec::with_capacity(ids.len().saturating_sub(1));
        self.check_tokens(ids)?;
        let mut first = 0;
        while first + 1 < ids.len() {
            let window = &ids[first..ids.len().min(first + self.max_positions.max(2))];
            self.in_chunks(&window[..window.len() - 1], CHUNK, |start, rows| {
                for (row, &next) in rows.chunks_exact(vocab).zip(&window[start + 1..]) {
                    logprobs.push(row[next as usize] - log_sum_exp(row));
                }
            })?;
            first += window.len() - 1;
        }
        Ok(logprobs)
    }

    /// Runs a new sequence a chunk at a time; `rows` sees each chunk's first position and its logits.
    fn in_chunks(&mut self, ids: &[u32], chunk: usize, mut rows: impl FnMut(usize, &[f32])) -> Result<()> {
        let seq = self.start();
        let mut logits = Vec::new();
        let mut run = |model: &mut Self| {
            for (index, tokens) in ids.chunks(chunk).enumerate() {
                model.forward(&[Work { seq, tokens, wanted: Wanted::All }], &mut logits)?;
                rows(index * chunk, &logits);
            }
            Ok(())
        };
        let result = run(self);
        self.release(seq);
        result
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&token| token as usize >= self.decoder.vocab_size) {
            None => Ok(()),
            Some(token) => {
                let expected = format!("ids less than vocab_size = {}", self.decoder.vocab_size);
                Err(Error::argument("token ids", token, expected))
            }
        }
    }

    fn check(&self, work: &[Work<'_>]) -> Result<()> {
        for piece in work {
            self.check_tokens(piece.tokens)?;
            self.check_sequence(self.cache.len(piece.seq) + piece.tokens.len())?;
        }
        Ok(())
    }

    fn check_sequence(&self, len: usize) -> Result<()> {
        if len <= self.max_positions {
            return Ok(());
        }
        let found = format!("a sequence of {len} tokens");
        Err(Error::argument("tokens", found, format!("at most {} positions", self.max_positions)))
    }
}

impl Step for Model {
    fn vocab_size(&self) -> usize {
        self.decoder.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn start(&mut self) -> SeqId {
        self.cache.start()
    }

    fn len(&self, seq: SeqId) -> usize {
        self.cache.len(seq)
    }

    fn fork(&mut self, seq: SeqId) -> SeqId {
        self.cache.fork(seq)
    }

    fn truncate(&mut self, seq: SeqId, len: usize) {
        self.cache.truncate(seq, len);
    }

    fn release(&mut self, seq: SeqId) {
        self.cache.release(seq);
    }

    fn forward(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        self.forward_hooked(work, logits, None)
    }
}
