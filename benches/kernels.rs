//! What the kernels reach of what the machine has: `cargo bench --bench kernels [filter]`.
//!
//! The peaks are measured on as many threads as the pool has ([`llmcore::limits`]).

use std::hint::black_box;
use std::time::Instant;

use llmcore::cache::{KvPool, KvShape};
use llmcore::formats::DType;
use llmcore::formats::blocks::Form;
use llmcore::kernels::attention::{
    HeadRows, HeadRowsMut, Heads, Item, KvDtype, Mask, Span, attend, attend_backward, attend_rows,
};
use llmcore::kernels::optimizer::{AdamW, sum_of_squares};
use llmcore::kernels::{
    Factor, Matrix, MatrixMut, Precision, RowKey, activation, cross_entropy, dropout, gemm, gemm_add,
    layer_norm, layer_norm_backward, rms_norm, softmax,
};
use llmcore::limits::{self, Limits};
use llmcore::random::Philox;
use llmcore::simd;
use llmcore::threads;
use llmcore::weights::{Arena, Element, Panels, Quantized};

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    println!("isa {}, {} threads", simd::current().name(), threads::size());
    let Limits { float32, bfloat16, int8, memory } = limits::measure(threads::size()).unwrap();
    let [flops, bfloat16_peak, bytes_peak, bandwidth] = [float32, bfloat16, int8, memory].map(|x| x / 1e9);
    println!(
        "peak: {flops:.0} GFLOP/s of float32, {bfloat16_peak:.0} of bfloat16, {bytes_peak:.0} of bytes; {bandwidth:.1} GB/s"
    );
    let wanted = |name: &str| name.contains(&filter);
    for (element, peak) in
        [(Element::Float32, flops), (Element::Float16, flops), (Element::Bfloat16, bfloat16_peak)]
    {
        let smollm2 = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
        let gpt2 = [(2304, 768), (768, 768), (3072, 768), (768, 3072)];
        for (n, k) in smollm2.into_iter().chain(gpt2) {
            for rows in [64, 512] {
                let name = format!("gemm {element:?} {rows} x {k} -> {n}");
                if wanted(&name) {
                    let panels = Panels::pack(element, n, k, |i, row| row.fill(i as f32 * 1e-3)).unwrap();
                    let (a, mut out) = (noise(rows * k), vec![0.0; rows * n]);
                    let seconds = best(|| multiply(&a, rows, &panels, &mut out));
                    let speed = 2.0 * (rows * n * k) as f64 / seconds / 1e9;
                    println!("{name:34} {speed:8.1} GFLOP/s {:5.1} %", 100.0 * speed / peak);
                }
            }
        }
        for (model, layers, shapes) in [("SmolLM2", 30, smollm2), ("GPT-2", 12, gpt2)] {
            let name = format!("gemm {element:?} 512 rows, all layers of {model}");
            if wanted(&name) {
                all_layers(&name, element, &shapes.repeat(layers), peak);
            }
        }
        if wanted("gemv") {
            gemv(element, bandwidth);
        }
    }
    for (precision, peak) in [(Precision::Float32, flops), (Precision::Bfloat16, bfloat16_peak)] {
        if wanted("training") {
            training(precision, peak);
        }
    }
    if wanted("quantized") {
        quantized(bandwidth, bytes_peak);
    }
    for (model, heads, kv_heads) in [("SmolLM2", 9, 3), ("GPT-2", 12, 12)] {
        let heads = Heads { heads, kv_heads, head_dim: 64, scale: 0.125 };
        for dtype in [KvDtype::Float32, KvDtype::Bfloat16, KvDtype::Int8] {
            for (rows, past) in [(1, 127), (1, 1023), (1, 8191), (512, 0), (512, 7680)] {
                let name = format!("attention {model} {dtype:?}, {rows} rows after {past}");
                if wanted(&name) {
                    attention(&name, heads, dtype, rows, past, flops, bandwidth);
                }
            }
        }
    }
    if wanted("row") {
        row_wise(bandwidth);
    }
    if wanted("gradients") {
        gradients(flops, bandwidth);
    }
    if wanted("launch") {
        let seconds = best(|| threads::for_each(2 * threads::size(), |i| _ = black_box(i)));
        println!("{:32} {:8.2} us", "launch of an empty job", seconds * 1e6);
    }
}

/// The shortest of many runs.
fn best(mut job: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 5 || (start.elapsed().as_secs_f64() < 0.4 && runs < 10_000) {
        let start = Instant::now();
        job();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// GPT-2's weights, whose widths suit every type, once through in each: few rows against the speed of reading,
/// many against the machine's products of bytes.
fn quantized(bandwidth: f64, peak: f64) {
    println!("quantized, of {bandwidth:.1} GB/s and {peak:.0} GOP/s");
    let shapes: Vec<(usize, usize)> = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
        .repeat(12)
        .into_iter()
        .chain([(50_257, 768)])
        .collect();
    for &dtype in DType::ALL {
        let Some(form) = Form::of(dtype) else { continue };
        let floats = shapes.iter().map(|&(n, k)| Quantized::floats(form, n, k).unwrap()).sum();
        let arena = Arena::with_capacity(floats).unwrap();
        let (elements, bytes) = dtype.block();
        let row = |i: usize, row: &mut [u8]| row.fill(1 + (i % 16) as u8);
        let pack = |&(n, k): &(usize, usize)| arena.quantized(dtype, n, k, row).unwrap();
        let matrices: Vec<Quantized> = shapes.iter().map(pack).collect();
        let stored: usize = shapes.iter().map(|(n, k)| n * k / elements * bytes).sum();
        print!("{:8} {:5.1} MB", dtype.name(), stored as f64 / 1e6);
        for rows in [1, 5, 8, 512] {
            let layers = if rows > 8 { &matrices[..4] } else { &matrices[..] };
            let (x, mut y) = (noise(rows * 3072), vec![0.0; rows * 50_257]);
            let seconds = best(|| {
                for m in layers {
                    let (x, y) = (&x[..rows * m.k], &mut y[..rows * m.n]);
                    let (x, y) = (Matrix::new(x, rows, m.k), MatrixMut::new(y, rows, m.n));
                    gemm(x, Factor::Quantized(vec![m.clone()]), None, y, Precision::Float32);
                }
            });
            let operations: usize = layers.iter().map(|m| 2 * rows * m.n * m.k).sum();
            if rows > 8 {
                print!("  {rows}: {:4.1} %", 100.0 * operations as f64 / seconds / 1e9 / peak);
            } else {
                print!(
                    "  {rows}: {:5.2} ms {:5.1} %",
                    seconds * 1e3,
                    100.0 * (floats * 4) as f64 / seconds / 1e9 / bandwidth
                );
            }
        }
        println!();
    }
}

fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn multiply(a: &[f32], rows: usize, panels: &Panels, out: &mut [f32]) {
    let (a, out) = (Matrix::new(a, rows, panels.k), MatrixMut::new(out, rows, panels.n));
    gemm(a, panels, None, out, Precision::Float32);
}

/// The three products of a linear layer in a training step of GPT-2 124M and of a model of 4.5M parameters,
/// over weights in the layout of a checkpoint.
fn training(precision: Precision, peak: f64) {
    let gpt2 = [(768, 768), (768, 2304), (768, 3072), (3072, 768), (768, 50_257)].map(|shape| (1024, shape));
    let small = [(256, 256), (256, 768), (256, 1024), (1024, 256), (256, 4096)].map(|shape| (2048, shape));
    println!("training, {precision:?}: y = x wᵀ, dx = dy w, dw += dyᵀ x; peak {peak:.0} GFLOP/s");
    for (rows, (k, n)) in gpt2.into_iter().chain(small) {
        let (x, w, dy) = (noise(rows * k), noise(n * k), noise(rows * n));
        let (mut y, mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; rows * k], vec![0.0; n * k]);
        let [x, w, dy] = [Matrix::new(&x, rows, k), Matrix::new(&w, n, k), Matrix::new(&dy, rows, n)];
        let seconds = [
            best(|| gemm(x, w, None, MatrixMut::new(&mut y, rows, n), precision)),
            best(|| gemm(dy, w.transposed(), None, MatrixMut::new(&mut dx, rows, k), precision)),
            best(|| {
                gemm_add(dy.transposed(), x.transposed(), MatrixMut::new(&mut dw, n, k), precision);
            }),
        ];
        let shares = seconds.map(|s| 2e-7 * (rows * n * k) as f64 / s / peak);
        println!(
            "{:32} {:6.1} % {:6.1} % {:6.1} %",
            format!("{rows} x {k} -> {n}"),
            shares[0],
            shares[1],
            shares[2]
        );
    }
}

/// The products of a prefill, as the model goes through them: every weight comes from memory.
fn all_layers(name: &str, element: Element, shapes: &[(usize, usize)], peak: f64) {
    let floats = shapes.iter().map(|&(n, k)| Panels::floats(element, n, k).unwrap()).sum();
    let arena = Arena::with_capacity(floats).unwrap();
    let pack =
        |&(n, k): &(usize, usize)| arena.panels(element, n, k, |i, row| row.fill(i as f32 * 1e-3)).unwrap();
    let matrices: Vec<Panels> = shapes.iter().map(pack).collect();
    let (a, mut out) = (noise(512 * 3072), vec![0.0; 512 * 3072]);
    let seconds = best(|| {
        for m in &matrices {
            multiply(&a[..512 * m.k], 512, m, &mut out[..512 * m.n]);
        }
    });
    let operations: usize = shapes.iter().map(|(n, k)| 2 * 512 * n * k).sum();
    let speed = operations as f64 / seconds / 1e9;
    println!("{name:46} {speed:8.1} GFLOP/s {:5.1} %", 100.0 * speed / peak);
}

/// One decode step's weights of SmolLM2-135M, once through, as the model goes through them.
fn gemv(element: Element, bandwidth: f64) {
    let layer = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
    let shapes: Vec<(usize, usize)> = layer.repeat(30).into_iter().chain([(49_152, 576)]).collect();
    let floats: usize = shapes.iter().map(|&(n, k)| Panels::floats(element, n, k).unwrap()).sum();
    let start = Instant::now();
    let arena = Arena::with_capacity(floats).unwrap();
    let pack =
        |&(n, k): &(usize, usize)| arena.panels(element, n, k, |i, row| row.fill(i as f32 * 1e-3)).unwrap();
    let matrices: Vec<Panels> = shapes.iter().map(pack).collect();
    println!("{:38} {:8.1} ms", "packing 135M weights", start.elapsed().as_secs_f64() * 1e3);
    for rows in [1, 2, 5, 8] {
        let a = noise(rows * 1536);
        let mut out = vec![0.0; rows * 49_152];
        let seconds = best(|| {
            for m in &matrices {
                multiply(&a[..rows * m.k], rows, m, &mut out[..rows * m.n]);
            }
        });
        let speed = (floats * 4) as f64 / seconds / 1e9;
        println!(
            "{:38} {:8.1} GB/s {:5.1} % {:6.2} ms",
            format!("gemv {element:?} all of SmolLM2, {rows} rows"),
            speed,
            100.0 * speed / bandwidth,
            seconds * 1e3
        );
    }
}

/// As many layers as a model has, so that a step's keys and values come from memory.
fn attention(name: &str, heads: Heads, dtype: KvDtype, rows: usize, past: usize, peak: f64, bandwidth: f64) {
    let layers = if rows == 1 { 30 } else { 2 };
    let Heads { heads: count, kv_heads, head_dim, .. } = heads;
    let len = past + rows;
    let mut pool = KvPool::new(&vec![KvShape { heads: kv_heads, head_dim }; layers], dtype);
    let seq = pool.start();
    pool.reserve(seq, len).unwrap();
    let width = kv_heads * head_dim;
    let some = noise(len * width);
    let kv = HeadRows { data: &some, stride: width, offset: 0 };
    let start = Instant::now();
    for layer in 0..layers {
        pool.write(layer, [(seq, 0, 0..len)].into_iter(), kv, kv);
    }
    let write = start.elapsed().as_secs_f64() / layers as f64;
    let q = noise(rows * count * head_dim);
    let mut out = vec![0.0; q.len()];
    let queries = HeadRows { data: &q, stride: count * head_dim, offset: 0 };
    let blocks: Vec<Vec<&[u8]>> = (0..layers).map(|layer| pool.layer(seq, layer).collect()).collect();
    let seconds = best(|| {
        for blocks in &blocks {
            let items = [Item {
                row: 0,
                rows,
                first_position: past,
                blocks,
                kv_len: len,
                causal: true,
                window: None,
                bias: None,
            }];
            attend(heads, dtype, &items, queries, &mut out);
        }
    });
    let pairs = rows * past + rows * (rows + 1) / 2;
    let speed = (4 * pairs * count * head_dim * layers) as f64 / seconds / 1e9;
    let bytes = (len * pool.bytes_per_position()) as f64 / seconds / 1e9;
    println!(
        "{name:50} {speed:7.1} GFLOP/s {:5.1} % {bytes:6.1} GB/s {:5.1} % {:8.1} us a layer, {:.0} us to write",
        100.0 * speed / peak,
        100.0 * bytes / bandwidth,
        seconds * 1e6 / layers as f64,
        write * 1e6,
    );
}

/// The backward kernels of a training step of GPT-2 124M on 4 sequences of 256 tokens.
fn gradients(peak: f64, bandwidth: f64) {
    let (rows, width, vocab) = (1024, 768, 50_257);
    let heads = Heads { heads: 12, kv_heads: 12, head_dim: 64, scale: 0.125 };
    let mask = Mask { causal: true, window: None };
    let span = |i: usize| Span { queries: 256 * i..256 * (i + 1), keys: 256 * i..256 * (i + 1) };
    let spans: Vec<Span> = (0..4).map(span).collect();
    let qkv = noise(rows * 3 * width);
    let inputs = [0, 1, 2].map(|i| HeadRows { data: &qkv, stride: 3 * width, offset: i * width });
    let [q, k, v] = inputs;
    let (x, dy, weight) = (noise(rows * width), noise(rows * width), noise(width));
    let (mut out, mut log_sums) = (vec![0.0; rows * width], vec![0.0; rows * 12]);
    let mut dqkv = vec![0.0; rows * 3 * width];

    let forward = best(|| attend_rows(heads, mask, &spans, q, k, v, &mut out, &mut log_sums));
    let backward = best(|| {
        let gradients = HeadRowsMut::columns(&mut dqkv, 3 * width, [width; 3]);
        attend_backward(heads, mask, &spans, inputs, &out, &log_sums, &dy, gradients);
    });
    // Two products forward, and five backward, over the pairs that see each other.
    let product = 4.0 * (256.0 * 257.0 / 2.0) * 2.0 * width as f64;
    for (name, products, seconds) in [("forward", 2.0, forward), ("backward", 5.0, backward)] {
        let speed = products * product / seconds / 1e9;
        let name = format!("gradients attention {name}");
        println!("{name:32} {:8.1} us {:5.1} % of peak", seconds * 1e6, 100.0 * speed / peak);
    }

    let show = |name: &str, floats: usize, seconds: f64| {
        let speed = (floats * 4) as f64 / seconds / 1e9;
        println!("{name:32} {:8.1} us {speed:6.1} GB/s of {bandwidth:.1}", seconds * 1e6);
    };
    let mut dx = vec![0.0; rows * width];
    let (mut dweight, mut dbias) = (vec![0.0; width], vec![0.0; width]);
    let seconds = best(|| {
        let sums = (Some(&mut dweight[..]), Some(&mut dbias[..]));
        layer_norm_backward(&x, width, &weight, 1e-5, &dy, &mut dx, sums.0, sums.1);
    });
    show("gradients layer_norm", 3 * rows * width, seconds);
    for act in [activation::Activation::GeluTanh, activation::Activation::Gelu, activation::Activation::Silu]
    {
        let seconds = best(|| {
            // Else the product of many runs would become subnormal, and slow.
            dx.copy_from_slice(&dy);
            activation::apply_backward(act, &x, &mut dx);
        });
        show(&format!("gradients {act:?}"), 5 * rows * width, seconds);
    }
    let keys: Vec<RowKey> = (0..rows as u32).map(|position| RowKey { sequence: 0, position }).collect();
    let seconds = best(|| {
        dx.copy_from_slice(&dy);
        dropout(&mut dx, width, 0.1, Philox::new(1), &keys);
    });
    show("gradients dropout", 4 * rows * width, seconds);
    let labels: Vec<i32> = (0..256).collect();
    let (mut logits, mut losses) = (noise(256 * vocab), vec![0.0; 256]);
    let seconds = best(|| cross_entropy(&mut logits, vocab, &labels, 0.0, 1e-3, &mut losses));
    show("gradients cross_entropy, 256 rows", 2 * 256 * vocab, seconds);

    let gradient = noise(40 << 20);
    let [mut p, mut m, mut v] = [0; 3].map(|_| vec![0.0; 40 << 20]);
    let adam = AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3 };
    show("gradients norm", 40 << 20, best(|| _ = black_box(sum_of_squares(&gradient))));
    let seconds = best(|| adam.update(0.5, &gradient, &mut p, &mut m, &mut v));
    show("gradients adamw", 7 * (40 << 20), seconds);
}

fn row_wise(bandwidth: f64) {
    let (rows, width) = (512, 576);
    let (x, weight) = (noise(rows * width), noise(width));
    let mut out = vec![0.0; rows * width];
    let mut show = |name: &str, floats: usize, job: &mut dyn FnMut(&mut [f32])| {
        let seconds = best(|| job(&mut out));
        let speed = (floats * 4) as f64 / seconds / 1e9;
        println!("{name:32} {:8.1} us {speed:6.1} GB/s of {bandwidth:.1}", seconds * 1e6);
    };
    let floats = 2 * rows * width;
    show("row-wise layer_norm", floats, &mut |out| layer_norm(&x, width, &weight, None, 1e-5, out));
    show("row-wise rms_norm", floats, &mut |out| rms_norm(&x, width, &weight, 1e-5, out));
    show("row-wise softmax", floats, &mut |out| softmax(out, width));
    show("row-wise silu", floats, &mut |out| activation::apply(activation::Activation::Silu, out));
    show("row-wise gelu", floats, &mut |out| activation::apply(activation::Activation::Gelu, out));
    show("row-wise gelu_tanh", floats, &mut |out| {
        activation::apply(activation::Activation::GeluTanh, out);
    });
}
