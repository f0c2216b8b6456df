//! Everything PyO3: convert, release the GIL, delegate, map the error.

use pyo3::prelude::*;

pub mod formats;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    formats::register(module)?;
    Ok(())
}
