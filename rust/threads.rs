//! The one thread pool.
//!
//! A call hands the pool a number of chunks. Every thread has a part of them, neighbours, that it claims one at
//! a time; then it helps with the parts of others. So where calls go over the same rows in the same order, what a
//! thread reads is mostly what it wrote, which matters where threads share no cache. Yet which thread runs a
//! chunk is left to chance, so a chunk's border and its result must depend on the input alone.
//!
//! # Protocol
//! One word, the *gate*, holds `slots << 16 | inside`: how many more workers may enter the current
//! job, and how many are in it. A caller (one at a time, under `callers`) writes the job, opens the
//! gate with as many slots as workers are wanted, works itself, then takes the slots away and waits
//! until nobody is inside. A worker enters by a compare-and-swap that moves one slot to `inside`;
//! only then does it read the job, which therefore cannot change or go away before it leaves.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::simd::{mxcsr, prefetch};

/// More threads than this are a mistake in `LLMCORE_THREADS`.
pub const MOST: usize = 1024;

const CACHE_LINE: usize = 64;

/// How long a thread spins before it parks: longer than the gap between two kernels of a decode
/// step, shorter than what another process would miss.
const SPIN: Duration = Duration::from_micros(50);

/// Runs `job(0) … job(chunks - 1)`, each exactly once, on the pool and the calling thread, and
/// returns when all are done. Inside a job it runs inline. A panic of a chunk reaches the caller.
pub fn for_each(chunks: usize, job: impl Fn(usize) + Sync) {
    let limit = LIMIT.get().unwrap_or(usize::MAX);
    if chunks <= 1 || limit == 1 || INSIDE.get() || size() == 1 {
        let _float_state = mxcsr::Default::enter();
        (0..chunks).for_each(job);
    } else {
        pool().for_each(chunks, limit, &job);
    }
}

/// Runs `job(i, piece i)` over the pieces of `chunk` elements that `data` falls into; the last may
/// be shorter.
pub fn for_each_mut<T: Send>(data: &mut [T], chunk: usize, job: impl Fn(usize, &mut [T]) + Sync) {
    let len = data.len();
    let chunk = chunk.max(1);
    let data = SendPtr(data.as_mut_ptr());
    for_each(len.div_ceil(chunk), |i| {
        let start = i * chunk;
        // SAFETY: pieces lie in `data`, do not overlap, and each index is claimed once.
        let piece = unsafe { std::slice::from_raw_parts_mut(data.get().add(start), chunk.min(len - start)) };
        job(i, piece);
    });
}

/// Says what the next call with much to read will read, a part of it by each thread: workers that wait for work ask
/// for the beginning of theirs meanwhile, as memory would be idle else. A hint, that changes no result.
pub fn soon(memory: &[u8]) {
    let pool = POOL.load(Ordering::Acquire);
    if !pool.is_null() {
        // SAFETY: a published pool is never freed.
        unsafe { &*pool }.soon.set(memory);
    }
}

/// A pointer that chunks share; who uses it says why its writes do not overlap.
pub(crate) struct SendPtr<T>(pub *mut T);

// SAFETY: a pointer is only a number; each use is justified where it is dereferenced.
unsafe impl<T: Send> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> Clone for SendPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// By method, so that closures capture the wrapper and not the pointer in it.
    #[inline(always)]
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

/// Runs `f` with at most `n` threads in every `for_each` that it calls (None: no limit).
pub fn with_limit<R>(n: Option<usize>, f: impl FnOnce() -> R) -> R {
    let _restore = Restore { cell: &LIMIT, before: LIMIT.replace(n.map(|n| n.max(1))) };
    f()
}

/// Runs `job(0) … job(threads - 1)` at the same time, on threads of their own, each kept to one processor of the process
/// where the system lets us: for measurements, which a thread that moves would spoil.
pub fn on_processors(threads: usize, job: impl Fn(usize) + Sync) {
    let processors = processors();
    std::thread::scope(|scope| {
        for i in 0..threads {
            let (job, processors) = (&job, &processors);
            scope.spawn(move || {
                if !processors.is_empty() {
                    keep_to(processors[i % processors.len()]);
                }
                job(i);
            });
        }
    });
}

/// The processors that the calling thread may run on, where the system says so.
fn processors() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a set of processors is plain bits, of which all zero is the empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes one set, and reads bits within it.
        unsafe {
            if libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) == 0 {
                return (0..libc::CPU_SETSIZE as usize).filter(|&i| libc::CPU_ISSET(i, &set)).collect();
            }
        }
    }
    Vec::new()
}

/// Keeps the calling thread to a processor, if the system lets us.
fn keep_to(processor: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: as in `processors`; the processor is one that it found.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = processor;
}

/// How many threads the pool has, the caller among them: `LLMCORE_THREADS`, or what the CPU quota
/// and the affinity of the process allow.
pub fn size() -> usize {
    match SIZE.load(Ordering::Relaxed) {
        0 => {
            // A bad value was reported by `init`; Rust programs that skip it get the default.
            let size = wanted_size().unwrap_or_else(|_| allowed());
            SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// Checks `LLMCORE_THREADS`; called at import, so that a bad value is an error there.
pub fn init() -> Result<()> {
    SIZE.store(wanted_size()?, Ordering::Relaxed);
    Ok(())
}

fn wanted_size() -> Result<usize> {
    let Some(value) = std::env::var_os("LLMCORE_THREADS") else { return Ok(allowed()) };
    let value = value.to_string_lossy();
    match value.parse() {
        Ok(n) if (1..=MOST).contains(&n) => Ok(n),
        _ => Err(Error::argument("LLMCORE_THREADS", format!("{value:?}"), format!("1 to {MOST}"))),
    }
}

/// Reads the affinity mask and the quotas of cgroup v1 and v2.
fn allowed() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST))
}

thread_local! {
    static LIMIT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether this thread is running a chunk.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Restore<T: Copy + 'static> {
    cell: &'static std::thread::LocalKey<Cell<T>>,
    before: T,
}

impl<T: Copy> Drop for Restore<T> {
    fn drop(&mut self) {
        self.cell.set(self.before);
    }
}

static SIZE: AtomicUsize = AtomicUsize::new(0);
static POOL: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());

/// The pool of this process; made by the first call, and again by the first call after a fork.
fn pool() -> &'static Pool {
    let mut pool = POOL.load(Ordering::Acquire);
    if pool.is_null() {
        forget_pool_in_forked_children();
        let made = Box::into_raw(Box::new(Pool::new(size())));
        match POOL.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                pool = made;
                // SAFETY: `made` was just allocated and is never freed.
                unsafe { &*made }.spawn();
            }
            Err(theirs) => {
                pool = theirs;
                // SAFETY: `made` lost the race; nobody else has seen it.
                drop(unsafe { Box::from_raw(made) });
            }
        }
    }
    // SAFETY: a published pool is never freed.
    unsafe { &*pool }
}

/// A forked child has only the thread that forked: the workers are gone, and a lock may be held by
/// one of them for ever. It starts afresh; the old pool's memory is left alone.
fn forget_pool_in_forked_children() {
    #[cfg(unix)]
    {
        static REGISTERED: AtomicBool = AtomicBool::new(false);
        unsafe extern "C" fn in_child() {
            POOL.store(ptr::null_mut(), Ordering::Release);
        }
        if !REGISTERED.swap(true, Ordering::AcqRel) {
            // SAFETY: the handler does one atomic store, which is allowed in a forked child.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        }
    }
}

const SLOT: u32 = 1 << 16;
const INSIDE_MASK: u32 = SLOT - 1;

struct Pool {
    callers: Mutex<()>,
    gate: AtomicU32,
    job: UnsafeCell<Job>,
    /// Of each part, one for every thread at most, the next chunk to be claimed.
    next: Vec<Next>,
    soon: Soon,
    workers: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Guards nothing but the two conditions below.
    parking: Mutex<()>,
    parked: AtomicUsize,
    wake: Condvar,
    caller_waits: AtomicBool,
    done: Condvar,
}

/// See [`soon`]: only addresses, that nobody follows.
#[derive(Default)]
struct Soon {
    start: AtomicUsize,
    len: AtomicUsize,
}

impl Soon {
    fn set(&self, memory: &[u8]) {
        self.start.store(memory.as_ptr().addr(), Ordering::Relaxed);
        self.len.store(memory.len(), Ordering::Relaxed);
    }
}

/// What a worker has asked for.
#[derive(Default)]
struct Asked {
    start: usize,
    at: usize,
    end: usize,
}

/// Bytes that a worker asks for at most: its L2 cache keeps them beside what it works on.
const MOST_ASKED: usize = 256 << 10;

/// Bytes that a worker asks for between two looks at the gate.
const ASKED_AT_ONCE: usize = 256;

impl Asked {
    /// Begins with part `thread` of `parts` of what is said to be read soon, unless that has begun.
    fn update(&mut self, soon: &Soon, thread: usize, parts: usize) {
        let (start, len) = (soon.start.load(Ordering::Relaxed), soon.len.load(Ordering::Relaxed));
        if start != self.start {
            let at = start.wrapping_add(len / parts * thread);
            *self = Asked { start, at, end: at.wrapping_add(MOST_ASKED.min(len / parts)) };
        }
    }

    fn go_on(&mut self) {
        if self.at < self.end {
            for line in (0..ASKED_AT_ONCE).step_by(CACHE_LINE) {
                prefetch(ptr::without_provenance::<u8>(self.at.wrapping_add(line)));
            }
            self.at += ASKED_AT_ONCE;
        }
    }
}

/// Alone on the lines of a cache that the machine fetches together.
#[derive(Default)]
#[repr(align(128))]
struct Next(AtomicUsize);

// SAFETY: `job` is written by the caller that holds `callers` while the gate is shut and empty, and
// read by workers inside the gate; the gate's Release store and Acquire swap order the two. What it
// points to is Sync.
unsafe impl Sync for Pool {}

#[derive(Clone, Copy)]
struct Job {
    run: unsafe fn(*const (), usize),
    data: *const (),
    chunks: usize,
    parts: usize,
}

impl Job {
    /// The first chunk of a part, and one past the last of the part before.
    fn start(&self, part: usize) -> usize {
        part * self.chunks / self.parts
    }
}

/// # Safety
/// `data` points to a live `F`.
unsafe fn call<F: Fn(usize) + Sync>(data: *const (), chunk: usize) {
    // SAFETY: the caller vouches for `data`.
    unsafe { (*data.cast::<F>())(chunk) }
}

/// Locks stay usable after a panic: what they guard is valid at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// For so many threads, the caller among them.
    fn new(threads: usize) -> Self {
        unsafe fn nothing(_: *const (), _: usize) {}
        let mut next = Vec::new();
        next.resize_with(threads, Next::default);
        Pool {
            callers: Mutex::new(()),
            gate: AtomicU32::new(0),
            job: UnsafeCell::new(Job { run: nothing, data: ptr::null(), chunks: 0, parts: 1 }),
            next,
            soon: Soon::default(),
            workers: AtomicUsize::new(0),
            panic: Mutex::new(None),
            parking: Mutex::new(()),
            parked: AtomicUsize::new(0),
            wake: Condvar::new(),
            caller_waits: AtomicBool::new(false),
            done: Condvar::new(),
        }
    }

    /// Starts workers; where the system grants fewer, the pool is smaller.
    fn spawn(&'static self) {
        for i in 1..self.next.len() {
            let name = format!("llmcore-{}", i - 1);
            let spawned = std::thread::Builder::new().name(name).spawn(move || self.work(i));
            if spawned.is_err() {
                break;
            }
            self.workers.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn for_each<F: Fn(usize) + Sync>(&self, chunks: usize, limit: usize, job: &F) {
        let _turn = lock(&self.callers);
        let helpers = self.workers.load(Ordering::Relaxed).min(limit - 1).min(chunks - 1);
        let job = Job { run: call::<F>, data: ptr::from_ref(job).cast(), chunks, parts: helpers + 1 };
        for part in 0..job.parts {
            self.next[part].0.store(job.start(part), Ordering::Relaxed);
        }
        // SAFETY: the gate is shut and empty, and `callers` is ours: nobody reads.
        unsafe { *self.job.get() = job };
        self.gate.store(helpers as u32 * SLOT, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            let _parking = lock(&self.parking);
            self.wake.notify_all();
        }
        self.take_part(job, 0);
        self.shut_and_wait();
        let panic = lock(&self.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Claims chunks until none is left, those of a part of its own first. Never unwinds.
    fn take_part(&self, job: Job, thread: usize) {
        let _float_state = mxcsr::Default::enter();
        let _restore = Restore { cell: &INSIDE, before: INSIDE.replace(true) };
        for i in 0..job.parts {
            let part = (thread + i) % job.parts;
            let (next, end) = (&self.next[part].0, job.start(part + 1));
            while next.load(Ordering::Relaxed) < end {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= end {
                    break;
                }
                // SAFETY: the closure outlives the job: the caller waits for everybody inside the gate.
                let result = catch_unwind(AssertUnwindSafe(|| unsafe { (job.run)(job.data, chunk) }));
                if let Err(payload) = result {
                    self.next.iter().for_each(|next| next.0.store(job.chunks, Ordering::Relaxed));
                    lock(&self.panic).get_or_insert(payload);
                }
            }
        }
    }

    /// Lets nobody in any more, and waits until everybody has left.
    fn shut_and_wait(&self) {
        if self.gate.fetch_and(INSIDE_MASK, Ordering::AcqRel) & INSIDE_MASK == 0 {
            return;
        }
        if spin_until(|| self.gate.load(Ordering::Acquire) == 0) {
            return;
        }
        self.caller_waits.store(true, Ordering::SeqCst);
        let mut parking = lock(&self.parking);
        while self.gate.load(Ordering::SeqCst) != 0 {
            parking = self.done.wait(parking).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_waits.store(false, Ordering::SeqCst);
    }

    /// The life of worker `thread`.
    fn work(&self, thread: usize) {
        let mut asked = Asked::default();
        loop {
            asked.update(&self.soon, thread, self.next.len());
            if spin_until(|| {
                asked.go_on();
                self.gate.load(Ordering::Relaxed) >= SLOT
            }) {
                self.enter(thread);
                continue;
            }
            let mut parking = lock(&self.parking);
            self.parked.fetch_add(1, Ordering::SeqCst);
            while self.gate.load(Ordering::SeqCst) < SLOT {
                parking = self.wake.wait(parking).unwrap_or_else(PoisonError::into_inner);
            }
            self.parked.fetch_sub(1, Ordering::SeqCst);
            drop(parking);
            self.enter(thread);
        }
    }

    /// Takes a slot, if there is one, and works on its job.
    fn enter(&self, thread: usize) {
        let mut gate = self.gate.load(Ordering::Relaxed);
        loop {
            if gate < SLOT {
                return;
            }
            let entered = gate - SLOT + 1;
            match self.gate.compare_exchange_weak(gate, entered, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => gate = now,
            }
        }
        // SAFETY: inside the gate the job is not written to.
        let job = unsafe { *self.job.get() };
        self.take_part(job, thread);
        let left = self.gate.fetch_sub(1, Ordering::SeqCst) - 1;
        if left == 0 && self.caller_waits.load(Ordering::SeqCst) {
            let _parking = lock(&self.parking);
            self.done.notify_one();
        }
    }
}

/// Whether `condition` came true within [`SPIN`].
fn spin_until(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool of its own, whatever the machine; it lives as long as the process, like the real one.
    fn pool_of(workers: usize) -> &'static Pool {
        let pool: &'static Pool = Box::leak(Box::new(Pool::new(workers + 1)));
        pool.spawn();
        pool
    }

    #[test]
    fn every_chunk_runs_once() {
        for workers in [1, 3] {
            let pool = pool_of(workers);
            for round in 0..2000 {
                let chunks = 2 + round % 37;
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(chunks, usize::MAX, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn parked_workers_wake() {
        let pool = pool_of(3);
        for _ in 0..5 {
            std::thread::sleep(4 * SPIN);
            let started = AtomicUsize::new(0);
            // Chunks that only end together need as many threads as there are chunks.
            pool.for_each(4, usize::MAX, &|_| {
                started.fetch_add(1, Ordering::SeqCst);
                while started.load(Ordering::SeqCst) < 4 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_limit_holds() {
        let pool = pool_of(3);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for _ in 0..50 {
            pool.for_each(16, 2, &|_| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(50));
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
        assert_eq!(most.into_inner(), 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = pool_of(2);
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(8, usize::MAX, &|i| assert!(i != 5, "chunk five"));
            }));
            let message = caught.unwrap_err();
            assert!(message.downcast_ref::<&str>().is_some_and(|m| m.contains("chunk five")));
            let sum = AtomicUsize::new(0);
            pool.for_each(8, usize::MAX, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 28);
        }
    }

    #[test]
    fn a_part_is_asked_for_once() {
        let (memory, soon) = (vec![0; 4 * ASKED_AT_ONCE], Soon::default());
        let start = memory.as_ptr().addr();
        soon.set(&memory);
        let mut asked = Asked::default();
        for ahead in [2, 3, 4, 4] {
            asked.update(&soon, 1, 2);
            assert_eq!((asked.at, asked.end), (start + ahead * ASKED_AT_ONCE, start + 4 * ASKED_AT_ONCE));
            asked.go_on();
        }
    }

    #[test]
    fn callers_queue_and_nested_calls_run_inline() {
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        for_each(5, |i| {
                            for_each(3, |j| {
                                sum.fetch_add(i * j, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 30);
    }

    #[test]
    fn pieces_cover_the_slice() {
        let mut data = vec![0usize; 103];
        for_each_mut(&mut data, 10, |i, piece| piece.iter_mut().for_each(|x| *x += i + 1));
        let expected: Vec<usize> = (0..103).map(|i| i / 10 + 1).collect();
        assert_eq!(data, expected);
    }
}
