//! Backward kernels on NumPy arrays: `llmcore.gradients` checks shapes and allocates results.

use numpy::{
    PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1, PyReadwriteArray2, PyReadwriteArray3,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use super::ops::{activation_named, check_positions, require};
use crate::error::Error;
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
