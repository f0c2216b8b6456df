//! Backward kernels on NumPy arrays: `llmcore.gradients` checks shapes and allocates results.

use numpy::{
    PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3, PyReadwriteArray1, PyReadwriteArray2,
    PyReadwriteArray3, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use super::ops::{activation_named, check_positions, require};
use crate::error::Error;
use crate::kernels::attention::{HeadRows, HeadRowsMut, Heads, Mask, Span, attend_backward, attend_rows};
use crate::kernels::{self, IGNORED, activation};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let functions = [
        wrap_pyfunction!(cross_entropy, module)?,
        wrap_pyfunction!(layer_norm_backward, module)?,
        wrap_pyfunction!(rms_norm_backward, module)?,
        wrap_pyfunction!(activate_backward, module)?,
        wrap_pyfunction!(gate_backward, module)?,
        wrap_pyfunction!(rope_backward, module)?,
        wrap_pyfunction!(add_to_rows, module)?,
        wrap_pyfunction!(add_row_sums, module)?,
        wrap_pyfunction!(attention_rows, module)?,
        wrap_pyfunction!(attention_backward, module)?,
    ];
    functions.into_iter().try_for_each(|function| module.add_function(function))
}

/// logits [rows, classes], overwritten with gradients; labels, losses [rows].
#[pyfunction]
fn cross_entropy(
    py: Python<'_>,
    mut logits: PyReadwriteArray2<'_, f32>,
    labels: PyReadonlyArray1<'_, i32>,
    smoothing: f32,
    scale: f32,
    mut losses: PyReadwriteArray1<'_, f32>,
) -> PyResult<()> {
    let &[rows, classes] = logits.shape() else { unreachable!("two dimensions") };
    require(labels.len() == rows && losses.len() == rows, "[rows, classes], [rows] and [rows]")?;
    let (logits, labels, losses) = (logits.as_slice_mut()?, labels.as_slice()?, losses.as_slice_mut()?);
    let known = |label: i32| label == IGNORED || usize::try_from(label).is_ok_and(|label| label < classes);
    if let Some(bad) = labels.iter().find(|label| !known(**label)) {
        let expected = format!("{IGNORED}, or 0 to {} for as many classes", classes.saturating_sub(1));
        return Err(Error::argument("labels", bad, expected).into());
    }
    py.detach(|| kernels::cross_entropy(logits, classes, labels, smoothing, scale, losses));
    Ok(())
}

/// x, dy, dx [rows, width]; weight, dweight, dbias [width]; the last two are added to.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn layer_norm_backward(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    weight: PyReadonlyArray1<'_, f32>,
    eps: f32,
    dy: PyReadonlyArray2<'_, f32>,
    mut dx: PyReadwriteArray2<'_, f32>,
    mut dweight: PyReadwriteArray1<'_, f32>,
    mut dbias: PyReadwriteArray1<'_, f32>,
) -> PyResult<()> {
    let width = x.shape()[1];
    let fits = x.shape() == dy.shape() && x.shape() == dx.shape();
    let vectors = [weight.len(), dweight.len(), dbias.len()] == [width; 3];
    require(fits && vectors, "[rows, width] and [width]")?;
    let (x, weight, dy, dx) = (x.as_slice()?, weight.as_slice()?, dy.as_slice()?, dx.as_slice_mut()?);
    let (dweight, dbias) = (Some(dweight.as_slice_mut()?), Some(dbias.as_slice_mut()?));
    py.detach(|| kernels::layer_norm_backward(x, width, weight, eps, dy, dx, dweight, dbias));
    Ok(())
}

/// x, dy, dx [rows, width]; weight, dweight [width]; the last is added to.
#[pyfunction]
fn rms_norm_backward(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    weight: PyReadonlyArray1<'_, f32>,
    eps: f32,
    dy: PyReadonlyArray2<'_, f32>,
    mut dx: PyReadwriteArray2<'_, f32>,
    mut dweight: PyReadwriteArray1<'_, f32>,
) -> PyResult<()> {
    let width = x.shape()[1];
    let fits = x.shape() == dy.shape() && x.shape() == dx.shape();
    require(fits && [weight.len(), dweight.len()] == [width; 2], "[rows, width] and [width]")?;
    let (x, weight, dy, dx) = (x.as_slice()?, weight.as_slice()?, dy.as_slice()?, dx.as_slice_mut()?);
    let dweight = Some(dweight.as_slice_mut()?);
    py.detach(|| kernels::rms_norm_backward(x, width, weight, eps, dy, dx, dweight));
    Ok(())
}

/// x, dy of one length; dy becomes the gradient at x.
#[pyfunction]
fn activate_backward(
    py: Python<'_>,
    name: &str,
    x: PyReadonlyArray1<'_, f32>,
    mut dy: PyReadwriteArray1<'_, f32>,
) -> PyResult<()> {
    let act = activation_named(name)?;
    require(x.len() == dy.len(), "equal lengths")?;
    let (x, dy) = (x.as_slice()?, dy.as_slice_mut()?);
    py.detach(|| activation::apply_backward(act, x, dy));
    Ok(())
}

/// gate_up, dgate_up [rows, 2 · width]; dout [rows, width].
#[pyfunction]
fn gate_backward(
    py: Python<'_>,
    name: &str,
    gate_up: PyReadonlyArray2<'_, f32>,
    dout: PyReadonlyArray2<'_, f32>,
    mut dgate_up: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let act = activation_named(name)?;
    let (rows, width) = (dout.shape()[0], dout.shape()[1]);
    let fits = gate_up.shape() == [rows, 2 * width] && dgate_up.shape() == gate_up.shape();
    require(fits, "[rows, 2 · width] and [rows, width]")?;
    let (gate_up, dout, dgate_up) = (gate_up.as_slice()?, dout.as_slice()?, dgate_up.as_slice_mut()?);
    py.detach(|| activation::gate_backward(act, gate_up, width, dout, dgate_up));
    Ok(())
}

/// dx [rows, heads, head_dim], in place; cos, sin [positions, rotary_dim / 2]; positions [rows].
#[pyfunction]
fn rope_backward(
    py: Python<'_>,
    mut dx: PyReadwriteArray3<'_, f32>,
    cos: PyReadonlyArray2<'_, f32>,
    sin: PyReadonlyArray2<'_, f32>,
    positions: PyReadonlyArray1<'_, u32>,
) -> PyResult<()> {
    let &[rows, heads, head_dim] = dx.shape() else { unreachable!("three dimensions") };
    let &[count, half] = cos.shape() else { unreachable!("two dimensions") };
    let fits = cos.shape() == sin.shape() && 2 * half <= head_dim && positions.len() == rows;
    require(fits, "[rows, heads, head_dim], [positions, rotary_dim / 2] and [rows]")?;
    let (dx, positions) = (dx.as_slice_mut()?, positions.as_slice()?);
    check_positions(positions, count)?;
    let (cos, sin) = (cos.as_slice()?, sin.as_slice()?);
    let width = heads * head_dim;
    py.detach(|| kernels::rope_backward(dx, width, 0, heads, head_dim, 2 * half, cos, sin, positions));
    Ok(())
}

/// dy [rows, width]; indices [rows]; table [n, width], added to.
#[pyfunction]
fn add_to_rows(
    py: Python<'_>,
    dy: PyReadonlyArray2<'_, f32>,
    indices: PyReadonlyArray1<'_, u32>,
    mut table: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let (rows, width) = (dy.shape()[0], dy.shape()[1]);
    let (n, table_width) = (table.shape()[0], table.shape()[1]);
    require(indices.len() == rows && table_width == width, "[rows, width], [rows] and [n, width]")?;
    let (dy, indices, table) = (dy.as_slice()?, indices.as_slice()?, table.as_slice_mut()?);
    check_positions(indices, n)?;
    py.detach(|| kernels::add_to_rows(dy, width, indices, table));
    Ok(())
}

/// x [rows, width]; out [width], added to.
#[pyfunction]
fn add_row_sums(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    mut out: PyReadwriteArray1<'_, f32>,
) -> PyResult<()> {
    let width = x.shape()[1];
    require(out.len() == width, "[rows, width] and [width]")?;
    let (x, out) = (x.as_slice()?, out.as_slice_mut()?);
    py.detach(|| kernels::add_row_sums(x, width, out));
    Ok(())
}

/// Rows of heads and the sequences in them: q [rows, heads, head_dim]; k, v [keys, kv_heads, head_dim]; of each
/// sequence the first query and the end, the first key and the end.
struct Attention<'a> {
    heads: Heads,
    mask: Mask,
    spans: Vec<Span>,
    q: HeadRows<'a>,
    k: HeadRows<'a>,
    v: HeadRows<'a>,
}

impl<'a> Attention<'a> {
    fn new(
        [q, k, v]: [&'a PyReadonlyArray3<'_, f32>; 3],
        spans: &[[usize; 4]],
        scale: f32,
        causal: bool,
        window: Option<usize>,
    ) -> PyResult<Self> {
        let (&[rows, heads, head_dim], &[keys, kv_heads, _]) = (q.shape(), k.shape()) else {
            unreachable!("three dimensions")
        };
        let fits = k.shape() == v.shape() && k.shape()[2] == head_dim && head_dim > 0 && kv_heads > 0;
        require(
            fits && heads.is_multiple_of(kv_heads),
            "[rows, heads, head_dim] and [keys, kv_heads, head_dim]",
        )?;
        let mut ends = (0, 0);
        for &[query, query_end, key, key_end] in spans {
            let ordered = ends.0 <= query && query <= query_end && ends.1 <= key && key <= key_end;
            let inside = query_end <= rows && key_end <= keys;
            let causal = !causal || query_end - query <= key_end - key;
            require(ordered && inside && causal, "sequences one after the other, in the rows")?;
            ends = (query_end, key_end);
        }
        let head_rows = |x: &'a PyReadonlyArray3<'_, f32>| -> PyResult<HeadRows<'a>> {
            Ok(HeadRows { data: x.as_slice()?, stride: x.shape()[1] * head_dim, offset: 0 })
        };
        Ok(Attention {
            heads: Heads { heads, kv_heads, head_dim, scale },
            mask: Mask { causal, window },
            spans: spans.iter().map(|s| Span { queries: s[0]..s[1], keys: s[2]..s[3] }).collect(),
            q: head_rows(q)?,
            k: head_rows(k)?,
            v: head_rows(v)?,
        })
    }
}

/// out like q; log_sums [rows, heads].
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn attention_rows(
    py: Python<'_>,
    q: PyReadonlyArray3<'_, f32>,
    k: PyReadonlyArray3<'_, f32>,
    v: PyReadonlyArray3<'_, f32>,
    spans: Vec<[usize; 4]>,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    mut out: PyReadwriteArray3<'_, f32>,
    mut log_sums: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    require(out.shape() == q.shape() && log_sums.shape() == &q.shape()[..2], "out like q, [rows, heads]")?;
    let call = Attention::new([&q, &k, &v], &spans, scale, causal, window)?;
    let (out, log_sums) = (out.as_slice_mut()?, log_sums.as_slice_mut()?);
    py.detach(|| {
        attend_rows(call.heads, call.mask, &call.spans, call.q, call.k, call.v, out, log_sums);
    });
    Ok(())
}

/// out, log_sums as `attention_rows` gave them; dout, dq like q; dk, dv like k.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn attention_backward(
    py: Python<'_>,
    q: PyReadonlyArray3<'_, f32>,
    k: PyReadonlyArray3<'_, f32>,
    v: PyReadonlyArray3<'_, f32>,
    spans: Vec<[usize; 4]>,
    scale: f32,
    causal: bool,
    window: Option<usize>,
    out: PyReadonlyArray3<'_, f32>,
    log_sums: PyReadonlyArray2<'_, f32>,
    dout: PyReadonlyArray3<'_, f32>,
    mut dq: PyReadwriteArray3<'_, f32>,
    mut dk: PyReadwriteArray3<'_, f32>,
    mut dv: PyReadwriteArray3<'_, f32>,
) -> PyResult<()> {
    let like_q = [out.shape(), dout.shape(), dq.shape()].iter().all(|shape| *shape == q.shape());
    let like_k = dk.shape() == k.shape() && dv.shape() == k.shape();
    require(like_q && like_k && log_sums.shape() == &q.shape()[..2], "dq like q, dk and dv like k")?;
    let call = Attention::new([&q, &k, &v], &spans, scale, causal, window)?;
    let (out, log_sums, dout) = (out.as_slice()?, log_sums.as_slice()?, dout.as_slice()?);
    let [dq] = HeadRowsMut::columns(dq.as_slice_mut()?, call.q.stride, [call.q.stride]);
    let [dk] = HeadRowsMut::columns(dk.as_slice_mut()?, call.k.stride, [call.k.stride]);
    let [dv] = HeadRowsMut::columns(dv.as_slice_mut()?, call.v.stride, [call.v.stride]);
    py.detach(|| {
        let inputs = [call.q, call.k, call.v];
        attend_backward(call.heads, call.mask, &call.spans, inputs, out, log_sums, dout, [dq, dk, dv]);
    });
    Ok(())
}
