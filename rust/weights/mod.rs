//! How a matrix is stored for inference: as panels, in one arena in the order of execution.

mod arena;
mod panels;

pub use arena::Arena;
pub use panels::Panels;
