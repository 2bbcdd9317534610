// SPDX-License-Identifier: GPL-2.0

//! `/dev/rustai`: the zero-copy tensor queue.
//!
//! Clients open `/dev/rustai`, the server opens `/dev/rustai-engine`. The rules of the queue are the `rustai-abi` crate's
//! (`abi.rs`); this module copies structs, sleeps, wakes, and keeps files. Payload is never allocated, copied or mapped
//! here: a buffer is a reference to the client's sealed memfd.
//!
//! Lock order: there is one lock, `Shared::inner`. Under it: wait queues and eventfds are signaled, and files are let
//! go. Never under it: copies from or to user space.

use core::ffi::c_int;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::to_result,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceOptions},
    prelude::*,
    sync::{poll::PollTable, Arc},
    types::{ForeignOwnable, Opaque},
};

#[allow(dead_code, unreachable_pub, unused_imports, missing_docs)] // Shared with userspace, which uses more of it.
mod abi;
mod client;
mod server;
mod shared;
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

    #[expect(improper_ctypes)] // `struct file` is only ever passed by pointer.
    extern "C" {
        pub(crate) fn rustai_check_memfd(file: *mut bindings::file, writable: bool, bytes: *mut u64) -> c_int;
        pub(crate) fn rustai_reopen(file: *mut bindings::file, writable: bool) -> *mut bindings::file;
        pub(crate) fn rustai_may_raise() -> bool;
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
trait Node: MiscDevice {
    const NAME: &'static CStr;
    const MODE: u16;
    fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t;
}

impl Node for client::Client {
    const NAME: &'static CStr = c"rustai";
    const MODE: u16 = 0o660;
    fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t {
        self.poll(file, table)
    }
}

impl Node for server::Server {
    const NAME: &'static CStr = c"rustai-engine";
    const MODE: u16 = 0o600;
    fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t {
        self.poll(file, table)
    }
}

/// A registered misc device, with the hook that [`MiscDevice`] does not have: `poll`.
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

impl<T: Node<Ptr = KBox<T>> + Send + Sync> Registration<T> {
    const BASE: bindings::miscdevice = MiscDeviceOptions { name: T::NAME }.into_raw::<T>();

    const FOPS: bindings::file_operations = bindings::file_operations {
        poll: Some(Self::poll),
        // SAFETY: `into_raw` points `fops` at a promoted constant.
        ..unsafe { *Self::BASE.fops }
    };

    fn register(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let fops = KBox::new(
                    bindings::file_operations { owner: module.as_ptr(), ..Self::FOPS },
                    GFP_KERNEL,
                )?;
                let raw = bindings::miscdevice { fops: KBox::into_raw(fops), mode: T::MODE, ..Self::BASE };
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
}

#[pinned_drop]
impl<T: Node> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the device is registered.
        unsafe { bindings::misc_deregister(self.inner.get()) };
    }
}

#[pin_data(PinnedDrop)]
struct RustAi {
    #[pin]
    _client: Registration<client::Client>,
    #[pin]
    _server: Registration<server::Server>,
}

impl kernel::InPlaceModule for RustAi {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: Called once, before the devices exist.
        unsafe { SHARED.init() };
        try_pin_init!(Self {
            _: {
                *SHARED.lock() = Some(Shared::new()?);
            },
            _client <- Registration::register(module),
            _server <- Registration::register(module),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for RustAi {
    fn drop(self: Pin<&mut Self>) {
        // Open files hold the module, so none is left.
        let shared = SHARED.lock().take();
        if let Some(shared) = shared {
            shared.close();
        }
    }
}
