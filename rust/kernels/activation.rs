//! Activation functions, element by element, and their derivatives.

use serde::Deserialize;

use crate::kernels::{CHUNK, rows_per_chunk, vecmath};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads;

/// An activation, by the names of `hidden_act` in Transformers' config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum Activation {
    /// x Φ(x) = x/2 (1 + erf(x/√2)) (Hendrycks & Gimpel 2016).
    #[serde(rename = "gelu", alias = "gelu_python")]
    Gelu,
    /// The same with Φ approximated by tanh: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).
    #[serde(rename = "gelu_tanh", alias = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    /// x σ(1.702 x).
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// x σ(x).
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// max(x, 0).
    #[serde(rename = "relu")]
    Relu,
    #[serde(rename = "tanh")]
    Tanh,
    #[serde(rename = "sigmoid")]
    Sigmoid,
}

/// Any shape, in place: x = act(x).
pub fn apply(act: Activation, x: &mut [f32]) {
    threads::for_each_mut(x, CHUNK, |_, x| run(act, Job::Apply(x)));
}

/// `gate_up [rows, 2 · width]`, `out [rows, width]`: out = act(left half) · right half, the gate of
/// SwiGLU and its kin (Shazeer 2020).
pub fn gate(act: Activation, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len());
    let chunk = rows_per_chunk(width) * width;
    threads::for_each_mut(out, chunk, |i, out| {
        let gate_up = &gate_up[2 * i * chunk..][..2 * out.len()];
        run(act, Job::Gate { gate_up, width, out });
    });
}

/// `x, dy` of any shape: dy = dy · act'(x), the gradient at the input of [`apply`] from that at its output.
pub fn apply_backward(act: Activation, x: &[f32], dy: &mut [f32]) {
    assert!(x.len() == dy.len());
    threads::for_each_mut(dy, CHUNK, |i, dy| {
        run(act, Job::ApplyBackward { x: &x[i * CHUNK..][..dy.len()], dy });
    });
}

/// `gate_up, dgate_up [rows, 2 · width]`, `dout [rows, width]`: the gradient at the input of [`gate`] from that
/// at its output: dout · up · act'(gate) on the left, dout · act(gate) on the right.
pub fn gate_backward(act: Activation, gate_up: &[f32], width: usize, dout: &[f32], dgate_up: &mut [f32]) {
    assert!(gate_up.len() == dgate_up.len() && gate_up.len() == 2 * dout.len());
    let chunk = rows_per_chunk(2 * width) * width;
    threads::for_each_mut(dgate_up, 2 * chunk, |i, dgate_up| {
        let gate_up = &gate_up[2 * i * chunk..][..dgate_up.len()];
        let dout = &dout[i * chunk..][..dgate_up.len() / 2];
        run(act, Job::GateBackward { gate_up, width, dout, dgate_up });
    });
}

enum Job<'a> {
    Apply(&'a mut [f32]),
    Gate { gate_up: &'a [f32], width: usize, out: &'a mut [f32] },
    ApplyBackward { x: &'a [f32], dy: &'a mut [f32] },
    GateBackward { gate_up: &'a [f32], width: usize, dout: &'a [f32], dgate_up: &'a mut [f32] },
}

fn run(act: Activation, job: Job<'_>) {
    match act {
        Activation::Gelu => dispatch(Map(Gelu, job)),
        Activation::GeluTanh => dispatch(Map(GeluTanh, job)),
        Activation::QuickGelu => dispatch(Map(QuickGelu, job)),
        Activation::Silu => dispatch(Map(Silu, job)),
        Activation::Relu => dispatch(Map(Relu, job)),
        Activation::Tanh => dispatch(Map(Tanh, job)),
        Activation::Sigmoid => dispatch(Map(Sigmoid, job)),
    }
}

trait Function {
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32;
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32;
}

struct Map<'a, F>(F, Job<'a>);

impl<F: Function> Op for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.1 {
            Job::Apply(x) => {
                for x in x.chunks_mut(LANES) {
                    let y = F::call(s, s.get(x));
                    s.put(x, y);
                }
            }
            Job::Gate { gate_up, width, out } => {
                for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
                    let (gate, up) = gate_up.split_at(width);
                    let columns = gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES));
                    for ((gate, up), out) in columns {
                        s.put(out, s.mul(F::call(s, s.get(gate)), s.get(up)));
                    }
                }
            }
            Job::ApplyBackward { x, dy } => {
                for (x, dy) in x.chunks(LANES).zip(dy.chunks_mut(LANES)) {
                    let dx = s.mul(s.get(dy), F::derivative(s, s.get(x)));
                    s.put(dy, dx);
                }
            }
            Job::GateBackward { gate_up, width, dout, dgate_up } => {
                let rows = gate_up.chunks_exact(2 * width).zip(dgate_up.chunks_exact_mut(2 * width));
                for ((gate_up, dgate_up), dout) in rows.zip(dout.chunks_exact(width)) {
                    let (gate, up) = gate_up.split_at(width);
                    let (dgate, dup) = dgate_up.split_at_mut(width);
                    let inputs = gate.chunks(LANES).zip(up.chunks(LANES)).zip(dout.chunks(LANES));
                    let outputs = dgate.chunks_mut(LANES).zip(dup.chunks_mut(LANES));
                    for (((gate, up), dout), (dgate, dup)) in inputs.zip(outputs) {
                        let (gate, dout) = (s.get(gate), s.get(dout));
                        s.put(dup, s.mul(dout, F::call(s, gate)));
                        s.put(dgate, s.mul(s.mul(dout, s.get(up)), F::derivative(s, gate)));
                    }
                }
            }
        }
    }
}

struct Gelu;
impl Function for Gelu {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let half = s.mul(x, s.splat(0.5));
        s.fma(half, vecmath::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
    }

    #[inline(always)]
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32 {
        // Φ(x) + x φ(x), φ(x) = e^(−x²/2) / √(2π).
        const INV_SQRT_2_PI: f32 = 0.398_942_3;
        let x = clamp(s, x, 15.0);
        let half = s.splat(0.5);
        let cdf = s.fma(half, vecmath::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half);
        let density = vecmath::exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
        s.fma(s.mul(x, s.splat(INV_SQRT_2_PI)), density, cdf)
    }
}

struct GeluTanh;
impl Function for GeluTanh {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        // (1 + tanh u) / 2 = σ(2u): one exponential, and no cancellation for x far below 0.
        const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
        let inner = s.fma(s.mul(x, x), s.splat(0.044715 * TWO_SQRT_2_OVER_PI), s.splat(TWO_SQRT_2_OVER_PI));
        times_sigmoid(s, x, s.mul(x, inner))
    }

    #[inline(always)]
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32 {
        const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
        const CUBIC: f32 = 0.044715 * TWO_SQRT_2_OVER_PI;
        let x = clamp(s, x, 12.0);
        let (square, linear) = (s.mul(x, x), s.splat(TWO_SQRT_2_OVER_PI));
        let u = s.mul(x, s.fma(square, s.splat(CUBIC), linear));
        sigmoid_derivative(s, x, u, s.fma(square, s.splat(3.0 * CUBIC), linear))
    }
}

struct QuickGelu;
impl Function for QuickGelu {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        times_sigmoid(s, x, s.mul(x, s.splat(1.702)))
    }

    #[inline(always)]
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let x = clamp(s, x, 60.0);
        sigmoid_derivative(s, x, s.mul(x, s.splat(1.702)), s.splat(1.702))
    }
}

struct Silu;
impl Function for Silu {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        times_sigmoid(s, x, x)
    }

    #[inline(always)]
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let x = clamp(s, x, 100.0);
        sigmoid_derivative(s, x, x, s.splat(1.0))
    }
}

/// x σ(u) = x / (1 + e⁻ᵘ).
#[inline(always)]
fn times_sigmoid<S: Simd>(s: S, x: S::F32, u: S::F32) -> S::F32 {
    s.div(x, s.add(s.splat(1.0), vecmath::exp(s, s.sub(s.splat(0.0), u))))
}

/// The derivative of x σ(u) where u' is `du`: σ(u) (1 + x (1 − σ(u)) u').
#[inline(always)]
fn sigmoid_derivative<S: Simd>(s: S, x: S::F32, u: S::F32, du: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    let y = vecmath::sigmoid(s, u);
    s.mul(y, s.fma(s.mul(x, s.sub(one, y)), du, one))
}

/// x between −limit and limit, where a derivative has long reached its own limit, so that nothing overflows. A
/// NaN stays one.
#[inline(always)]
fn clamp<S: Simd>(s: S, x: S::F32, limit: f32) -> S::F32 {
    s.max(s.splat(-limit), s.min(s.splat(limit), x))
}

struct Relu;
impl Function for Relu {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        // `max` keeps a NaN of its second argument.
        s.max(s.splat(0.0), x)
    }

    #[inline(always)]
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32 {
        s.select(s.lt(s.splat(0.0), x), s.splat(1.0), s.splat(0.0))
    }
}

struct Tanh;
impl Function for Tanh {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        vecmath::tanh(s, x)
    }

    #[inline(always)]
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let y = vecmath::tanh(s, x);
        s.fma(s.sub(s.splat(0.0), y), y, s.splat(1.0))
    }
}

struct Sigmoid;
impl Function for Sigmoid {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        vecmath::sigmoid(s, x)
    }

    #[inline(always)]
    fn derivative<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let y = vecmath::sigmoid(s, x);
        s.mul(y, s.sub(s.splat(1.0), y))
    }
}
