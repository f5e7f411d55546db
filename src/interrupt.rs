//! Signals that ask to stop. SIGINT (Ctrl-C), SIGTERM and SIGHUP (a terminal that closes) are one request: what is under
//! way is brought to an end, training with a checkpoint. Shells and wrappers often send a signal twice, so a repeat
//! within two seconds is the same request; a later one ends the process at once.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::cell::RefCell;
use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long after the first a signal is taken for a repeat of it.
const SAME: Duration = Duration::from_secs(2);

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Only who has the flag of [`watch`] heeds it.
static LEFT: AtomicBool = AtomicBool::new(false);

thread_local! {
    static OF_THREAD: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Heeds signals from here on, on a thread of its own; gives the flag that a request sets.
///
/// # Errors
/// What the system refuses: signals then end the process at once.
pub fn watch() -> std::io::Result<&'static AtomicBool> {
    let mut wanted = vec![SIGINT, SIGTERM];
    // Under `nohup` a run is to outlive its terminal.
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = Signals::new(wanted)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut first = None;
        for _ in signals.forever() {
            if ends(&mut first, Instant::now()) {
                signal_hook::low_level::exit(130);
            }
            REQUESTED.store(true, Ordering::Relaxed);
        }
    })?;
    Ok(&REQUESTED)
}

/// From here on nothing in this process stops by itself: who has the flag of [`watch`] decides when. For a process that may not stop
/// before others are told to.
pub fn leave_to_flag() {
    LEFT.store(true, Ordering::Relaxed);
}

/// Whether a signal that comes `now` ends the process at once; `first` is when the first one came.
fn ends(first: &mut Option<Instant>, now: Instant) -> bool {
    now.duration_since(*first.get_or_insert(now)) > SAME
}

/// Runs `work`, which `stop` asks to stop as a signal would: for a program that has signals of its own and may do such
/// work on several threads.
pub fn with_flag<T>(stop: &Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    let before = OF_THREAD.replace(Some(stop.clone()));
    let result = work();
    OF_THREAD.set(before);
    result
}

/// What may ask this thread's work to stop, for the threads that help with it.
#[derive(Clone)]
pub struct Requests(Option<Arc<AtomicBool>>);

impl Requests {
    /// Those of this thread.
    pub fn here() -> Self {
        Self(OF_THREAD.with_borrow(Clone::clone))
    }

    /// As [`check`].
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if !LEFT.load(Ordering::Relaxed) {
            check_flag(&REQUESTED)?;
        }
        self.0.as_deref().map_or(Ok(()), check_flag)
    }
}

/// Fails once a signal has asked to stop: for work that leaves nothing behind.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn check() -> Result<()> {
    Requests::here().check()
}

/// As [`check`], of a flag that was handed over.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn check_flag(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted("interrupted; nothing was written".into()));
    }
    Ok(())
}

/// Whether this process was started with a signal ignored.
fn is_ignored(signal: c_int) -> bool {
    // SAFETY: `sigaction` is a plain C struct for which all zeros is a value; the call is given no new action, so it only
    // writes the present one to `now`, which lives until it returns.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_repeat_within_two_seconds_is_the_same_request_and_a_later_one_ends_at_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut first = None;
        for ms in [0, 1, 500, 1999, 2000] {
            assert!(!ends(&mut first, at(ms)), "{ms}");
        }
        // Counted from the first: whoever keeps sending is heard.
        assert!(ends(&mut first, at(2001)) && ends(&mut first, at(9000)));
    }

    #[test]
    fn a_flag_stops_the_work_of_its_thread_alone() {
        let stop = Arc::new(AtomicBool::new(true));
        let (here, helper, elsewhere) = with_flag(&stop, || {
            let requests = Requests::here();
            std::thread::scope(|scope| {
                let helper = scope.spawn(move || requests.check());
                let elsewhere = scope.spawn(check);
                (check(), helper.join().unwrap(), elsewhere.join().unwrap())
            })
        });
        assert!(here.is_err() && helper.is_err() && elsewhere.is_ok() && check().is_ok());
    }

    #[test]
    fn a_signal_that_is_not_ignored_is_told_apart() {
        // Rust itself ignores SIGPIPE at the start of every program.
        assert!(is_ignored(signal_hook::consts::SIGPIPE));
        assert!(!is_ignored(signal_hook::consts::SIGUSR2));
    }
}
