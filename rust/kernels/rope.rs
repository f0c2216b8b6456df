//! Rotary position embedding (Su et al. 2021).

use crate::kernels::rows_per_chunk;
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads;

/// `x [rows, row_stride]`, in place; `cos, sin [positions, rotary_dim / 2]`, `positions [rows]`.
///
/// In each row, head h of `heads` lies at `head_offset + h · head_dim`; its first `rotary_dim`
/// elements are turned by halves, as Transformers' `rotate_half` does: with i < rotary_dim / 2 and
/// j = i + rotary_dim / 2,
///
/// ```text
/// x[i], x[j] = x[i] cos[p, i] − x[j] sin[p, i], x[j] cos[p, i] + x[i] sin[p, i]
/// ```
#[allow(clippy::too_many_arguments)]
pub fn rope(
    x: &mut [f32],
    row_stride: usize,
    head_offset: usize,
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
) {
    let angles = Angles { cos, sin, positions, back: false };
    turn(x, row_stride, head_offset, heads, head_dim, rotary_dim, angles);
}

/// The gradient at the input of [`rope`] from that at its output, in place: turned back by the same angles.
#[allow(clippy::too_many_arguments)]
pub fn rope_backward(
    dx: &mut [f32],
    row_stride: usize,
    head_offset: usize,
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
) {
    let angles = Angles { cos, sin, positions, back: true };
    turn(dx, row_stride, head_offset, heads, head_dim, rotary_dim, angles);
}

struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    positions: &'a [u32],
    back: bool,
}

fn turn(
    x: &mut [f32],
    row_stride: usize,
    head_offset: usize,
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    Angles { cos, sin, positions, back }: Angles<'_>,
) {
    assert!(rotary_dim <= head_dim && rotary_dim.is_multiple_of(2) && cos.len() == sin.len());
    assert!(head_offset + heads * head_dim <= row_stride && x.len() == positions.len() * row_stride);
    let rows = rows_per_chunk(heads * head_dim);
    threads::for_each_mut(x, rows * row_stride, |i, x| {
        let positions = &positions[i * rows..];
        for (row, &p) in x.chunks_exact_mut(row_stride).zip(positions) {
            let half = rotary_dim / 2;
            let at = p as usize * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            let heads = &mut row[head_offset..head_offset + heads * head_dim];
            dispatch(Rotate { heads, head_dim, cos, sin, back });
        }
    });
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    /// By the negative angles.
    back: bool,
}

impl Op for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        let sign = s.splat(if self.back { -1.0 } else { 1.0 });
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let (left, right) = head[..2 * half].split_at_mut(half);
            let angles = self.cos.chunks(LANES).zip(self.sin.chunks(LANES));
            for ((a, b), (cos, sin)) in left.chunks_mut(LANES).zip(right.chunks_mut(LANES)).zip(angles) {
                let (x, y, cos, sin) = (s.get(a), s.get(b), s.get(cos), s.mul(s.get(sin), sign));
                s.put(a, s.sub(s.mul(x, cos), s.mul(y, sin)));
                s.put(b, s.add(s.mul(y, cos), s.mul(x, sin)));
            }
        }
    }
}
