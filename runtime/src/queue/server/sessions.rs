//! Sessions: the texts that later jobs of a client continue.
//!
//! The engine holds the texts and what it computed of them; this file holds who may name which. Sessions of a client that is
//! gone are dropped when its place is used again.

use crate::engine::Session;
use rustai_abi::queue::{ContextId, Errno};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Sessions of one client, at most.
const PER_CLIENT: usize = 16;

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions {
    all: Mutex<HashMap<(ContextId, u32), Session>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<(ContextId, u32), Session>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Makes a session known; its number.
    pub(super) fn open(&self, client: ContextId, session: Session) -> Result<u32, Errno> {
        let mut all = self.lock();
        // Who had this place before is gone.
        all.retain(|(other, _), _| other.index != client.index || other.generation == client.generation);
        let own = || all.keys().filter(|(owner, _)| *owner == client);
        if own().count() >= PER_CLIENT {
            return Err(Errno::EDQUOT);
        }
        let number = own().map(|(_, number)| *number).max().unwrap_or(0) + 1;
        all.insert((client, number), session);
        Ok(number)
    }

    /// A session of a client.
    pub(super) fn get(&self, client: ContextId, number: u32) -> Result<Session, Errno> {
        self.lock().get(&(client, number)).cloned().ok_or(Errno::ENOENT)
    }

    /// Forgets a session. A job that runs in it goes on.
    pub(super) fn close(&self, client: ContextId, number: u32) -> Result<(), Errno> {
        self.lock().remove(&(client, number)).map(drop).ok_or(Errno::ENOENT)
    }
}
