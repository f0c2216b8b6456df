//! Buffers that calls take and give back, from any thread.
//!
//! No call ever waits for a lock. A child of `fork` has none of the threads that held one at that moment,
//! so in it such a lock stays shut for ever, and what it guards counts as taken.

use std::sync::{Mutex, MutexGuard, TryLockError};

/// As many are kept; when more calls than that run at once, theirs are dropped afterwards.
const KEPT: usize = 64;

pub struct Spares<T> {
    slots: [Mutex<Option<T>>; KEPT],
}

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Spares { slots: std::array::from_fn(|_| Mutex::new(None)) }
    }
}

impl<T: Default> Spares<T> {
    /// One that was given back, or a new one.
    pub fn take(&self) -> T {
        self.slots.iter().filter_map(open).find_map(|mut slot| slot.take()).unwrap_or_default()
    }

    pub fn give(&self, spare: T) {
        if let Some(mut slot) = self.slots.iter().filter_map(open).find(|slot| slot.is_none()) {
            *slot = Some(spare);
        }
    }
}

/// What a lock guards, if nobody holds it.
fn open<T>(slot: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match slot.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_taken_again() {
        let spares = Spares::default();
        assert_eq!(spares.take(), 0);
        spares.give(1);
        spares.give(2);
        assert_eq!([spares.take(), spares.take(), spares.take()], [1, 2, 0]);
        (0..2 * KEPT).for_each(|_| spares.give(3));
        assert_eq!((0..2 * KEPT).map(|_| spares.take()).sum::<usize>(), 3 * KEPT);
    }

    #[test]
    fn a_lock_that_is_never_opened_holds_nobody_up() {
        let spares = Spares::default();
        spares.give(1);
        let _held = spares.slots[0].lock().unwrap();
        assert_eq!(spares.take(), 0);
        spares.give(2);
        assert_eq!(spares.take(), 2);
    }
}
