//! Steps of optimisers: one call a step, over all parameters.

use std::ops::Range;

use pyo3::prelude::*;

use super::flat::Flat;
use super::model::PyModel;
use crate::error::{Error, Result};
use crate::kernels::optimizer::{AdamW, Sgd, average, sum_of_squares};

/// Parameters that are treated alike: the first, the one after the last, and their weight decay.
type Group = (usize, usize, f64);

/// The range of each group with its decay.
///
/// Errors: groups that overlap, are not in order, or end after `len`; state of another length.
fn ranges(groups: &[Group], len: usize, state: &[usize]) -> Result<Vec<(Range<usize>, f64)>> {
    if let Some(found) = state.iter().find(|found| **found != len) {
        return Err(Error::argument("state of the optimiser", format!("{found} floats"), format!("{len}")));
    }
    let mut last = 0;
    for &(start, end, _) in groups {
        if start < last || end < start || len < end {
            let expected = format!("ranges in order that do not overlap, within {len} floats");
            return Err(Error::argument("groups", format!("{start}..{end} after {last}"), expected));
        }
        last = end;
    }
    Ok(groups.iter().map(|&(start, end, decay)| (start..end, decay)).collect())
}

/// The norm of all gradients together, and what they are to be multiplied by so that it is at most `most`, as
/// torch's `clip_grad_norm_` has it (Pascanu et al. 2013). None if the norm is not finite.
fn clipping(grads: &[f32], most: Option<f64>) -> (f64, Option<f32>) {
    /// What torch adds to the norm before it divides by it.
    const TINY: f64 = 1e-6;
    let norm = sum_of_squares(grads).sqrt();
    let scale = most.map_or(1.0, |most| (most / (norm + TINY)).min(1.0));
    (norm, norm.is_finite().then_some(scale as f32))
}

/// One step of AdamW over the groups; `step` counts from 1. Returns the norm of the gradients before clipping; if
/// it is not finite, nothing is changed.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn adamw_step(
    py: Python<'_>,
    model: &PyModel,
    exp_avg: &Flat,
    exp_avg_sq: &Flat,
    groups: Vec<Group>,
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    step: u64,
    max_grad_norm: Option<f64>,
) -> PyResult<f64> {
    model.with_arenas(py, |params, grads| {
        let [mut first, mut second] = Flat::lock([exp_avg, exp_avg_sq])?;
        let ranges = ranges(&groups, params.len(), &[first.len(), second.len()])?;
        let (norm, scale) = clipping(grads, max_grad_norm);
        let Some(scale) = scale else { return Ok(norm) };
        let (learning_rate, (beta1, beta2)) = (lr, betas);
        for (at, weight_decay) in ranges {
            let adamw = AdamW { learning_rate, beta1, beta2, eps, weight_decay, step };
            let (first, second) = (&mut first[at.clone()], &mut second[at.clone()]);
            adamw.update(scale, &grads[at.clone()], &mut params[at], first, second);
        }
        Ok(norm)
    })
}

/// One step of stochastic gradient descent over the groups. Returns as `adamw_step`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn sgd_step(
    py: Python<'_>,
    model: &PyModel,
    momentum_buffer: &Flat,
    groups: Vec<Group>,
    lr: f64,
    momentum: f64,
    nesterov: bool,
    max_grad_norm: Option<f64>,
) -> PyResult<f64> {
    model.with_arenas(py, |params, grads| {
        let [mut momenta] = Flat::lock([momentum_buffer])?;
        let ranges = ranges(&groups, params.len(), &[momenta.len()])?;
        let (norm, scale) = clipping(grads, max_grad_norm);
        let Some(scale) = scale else { return Ok(norm) };
        for (at, weight_decay) in ranges {
            let sgd = Sgd { learning_rate: lr, momentum, weight_decay, nesterov };
            sgd.update(scale, &grads[at.clone()], &mut params[at.clone()], &mut momenta[at]);
        }
        Ok(norm)
    })
}

/// Moves the averages of the groups' parameters towards them: average = decay · average + (1 − decay) · parameter.
#[pyfunction]
fn ema_update(
    py: Python<'_>,
    model: &PyModel,
    averages: &Flat,
    groups: Vec<Group>,
    decay: f64,
) -> PyResult<()> {
    model.with_parameters(py, |params| {
        let [mut averages] = Flat::lock([averages])?;
        for (at, _) in ranges(&groups, params.len(), &[averages.len()])? {
            average(decay, &params[at.clone()], &mut averages[at]);
        }
        Ok(())
    })
}

/// Lets the parameters and their averages change places.
#[pyfunction]
fn ema_swap(py: Python<'_>, model: &PyModel, averages: &Flat) -> PyResult<()> {
    model.with_parameters(py, |params| {
        let [mut averages] = Flat::lock([averages])?;
        ranges(&[], params.len(), &[averages.len()])?;
        params.swap_with_slice(&mut averages);
        Ok(())
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let functions = [
        wrap_pyfunction!(adamw_step, module)?,
        wrap_pyfunction!(sgd_step, module)?,
        wrap_pyfunction!(ema_update, module)?,
        wrap_pyfunction!(ema_swap, module)?,
    ];
    functions.into_iter().try_for_each(|function| module.add_function(function))
}
