//! Clients' buffers, mapped when a job first names them and kept until the client gives them up.

use crate::{
    queue::engine_side::{EngineSide, Mapped},
    sys::memfd::Shared,
};
use rustai_abi::queue::{BufferName, ContextId, Errno, Record};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

type Key = (ContextId, BufferName);

/// The mappings.
#[derive(Default)]
pub(super) struct Maps {
    maps: Mutex<HashMap<Key, Arc<Shared>>>,
}

impl Maps {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Shared>>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// The buffer that a job names.
    pub(super) fn get(&self, side: &dyn EngineSide, client: ContextId, name: BufferName) -> Result<Arc<Shared>, Errno> {
        if let Some(map) = self.lock().get(&(client, name)) {
            return Ok(map.clone());
        }
        let Mapped { fd, offset, len, writable } = side.map(client, name)?;
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let map = Shared::new(&fd, offset, len, writable).map_err(|error| {
            tracing::warn!(%error, len, "a client's buffer cannot be mapped");
            Errno::ENOMEM
        })?;
        // Another thread may have been faster; both mappings show the same pages.
        Ok(self.lock().entry((client, name)).or_insert_with(|| Arc::new(map)).clone())
    }

    /// Unmaps the buffer of a GONE record. No job uses it, so this is the last reference.
    pub(super) fn remove(&self, head: &Record) {
        let client = ContextId { index: head.context, generation: head.context_generation };
        let name = BufferName { buffer: head.buffer, generation: head.buffer_generation };
        let map = self.lock().remove(&(client, name));
        drop(map);
    }
}
