//! The thread pool.

/// Runs `job(0) … job(chunks - 1)`, each exactly once.
pub fn for_each(chunks: usize, job: impl Fn(usize) + Sync) {
    (0..chunks).for_each(job);
}
