//! A lock that a fork cannot leave shut for ever.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// A value that calls use one after the other. After a fork only the thread that forked goes on in the child:
/// what another thread was using then stays locked there, half changed, and is an error to use.
///
/// A call that panicked leaves the value usable; it must be whole at every point where that can be.
pub struct Locked<T> {
    value: Mutex<T>,
    /// The process of whoever used the value last.
    process: AtomicU32,
}

impl<T> Locked<T> {
    pub fn new(value: T) -> Self {
        Locked { value: Mutex::new(value), process: AtomicU32::new(process::id()) }
    }

    /// Waits for the value.
    ///
    /// Errors: a thread that this process does not have was using it when this process was forked.
    pub fn lock(&self, name: &str) -> Result<MutexGuard<'_, T>> {
        // Between locking and noting its process somebody here may look like somebody of the parent.
        const TRIES: usize = 50;
        for _ in 0..TRIES {
            match self.value.try_lock() {
                Ok(value) => return Ok(self.note(value)),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(self.note(poisoned.into_inner())),
                Err(TryLockError::WouldBlock) if self.process.load(Ordering::Relaxed) == process::id() => {
                    let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
                    return Ok(self.note(value));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            }
        }
        Err(Error::argument(
            name,
            "in use by another thread when this process was forked",
            "one that was idle then, or one loaded in this process",
        ))
    }

    fn note<'a>(&self, value: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.process.store(process::id(), Ordering::Relaxed);
        value
    }
}
