use super::*;

/// Small numbers that no two products of share their rounding.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Around the borders of vectors, strips, chunks, and blocks of k.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 70, 33),
    (5, 16, 600),
    (13, 97, 300),
    (23, 65, 1030),
    (500, 40, 17),
    (3, 5, 0),
    (1100, 33, 1100),
    (130, 130, 513),
];

/// `values [rows, columns]` as a matrix, once for each way to store it.
fn stored(values: &[f32], rows: usize, columns: usize) -> Vec<(Vec<f32>, [usize; 2])> {
    let with_strides = |row_stride: usize, column_stride: usize| {
        let len =
            if values.is_empty() { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 };
        let mut data = vec![f32::NAN; len];
        for (at, x) in values.iter().enumerate() {
            data[at / columns * row_stride + at % columns * column_stride] = *x;
        }
        (data, [row_stride, column_stride])
    };
    vec![
        with_strides(columns, 1),
        with_strides(columns + 3, 1),
        with_strides(1, rows),
        with_strides(1, rows + 5),
        with_strides(2 * columns, 2),
    ]
}

fn panels(element: Element, w: &[f32], n: usize, k: usize) -> Panels {
    Panels::pack(element, n, k, |i, row| row.copy_from_slice(&w[i * k..][..k])).unwrap()
}

fn assert_bits(found: &[f32], expected: &[f32], what: &str) {
    assert!(found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
}

#[test]
fn an_element_is_one_chain_whatever_surrounds_it() {
    for (m, n, k) in SHAPES {
        let (a, w, bias, before) = (numbers(m * k, 1), numbers(n * k, 2), numbers(n, 3), numbers(m * n, 4));
        let chain = |r: usize, i: usize, start: f32| {
            (0..k).fold(start, |sum, j| a[r * k + j].mul_add(w[i * k + j], sum))
        };
        let every =
            |f: &dyn Fn(usize, usize) -> f32| (0..m * n).map(|at| f(at / n, at % n)).collect::<Vec<_>>();
        let expected = every(&|r, i| chain(r, i, 0.0) + bias[i]);
        let added = every(&|r, i| chain(r, i, before[r * n + i]));
        let packed = panels(Element::Float32, &w, n, k);
        for (a, [row, column]) in stored(&a, m, k) {
            let a = Matrix::strided(&a, m, k, row, column);
            let mut factors = vec![("panels".to_owned(), Vec::new(), None)];
            for (w, strides) in stored(&w, n, k) {
                factors.push((format!("{strides:?}"), w, Some(strides)));
            }
            for (name, w, strides) in &factors {
                let b = match strides {
                    Some([row, column]) => Factor::Matrix(Matrix::strided(w, n, k, *row, *column)),
                    None => Factor::from(&packed),
                };
                let what = format!("{m} {n} {k} a {row},{column} b {name}");
                let mut out = vec![f32::NAN; m * n];
                gemm(a, b.clone(), Some(&bias), MatrixMut::new(&mut out, m, n), Precision::Float32);
                assert_bits(&out, &expected, &what);
                out.copy_from_slice(&before);
                gemm_add(a, b, MatrixMut::new(&mut out, m, n), Precision::Float32);
                assert_bits(&out, &added, &what);
            }
        }
    }
}

#[test]
fn a_result_may_be_some_columns_of_a_larger_matrix() {
    let (m, n, k) = (14, 19, 20);
    let (a, w) = (numbers(m * k, 1), numbers(n * k, 2));
    let (a, w) = (Matrix::new(&a, m, k), Matrix::new(&w, n, k));
    let mut whole = vec![0.0; m * n];
    gemm(a, w, None, MatrixMut::new(&mut whole, m, n), Precision::Float32);
    let mut wide = vec![7.0; m * 40];
    gemm(a, w, None, MatrixMut::strided(&mut wide[10..], m, n, 40), Precision::Float32);
    for (wide, row) in wide.chunks(40).zip(whole.chunks(n)) {
        assert_bits(&wide[10..10 + n], row, "the columns");
        assert!(wide[..10].iter().chain(&wide[10 + n..]).all(|x| *x == 7.0));
    }
}

/// As `vdpbf16ps` has it.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// With factors near 1, and so small that some sums are subnormal.
#[test]
fn bfloat16_rounds_both_factors_and_adds_pairs() {
    for (scale, (m, n, k)) in [1.0, 2f32.powi(-61)].into_iter().flat_map(|x| SHAPES.map(|shape| (x, shape))) {
        let scaled = |len, seed| numbers(len, seed).iter().map(|x| x * scale).collect::<Vec<_>>();
        let (a, w) = (scaled(m * k, 1), scaled(n * k, 2));
        let tiny = scale * scale;
        let bias: Vec<f32> = numbers(n, 3).iter().map(|x| x * tiny).collect();
        let before: Vec<f32> = numbers(m * n, 4).iter().map(|x| x * tiny / 16.0).collect();
        let round = |x: &[f32]| x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<_>>();
        let (ra, rw) = (round(&a), round(&w));
        let chain = |at: usize, start: f32| {
            let (a, w) = (&ra[at / n * k..][..k], &rw[at % n * k..][..k]);
            let term = |sum: f32, j: usize| {
                let (a, w) = if j < k { (a[j], w[j]) } else { (0.0, 0.0) };
                flushed(a.mul_add(w, flushed(sum)))
            };
            (0..k).step_by(2).fold(start, |sum, j| term(term(sum, j + 1), j))
        };
        let expected: Vec<f32> = (0..m * n).map(|at| chain(at, 0.0) + bias[at % n]).collect();
        let added: Vec<f32> = (0..m * n).map(|at| chain(at, before[at])).collect();
        let packed = panels(Element::Bfloat16, &w, n, k);
        for (a, [row, column]) in stored(&a, m, k) {
            let a = Matrix::strided(&a, m, k, row, column);
            let plain = Factor::Matrix(Matrix::new(&w, n, k));
            for (b, precision) in [
                (plain, Precision::Bfloat16),
                (Factor::from(&packed), Precision::Bfloat16),
                (Factor::from(&packed), Precision::Float32),
            ] {
                let what = format!("{scale:e} {m} {n} {k} a {row},{column}");
                let mut out = vec![f32::NAN; m * n];
                gemm(a, b.clone(), Some(&bias), MatrixMut::new(&mut out, m, n), precision);
                assert_bits(&out, &expected, &what);
                out.copy_from_slice(&before);
                gemm_add(a, b, MatrixMut::new(&mut out, m, n), precision);
                assert_bits(&out, &added, &what);
            }
        }
    }
}

#[test]
fn float16_panels_are_what_they_expand_to() {
    for (m, n, k) in SHAPES {
        let (a, w) = (numbers(m * k, 1), numbers(n * k, 2));
        let rounded: Vec<f32> = w.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect();
        let [expected, found] = [(Element::Float32, &rounded), (Element::Float16, &w)].map(|(element, w)| {
            let mut out = vec![f32::NAN; m * n];
            let packed = panels(element, w, n, k);
            gemm(Matrix::new(&a, m, k), &packed, None, MatrixMut::new(&mut out, m, n), Precision::Float32);
            out
        });
        assert_bits(&found, &expected, &format!("{m} {n} {k}"));
    }
}
