//! The loss of a language model, with its gradient.

use crate::kernels::softmax::max_of;
use crate::kernels::vecmath;
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::{self, SendPtr};

/// The label of a row that does not count, as in PyTorch.
pub const IGNORED: i32 = -100;

/// `logits [rows, classes]`, `labels, losses [rows]`: the cross-entropy of each row, and in place of the logits
/// the gradient of `scale` · Σ losses.
///
/// With p = softmax(logits) the loss is −Σ t ln p and the gradient scale · (p − t), where the target t is
/// 1 at the label and 0 elsewhere, or, smoothed by ε, (1 − ε) of that plus ε / classes (Szegedy et al. 2016).
/// A row labelled [`IGNORED`] has loss and gradient 0. Every other label is less than `classes`.
pub fn cross_entropy(
    logits: &mut [f32],
    classes: usize,
    labels: &[i32],
    smoothing: f32,
    scale: f32,
    losses: &mut [f32],
) {
    assert!(logits.len() == labels.len() * classes && losses.len() == labels.len());
    let known = |label: i32| label == IGNORED || usize::try_from(label).is_ok_and(|label| label < classes);
    assert!(labels.iter().all(|label| known(*label)));
    let losses = SendPtr(losses.as_mut_ptr());
    threads::for_each_mut(logits, classes, |i, row| {
        let loss = if labels[i] == IGNORED {
            row.fill(0.0);
            0.0
        } else {
            dispatch(CrossEntropy { row, label: labels[i] as usize, smoothing, scale })
        };
        // SAFETY: each row has its own loss.
        unsafe { *losses.get().add(i) = loss };
    });
}

/// A row; gives its loss.
struct CrossEntropy<'a> {
    row: &'a mut [f32],
    label: usize,
    smoothing: f32,
    scale: f32,
}

impl Op for CrossEntropy<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let CrossEntropy { row, label, smoothing, scale } = self;
        let max = max_of(s, row);
        let at_label = row[label] - max;
        let (mut sum, mut shifted) = (s.splat(0.0), s.splat(0.0));
        for x in row.chunks_mut(LANES) {
            let lanes = s.lanes(0, x.len());
            let z = s.sub(s.get(x), s.splat(max));
            let e = vecmath::exp(s, z);
            shifted = s.add(shifted, s.select(lanes, z, s.splat(0.0)));
            sum = s.add(sum, s.select(lanes, e, s.splat(0.0)));
            s.put(x, e);
        }
        // Once a row: in float64, so that only the last rounding counts.
        let (sum, classes) = (f64::from(s.reduce_sum(sum)), row.len() as f64);
        let (smoothing, scale) = (f64::from(smoothing), f64::from(scale));
        let factor = s.splat((scale / sum) as f32);
        let everywhere = s.splat((-scale * smoothing / classes) as f32);
        for x in row.chunks_mut(LANES) {
            let gradient = s.fma(s.get(x), factor, everywhere);
            s.put(x, gradient);
        }
        row[label] -= (scale * (1.0 - smoothing)) as f32;
        let log_sum = sum.ln();
        let mut loss = log_sum - (1.0 - smoothing) * f64::from(at_label);
        // A logit of −∞ would make 0 · ∞ of it.
        if smoothing != 0.0 {
            loss -= smoothing * f64::from(s.reduce_sum(shifted)) / classes;
        }
        loss as f32
    }
}
