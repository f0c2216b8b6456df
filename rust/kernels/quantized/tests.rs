use super::*;
use crate::formats::DType;
use crate::formats::blocks::Form;
use crate::kernels::{Factor, Precision, gemm};
use crate::simd::{self, available};
use crate::weights::Arena;

struct Random(u64);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }

    fn float(&mut self) -> f32 {
        f32::from(self.byte() as i8) / 37.0 + f32::from(self.byte()) / 1000.0
    }
}

fn matrix(random: &mut Random, dtype: DType, n: usize, k: usize) -> Quantized {
    let (elements, bytes) = dtype.block();
    // Exponents of float16 that are all ones would be infinities.
    let rows: Vec<Vec<u8>> =
        (0..n).map(|_| (0..k / elements * bytes).map(|_| random.byte() & 0x3B).collect()).collect();
    let arena = Arena::with_capacity(Quantized::floats(Form::of(dtype).unwrap(), n, k).unwrap()).unwrap();
    arena.quantized(dtype, n, k, |i, row| row.copy_from_slice(&rows[i])).unwrap()
}

/// What the product is said to compute, number by number.
fn by_hand(x: &[f32], weights: &[f32], form: Form) -> f32 {
    let mut total = 0.0f64;
    let group = form.scales.group();
    for (x, w) in x.chunks(UNIT).zip(weights.chunks(UNIT)) {
        let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let codes: Vec<f64> = x
            .iter()
            .map(|x| if most > 0.0 { f64::from((x * (127.0 / most)).round_ties_even()) } else { 0.0 })
            .collect();
        for (a, w) in codes.chunks(group).zip(w.chunks(group)) {
            let dot: f64 = a.iter().zip(w).map(|(a, w)| a * f64::from(*w)).sum();
            total += dot * f64::from(most / 127.0);
        }
    }
    total as f32
}

#[test]
fn products_are_those_of_the_rounded_rows() {
    let mut random = Random(1);
    for &dtype in DType::ALL {
        let Some(form) = Form::of(dtype) else { continue };
        let k = 2 * form.scales.block();
        for (n, rows) in [(40, 1), (16, 8), (7, 3), (33, 21)] {
            let w = matrix(&mut random, dtype, n, k);
            let x: Vec<f32> = (0..rows * k).map(|i| if i % 97 < 33 { 0.0 } else { random.float() }).collect();
            let bias: Vec<f32> = (0..n).map(|_| random.float()).collect();
            let mut y = vec![f32::NAN; rows * n];
            let factor = Factor::Quantized(vec![w.clone()]);
            let out = MatrixMut::new(&mut y, rows, n);
            gemm(Matrix::new(&x, rows, k), factor, Some(&bias), out, Precision::Float32);
            let mut weights = vec![0.0; k];
            for column in 0..n {
                w.row(column, &mut weights);
                let most: f32 = weights.iter().fold(0.0, |most, w| most.max(w.abs()));
                for row in 0..rows {
                    let x = &x[row * k..][..k];
                    let (found, expected) = (y[row * n + column], by_hand(x, &weights, form) + bias[column]);
                    let size: f32 = x.iter().map(|x| x.abs()).sum::<f32>() * most + 1.0;
                    assert!(
                        (found - expected).abs() <= 1e-6 * size,
                        "{dtype:?} {found} {expected} of {size}"
                    );
                }
            }
        }
    }
}

#[test]
fn bits_depend_on_the_row_and_its_weights_alone() {
    let mut random = Random(2);
    let before = simd::current();
    for &dtype in DType::ALL {
        if Form::of(dtype).is_none() {
            continue;
        }
        // More units than are kept taken apart at a time.
        let k = 1024;
        let parts = [matrix(&mut random, dtype, 48, k), matrix(&mut random, DType::Q4_0, 23, k)];
        let rows = 19;
        let x: Vec<f32> = (0..rows * k).map(|_| random.float()).collect();
        let product = |x: &[f32], parts: &[Quantized]| {
            let (rows, n) = (x.len() / k, parts.iter().map(|part| part.n).sum::<usize>());
            let mut y = vec![0.0; rows * n];
            multiply(Matrix::new(x, rows, k), parts, None, MatrixMut::new(&mut y, rows, n));
            y.iter().map(|y| y.to_bits()).collect::<Vec<u32>>()
        };
        let expected = product(&x, &parts);
        for isa in available() {
            simd::set(isa);
            assert_eq!(product(&x, &parts), expected, "{dtype:?} {isa:?}");
        }
        simd::set(before);
        for (row, x) in x.chunks_exact(k).enumerate() {
            assert_eq!(product(x, &parts), expected[row * 71..][..71], "{dtype:?} row {row}");
        }
        let right = [parts[0].outputs(32..48), parts[1].clone()];
        for (row, found) in product(&x, &right).chunks_exact(39).enumerate() {
            assert_eq!(found, &expected[row * 71 + 32..][..39]);
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let mut random = Random(3);
    let w = matrix(&mut random, DType::Q8_0, 16, 64);
    let mut x = vec![1.0; 3 * 64];
    x[64 + 40] = f32::NAN;
    x[128] = f32::INFINITY;
    let mut y = vec![0.0; 3 * 16];
    multiply(Matrix::new(&x, 3, 64), &[w], None, MatrixMut::new(&mut y, 3, 16));
    assert!(y[..16].iter().all(|y| y.is_finite()) && y[16..].iter().all(|y| y.is_nan()));
}
