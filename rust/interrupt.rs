//! Ctrl-C during long calls: the GIL is released, so signals are looked for by asking.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::error::{Error, Result};

/// How long a call may run before it asks again.
const INTERVAL: Duration = Duration::from_millis(50);

thread_local! {
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Raises what Python's signal handlers raise (`KeyboardInterrupt` by default), at most once every
/// 50 ms; costs a clock reading otherwise. Without an interpreter (Rust tests) it does nothing.
pub fn check() -> Result<()> {
    let now = Instant::now();
    let due = LAST.with(|last| match last.get() {
        Some(then) if now.duration_since(then) < INTERVAL => false,
        _ => {
            last.set(Some(now));
            true
        }
    });
    if !due {
        return Ok(());
    }
    Python::try_attach(|py| py.check_signals().map_err(Error::Python)).unwrap_or(Ok(()))
}
