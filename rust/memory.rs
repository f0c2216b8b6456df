//! Memory on huge pages.

use std::mem::MaybeUninit;

/// From so many bytes on a huge page, 2 MB, is worth asking for.
const LARGE: usize = 1 << 20;

/// Asks the system for huge pages behind room that is yet to be touched: each page of 4 KB would cost an
/// interruption, which takes longer than filling it.
pub fn prefer_huge_pages<T>(room: &mut Vec<T>) {
    let spare = room.spare_capacity_mut();
    if size_of_val(spare) >= LARGE {
        advise_huge_pages(spare);
    }
}

/// The advice alone, on the whole pages of some memory.
pub fn advise_huge_pages<T>(memory: &[MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 12;
        let start = memory.as_ptr().cast::<u8>();
        let before = start.align_offset(PAGE);
        let pages = size_of_val(memory).saturating_sub(before) & !(PAGE - 1);
        // SAFETY: advice on pages that lie in the slice changes no value; a refusal only costs speed.
        unsafe {
            libc::madvise(start.wrapping_add(before).cast_mut().cast(), pages, libc::MADV_HUGEPAGE);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// A vector of so many equal values, on huge pages if it is large.
pub fn filled<T: Copy>(value: T, len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    prefer_huge_pages(&mut values);
    values.resize(len, value);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_vectors_hold_what_they_should() {
        for len in [0, 3, LARGE / 8 - 1, LARGE / 8, LARGE] {
            assert!(filled(7u64, len).iter().all(|&value| value == 7));
            assert_eq!(filled(7u64, len).len(), len);
        }
    }
}
