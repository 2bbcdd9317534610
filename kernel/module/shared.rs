// SPDX-License-Identifier: GPL-2.0

//! What all open files share: the queue, the rings and files that belong to its slots, and the
//! clock that ends jobs.

use crate::abi::{
    feature, BufferSlot, Completion, ContextSlot, Core, JobSlot, Limits, RingHeader, Sink, Usage,
    Wire, RING_ENTRIES_OFFSET,
};
use crate::uring::Waiting;
use crate::user::error;
use core::ffi::c_int;
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    fmt,
    fs::File,
    impl_has_delayed_work,
    mm::virt::VmaNew,
    new_delayed_work, new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    static_lock_class,
    sync::{
        aref::ARef,
        atomic::{Atomic, Release},
        poll::PollCondVarBox,
        Arc, Mutex,
    },
    time::msecs_to_jiffies,
    workqueue::{self, DelayedWork, HasWork, Work, WorkItem},
};

/// Jobs in flight, over all contexts.
const JOBS: usize = 1024;
/// Open clients.
const CONTEXTS: usize = 128;
/// Buffers of each client.
const BUFFERS: usize = 64;
/// The clock strikes at least this often while there are deadlines, in milliseconds.
const LONGEST_SLEEP_MS: u64 = 60_000;

/// `CLOCK_MONOTONIC`, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    // SAFETY: `ktime_get` may be called from any context.
    unsafe { bindings::ktime_get() as u64 }
}

/// The time until `deadline_ns`, in jiffies, rounded up; `None` if it has passed.
pub(crate) fn jiffies_until(deadline_ns: u64) -> Option<usize> {
    let left = deadline_ns.checked_sub(now_ns()).filter(|&left| left > 0)?;
    let ms = (left / 1_000_000 + 1).min(u64::from(u32::MAX >> 4));
    Some(msecs_to_jiffies(ms as u32))
}

/// Where the clock's work runs: any processor will do.
fn clock_queue() -> &'static workqueue::Queue {
    // SAFETY: `system_dfl_wq` is set before modules are loaded, and stays.
    unsafe { workqueue::Queue::from_raw(bindings::system_dfl_wq) }
}

/// What wakes those who wait on one side.
pub(crate) struct Bell {
    // In a box of its own that outlives this by an RCU grace period, so that closing a file does
    // not wait for one.
    pub(crate) wait: PollCondVarBox,
}

impl Bell {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let wait = PollCondVarBox::new(c"rustai::Bell::wait", static_lock_class!())?;
        Ok(Arc::new(Self { wait }, GFP_KERNEL)?)
    }
}

/// The memory of a completion ring. User space maps its pages read-only.
pub(crate) struct RingMemory {
    bytes: VVec<u8>,
}

impl RingMemory {
    pub(crate) fn new(len: usize, entries: u32) -> Result<Arc<Self>> {
        // Who asks is told of a lack of memory; the kernel's log need not be.
        let flags = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN;
        let mut bytes = VVec::from_elem(0u8, len, flags)?;
        let header = RingHeader {
            entries,
            ..RingHeader::new()
        };
        if !header.write(&mut bytes) {
            return Err(EINVAL);
        }
        Ok(Arc::new(Self { bytes }, GFP_KERNEL)?)
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes an entry, then publishes the tail. Called under the lock of [`Shared`], so there is
    /// one writer.
    fn post(&self, place: usize, entry: &Completion, tail: u32) {
        let mut bytes = [0u8; Completion::SIZE];
        let at = RING_ENTRIES_OFFSET + place * Completion::SIZE;
        if !entry.write(&mut bytes) || at + bytes.len() > self.bytes.len() {
            return;
        }
        // SAFETY: The range was just checked. Nobody in the kernel holds a reference into the
        // memory; user space may read it at any time, and no byte that it reads decides anything
        // here.
        unsafe {
            let base = self.bytes.as_ptr().cast_mut();
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), base.add(at), bytes.len());
        }
        self.publish(core::mem::offset_of!(RingHeader, tail), tail);
    }

    /// Stores a word of the header with release order.
    fn publish(&self, offset: usize, value: u32) {
        // SAFETY: The header lies at the start of the page-aligned memory, `offset` is that of one
        // of its `u32` fields, and all accesses to it by the kernel are atomic ones after `new`.
        let word =
            unsafe { Atomic::from_ptr(self.bytes.as_ptr().cast_mut().add(offset).cast::<u32>()) };
        word.store(value, Release);
    }
}

/// A reference to an eventfd.
pub(crate) struct EventFd(*mut bindings::eventfd_ctx);

// SAFETY: An eventfd context is reference counted and may be signaled from any thread.
unsafe impl Send for EventFd {}

impl EventFd {
    pub(crate) fn get(fd: c_int) -> Result<Self> {
        // SAFETY: `eventfd_ctx_fdget` judges the descriptor itself.
        Ok(Self(from_err_ptr(unsafe {
            bindings::eventfd_ctx_fdget(fd)
        })?))
    }

    fn signal(&self) {
        // SAFETY: `self` owns a reference to the context.
        unsafe { bindings::eventfd_signal_mask(self.0, 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: `self` owns a reference to the context.
        unsafe { bindings::eventfd_ctx_put(self.0) };
    }
}

/// What belongs to a context slot.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) ring: Option<Arc<RingMemory>>,
    pub(crate) eventfd: Option<EventFd>,
    pub(crate) bell: Option<Arc<Bell>>,
}

impl Side {
    fn wake(&self) {
        if let Some(bell) = &self.bell {
            bell.wait.notify_all();
        }
    }
}

/// The file behind a buffer.
pub(crate) struct Backing {
    pub(crate) file: ARef<File>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What the queue's slots stand for.
pub(crate) struct Outside {
    pub(crate) clients: KVVec<Side>,
    pub(crate) files: KVVec<Option<Backing>>,
    /// The io_uring commands that wait for a job, by job slot.
    pub(crate) commands: KVVec<Option<Waiting>>,
    pub(crate) server: Arc<Bell>,
}

impl Sink for Outside {
    fn post(&mut self, context: usize, place: usize, entry: &Completion, tail: u32) {
        let side = &self.clients[context];
        if let Some(ring) = &side.ring {
            ring.post(place, entry, tail);
        }
        if let Some(eventfd) = &side.eventfd {
            eventfd.signal();
        }
        side.wake();
    }

    fn wake_client(&mut self, context: usize) {
        self.clients[context].wake();
    }

    fn wake_server(&mut self) {
        self.server.wait.notify_all();
    }

    fn drop_buffer(&mut self, index: usize) {
        self.files[index] = None;
    }

    fn finish(&mut self, slot: usize, entry: &Completion) {
        if let Some(command) = self.commands[slot].take() {
            command.complete(entry.result);
        }
    }
}

pub(crate) type Queue = Core<KVVec<JobSlot>, KVVec<ContextSlot>, KVVec<BufferSlot>>;

/// Everything behind the lock.
pub(crate) struct Inner {
    pub(crate) core: Queue,
    pub(crate) outside: Outside,
    /// Which open file of the server's node is the server.
    pub(crate) owner: Option<u64>,
    pub(crate) next_open: u64,
    /// When the clock strikes next.
    alarm_ns: Option<u64>,
}

impl Inner {
    /// Tells the rings about the server, for clients that poll them.
    pub(crate) fn publish_server(&self) {
        let server = self.core.server();
        for ring in self
            .outside
            .clients
            .iter()
            .filter_map(|side| side.ring.as_ref())
        {
            ring.publish(core::mem::offset_of!(RingHeader, epoch), server.epoch());
            ring.publish(
                core::mem::offset_of!(RingHeader, server),
                server.is_attached().into(),
            );
        }
    }
}

/// The one queue of the module.
#[pin_data]
pub(crate) struct Shared {
    #[pin]
    pub(crate) inner: Mutex<Inner>,
    #[pin]
    clock: DelayedWork<Self>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Shared { self.clock }
}

impl Shared {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let limits = Limits {
            max_jobs: 256,
            max_buffers: BUFFERS as u32,
            max_bytes: 64 << 30,
            class_cap: 2,
            weight: 100,
            ..Limits::new()
        };
        let core = Core::new(
            KVVec::from_elem(JobSlot::new(), JOBS, GFP_KERNEL)?,
            KVVec::from_elem(ContextSlot::new(), CONTEXTS, GFP_KERNEL)?,
            KVVec::from_elem(BufferSlot::new(), CONTEXTS * BUFFERS, GFP_KERNEL)?,
            limits,
            512,
            128 << 30,
            feature::RING | feature::EVENTFD | feature::REATTACH | feature::URING,
        )
        .map_err(error)?;
        let mut clients = KVVec::with_capacity(CONTEXTS, GFP_KERNEL)?;
        for _ in 0..CONTEXTS {
            clients.push(Side::default(), GFP_KERNEL)?;
        }
        let mut files = KVVec::with_capacity(CONTEXTS * BUFFERS, GFP_KERNEL)?;
        for _ in 0..CONTEXTS * BUFFERS {
            files.push(None, GFP_KERNEL)?;
        }
        let mut commands = KVVec::with_capacity(JOBS, GFP_KERNEL)?;
        for _ in 0..JOBS {
            commands.push(None, GFP_KERNEL)?;
        }
        let outside = Outside {
            clients,
            files,
            commands,
            server: Bell::new()?,
        };
        let inner = Inner {
            core,
            outside,
            owner: None,
            next_open: 0,
            alarm_ns: None,
        };
        Arc::pin_init(
            pin_init!(Self {
                inner <- new_mutex!(inner, "rustai::Shared::inner"),
                clock <- new_delayed_work!("rustai::Shared::clock"),
            }),
            GFP_KERNEL,
        )
    }

    /// Ends jobs whose deadline has passed, and sets the clock for the next one.
    pub(crate) fn watch(self: &Arc<Self>, inner: &mut Inner) {
        let Inner {
            core,
            outside,
            alarm_ns,
            ..
        } = inner;
        let now = now_ns();
        let Some(next) = core.expire(now, outside) else {
            return;
        };
        if alarm_ns.is_some_and(|alarm| alarm <= next) {
            return;
        }
        *alarm_ns = Some(next);
        self.stop_clock(|work| {
            // SAFETY: `stop_clock` passes the initialized work of `self`.
            unsafe { bindings::cancel_delayed_work(work) }
        });
        // One more than what is left, so that the deadline has passed by then.
        let ms = (next.saturating_sub(now) / 1_000_000 + 1).min(LONGEST_SLEEP_MS);
        // It is refused only if it is waiting already, and then it strikes before the deadline, and
        // sets itself again.
        let _ = clock_queue().enqueue_delayed(self.clone(), msecs_to_jiffies(ms as u32));
    }

    /// Stops the clock for good: after this no work of the module is waiting or running.
    pub(crate) fn close(&self) {
        self.stop_clock(|work| {
            // SAFETY: `stop_clock` passes the initialized work of `self`, and no lock is held.
            unsafe { bindings::cancel_delayed_work_sync(work) }
        });
    }

    /// Takes the clock's work back by `cancel`, which tells whether it was waiting.
    fn stop_clock(&self, cancel: impl FnOnce(*mut bindings::delayed_work) -> bool) {
        let me = core::ptr::from_ref(self);
        // SAFETY: `self` is alive, so its work is initialized, and it is the `work` field of a
        // `delayed_work`.
        let work = unsafe {
            let raw = Work::raw_get(<Self as HasWork<Self>>::raw_get_work(me.cast_mut()));
            kernel::container_of!(raw, bindings::delayed_work, work)
        };
        if cancel(work) {
            // SAFETY: A work that waited held the reference that `enqueue_delayed` was given, and
            // will not use it now.
            drop(unsafe { Arc::from_raw(me) });
        }
    }

    /// What `debugfs` shows.
    pub(crate) fn report(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        let Usage {
            contexts,
            in_flight,
            abandoned,
            buffers,
            mapped,
        } = inner.core.usage();
        let files = inner.outside.files.iter().flatten().count();
        let rings = inner
            .outside
            .clients
            .iter()
            .filter(|side| side.ring.is_some())
            .count();
        let commands = inner.outside.commands.iter().flatten().count();
        let server = inner.core.server();
        writeln!(f, "epoch: {}", server.epoch())?;
        writeln!(f, "server: {}", u32::from(server.is_attached()))?;
        writeln!(f, "contexts: {contexts}")?;
        writeln!(f, "in flight: {in_flight}")?;
        writeln!(f, "abandoned: {abandoned}")?;
        writeln!(f, "buffers: {buffers}")?;
        writeln!(f, "mapped: {mapped}")?;
        writeln!(f, "files: {files}")?;
        writeln!(f, "rings: {rings}")?;
        writeln!(f, "commands: {commands}")?;
        writeln!(f, "audit: {}", inner.core.audit().err().unwrap_or("ok"))
    }
}

impl WorkItem for Shared {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let mut inner = this.inner.lock();
        inner.alarm_ns = None;
        this.watch(&mut inner);
    }
}

/// A ring's mapping stays where it is.
const RING_OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
    mremap: Some(refuse_mremap),
    ..pin_init::zeroed()
};

extern "C" fn refuse_mremap(_vma: *mut bindings::vm_area_struct) -> c_int {
    EINVAL.to_errno()
}

/// Maps the pages of a ring into `vma`, read-only for good. The mapping holds the pages, whatever
/// becomes of the ring.
pub(crate) fn map_ring(ring: &RingMemory, vma: &VmaNew) -> Result {
    // SAFETY: The mapping is being set up, and nobody else writes the field.
    let offset = unsafe { (*vma.as_ptr()).vm_pgoff };
    if offset != 0 || vma.end() - vma.start() != ring.len() {
        return Err(EINVAL);
    }
    if vma.writable() || vma.executable() {
        return Err(EPERM);
    }
    vma.try_clear_maywrite()?;
    vma.try_clear_mayexec()?;
    vma.set_dontexpand();
    // SAFETY: The mapping is being set up, and nobody else writes the field.
    unsafe { (*vma.as_ptr()).vm_ops = &RING_OPERATIONS };
    let vma = vma.set_mixedmap();
    for at in (0..ring.len()).step_by(PAGE_SIZE) {
        // SAFETY: `at` lies within the vmalloc allocation that `ring` owns.
        let page = unsafe { bindings::vmalloc_to_page(ring.bytes.as_ptr().add(at).cast()) };
        // SAFETY: The page is part of a live vmalloc allocation, and the address lies in the
        // mapping, whose length is that of the ring. The mapping takes its own reference to the
        // page.
        to_result(unsafe { bindings::vm_insert_page(vma.as_ptr(), vma.start() + at, page) })?;
    }
    Ok(())
}

/// What user space cannot ask for, and so the suite cannot either.
#[kunit_tests(rustai)]
mod tests {
    use super::*;
    use crate::abi::{ring_bytes, MAX_ENTRIES};

    #[test]
    fn a_deadline_is_neither_early_nor_out_of_range() {
        assert_eq!(jiffies_until(0), None);
        assert_eq!(jiffies_until(now_ns()), None);
        let second = jiffies_until(now_ns() + 1_000_000_000).unwrap_or(0);
        assert!(second >= msecs_to_jiffies(990) && second <= msecs_to_jiffies(1_001));
        let longest = jiffies_until(u64::MAX).unwrap_or(0);
        assert_eq!(longest, msecs_to_jiffies(u32::MAX >> 4));
    }

    #[test]
    fn a_ring_consists_of_whole_pages() -> Result {
        let mut entries = 1;
        while entries <= MAX_ENTRIES {
            let ring = RingMemory::new(ring_bytes(entries) as usize, entries)?;
            assert_eq!(ring.bytes.as_ptr() as usize % PAGE_SIZE, 0);
            assert_eq!(ring.len() % PAGE_SIZE, 0);
            assert!(ring.len() >= RING_ENTRIES_OFFSET + entries as usize * Completion::SIZE);
            entries *= 2;
        }
        Ok(())
    }

    #[test]
    fn an_entry_past_the_end_of_a_ring_is_dropped() -> Result {
        let ring = RingMemory::new(PAGE_SIZE, 64)?;
        let tail = core::mem::offset_of!(RingHeader, tail);
        let last = (PAGE_SIZE - RING_ENTRIES_OFFSET) / Completion::SIZE - 1;
        ring.post(last + 1, &Completion::new(), 7);
        assert_eq!(ring.bytes[tail], 0);
        ring.post(last, &Completion::new(), 1);
        assert_eq!(ring.bytes[tail], 1);
        Ok(())
    }
}
