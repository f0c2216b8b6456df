//! Elementary functions: one polynomial each, the same on every instruction set. The polynomials
//! are minimax fits (Lawson's iteration on Chebyshev nodes, in relative error); the error bounds
//! are those that the tests measure, in units of the last place (ulp) of the exact result.

use crate::simd::Simd;

/// c₀ + x (c₁ + x (c₂ + …)), Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F32, c: [f32; N]) -> S::F32 {
    let mut y = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        y = s.fma(y, x, s.splat(c[i]));
    }
    y
}

/// Below this, eˣ is less than the smallest normal number.
const EXP_LOW: f32 = -87.336_54;
/// From this on, eˣ overflows.
const EXP_HIGH: f32 = 88.722_84;
/// ln 2, rounded to float32, and what is missing. n · LN2 is a multiple of 2⁻²⁴, so x − n · LN2 is
/// exact with one fused multiply-add.
const LN2: f32 = std::f32::consts::LN_2;
const LN2_REST: f32 = -1.904_654_3e-9;
/// 1.5 · 2²³: a number of this size has no fraction, so adding it rounds to the nearest integer, ties
/// to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// eˣ within 0.9 ulp; 0 where that is below 2⁻¹²⁶, ∞ above the largest float, NaN for NaN; e⁰ = 1
/// exactly.
///
/// eˣ = 2ⁿ eʳ with n the integer nearest to x / ln 2 and |r| ≤ ln 2 / 2.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2), x);
    let r = s.fma(n, s.splat(-LN2_REST), r);
    let p =
        polynomial(s, r, [1.0, 1.0, 0.499_999_94, 0.166_665_2, 0.041_668_39, 0.008_368_717, 0.001_381_459_8]);
    let y = s.add_to_exponent(p, shifted);
    let y = s.select(s.lt(x, s.splat(EXP_LOW)), s.splat(0.0), y);
    // What is not below EXP_HIGH is too large, or NaN.
    s.select(s.lt(x, s.splat(EXP_HIGH)), y, s.add(x, s.splat(f32::INFINITY)))
}

/// 1 / (1 + e⁻ˣ) within 2.2 ulp down to −87, and 0 below.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// tanh x within 1.4 ulp.
///
/// x + x³ P(x²) below 0.625, 1 − 2 / (e²ˣ + 1) above.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let size = s.abs(x);
    let z = s.mul(x, x);
    let p = polynomial(s, z, [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_086, -0.005_704_986_3]);
    let small = s.fma(s.mul(x, z), p, x);
    let one = s.splat(1.0);
    let e = exp(s, s.add(size, size));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.select(s.lt(size, s.splat(0.625)), small, s.copysign(large, x))
}

/// erf x = 2/√π ∫₀ˣ e^(−t²) dt within 1.2 ulp.
///
/// x + x P(x²) below 0.93; above, 1 − e^Q(x) with Q a fit of ln(1 − erf) up to 4, where erf is 1 in
/// float32.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let size = s.abs(x);
    let p = polynomial(
        s,
        s.mul(x, x),
        [0.128_379_15, -0.376_124_8, 0.112_816_825, -0.026_761_72, 0.004_985_94, -0.000_595_373_9],
    );
    let small = s.fma(x, p, x);
    // `min` keeps a NaN of its second argument.
    let t = s.min(s.splat(4.0), size);
    let q = polynomial(
        s,
        t,
        [
            -0.000_195_674_98,
            -1.127_675_6,
            -0.637_182_24,
            -0.103_931_6,
            0.022_226_922,
            -0.003_043_218,
            0.000_195_937_3,
        ],
    );
    let large = s.sub(s.splat(1.0), exp(s, q));
    s.select(s.lt(size, s.splat(0.93)), small, s.copysign(large, x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, LANES, Op, available, dispatch_on};

    trait Function {
        fn call<S: Simd>(s: S, x: S::F32) -> S::F32;
    }

    macro_rules! function {
        ($name:ident, $f:ident) => {
            struct $name;
            impl Function for $name {
                #[inline(always)]
                fn call<S: Simd>(s: S, x: S::F32) -> S::F32 {
                    $f(s, x)
                }
            }
        };
    }
    function!(Exp, exp);
    function!(Sigmoid, sigmoid);
    function!(Tanh, tanh);
    function!(Erf, erf);

    struct Map<'a, F>(&'a [f32], std::marker::PhantomData<F>);

    impl<F: Function> Op for Map<'_, F> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.0.len()];
            for (x, y) in self.0.chunks(LANES).zip(out.chunks_mut(LANES)) {
                s.put(y, F::call(s, s.get(x)));
            }
            out
        }
    }

    fn map<F: Function>(isa: Isa, x: &[f32]) -> Vec<f32> {
        dispatch_on(isa, Map::<F>(x, std::marker::PhantomData))
    }

    /// Every 997th float between the limits, of both signs.
    fn floats(low: f32, high: f32) -> Vec<f32> {
        (0..=u32::MAX).step_by(997).map(f32::from_bits).filter(|x| (low..=high).contains(x)).collect()
    }

    /// The largest error of `F` against `exact`, in ulp of the exact result (of the smallest normal
    /// number below it); also that all instruction sets agree.
    fn largest_error<F: Function>(x: &[f32], exact: impl Fn(f64) -> f64) -> f64 {
        let all: Vec<Vec<f32>> = available().into_iter().map(|isa| map::<F>(isa, x)).collect();
        for other in &all[1..] {
            assert!(all[0].iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        let errors = x.iter().zip(&all[0]).map(|(&x, &y)| {
            let exact = exact(f64::from(x));
            let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
            (f64::from(y) - exact).abs() / (exponent - 23.0).exp2()
        });
        errors.fold(0.0, f64::max)
    }

    fn exact_erf(x: f64) -> f64 {
        let a = x.abs();
        if a > 4.0 {
            return x.signum();
        }
        // erf x = 2/√π e^(−x²) Σ 2ⁿ x²ⁿ⁺¹ / (1·3·…·(2n+1)), all terms positive.
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= 2.0 * a * a / f64::from(2 * n + 1);
            sum += term;
        }
        (2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum).copysign(x)
    }

    #[test]
    fn errors_are_within_the_stated_bounds() {
        let cases = [
            ("exp", largest_error::<Exp>(&floats(EXP_LOW, EXP_HIGH.next_down()), f64::exp), 0.9),
            ("sigmoid", largest_error::<Sigmoid>(&floats(-87.0, 1e9), |x| 1.0 / (1.0 + (-x).exp())), 2.2),
            ("tanh", largest_error::<Tanh>(&floats(-1e9, 1e9), f64::tanh), 1.4),
            ("erf", largest_error::<Erf>(&floats(-1e9, 1e9), exact_erf), 1.2),
        ];
        for (name, error, bound) in cases {
            println!("{name}: {error:.3} ulp");
            assert!(error <= bound, "{name}: {error} ulp");
        }
    }

    #[test]
    fn special_values() {
        let inf = f32::INFINITY;
        for isa in available() {
            let e = map::<Exp>(
                isa,
                &[0.0, -0.0, inf, -inf, EXP_HIGH.next_down(), EXP_HIGH, EXP_LOW, -87.4, f32::NAN],
            );
            assert_eq!(e[..4], [1.0, 1.0, inf, 0.0]);
            assert!(e[4].is_finite() && e[4] > 3.4e38 && e[5] == inf);
            assert!(e[6].is_normal() && e[6] < 1.2e-38 && e[7] == 0.0 && e[8].is_nan());
            assert_eq!(map::<Tanh>(isa, &[inf, -inf, 0.0, 50.0]), [1.0, -1.0, 0.0, 1.0]);
            assert_eq!(map::<Erf>(isa, &[inf, -inf, 0.0, 50.0]), [1.0, -1.0, 0.0, 1.0]);
            assert_eq!(map::<Sigmoid>(isa, &[inf, -inf, 0.0]), [1.0, 0.0, 0.5]);
            assert!(map::<Tanh>(isa, &[f32::NAN])[0].is_nan() && map::<Erf>(isa, &[f32::NAN])[0].is_nan());
        }
    }
}
