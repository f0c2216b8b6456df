//! One contract for every block: shapes, batches of nothing, any split of the rows, hooks.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::Block;
use super::builder::Builder;
use super::pass::{Memory, Pass, Rows, Scratch, Segment};
use super::spec::Spec;
use crate::cache::KvPool;
use crate::error::Result;
use crate::formats::{DType, TensorInfo, TensorSource};
use crate::kernels::attention::KvDtype;
use crate::parameters::{Layout, Parameters, Storage, View};
use crate::sites::{Capture, Hook};
use crate::step::SeqId;

const WIDTH: usize = 32;

/// Every kind of block, as Python describes it.
const BLOCKS: &[&str] = &[
    r#"{"kind": "layer_norm", "eps": 1e-5, "bias": true}"#,
    r#"{"kind": "layer_norm", "eps": 1e-5, "bias": false}"#,
    r#"{"kind": "rms_norm", "eps": 1e-6}"#,
    r#"{"kind": "attention", "heads": 4, "causal": true, "bias": true}"#,
    r#"{"kind": "attention", "heads": 6, "kv_heads": 2, "head_dim": 5, "causal": true, "bias": false,
        "out_bias": true, "scale": 0.3, "rope": {"frequencies": [1.0, 0.1], "scale": 1.25}}"#,
    r#"{"kind": "mlp", "hidden": 50, "act": "gelu_new", "bias": true}"#,
    r#"{"kind": "gated_mlp", "hidden": 50, "act": "silu", "bias": false}"#,
    r#"{"kind": "serial", "blocks": []}"#,
    r#"{"kind": "serial", "blocks": [{"kind": "rms_norm", "eps": 1e-6}, {"kind": "rms_norm", "eps": 1e-6}]}"#,
    r#"{"kind": "residual", "blocks": [{"kind": "rms_norm", "eps": 1e-6},
        {"kind": "attention", "heads": 2, "causal": true, "bias": false}]}"#,
    r#"{"kind": "repeat", "count": 2, "block": {"kind": "residual", "blocks": [
        {"kind": "attention", "heads": 4, "kv_heads": 2, "causal": true, "bias": false}]}}"#,
];

/// Tensors of small numbers that depend on name and place only.
struct Made {
    tensors: HashMap<String, TensorInfo>,
}

impl Made {
    fn of(layout: &Layout) -> Self {
        let info = |path: &str, shape: &[usize]| {
            (path.to_owned(), TensorInfo { name: path.to_owned(), shape: shape.to_vec(), dtype: DType::F32 })
        };
        Made { tensors: layout.params().iter().map(|param| info(&param.path, &param.shape)).collect() }
    }
}

impl TensorSource for Made {
    fn path(&self) -> &Path {
        Path::new("made")
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        Ok(&self.tensors[name])
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let seed = name.bytes().fold(7u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let start = rows.start * (out.len() / rows.len().max(1));
        out.iter_mut().enumerate().for_each(|(i, x)| *x = noise(seed, start + i) * 0.5);
        Ok(())
    }

    fn stored_rows(&self, _: &str, _: Range<usize>) -> Result<&[u8]> {
        unreachable!("only floats are made")
    }

    fn release_pages(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

/// A number in -1 … 1 that looks random.
fn noise(seed: u32, index: usize) -> f32 {
    let mut bits = (index as u32).wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b);
    bits = (bits ^ (bits >> 15)).wrapping_mul(0x2c1b_3c6d);
    bits = (bits ^ (bits >> 12)).wrapping_mul(0x297a_2d39);
    ((bits ^ (bits >> 15)) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

struct Compiled {
    block: Block,
    parameters: Parameters,
    builder: Builder,
}

fn compile(json: &str) -> Compiled {
    let spec: Spec = serde_json::from_str(json).unwrap();
    let mut builder = Builder::default();
    let block = Block::compile(&spec, WIDTH, &mut builder).unwrap();
    let layout = std::mem::take(&mut builder.layout);
    let source = Made::of(&layout);
    let view =
        |path: &String| View { tensor: path.clone(), transpose: false, first: 0, interleaved_heads: None };
    let views = layout.params().iter().map(|p| (p.path.clone(), view(&p.path))).collect();
    Compiled {
        block,
        parameters: Parameters::load(layout, &source, &views, Storage::Float32).unwrap(),
        builder,
    }
}

impl Compiled {
    /// Runs passes over sequences; a pass takes the next so many rows of each sequence. Gives the rows of
    /// each sequence.
    fn run(
        &self,
        sequences: &[Vec<f32>],
        passes: &[Vec<usize>],
        mut hook: Option<&mut dyn Hook>,
    ) -> Vec<Vec<f32>> {
        let mut cache = KvPool::new(&self.builder.kv, KvDtype::Float32);
        let mut scratch = Scratch::default();
        let seqs: Vec<SeqId> = sequences.iter().map(|_| cache.start()).collect();
        let mut outputs = vec![Vec::new(); sequences.len()];
        for counts in passes {
            let mut values = Vec::new();
            let mut segments = Vec::new();
            for ((&seq, sequence), &count) in seqs.iter().zip(sequences).zip(counts) {
                let first_position = cache.len(seq);
                let start = values.len() / WIDTH;
                values.extend_from_slice(&sequence[first_position * WIDTH..][..count * WIDTH]);
                segments.push(Segment { seq, first_position, rows: start..start + count });
                cache.reserve(seq, count).unwrap();
            }
            let rows = values.len() / WIDTH;
            let x = Rows { values, rows, width: WIDTH };
            let hook: Option<&mut dyn Hook> = match &mut hook {
                Some(hook) => Some(&mut **hook),
                None => None,
            };
            let mut pass = Pass::new(
                &self.parameters,
                Memory::Cache(&mut cache),
                segments.clone(),
                (0..rows).collect(),
                &self.builder.ropes,
                hook,
                &mut scratch,
            );
            let y = self.block.forward(&mut pass, &x).unwrap();
            assert_eq!((y.rows, y.width, y.values.len()), (rows, WIDTH, rows * WIDTH));
            for (segment, output) in segments.iter().zip(&mut outputs) {
                output.extend_from_slice(&y.values[segment.rows.start * WIDTH..segment.rows.end * WIDTH]);
                cache.commit(segment.seq, segment.rows.len());
            }
        }
        outputs
    }
}

fn sequence(seed: u32, rows: usize) -> Vec<f32> {
    (0..rows * WIDTH).map(|i| noise(seed, i) * 3.0).collect()
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn any_split_gives_the_same_bits() {
    for json in BLOCKS {
        let compiled = compile(json);
        let sequences = [sequence(1, 150), sequence(2, 3)];
        let whole = compiled.run(&sequences, &[vec![150, 3]], None);
        assert!(whole.iter().flatten().all(|x| x.is_finite()), "{json}");
        let alone: Vec<_> = sequences
            .iter()
            .map(|s| compiled.run(std::slice::from_ref(s), &[vec![s.len() / WIDTH]], None).remove(0))
            .collect();
        assert_eq!(bits(&alone), bits(&whole), "alone: {json}");
        let chunks =
            compiled.run(&sequences, &[vec![1, 0], vec![62, 2], vec![2, 0], vec![64, 1], vec![21, 0]], None);
        assert_eq!(bits(&chunks), bits(&whole), "in chunks: {json}");
        let steps: Vec<_> = (0..150).map(|i| vec![1, usize::from(i % 50 == 7)]).collect();
        assert_eq!(bits(&compiled.run(&sequences, &steps, None)), bits(&whole), "row by row: {json}");
    }
}

#[test]
fn a_batch_of_nothing_is_nothing() {
    for json in BLOCKS {
        let compiled = compile(json);
        assert!(compiled.run(&[], &[vec![]], None).is_empty());
        assert_eq!(compiled.run(&[Vec::new()], &[vec![0]], None), [Vec::<f32>::new()], "{json}");
    }
}

#[test]
fn hooks_change_no_bits_and_see_shapes_that_hold_their_values() {
    for json in BLOCKS {
        let compiled = compile(json);
        let sequences = [sequence(3, 70), sequence(4, 1)];
        let plain = compiled.run(&sequences, &[vec![70, 1]], None);
        let mut capture = Capture::new(&compiled.builder.sites, compiled.builder.sites.paths()).unwrap();
        let hooked = compiled.run(&sequences, &[vec![70, 1]], Some(&mut capture));
        assert_eq!(bits(&hooked), bits(&plain), "{json}");
        for path in compiled.builder.sites.paths() {
            let seen: Vec<_> =
                capture.seen.iter().filter(|seen| compiled.builder.sites.path(seen.site) == path).collect();
            assert!(!seen.is_empty(), "{path} of {json}");
            for seen in seen {
                assert_eq!(seen.shape.iter().product::<usize>(), seen.values.len(), "{path} of {json}");
            }
        }
    }
}

#[test]
fn a_narrowed_attention_gives_the_bits_of_all_rows() {
    let narrowing = |json: &str| {
        let mut compiled = compile(json);
        compiled.block.last_attention().unwrap().narrow_if_it_can();
        compiled
    };
    for json in BLOCKS.iter().filter(|json| json.contains("attention")) {
        let compiled = narrowing(json);
        let x = Rows { values: sequence(5, 90), rows: 90, width: WIDTH };
        let run = |wanted: Vec<usize>| {
            let mut cache = KvPool::new(&compiled.builder.kv, KvDtype::Float32);
            let seqs = [cache.start(), cache.start()];
            let segments = vec![
                Segment { seq: seqs[0], first_position: 0, rows: 0..80 },
                Segment { seq: seqs[1], first_position: 0, rows: 80..90 },
            ];
            cache.reserve(seqs[0], 80).unwrap();
            cache.reserve(seqs[1], 10).unwrap();
            let mut scratch = Scratch::default();
            let ropes = &compiled.builder.ropes;
            let memory = Memory::Cache(&mut cache);
            let mut pass =
                Pass::new(&compiled.parameters, memory, segments, wanted, ropes, None, &mut scratch);
            compiled.block.forward(&mut pass, &x).unwrap()
        };
        let all = run((0..90).collect());
        for wanted in [vec![], vec![79], vec![0, 1, 2, 78, 79, 80, 89]] {
            let some = run(wanted.clone());
            let rows = some.rows;
            let expected: Vec<Vec<f32>> = if rows == 90 {
                (0..90).map(|row| all.row(row).to_vec()).collect()
            } else {
                wanted.iter().map(|&row| all.row(row).to_vec()).collect()
            };
            let some: Vec<Vec<f32>> = (0..rows).map(|row| some.row(row).to_vec()).collect();
            assert_eq!(bits(&some), bits(&expected), "{json}");
        }
    }
}

#[test]
fn one_rope_of_a_tree_is_one_table() {
    let rope = r#""rope": {"frequencies": [1.0], "scale": 1.0}"#;
    let attention = format!(r#"{{"kind": "attention", "heads": 2, "causal": true, "bias": false, {rope}}}"#);
    let compiled = compile(&format!(r#"{{"kind": "serial", "blocks": [{attention}, {attention}]}}"#));
    assert_eq!(compiled.builder.ropes.len(), 1);
}

#[test]
fn a_wrong_size_is_an_error_with_its_path() {
    for (json, expected) in [
        (r#"{"kind": "attention", "heads": 5, "causal": true, "bias": false}"#, "attn.heads: found 5"),
        (
            r#"{"kind": "attention", "heads": 4, "kv_heads": 3, "causal": true, "bias": false}"#,
            "attn.kv_heads",
        ),
        (r#"{"kind": "attention", "heads": 0, "causal": true, "bias": false}"#, "attn.heads: found 0"),
        (r#"{"kind": "mlp", "hidden": 1152921504606846976, "act": "relu", "bias": false}"#, "mlp.up.size"),
        (r#"{"kind": "embed", "vocab_size": 1, "width": 1}"#, "embed.kind"),
        (
            r#"{"kind": "repeat", "count": 1152921504606846976, "block": {"kind": "rms_norm", "eps": 1.0}}"#,
            "layers.count",
        ),
    ] {
        let spec: Spec = serde_json::from_str(json).unwrap();
        let error = Block::compile(&spec, WIDTH, &mut Builder::default()).err().unwrap().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
