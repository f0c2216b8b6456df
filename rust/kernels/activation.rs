//! Activation functions, element by element.

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

enum Job<'a> {
    Apply(&'a mut [f32]),
    Gate { gate_up: &'a [f32], width: usize, out: &'a mut [f32] },
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
}

struct QuickGelu;
impl Function for QuickGelu {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        times_sigmoid(s, x, s.mul(x, s.splat(1.702)))
    }
}

struct Silu;
impl Function for Silu {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        times_sigmoid(s, x, x)
    }
}

/// x σ(u) = x / (1 + e⁻ᵘ).
#[inline(always)]
fn times_sigmoid<S: Simd>(s: S, x: S::F32, u: S::F32) -> S::F32 {
    s.div(x, s.add(s.splat(1.0), vecmath::exp(s, s.sub(s.splat(0.0), u))))
}

struct Relu;
impl Function for Relu {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        // `max` keeps a NaN of its second argument.
        s.max(s.splat(0.0), x)
    }
}

struct Tanh;
impl Function for Tanh {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        vecmath::tanh(s, x)
    }
}

struct Sigmoid;
impl Function for Sigmoid {
    #[inline(always)]
    fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
        vecmath::sigmoid(s, x)
    }
}
