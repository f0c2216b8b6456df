//! Steps of optimisers over flat arrays of parameters, gradients and state, in one pass each.

use crate::kernels::CHUNK;
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::{self, SendPtr};

/// `x` of any length: Σ x², whose root is the global norm of gradients.
///
/// Chunks of fixed length are summed in float32 by 64 lanes, and those sums in order in float64.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let mut sums = vec![0.0; x.len().div_ceil(CHUNK)];
    threads::for_each_mut(&mut sums, 1, |i, sum| {
        let end = x.len().min((i + 1) * CHUNK);
        sum[0] = f64::from(dispatch(Squares(&x[i * CHUNK..end])));
    });
    sums.iter().sum()
}

struct Squares<'a>(&'a [f32]);

impl Op for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 4];
        for x in self.0.chunks(4 * LANES) {
            for (sum, x) in sums.iter_mut().zip(x.chunks(LANES)) {
                let x = s.get(x);
                *sum = s.fma(x, x, *sum);
            }
        }
        s.reduce_sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
    }
}

/// AdamW (Loshchilov & Hutter 2019): Adam with decoupled weight decay.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Counts from 1.
    pub step: u64,
}

impl AdamW {
    /// `parameters, gradients, first, second` of one length: with g = `scale` · gradient,
    ///
    /// ```text
    /// first  = β₁ first + (1 − β₁) g,  second = β₂ second + (1 − β₂) g²
    /// parameter = (1 − lr · decay) parameter − lr · first / (1 − β₁ᵗ) / (√(second / (1 − β₂ᵗ)) + eps)
    /// ```
    pub fn update(
        &self,
        scale: f32,
        gradients: &[f32],
        parameters: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        let n = parameters.len();
        assert!(gradients.len() == n && first.len() == n && second.len() == n);
        let AdamW { learning_rate, beta1, beta2, eps, weight_decay, step } = *self;
        let factors = AdamFactors {
            scale,
            beta1: beta1 as f32,
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            keep: (1.0 - learning_rate * weight_decay) as f32,
            rate: (-learning_rate / (1.0 - beta1.powf(step as f64))) as f32,
            root: (1.0 / (1.0 - beta2.powf(step as f64)).sqrt()) as f32,
            eps: eps as f32,
        };
        let (first, second) = (SendPtr(first.as_mut_ptr()), SendPtr(second.as_mut_ptr()));
        threads::for_each_mut(parameters, CHUNK, |i, parameters| {
            let len = parameters.len();
            // SAFETY: each chunk has its own part of the state, as long as that of the parameters.
            let state = |state: SendPtr<f32>| unsafe {
                std::slice::from_raw_parts_mut(state.get().add(i * CHUNK), len)
            };
            let gradients = &gradients[i * CHUNK..][..len];
            dispatch(Adam { factors, gradients, parameters, first: state(first), second: state(second) });
        });
    }
}

#[derive(Clone, Copy)]
struct AdamFactors {
    scale: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

struct Adam<'a> {
    factors: AdamFactors,
    gradients: &'a [f32],
    parameters: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Op for Adam<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let f = self.factors;
        let moments = self.first.chunks_mut(LANES).zip(self.second.chunks_mut(LANES));
        let pairs = self.parameters.chunks_mut(LANES).zip(self.gradients.chunks(LANES));
        for ((p, g), (first, second)) in pairs.zip(moments) {
            let g = s.mul(s.get(g), s.splat(f.scale));
            let m = s.fma(s.get(first), s.splat(f.beta1), s.mul(g, s.splat(f.rest1)));
            let v = s.fma(s.get(second), s.splat(f.beta2), s.mul(s.mul(g, g), s.splat(f.rest2)));
            let divisor = s.fma(s.sqrt(v), s.splat(f.root), s.splat(f.eps));
            let kept = s.mul(s.get(p), s.splat(f.keep));
            let next = s.fma(s.div(m, divisor), s.splat(f.rate), kept);
            s.put(first, m);
            s.put(second, v);
            s.put(p, next);
        }
    }
}

/// `parameters, averages` of one length: average = decay · average + (1 − decay) · parameter, the exponential
/// moving average (Polyak & Juditsky 1992).
pub fn average(decay: f64, parameters: &[f32], averages: &mut [f32]) {
    assert!(parameters.len() == averages.len());
    threads::for_each_mut(averages, CHUNK, |i, averages| {
        let parameters = &parameters[i * CHUNK..][..averages.len()];
        dispatch(Average { keep: decay as f32, add: (1.0 - decay) as f32, parameters, averages });
    });
}

struct Average<'a> {
    keep: f32,
    add: f32,
    parameters: &'a [f32],
    averages: &'a mut [f32],
}

impl Op for Average<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (keep, add) = (s.splat(self.keep), s.splat(self.add));
        for (average, p) in self.averages.chunks_mut(LANES).zip(self.parameters.chunks(LANES)) {
            let next = s.fma(s.get(average), keep, s.mul(s.get(p), add));
            s.put(average, next);
        }
    }
}

/// Stochastic gradient descent with momentum (Sutskever et al. 2013), in PyTorch's form.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    pub learning_rate: f64,
    pub momentum: f64,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// Looks ahead by one more step of the momentum.
    pub nesterov: bool,
}

impl Sgd {
    /// `parameters, gradients, momenta` of one length: with g = `scale` · gradient + decay · parameter,
    ///
    /// ```text
    /// momentum = μ momentum + g
    /// parameter −= lr · (g + μ momentum with Nesterov's form, else momentum)
    /// ```
    pub fn update(&self, scale: f32, gradients: &[f32], parameters: &mut [f32], momenta: &mut [f32]) {
        assert!(gradients.len() == parameters.len() && momenta.len() == parameters.len());
        let momenta = SendPtr(momenta.as_mut_ptr());
        threads::for_each_mut(parameters, CHUNK, |i, parameters| {
            let len = parameters.len();
            // SAFETY: each chunk has its own part of the momenta, as long as that of the parameters.
            let momenta = unsafe { std::slice::from_raw_parts_mut(momenta.get().add(i * CHUNK), len) };
            let gradients = &gradients[i * CHUNK..][..len];
            dispatch(Descend { sgd: self, scale, gradients, parameters, momenta });
        });
    }
}

struct Descend<'a> {
    sgd: &'a Sgd,
    scale: f32,
    gradients: &'a [f32],
    parameters: &'a mut [f32],
    momenta: &'a mut [f32],
}

impl Op for Descend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (rate, momentum) = (s.splat(-self.sgd.learning_rate as f32), s.splat(self.sgd.momentum as f32));
        let (scale, decay) = (s.splat(self.scale), s.splat(self.sgd.weight_decay as f32));
        let pairs = self.parameters.chunks_mut(LANES).zip(self.gradients.chunks(LANES));
        for ((p, g), momenta) in pairs.zip(self.momenta.chunks_mut(LANES)) {
            let x = s.get(p);
            let g = s.fma(x, decay, s.mul(s.get(g), scale));
            let moved = s.fma(s.get(momenta), momentum, g);
            let step = if self.sgd.nesterov { s.fma(moved, momentum, g) } else { moved };
            s.put(momenta, moved);
            s.put(p, s.fma(step, rate, x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waves of some thousand numbers: more than a chunk, and no multiple of a vector.
    fn numbers(seed: f32) -> Vec<f32> {
        (0..CHUNK + 37).map(|i| ((i as f32 + seed) * 0.7).sin() * 0.5).collect()
    }

    fn close(found: &[f32], expected: &[f64]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn squares_are_summed_over_all_chunks() {
        let x = numbers(3.0);
        let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((sum_of_squares(&x) / expected - 1.0).abs() < 1e-6);
        assert_eq!(sum_of_squares(&[]), 0.0);
    }

    #[test]
    fn adamw_follows_its_formula() {
        let (scale, rate, beta1, beta2, eps, decay) = (0.5, 0.1, 0.9, 0.95, 1e-3, 0.2);
        let (mut p, mut m, mut v) = (numbers(0.0), vec![0.0; CHUNK + 37], vec![0.0; CHUNK + 37]);
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (mut wp, mut wm, mut wv) = (wide(&p), wide(&m), wide(&v));
        for step in 1..=3 {
            let gradients = numbers(step as f32);
            let adam = AdamW { learning_rate: rate, beta1, beta2, eps, weight_decay: decay, step };
            adam.update(scale as f32, &gradients, &mut p, &mut m, &mut v);
            for i in 0..wp.len() {
                let g = f64::from(gradients[i]) * scale;
                wm[i] = beta1 * wm[i] + (1.0 - beta1) * g;
                wv[i] = beta2 * wv[i] + (1.0 - beta2) * g * g;
                let first = wm[i] / (1.0 - beta1.powi(step as i32));
                let second = wv[i] / (1.0 - beta2.powi(step as i32));
                wp[i] -= rate * decay * wp[i] + rate * first / (second.sqrt() + eps);
            }
        }
        close(&p, &wp);
        close(&m, &wm);
        close(&v, &wv);
    }

    #[test]
    fn an_average_moves_by_what_it_does_not_keep() {
        let (parameters, mut averages) = (numbers(1.0), numbers(2.0));
        let expected = parameters.iter().zip(&averages);
        let expected: Vec<f64> = expected.map(|(p, a)| 0.9 * f64::from(*a) + 0.1 * f64::from(*p)).collect();
        average(0.9, &parameters, &mut averages);
        close(&averages, &expected);
    }

    #[test]
    fn momentum_follows_its_formula() {
        for nesterov in [false, true] {
            let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov };
            let (mut p, mut m) = (numbers(0.0), vec![0.0; CHUNK + 37]);
            let (mut wp, mut wm): (Vec<f64>, Vec<f64>) =
                (p.iter().map(|x| f64::from(*x)).collect(), vec![0.0; CHUNK + 37]);
            for step in 1..=3 {
                let gradients = numbers(step as f32);
                sgd.update(0.5, &gradients, &mut p, &mut m);
                for i in 0..wp.len() {
                    let g = f64::from(gradients[i]) * 0.5 + 0.01 * wp[i];
                    wm[i] = 0.9 * wm[i] + g;
                    wp[i] -= 0.1 * if nesterov { g + 0.9 * wm[i] } else { wm[i] };
                }
            }
            close(&p, &wp);
            close(&m, &wm);
        }
    }
}
