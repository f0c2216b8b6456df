//! One allocation for all matrices of a model, on huge pages where the system has them: a decode
//! step reads every weight once, and with 4 KiB pages the TLB would miss on each page of it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// The size of a huge page, to which the first float is aligned.
const HUGE_PAGE: usize = 2 << 20;

/// Room for floats, all zero, that is handed out front to back and written once. The system gives
/// zeroed pages when they are first touched, which the threads that pack do at the same time.
#[derive(Debug)]
pub struct Arena {
    allocation: NonNull<u8>,
    start: NonNull<f32>,
    layout: Layout,
    capacity: usize,
    used: AtomicUsize,
}

// SAFETY: the arena owns its memory; ranges are handed out once, and are read only through the
// types that were given them.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Room for `floats` floats (see [`super::Panels::floats`]). `Error::Memory` if the system has
    /// no such room.
    pub fn with_capacity(floats: usize) -> Result<Arc<Arena>> {
        let memory =
            || Error::Memory { what: "the weights".into(), bytes: floats.saturating_mul(size_of::<f32>()) };
        // Room to align by hand: an aligned allocation that is also zeroed would be written to.
        let layout = floats
            .checked_mul(size_of::<f32>())
            .and_then(|bytes| bytes.checked_add(HUGE_PAGE))
            .and_then(|bytes| Layout::from_size_align(bytes, align_of::<f32>()).ok())
            .ok_or_else(memory)?;
        // SAFETY: the layout is not empty.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(memory)?;
        let padding = allocation.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: less than HUGE_PAGE bytes on, which the layout has beyond the floats.
        let start = unsafe { allocation.add(padding) }.cast::<f32>();
        #[cfg(target_os = "linux")]
        // SAFETY: advice on our own memory; a refusal only costs speed.
        unsafe {
            libc::madvise(start.as_ptr().cast(), floats * size_of::<f32>(), libc::MADV_HUGEPAGE);
        }
        Ok(Arc::new(Arena { allocation, start, layout, capacity: floats, used: AtomicUsize::new(0) }))
    }

    /// Hands out the next `floats` floats, not yet written; the offset of the first.
    pub(super) fn take(&self, floats: usize) -> Result<usize> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(floats).filter(|end| *end <= self.capacity)
            })
            .map_err(|used| {
                Error::argument(
                    "arena",
                    format!("{used} floats in use and {floats} more"),
                    format!("at most {} in all", self.capacity),
                )
            })
    }

    /// The float at `offset ≤ capacity`.
    pub(super) fn at(&self, offset: usize) -> *mut f32 {
        assert!(offset <= self.capacity);
        // SAFETY: within the allocation.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `with_capacity`.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}
