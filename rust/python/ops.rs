//! Kernels on NumPy arrays (`llmcore.ops` checks shapes and allocates results), and what they run on.

use numpy::{
    PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray4, PyReadwriteArray1, PyReadwriteArray2,
    PyReadwriteArray3, PyReadwriteArray4, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as UnknownName, StrDeserializer};

use crate::error::{Error, Result, room};
use crate::interrupt;
use crate::kernels::activation::{self, Activation};
use crate::kernels::attention::{
    BLOCK, Bias, HeadRows, Heads, Item, KvDtype, Stretch, attend, attention_probs, write,
};
use crate::kernels::{self, Matrix, MatrixMut, Precision, gemm, gemm_add};
use crate::limits;
use crate::simd::{self, Isa};
use crate::threads;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    simd::init()?;
    threads::init()?;
    let functions = [
        wrap_pyfunction!(isa, module)?,
        wrap_pyfunction!(available_isas, module)?,
        wrap_pyfunction!(set_isa, module)?,
        wrap_pyfunction!(thread_count, module)?,
        wrap_pyfunction!(measure_limits, module)?,
        wrap_pyfunction!(matmul, module)?,
        wrap_pyfunction!(softmax, module)?,
        wrap_pyfunction!(log_softmax, module)?,
        wrap_pyfunction!(layer_norm, module)?,
        wrap_pyfunction!(rms_norm, module)?,
        wrap_pyfunction!(activate, module)?,
        wrap_pyfunction!(gate, module)?,
        wrap_pyfunction!(rope, module)?,
        wrap_pyfunction!(attention, module)?,
        wrap_pyfunction!(attention_weights, module)?,
    ];
    functions.into_iter().try_for_each(|function| module.add_function(function))
}

/// The instruction set that kernels run on.
#[pyfunction]
fn isa() -> &'static str {
    simd::current().name()
}

/// The instruction sets of this machine, the fastest last.
#[pyfunction]
fn available_isas() -> Vec<&'static str> {
    simd::available().into_iter().map(Isa::name).collect()
}

/// Makes all later kernels of the process run on the named instruction set. No result changes.
#[pyfunction]
fn set_isa(name: &str) -> Result<()> {
    simd::set(Isa::from_name(name)?);
    Ok(())
}

/// What the machine can do at most with so many threads (all of the pool unless given), measured in about a second:
/// operations in float32, on bfloat16 and on bytes, where a fused multiply-add counts as two, and bytes read from memory;
/// each a second. Raises `ValueError` for no or too many threads; `MemoryError`.
#[pyfunction]
#[pyo3(signature = (threads=None))]
fn measure_limits(py: Python<'_>, threads: Option<usize>) -> Result<(f64, f64, f64, f64)> {
    let threads = threads.unwrap_or_else(threads::size);
    if !(1..=threads::MOST).contains(&threads) {
        return Err(Error::argument("threads", threads, format!("1 to {}", threads::MOST)));
    }
    let limits = py.detach(|| limits::measure(threads))?;
    Ok((limits.float32, limits.bfloat16, limits.int8, limits.memory))
}

/// How many threads the pool has, the calling one among them.
#[pyfunction]
fn thread_count() -> usize {
    threads::size()
}

/// An error unless `holds`: what `llmcore.ops` checks before, so that a direct call cannot panic.
pub(super) fn require(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument("shapes", "arrays that do not fit", what)) }
}

fn matrix<'a>(array: &'a PyReadonlyArray2<'_, f32>, transposed: bool) -> PyResult<Matrix<'a>> {
    let matrix = Matrix::new(array.as_slice()?, array.shape()[0], array.shape()[1]);
    Ok(if transposed { matrix.transposed() } else { matrix })
}

/// out [m, n] = a [m, k] · b [k, n], or out + that; of an operand that is `transposed` the array is its
/// transpose.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn matmul(
    py: Python<'_>,
    a: PyReadonlyArray2<'_, f32>,
    a_transposed: bool,
    b: PyReadonlyArray2<'_, f32>,
    b_transposed: bool,
    mut out: PyReadwriteArray2<'_, f32>,
    add: bool,
    bfloat16: bool,
) -> PyResult<()> {
    let (a, b) = (matrix(&a, a_transposed)?, matrix(&b, b_transposed)?);
    require(a.columns == b.rows && out.shape() == [a.rows, b.columns], "[m, k], [k, n] and [m, n]")?;
    let out = MatrixMut::new(out.as_slice_mut()?, a.rows, b.columns);
    let precision = if bfloat16 { Precision::Bfloat16 } else { Precision::Float32 };
    py.detach(|| {
        if add {
            gemm_add(a, b.transposed(), out, precision);
        } else {
            gemm(a, b.transposed(), None, out, precision);
        }
    });
    Ok(())
}

/// x [rows, width], in place.
#[pyfunction]
fn softmax(py: Python<'_>, mut x: PyReadwriteArray2<'_, f32>) -> PyResult<()> {
    let width = x.shape()[1];
    let x = x.as_slice_mut()?;
    py.detach(|| kernels::softmax(x, width));
    Ok(())
}

/// x, out [rows, width].
#[pyfunction]
fn log_softmax(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    mut out: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    require(x.shape() == out.shape(), "equal shapes")?;
    let width = x.shape()[1];
    let (x, out) = (x.as_slice()?, out.as_slice_mut()?);
    py.detach(|| kernels::log_softmax(x, width, out));
    Ok(())
}

/// x, out [rows, width]; weight, bias [width].
#[pyfunction]
fn layer_norm(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    weight: PyReadonlyArray1<'_, f32>,
    bias: Option<PyReadonlyArray1<'_, f32>>,
    eps: f32,
    mut out: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let width = x.shape()[1];
    let bias = bias.as_ref().map(|bias| bias.as_slice()).transpose()?;
    let (x_shape, out_shape) = (x.shape(), out.shape());
    let fits = x_shape == out_shape && weight.len() == width && bias.is_none_or(|b| b.len() == width);
    require(fits, "[rows, width] and [width]")?;
    let (x, weight, out) = (x.as_slice()?, weight.as_slice()?, out.as_slice_mut()?);
    py.detach(|| kernels::layer_norm(x, width, weight, bias, eps, out));
    Ok(())
}

/// x, out [rows, width]; weight [width].
#[pyfunction]
fn rms_norm(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    weight: PyReadonlyArray1<'_, f32>,
    eps: f32,
    mut out: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let width = x.shape()[1];
    require(x.shape() == out.shape() && weight.len() == width, "[rows, width] and [width]")?;
    let (x, weight, out) = (x.as_slice()?, weight.as_slice()?, out.as_slice_mut()?);
    py.detach(|| kernels::rms_norm(x, width, weight, eps, out));
    Ok(())
}

/// An activation by its name in config.json.
pub(super) fn activation_named(name: &str) -> Result<Activation> {
    let name: StrDeserializer<'_, UnknownName> = name.into_deserializer();
    Activation::deserialize(name)
        .map_err(|error| Error::argument("activation", error, "a name of hidden_act"))
}

/// x of any length, in place.
#[pyfunction]
fn activate(py: Python<'_>, name: &str, mut x: PyReadwriteArray1<'_, f32>) -> PyResult<()> {
    let act = activation_named(name)?;
    let x = x.as_slice_mut()?;
    py.detach(|| activation::apply(act, x));
    Ok(())
}

/// gate_up [rows, 2 · width], out [rows, width].
#[pyfunction]
fn gate(
    py: Python<'_>,
    name: &str,
    gate_up: PyReadonlyArray2<'_, f32>,
    mut out: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let act = activation_named(name)?;
    let (rows, width) = (out.shape()[0], out.shape()[1]);
    require(gate_up.shape() == [rows, 2 * width], "[rows, 2 · width] and [rows, width]")?;
    let (gate_up, out) = (gate_up.as_slice()?, out.as_slice_mut()?);
    py.detach(|| activation::gate(act, gate_up, width, out));
    Ok(())
}

/// An error unless all are less than `count`.
pub(super) fn check_positions(positions: &[u32], count: usize) -> Result<()> {
    match positions.iter().find(|p| **p as usize >= count) {
        Some(bad) => Err(Error::argument("positions", bad, format!("less than {count}"))),
        None => Ok(()),
    }
}

/// x [rows, heads, head_dim], in place; cos, sin [positions, rotary_dim / 2]; positions [rows].
#[pyfunction]
fn rope(
    py: Python<'_>,
    mut x: PyReadwriteArray3<'_, f32>,
    cos: PyReadonlyArray2<'_, f32>,
    sin: PyReadonlyArray2<'_, f32>,
    positions: PyReadonlyArray1<'_, u32>,
) -> PyResult<()> {
    let &[rows, heads, head_dim] = x.shape() else { unreachable!("three dimensions") };
    let &[count, half] = cos.shape() else { unreachable!("two dimensions") };
    let fits = cos.shape() == sin.shape() && 2 * half <= head_dim && positions.len() == rows;
    require(fits, "[rows, heads, head_dim], [positions, rotary_dim / 2] and [rows]")?;
    let (x, positions) = (x.as_slice_mut()?, positions.as_slice()?);
    check_positions(positions, count)?;
    let (cos, sin) = (cos.as_slice()?, sin.as_slice()?);
    let width = heads * head_dim;
    py.detach(|| kernels::rope(x, width, 0, heads, head_dim, 2 * half, cos, sin, positions));
    Ok(())
}

/// The arrays of an attention call: q [batch, rows, heads, head_dim]; k, v [batch, kv_len,
/// kv_heads, head_dim]; bias [batch, heads, rows, kv_len].
struct Arrays<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    bias: Option<&'a [f32]>,
    batch: usize,
    rows: usize,
    kv_len: usize,
    heads: Heads,
    causal: bool,
    window: Option<usize>,
    kv_dtype: KvDtype,
}

impl Arrays<'_> {
    fn check(&self) -> Result<()> {
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let kv = self.batch * self.kv_len * kv_heads * head_dim;
        let scores = self.batch * heads * self.rows * self.kv_len;
        let fits = head_dim > 0
            && kv_heads > 0
            && heads.is_multiple_of(kv_heads)
            && self.q.len() == self.batch * self.rows * heads * head_dim
            && self.k.len() == kv
            && self.v.len() == kv
            && self.bias.is_none_or(|bias| bias.len() == scores)
            && (!self.causal || self.rows <= self.kv_len);
        require(fits, "[batch, rows, heads, head_dim] and [batch, kv_len, kv_heads, head_dim]")
    }

    /// Calls `f(i, item, queries)` for each sequence i of the batch, with its keys and values laid
    /// out as in the KV pool.
    fn each(&self, mut f: impl FnMut(usize, &Item<'_>, HeadRows<'_>)) -> Result<()> {
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let layout = self.heads.layout(self.kv_dtype);
        let bytes = self.kv_len.div_ceil(BLOCK) * layout.bytes();
        let mut blocks = room(bytes, "keys and values")?;
        // NaN in every type, and in the scales of bytes.
        blocks.resize(bytes, 0xFF);
        let width = kv_heads * head_dim;
        let [keys, values] = [self.k, self.v].map(|data| HeadRows { data, stride: width, offset: 0 });
        for i in 0..self.batch {
            interrupt::check()?;
            let rows = i * self.kv_len..(i + 1) * self.kv_len;
            let mut stretches: Vec<Stretch<'_>> = (rows.clone().step_by(BLOCK))
                .zip(blocks.chunks_exact_mut(layout.bytes()))
                .map(|(first, block)| Stretch { block, slot: 0, rows: first..rows.end.min(first + BLOCK) })
                .collect();
            write(&layout, &mut stretches, keys, values);
            let blocks: Vec<&[u8]> = blocks.chunks_exact(layout.bytes()).collect();
            let bias = self.bias.map(|bias| Bias {
                values: &bias[i * heads * self.rows * self.kv_len..],
                head_stride: self.rows * self.kv_len,
                row_stride: self.kv_len,
            });
            let item = Item {
                row: i * self.rows,
                rows: self.rows,
                // The queries are the last of the positions.
                first_position: self.kv_len.saturating_sub(self.rows),
                blocks: &blocks,
                kv_len: self.kv_len,
                causal: self.causal,
                window: self.window,
                bias,
            };
            f(i, &item, HeadRows { data: self.q, stride: heads * head_dim, offset: 0 });
        }
        Ok(())
    }
}

/// Shapes as in `Arrays`, out like q.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn attention(
    py: Python<'_>,
    q: PyReadonlyArray4<'_, f32>,
    k: PyReadonlyArray4<'_, f32>,
    v: PyReadonlyArray4<'_, f32>,
    bias: Option<PyReadonlyArray4<'_, f32>>,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    kv_dtype: &str,
    mut out: PyReadwriteArray4<'_, f32>,
) -> PyResult<()> {
    let arrays = arrays(&q, &k, &v, bias.as_ref(), scale, causal, window, kv_dtype)?;
    require(out.shape() == q.shape(), "out like q")?;
    let out = out.as_slice_mut()?;
    Ok(py.detach(|| arrays.each(|_, item, q| attend(arrays.heads, arrays.kv_dtype, &[*item], q, out)))?)
}

/// Shapes as in `Arrays`, scores and probs [batch, heads, rows, kv_len].
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn attention_weights(
    py: Python<'_>,
    q: PyReadonlyArray4<'_, f32>,
    k: PyReadonlyArray4<'_, f32>,
    bias: Option<PyReadonlyArray4<'_, f32>>,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    kv_dtype: &str,
    mut scores: PyReadwriteArray4<'_, f32>,
    mut probs: PyReadwriteArray4<'_, f32>,
) -> PyResult<()> {
    let arrays = arrays(&q, &k, &k, bias.as_ref(), scale, causal, window, kv_dtype)?;
    let shape = [arrays.batch, arrays.heads.heads, arrays.rows, arrays.kv_len];
    require(scores.shape() == shape && probs.shape() == shape, "[batch, heads, rows, kv_len]")?;
    let (scores, probs) = (scores.as_slice_mut()?, probs.as_slice_mut()?);
    let size = shape[1] * shape[2] * shape[3];
    Ok(py.detach(|| {
        arrays.each(|i, item, q| {
            let part = i * size..(i + 1) * size;
            attention_probs(
                arrays.heads,
                arrays.kv_dtype,
                item,
                q,
                Some(&mut scores[part.clone()]),
                Some(&mut probs[part]),
            );
        })
    })?)
}

#[allow(clippy::too_many_arguments)]
fn arrays<'a>(
    q: &'a PyReadonlyArray4<'_, f32>,
    k: &'a PyReadonlyArray4<'_, f32>,
    v: &'a PyReadonlyArray4<'_, f32>,
    bias: Option<&'a PyReadonlyArray4<'_, f32>>,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    kv_dtype: &str,
) -> PyResult<Arrays<'a>> {
    let Some(kv_dtype) = KvDtype::from_name(kv_dtype) else {
        let expected = "'float32', 'bfloat16' or 'int8'";
        return Err(Error::argument("kv_dtype", format!("{kv_dtype:?}"), expected).into());
    };
    let &[batch, rows, heads, head_dim] = q.shape() else { unreachable!("four dimensions") };
    let &[_, kv_len, kv_heads, _] = k.shape() else { unreachable!("four dimensions") };
    let arrays = Arrays {
        q: q.as_slice()?,
        k: k.as_slice()?,
        v: v.as_slice()?,
        bias: bias.map(|bias| bias.as_slice()).transpose()?,
        batch,
        rows,
        kv_len,
        heads: Heads { heads, kv_heads, head_dim, scale },
        causal,
        window,
        kv_dtype,
    };
    arrays.check()?;
    Ok(arrays)
}
