//! The gradient of looking rows up in a table.

use std::slice::{from_raw_parts, from_raw_parts_mut};

use crate::simd::{LANES, Op, Simd, dispatch};
use crate::threads::{self, SendPtr};

/// Columns that one thread adds at a time: four lines of a cache in every row.
const COLUMNS: usize = 4 * LANES;

/// `dy [rows, width]`, `indices [rows]`, `table [n, width]`: `table[indices[r]] += dy[r]`, for r in order. Every
/// index is less than n.
pub fn add_to_rows(dy: &[f32], width: usize, indices: &[u32], table: &mut [f32]) {
    assert!(dy.len() == indices.len() * width);
    let rows = table.len() / width.max(1);
    assert!(indices.iter().all(|index| (*index as usize) < rows));
    let table = SendPtr(table.as_mut_ptr());
    threads::for_each(width.div_ceil(COLUMNS), |i| {
        dispatch(Add { dy, width, indices, table, first: i * COLUMNS });
    });
}

/// Some columns.
struct Add<'a> {
    dy: &'a [f32],
    width: usize,
    indices: &'a [u32],
    table: SendPtr<f32>,
    first: usize,
}

impl Op for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = COLUMNS.min(self.width - self.first);
        for (r, &index) in self.indices.iter().enumerate() {
            let from = r * self.width + self.first;
            // SAFETY: a row of the table (checked by `add_to_rows`); these columns are this chunk's alone.
            let (dy, row) = unsafe {
                let to = index as usize * self.width + self.first;
                (
                    from_raw_parts(self.dy.as_ptr().add(from), len),
                    from_raw_parts_mut(self.table.get().add(to), len),
                )
            };
            for (dy, x) in dy.chunks(LANES).zip(row.chunks_mut(LANES)) {
                let sum = s.add(s.get(x), s.get(dy));
                s.put(x, sum);
            }
        }
    }
}
