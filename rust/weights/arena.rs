//! One allocation for all matrices of a model.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pages::Pages;
use crate::error::{Error, Result};

/// Room for floats, all zero, that is handed out front to back and written once. The system gives
/// zeroed pages when they are first touched, which the threads that pack do at the same time.
#[derive(Debug)]
pub struct Arena {
    pages: Pages,
    used: AtomicUsize,
}

impl Arena {
    /// Room for `floats` floats (see [`super::Panels::floats`]). `Error::Memory` if the system has
    /// no such room.
    pub fn with_capacity(floats: usize) -> Result<Arc<Arena>> {
        Ok(Arc::new(Arena { pages: Pages::zeroed(floats, "the weights")?, used: AtomicUsize::new(0) }))
    }

    /// Hands out the next `floats` floats, not yet written; the offset of the first.
    pub(super) fn take(&self, floats: usize) -> Result<usize> {
        let capacity = self.pages.floats();
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(floats).filter(|end| *end <= capacity)
            })
            .map_err(|used| {
                Error::argument(
                    "arena",
                    format!("{used} floats in use and {floats} more"),
                    format!("at most {capacity} in all"),
                )
            })
    }

    /// The float at `offset ≤ capacity`. Ranges are handed out once, and are read only through the types
    /// that were given them.
    pub(super) fn at(&self, offset: usize) -> *mut f32 {
        self.pages.at(offset)
    }
}
