//! How a matrix is stored for inference: as panels, in one arena in the order of execution; and the
//! memory under it.

mod arena;
mod pages;
mod panels;
mod quantized;

pub use arena::Arena;
pub use pages::{Held, Piece};
pub use panels::{Element, Panels};
pub use quantized::{PanelLayout, Quantized, UNIT, place};
