// SPDX-License-Identifier: GPL-2.0

//! `/dev/rustai`: the zero-copy tensor queue.
//!
//! Clients open `/dev/rustai`, the server opens `/dev/rustai-engine`. The rules of the queue are
//! the `rustai-abi` crate's (`abi.rs`); this module copies structs, sleeps, wakes, and keeps files.
//! Payload is never allocated, copied or mapped here: a buffer is a reference to the client's
//! sealed memfd.
//!
//! # Locks
//!
//! There is one lock, the mutex `Shared::inner`. `SHARED` is held only to find it, never together
//! with it.
//!
//! - Taken before it: io_uring's `uring_lock` (a command is issued or canceled), `mmap_lock` (a
//!   ring is mapped).
//! - Taken under it: what signals a wait queue, an eventfd or a task's work, all of which are
//!   spinlocks. Memory of a completion ring is allocated under it.
//! - Never under it: copies from or to user space (they take `mmap_lock`), completion of an
//!   io_uring command other than as the work of its task (it takes `uring_lock`).
//!
//! # Ends
//!
//! A file's `open` makes a context and its release takes it down; a process that is killed does the
//! same by dropping its files. A job is a value in the queue's table that leaves it by one of the
//! steps of `JobState`, each of which completes it at most once; what completes an io_uring command
//! consumes it.

use core::{
    ffi::{c_int, c_uint},
    marker::PhantomData,
};
use kernel::{
    bindings, debugfs,
    error::to_result,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceOptions},
    prelude::*,
    sync::{poll::PollTable, Arc},
    types::{ForeignOwnable, Opaque},
};

// Shared with user space, which uses more of it.
#[allow(dead_code, unreachable_pub, unused_imports, missing_docs)]
mod abi;
mod client;
mod server;
mod shared;
mod uring;
mod user;

use shared::Shared;

module! {
    type: RustAi,
    name: "rustai",
    authors: ["The rustai developers"],
    description: "Zero-copy tensor queue",
    license: "GPL",
}

/// C helpers, in `rustai_shim.c`.
mod shim {
    use super::*;

    #[expect(improper_ctypes)] // These structs are only ever passed by pointer.
    extern "C" {
        pub(crate) fn rustai_check_memfd(
            file: *mut bindings::file,
            writable: bool,
            bytes: *mut u64,
        ) -> c_int;
        pub(crate) fn rustai_reopen(
            file: *mut bindings::file,
            writable: bool,
        ) -> *mut bindings::file;
        pub(crate) fn rustai_may_raise() -> bool;
        pub(crate) fn rustai_uring_file(cmd: *const bindings::io_uring_cmd) -> *mut bindings::file;
        pub(crate) fn rustai_uring_op(cmd: *const bindings::io_uring_cmd) -> u32;
        pub(crate) fn rustai_uring_read(cmd: *const bindings::io_uring_cmd, to: *mut u8);
        pub(crate) fn rustai_uring_is_cancel(flags: c_uint) -> bool;
        pub(crate) fn rustai_uring_start(cmd: *mut bindings::io_uring_cmd, flags: c_uint);
        pub(crate) fn rustai_uring_name(
            cmd: *mut bindings::io_uring_cmd,
            slot: u32,
            generation: u32,
        );
        pub(crate) fn rustai_uring_named(
            cmd: *const bindings::io_uring_cmd,
            slot: *mut u32,
            generation: *mut u32,
        ) -> bool;
        pub(crate) fn rustai_uring_refuse(
            cmd: *mut bindings::io_uring_cmd,
            result: c_int,
            flags: c_uint,
        );
        pub(crate) fn rustai_uring_complete(cmd: *mut bindings::io_uring_cmd, result: c_int);
    }
}

kernel::sync::global_lock! {
    // SAFETY: Initialized in `RustAi::init` before a device is registered.
    unsafe(uninit) static SHARED: Mutex<Option<Arc<Shared>>> = None;
}

/// The queue, for a file that is being opened.
fn shared() -> Result<Arc<Shared>> {
    SHARED.lock().as_ref().cloned().ok_or(ENODEV)
}

/// The operation that an ioctl number names.
fn operation(cmd: u32) -> Result<u32> {
    let number = cmd & 0xff;
    if cmd == abi::ioctl(number) {
        Ok(number)
    } else {
        Err(ENOTTY)
    }
}

/// QUERY, on both nodes.
fn query(shared: &Shared, arg: usize) -> Result {
    let ask: abi::Query = user::read(arg)?;
    if ask.flags != 0 {
        return Err(EINVAL);
    }
    let answer = shared.inner.lock().core.query();
    user::write(arg, &answer)
}

/// What a node has besides [`MiscDevice`].
trait Node: MiscDevice<Ptr = KBox<Self>> + Send + Sync {
    const NAME: &'static CStr;
    const MODE: u16;
    /// Whether it takes io_uring commands.
    const URING: bool;
    fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t;
    /// Starts a command; `Ok(None)` if it completes later.
    fn uring_cmd(&self, _cmd: uring::Issued<'_>) -> Result<Option<c_int>> {
        Err(EOPNOTSUPP)
    }
}

impl Node for client::Client {
    const NAME: &'static CStr = c"rustai";
    const MODE: u16 = 0o660;
    const URING: bool = true;
    fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t {
        self.poll(file, table)
    }
    fn uring_cmd(&self, cmd: uring::Issued<'_>) -> Result<Option<c_int>> {
        self.uring_cmd(cmd)
    }
}

impl Node for server::Server {
    const NAME: &'static CStr = c"rustai-engine";
    const MODE: u16 = 0o600;
    const URING: bool = false;
    fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t {
        self.poll(file, table)
    }
}

/// A registered misc device, with the hooks that [`MiscDevice`] does not have: `poll` and
/// `uring_cmd`.
///
/// # Invariants
///
/// `inner` is a registered `struct miscdevice` whose files hold a `KBox<T>` as private data.
#[pin_data(PinnedDrop)]
#[repr(transparent)]
struct Registration<T: Node> {
    #[pin]
    inner: Opaque<bindings::miscdevice>,
    _node: PhantomData<T>,
}

// SAFETY: `misc_deregister` may be called from any thread.
unsafe impl<T: Node> Send for Registration<T> {}
// SAFETY: There are no `&self` methods.
unsafe impl<T: Node> Sync for Registration<T> {}

impl<T: Node> Registration<T> {
    const BASE: bindings::miscdevice = MiscDeviceOptions { name: T::NAME }.into_raw::<T>();

    const FOPS: bindings::file_operations = bindings::file_operations {
        poll: Some(Self::poll),
        uring_cmd: if T::URING {
            Some(Self::uring_cmd)
        } else {
            None
        },
        // SAFETY: `into_raw` points `fops` at a promoted constant.
        ..unsafe { *Self::BASE.fops }
    };

    fn register() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let raw = bindings::miscdevice { fops: &Self::FOPS, mode: T::MODE, ..Self::BASE };
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(raw) };
                // INVARIANT: The files that come of this are opened by `T::open`.
                // SAFETY: `slot` was just initialized and stays pinned until `drop`.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
            _node: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `file` must be an open file of this device.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: `open` stored a `KBox<T>` in the private data, and the file outlives this call.
        let node = unsafe { <KBox<T> as ForeignOwnable>::borrow((*file).private_data) };
        // SAFETY: The file is valid for the duration of this call, with no active `fdget_pos`.
        let file = unsafe { File::from_raw_file(file) };
        // SAFETY: The caller passes a null or valid table.
        node.poll(file, unsafe { PollTable::from_raw(table) })
    }

    /// # Safety
    ///
    /// `cmd` must be a command on an open file of this device, `flags` what io_uring passes with
    /// it.
    unsafe extern "C" fn uring_cmd(cmd: *mut bindings::io_uring_cmd, flags: c_uint) -> c_int {
        // SAFETY: `open` stored a `KBox<T>` in the private data, and the command holds its file.
        let node = unsafe {
            <KBox<T> as ForeignOwnable>::borrow((*shim::rustai_uring_file(cmd)).private_data)
        };
        // SAFETY: The command is valid until it completes, which it has not.
        let issued = unsafe { uring::Issued::new(cmd, flags) };
        match node.uring_cmd(issued) {
            Ok(Some(result)) => result,
            Ok(None) => -(bindings::EIOCBQUEUED as c_int),
            Err(err) => err.to_errno(),
        }
    }
}

#[pinned_drop]
impl<T: Node> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the device is registered.
        unsafe { bindings::misc_deregister(self.inner.get()) };
    }
}

/// The queue while [`open`](MiscDevice::open) can find it.
struct Published(Arc<Shared>);

impl Published {
    fn new() -> Result<Self> {
        let shared = Shared::new()?;
        *SHARED.lock() = Some(shared.clone());
        Ok(Self(shared))
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let _ = SHARED.lock().take();
        self.0.close();
    }
}

/// The module. Fields go in this order: first nobody can open the nodes, then the queue goes. Open
/// files and io_uring commands hold the module, so none is left by then.
#[pin_data]
struct RustAi {
    #[pin]
    _client: Registration<client::Client>,
    #[pin]
    _server: Registration<server::Server>,
    #[pin]
    _report: debugfs::File<Arc<Shared>>,
    _folder: debugfs::Dir,
    _queue: Published,
}

impl kernel::InPlaceModule for RustAi {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: Called once, before the devices exist.
        unsafe { SHARED.init() };
        let folder = debugfs::Dir::new(c"rustai");
        try_pin_init!(Self {
            _queue: Published::new()?,
            _report <- folder.read_callback_file(c"queue", shared()?, &Shared::report),
            _folder: folder.clone(),
            _client <- Registration::register(),
            _server <- Registration::register(),
        })
    }
}
