//! Ctrl-C: ends the program at once, or asks running work to stop. SIGTERM and SIGHUP are left alone: they always end it.
//!
//! A command that can stop in an orderly way holds a [`Guard`]; then the first signal only sets a flag and cancels what
//! the guard was told to. A second one, or one while nobody holds a guard, ends the process with exit code 130.

use crate::failure::{Failure, INTERRUPTED};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

type Cancel = Box<dyn Fn() + Send>;

static GUARDED: AtomicBool = AtomicBool::new(false);
static RAISED: AtomicBool = AtomicBool::new(false);
static CANCEL: Mutex<Option<Cancel>> = Mutex::new(None);

/// Installs the handler, once.
pub fn install() -> Result<(), Failure> {
    // The handler runs on a thread of its own, not inside the signal, so it may lock.
    ctrlc::set_handler(|| {
        if !GUARDED.load(Ordering::Acquire) || RAISED.swap(true, Ordering::AcqRel) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        if let Some(cancel) = &*CANCEL.lock().unwrap_or_else(PoisonError::into_inner) {
            cancel();
        }
    })
    .map_err(|error| Failure::new(format!("the handler for Ctrl-C cannot be installed: {error}")))
}

/// While it lives, the first Ctrl-C does not end the process. There is one at a time.
pub struct Guard(());

impl Guard {
    /// Starts to guard, with the flag cleared.
    pub fn new() -> Self {
        RAISED.store(false, Ordering::Release);
        GUARDED.store(true, Ordering::Release);
        Self(())
    }

    /// Clears the flag, before the next piece of work.
    pub fn reset(&self) {
        RAISED.store(false, Ordering::Release);
    }

    /// Also calls `cancel` when Ctrl-C comes; at once if it has come already.
    pub fn cancels(&self, cancel: impl Fn() + Send + 'static) {
        let mut slot = CANCEL.lock().unwrap_or_else(PoisonError::into_inner);
        if self.raised() {
            cancel();
        }
        *slot = Some(Box::new(cancel));
    }

    /// Whether Ctrl-C was pressed since the guard was made.
    pub fn raised(&self) -> bool {
        RAISED.load(Ordering::Acquire)
    }

    /// An error if Ctrl-C was pressed, for loops that use `?`.
    pub fn check(&self) -> Result<(), Failure> {
        if self.raised() { Err(Failure::Interrupted) } else { Ok(()) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        GUARDED.store(false, Ordering::Release);
        *CANCEL.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
