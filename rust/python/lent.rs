//! Floats that Rust lends to NumPy, and uses again once they are given back.

use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;

use numpy::ndarray::ArrayViewMut1;
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::locked::Locked;
use crate::error::{Error, Result};
use crate::weights::{Held, Piece};

/// A value that calls use one after the other, and some of whose floats may be lent to NumPy as one writable
/// array. Meanwhile everybody who wants the value gets a `RuntimeError`.
pub struct Lendable<T>(Locked<State<T>>);

struct State<T> {
    value: T,
    lent: Option<Py<PyArray1<f32>>>,
}

/// The value, which nobody else uses and which is not lent.
pub struct Guard<'a, T>(MutexGuard<'a, State<T>>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.value
    }
}

/// Keeps lent memory for as long as an array shows it.
#[pyclass(frozen)]
struct Memory {
    _held: Held,
}

impl<T: Send> Lendable<T> {
    pub fn new(value: T) -> Self {
        Lendable(Locked::new(State { value, lent: None }))
    }

    /// Waits for the value. The caller must not hold the GIL: whoever has the value may be waiting for it.
    ///
    /// Errors: the value is lent; see also [`Locked::lock`].
    pub fn lock(&self, name: &str) -> Result<Guard<'_, T>> {
        let state = self.0.lock(name)?;
        match state.lent {
            None => Ok(Guard(state)),
            Some(_) => Err(Error::Python(PyRuntimeError::new_err(format!(
                "{name}: found its floats lent as an array, expected them given back: \
                 leave the `with` block of the array first"
            )))),
        }
    }

    /// Lends the floats of `piece` of the value, until [`Self::give_back`]: a contiguous array that Python may
    /// write to. It keeps the memory even when the value is gone.
    ///
    /// Errors: as [`Self::lock`]; what `piece` finds.
    pub fn lend<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        piece: impl FnOnce(&mut T) -> Result<&mut Piece> + Send,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let lent = py.detach(|| {
            let mut guard = self.lock(name)?;
            Python::attach(|py| {
                let piece = piece(&mut guard)?;
                let memory = Bound::new(py, Memory { _held: piece.held() })?.into_any();
                // SAFETY: `memory` keeps the floats, and `lock` lets nobody use them until the array is given
                // back; then it cannot be written to any more.
                let array =
                    unsafe { PyArray1::borrow_from_array(&ArrayViewMut1::from(&mut **piece), memory) };
                guard.0.lent = Some(array.clone().unbind());
                Ok::<_, PyErr>(array.unbind())
            })
        })?;
        Ok(lent.into_bound(py))
    }

    /// Takes the floats back, and makes the array read-only. Does nothing if they are not lent.
    ///
    /// Errors: see [`Locked::lock`]; Rust code elsewhere is using the array.
    pub fn give_back(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| {
            let mut state = self.0.lock(name)?;
            Python::attach(|py| {
                if let Some(array) = &state.lent {
                    array.bind(py).try_readwrite()?.make_nonwriteable();
                    state.lent = None;
                }
                Ok(())
            })
        })
    }
}
