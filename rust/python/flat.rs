//! Flat arrays of an optimiser's state: moments, momenta, averages.

use numpy::PyArray1;
use pyo3::prelude::*;

use super::lent::{Guard, Lendable};
use crate::error::{Error, Result};
use crate::weights::Piece;

/// What errors call it.
const NAME: &str = "flat array";

/// Some float32 numbers, all zero at first, on huge pages where the system has them. They are NumPy's between
/// `lend` and `give_back`, and else Rust's.
#[pyclass(module = "llmcore._core", frozen)]
pub struct Flat {
    len: usize,
    floats: Lendable<Piece>,
}

impl Flat {
    /// The floats of several arrays, which no other call uses meanwhile. The caller must not hold the GIL.
    ///
    /// Errors: one is lent, or given twice.
    pub fn lock<const N: usize>(flats: [&Flat; N]) -> Result<[Guard<'_, Piece>; N]> {
        // Always in the order of their addresses, so that no two calls wait for each other.
        let mut order: [usize; N] = std::array::from_fn(|i| i);
        order.sort_by_key(|i| std::ptr::from_ref(flats[*i]));
        let mut guards = [const { None }; N];
        for (place, i) in order.iter().enumerate() {
            if place > 0 && std::ptr::eq(flats[order[place - 1]], flats[*i]) {
                return Err(Error::argument(NAME, "the same one twice", "as many as there are arguments"));
            }
            guards[*i] = Some(flats[*i].floats.lock(NAME)?);
        }
        Ok(guards.map(|guard| guard.expect("every place was in the order")))
    }
}

#[pymethods]
impl Flat {
    /// Raises `MemoryError`.
    #[new]
    fn new(len: usize) -> PyResult<Self> {
        let piece = Piece::new(len, "the state of the optimiser")?;
        Ok(Flat { len, floats: Lendable::new(piece) })
    }

    fn __len__(&self) -> usize {
        self.len
    }

    /// All numbers as one writable array, until `give_back`; every other use raises `RuntimeError` meanwhile.
    fn lend<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        self.floats.lend(py, NAME, whole)
    }

    /// Ends the loan; the array that was lent is read-only from now on.
    fn give_back(&self, py: Python<'_>) -> PyResult<()> {
        self.floats.give_back(py, NAME)
    }
}

fn whole(piece: &mut Piece) -> Result<&mut Piece> {
    Ok(piece)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Flat>()
}
