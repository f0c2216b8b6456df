//! Kernels on NumPy arrays, and what they run on.

use pyo3::prelude::*;

use crate::error::Result;
use crate::simd::{self, Isa};
use crate::threads;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    simd::init()?;
    threads::init()?;
    module.add_function(wrap_pyfunction!(isa, module)?)?;
    module.add_function(wrap_pyfunction!(available_isas, module)?)?;
    module.add_function(wrap_pyfunction!(set_isa, module)?)?;
    module.add_function(wrap_pyfunction!(thread_count, module)?)?;
    Ok(())
}

/// The instruction set that kernels run on.
#[pyfunction]
fn isa() -> &'static str {
    simd::current().name()
}

/// The instruction sets of this machine, the fastest last.
#[pyfunction]
fn available_isas() -> Vec<&'static str> {
    simd::available().into_iter().map(Isa::name).collect()
}

/// Makes all later kernels of the process run on the named instruction set.
#[pyfunction]
fn set_isa(name: &str) -> Result<()> {
    simd::set(Isa::from_name(name)?);
    Ok(())
}

/// How many threads the pool has, the calling one among them.
#[pyfunction]
fn thread_count() -> usize {
    threads::size()
}
