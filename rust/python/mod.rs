//! Everything PyO3: convert, release the GIL, delegate, map the error.

use pyo3::prelude::*;

pub mod flat;
pub mod formats;
pub mod generation;
pub mod gradients;
mod lent;
mod locked;
pub mod model;
pub mod ops;
pub mod optimizer;
mod text;
pub mod tokenizer;
pub mod train;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    formats::register(module)?;
    ops::register(module)?;
    gradients::register(module)?;
    tokenizer::register(module)?;
    train::register(module)?;
    flat::register(module)?;
    optimizer::register(module)?;
    model::register(module)?;
    generation::register(module)?;
    Ok(())
}
