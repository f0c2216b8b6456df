//! Rows of scores to probabilities.

fn log_sum_exp_from(row: &[f32], best: f32) -> f32 {
    let sum: f32 = row.iter().map(|&x| (x - best).exp()).sum();
    best + sum.ln()
}

pub fn log_sum_exp(row: &[f32]) -> f32 {
    log_sum_exp_from(row, row.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

pub fn log_softmax(row: &[f32], out: &mut [f32]) {
    let total = log_sum_exp(row);
    out.iter_mut().zip(row).for_each(|(out, &x)| *out = x - total);
}

pub fn softmax(row: &[f32], out: &mut [f32]) {
    let total = log_sum_exp(row);
    out.iter_mut().zip(row).for_each(|(out, &x)| *out = (x - total).exp());
}
