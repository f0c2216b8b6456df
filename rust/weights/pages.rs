//! Floats on huge pages where the system has them: what is read once a step from end to end would, with
//! pages of 4 KiB, miss the TLB on each of them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::memory::advise_huge_pages;

/// The size of a huge page, to which the first float is aligned.
const HUGE_PAGE: usize = 2 << 20;

/// Room for floats, all zero. The system gives a page when it is first touched, so what is never touched
/// takes no memory.
#[derive(Debug)]
pub(super) struct Pages {
    allocation: NonNull<u8>,
    start: NonNull<f32>,
    layout: Layout,
    floats: usize,
}

// SAFETY: the pages own their memory, and give only raw pointers to it: who uses one says why.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// `Error::Memory`, about `what`, if the system has no such room.
    pub fn zeroed(floats: usize, what: &str) -> Result<Pages> {
        let memory =
            || Error::Memory { what: what.to_owned(), bytes: floats.saturating_mul(size_of::<f32>()) };
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
        // SAFETY: the layout has so many floats from here on.
        advise_huge_pages(unsafe { from_raw_parts(start.as_ptr().cast::<MaybeUninit<f32>>(), floats) });
        Ok(Pages { allocation, start, layout, floats })
    }

    /// How many floats there is room for.
    pub fn floats(&self) -> usize {
        self.floats
    }

    /// The float at `offset ≤ floats`.
    pub fn at(&self, offset: usize) -> *mut f32 {
        assert!(offset <= self.floats);
        // SAFETY: within the allocation.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

/// Some floats of pages that other pieces share; no two pieces share a float.
#[derive(Debug)]
pub struct Piece {
    pages: Arc<Pages>,
    offset: usize,
    len: usize,
}

/// Keeps the memory of a piece, whoever else lets go of it.
#[derive(Debug)]
pub struct Held {
    _pages: Arc<Pages>,
}

impl Piece {
    /// One piece of `len` floats, all zero, alone on its pages. Errors as [`Self::several`].
    pub fn new(len: usize, what: &str) -> Result<Piece> {
        Ok(Piece { pages: Arc::new(Pages::zeroed(len, what)?), offset: 0, len })
    }

    /// As long as what this returns lives, so does the memory.
    pub fn held(&self) -> Held {
        Held { _pages: self.pages.clone() }
    }

    /// `count` pieces of `len` floats, all zero, one after the other in memory. `Error::Memory`, about
    /// `what`, if the system has no such room.
    pub fn several(count: usize, len: usize, what: &str) -> Result<impl DoubleEndedIterator<Item = Piece>> {
        let pages = Arc::new(Pages::zeroed(count.saturating_mul(len), what)?);
        Ok((0..count).map(move |i| Piece { pages: pages.clone(), offset: i * len, len }))
    }
}

impl Piece {
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: floats are bytes.
        unsafe { from_raw_parts(self.as_ptr().cast(), size_of_val(&**self)) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = size_of_val(&**self);
        // SAFETY: floats are bytes, and any bytes are floats.
        unsafe { from_raw_parts_mut(self.as_mut_ptr().cast(), len) }
    }
}

impl Deref for Piece {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: within the pages, zeroed when allocated, and this piece's alone.
        unsafe { from_raw_parts(self.pages.at(self.offset), self.len) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { from_raw_parts_mut(self.pages.at(self.offset), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zero_and_apart() {
        let mut pieces: Vec<Piece> = Piece::several(3, 5, "a test").unwrap().collect();
        assert!(pieces.iter().all(|piece| **piece == [0.0; 5]));
        for (i, piece) in pieces.iter_mut().enumerate() {
            piece.fill(i as f32);
        }
        pieces.remove(1);
        assert_eq!([&*pieces[0], &*pieces[1]], [[0.0; 5], [2.0; 5]]);
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(matches!(Piece::several(1 << 40, 1 << 40, "a test").err(), Some(Error::Memory { .. })));
    }
}
