//! System calls, as few as the suite needs. All `unsafe` of the suite is here and in `uring`.

pub use libc::{
    E2BIG, EACCES, EAGAIN, EALREADY, EBADF, EBUSY, ECANCELED, EDOM, EDQUOT, EFAULT, EINTR, EINVAL, EMFILE, EMSGSIZE,
    ENODEV, ENOENT, ENOMEM, ENOTCONN, ENOTRECOVERABLE, ENOTTY, EOPNOTSUPP, EOVERFLOW, EOWNERDEAD, EPERM, EPROTO,
    ERANGE, ESTALE, ETIME, ETIMEDOUT, F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE,
    MAP_ANONYMOUS, MAP_PRIVATE, MREMAP_FIXED, MREMAP_MAYMOVE, O_RDONLY, O_RDWR, POLLHUP, POLLIN, POLLOUT, PROT_EXEC,
    PROT_NONE, PROT_READ, PROT_WRITE, SIGKILL, SIGSEGV,
};
use rustai_abi::queue::{Wire, ioctl};
use std::{
    ffi::CString,
    fs::OpenOptions,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

/// What a call answered, or its error number.
pub type Sys<T> = Result<T, i32>;

/// The error number of the call before.
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn check(result: i64) -> Sys<i64> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: The caller has just got the descriptor from the kernel, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// An open node.
pub struct Device(pub OwnedFd);

impl Device {
    /// Opens `/dev/rustai`.
    pub fn client() -> Sys<Self> {
        Self::open("/dev/rustai")
    }

    /// Opens `/dev/rustai-engine`.
    pub fn engine() -> Sys<Self> {
        Self::open("/dev/rustai-engine")
    }

    fn open(path: &str) -> Sys<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map(|file| Self(file.into())).map_err(|err| err.raw_os_error().unwrap())
    }

    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// An operation with its struct.
    pub fn call<T: Wire>(&self, op: u32, value: &mut T) -> Sys<()> {
        self.raw(ioctl(op), ptr::from_mut(value) as usize)
    }

    /// Any ioctl number with any argument.
    pub fn raw(&self, number: u32, argument: usize) -> Sys<()> {
        // SAFETY: The kernel checks the argument; callers pass memory of theirs, or addresses that nothing lies at.
        check(i64::from(unsafe { libc::ioctl(self.fd(), number.into(), argument) })).map(drop)
    }

    /// An operation with bytes instead of a struct.
    pub fn bytes(&self, op: u32, bytes: &mut [u8]) -> Sys<()> {
        self.raw(ioctl(op), bytes.as_mut_ptr() as usize)
    }

    /// Which of `events` are there, within some milliseconds.
    pub fn poll(&self, events: i16, ms: i32) -> i16 {
        poll(self.fd(), events, ms)
    }

    /// What `/proc` tells of the open file.
    pub fn fdinfo(&self) -> String {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd())).unwrap()
    }
}

/// `poll` of one descriptor.
pub fn poll(fd: RawFd, events: i16, ms: i32) -> i16 {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: `entry` is one entry.
    unsafe { libc::poll(&mut entry, 1, ms) };
    entry.revents
}

/// A mapping; unmapped when dropped.
pub struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    /// Maps a shared part of a file.
    pub fn new(fd: RawFd, offset: u64, len: usize, protection: i32) -> Sys<Self> {
        Self::with(fd, offset, len, protection, libc::MAP_SHARED)
    }

    /// Maps with any flags.
    pub fn with(fd: RawFd, offset: u64, len: usize, protection: i32, flags: i32) -> Sys<Self> {
        // SAFETY: The kernel chooses the place of a new mapping.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset as libc::off_t) };
        if at == libc::MAP_FAILED { Err(errno()) } else { Ok(Self { at: at.cast(), len }) }
    }

    /// Anonymous memory.
    pub fn anonymous(len: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::with(-1, 0, len, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap()
    }

    /// Anonymous memory that children share.
    pub fn shared(len: usize) -> Self {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        Self::with(-1, 0, len, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap()
    }

    /// Where it lies.
    pub fn address(&self) -> usize {
        self.at as usize
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    fn atomic(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= self.len && offset.is_multiple_of(4));
        // SAFETY: The word lies within the mapping and is aligned; all who write it do so atomically.
        unsafe { AtomicU32::from_ptr(self.at.add(offset).cast()) }
    }

    /// A word that others may write at any time.
    pub fn word(&self, offset: usize) -> u32 {
        self.atomic(offset).load(Ordering::Acquire)
    }

    /// Adds to a word; the caller knows that the mapping is writable.
    pub fn add(&self, offset: usize, more: u32) {
        self.atomic(offset).fetch_add(more, Ordering::Relaxed);
    }

    /// A copy of a struct.
    pub fn read<T: Wire>(&self, offset: usize) -> T {
        let mut bytes = vec![0u8; T::SIZE];
        self.copy_out(offset, &mut bytes);
        T::read(&bytes).unwrap()
    }

    /// Copies bytes out.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= self.len);
        for (i, byte) in to.iter_mut().enumerate() {
            // SAFETY: The byte lies within the mapping; others may change it, so it is read as it is at that moment.
            *byte = unsafe { self.at.add(offset + i).read_volatile() };
        }
    }

    /// Copies bytes in.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.len);
        for (i, &byte) in from.iter().enumerate() {
            // SAFETY: As in `copy_out`; the caller knows that the mapping is writable.
            unsafe { self.at.add(offset + i).write_volatile(byte) };
        }
    }

    /// `mprotect` of the whole.
    pub fn protect(&self, protection: i32) -> Sys<()> {
        // SAFETY: The mapping is ours, and nothing holds a reference into it.
        check(i64::from(unsafe { libc::mprotect(self.at.cast(), self.len, protection) })).map(drop)
    }

    /// `mremap` of the whole to another length; the mapping is where it was if that fails.
    pub fn remap(&self, len: usize, flags: i32) -> Sys<()> {
        // SAFETY: As in `protect`. Callers expect an error; a mapping that did move would be seen as a failure.
        let at = unsafe { libc::mremap(self.at.cast(), self.len, len, flags) };
        if at == libc::MAP_FAILED { Err(errno()) } else { Ok(()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// A new memfd of `len` bytes with `seals`.
pub fn memfd(len: u64, seals: i32) -> OwnedFd {
    // SAFETY: The name is a C string; the descriptor is new.
    let fd = unsafe {
        owned(check(libc::memfd_create(c"suite".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING).into()).unwrap())
    };
    // SAFETY: Plain system calls on a descriptor of ours.
    unsafe {
        check(libc::ftruncate(fd.as_raw_fd(), len as i64).into()).unwrap();
        check(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals).into()).unwrap();
    }
    fd
}

/// The seals that a buffer needs.
pub const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// A sealed memfd that is mapped.
pub struct Memory {
    /// The memfd.
    pub fd: OwnedFd,
    /// Its bytes.
    pub map: Map,
}

impl Memory {
    /// `len` bytes.
    pub fn new(len: u64) -> Self {
        let fd = memfd(len, SEALS);
        let map = Map::new(fd.as_raw_fd(), 0, len as usize, libc::PROT_READ | libc::PROT_WRITE).unwrap();
        Self { fd, map }
    }

    /// Writes floats from the start of byte `offset` on.
    pub fn put(&self, offset: usize, values: &[f32]) {
        for (i, value) in values.iter().enumerate() {
            self.map.copy_in(offset + 4 * i, &value.to_ne_bytes());
        }
    }

    /// Reads floats.
    pub fn get(&self, offset: usize, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        self.map.copy_out(offset, &mut bytes);
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    }
}

/// A new eventfd that does not block.
pub fn eventfd() -> OwnedFd {
    // SAFETY: No memory is passed.
    owned(check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) }.into()).unwrap())
}

/// Reads an eventfd's count; 0 if it was not signaled.
pub fn eventfd_read(fd: &OwnedFd) -> u64 {
    let mut count = 0u64;
    // SAFETY: `count` is eight bytes.
    let read = unsafe { libc::read(fd.as_raw_fd(), ptr::from_mut(&mut count).cast(), 8) };
    if read == 8 { count } else { 0 }
}

/// A pipe: its reading and its writing end.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: `fds` holds two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }.into()).unwrap();
    (owned(fds[0].into()), owned(fds[1].into()))
}

/// Another descriptor of the same open file.
pub fn dup(fd: &impl AsRawFd) -> OwnedFd {
    // SAFETY: No memory is passed.
    owned(check(unsafe { libc::dup(fd.as_raw_fd()) }.into()).unwrap())
}

/// Whether a descriptor is open in this process, and with which access mode.
pub fn access_mode(fd: RawFd) -> Sys<i32> {
    // SAFETY: No memory is passed.
    check(unsafe { libc::fcntl(fd, libc::F_GETFL) }.into()).map(|flags| flags as i32 & libc::O_ACCMODE)
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is one struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// That many milliseconds from now.
pub fn in_ms(ms: u64) -> u64 {
    now_ns() + ms * 1_000_000
}

/// Sleeps.
pub fn sleep_ms(ms: u64) {
    std::thread::sleep(std::time::Duration::from_millis(ms));
}

/// A child process; killed and waited for when dropped.
pub struct Child {
    pid: i32,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl Child {
    /// Runs `f` in a child, which ends with what it returns, or with 101 if it panics.
    pub fn run(f: impl FnOnce() -> i32) -> Self {
        // SAFETY: The suite has a single thread whenever it forks, apart from threads that tests start in children.
        let pid = check(unsafe { libc::fork() }.into()).unwrap() as i32;
        if pid == 0 {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
            // SAFETY: Ends this process without running anything of its parent.
            unsafe { libc::_exit(status) };
        }
        Self { pid }
    }

    /// `kill`.
    pub fn signal(&self, signal: i32) {
        // SAFETY: The child was not waited for, so the number is still its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Kills and waits.
    pub fn kill(self) {
        drop(self);
    }

    /// Waits for its end.
    pub fn wait(mut self) -> End {
        self.reap()
    }

    fn reap(&mut self) -> End {
        let mut status = 0;
        // SAFETY: `status` is one integer; the child is ours and not waited for.
        while unsafe { libc::waitpid(self.pid, &mut status, 0) } != self.pid {
            assert_eq!(errno(), libc::EINTR);
        }
        self.pid = 0;
        if libc::WIFEXITED(status) { End::Exit(libc::WEXITSTATUS(status)) } else { End::Signal(libc::WTERMSIG(status)) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.pid != 0 {
            self.signal(libc::SIGKILL);
            self.reap();
        }
    }
}

/// Ends this process by SIGALRM after some seconds, whatever it does.
pub fn watchdog(seconds: u32) {
    // SAFETY: No memory is passed.
    unsafe { libc::alarm(seconds) };
}

/// Sends this process SIGUSR1 every `ms` milliseconds, with a handler that does nothing. `restart`: calls go on after it.
pub fn interrupt_every(ms: i64, restart: bool) {
    extern "C" fn nothing(_signal: i32) {}
    // SAFETY: The handler touches nothing; the structs are filled and outlive the calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
        check(libc::sigaction(libc::SIGVTALRM, &action, ptr::null_mut()).into()).unwrap();
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGVTALRM;
        let mut timer = ptr::null_mut();
        check(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer).into()).unwrap();
        let every = libc::timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        check(libc::timer_settime(timer, 0, &spec, ptr::null_mut()).into()).unwrap();
    }
}

/// Becomes another user without any rights, for good.
pub fn become_user(uid: u32) {
    // SAFETY: No memory is passed.
    unsafe {
        check(libc::setresgid(uid, uid, uid).into()).unwrap();
        check(libc::setresuid(uid, uid, uid).into()).unwrap();
    }
}

/// Loads a module from a file.
pub fn load_module(path: &Path) -> Sys<()> {
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: The parameters are an empty C string.
    check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) }).map(drop)
}

/// Unloads a module, if it is not in use.
pub fn unload_module(name: &str) -> Sys<()> {
    let name = CString::new(name).unwrap();
    // SAFETY: The name is a C string.
    check(unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) }).map(drop)
}

/// Closes a descriptor that a struct carried.
pub fn close(fd: RawFd) {
    drop(owned(fd.into()));
}

/// `mprotect` of one page of a mapping of ours.
pub fn protect(address: usize, protection: i32) {
    // SAFETY: Callers pass a page of a mapping that nothing holds a reference into.
    check(unsafe { libc::mprotect(address as *mut libc::c_void, 4096, protection) }.into()).unwrap();
}

/// `mremap` of a mapping to the place of another.
pub fn remap_to(map: &Map, place: &Map, flags: i32) -> Sys<()> {
    // SAFETY: Both mappings are ours. Callers expect an error; a mapping that did move would be seen as a failure.
    let at = unsafe { libc::mremap(map.at.cast(), map.len, map.len, flags, place.at) };
    if at == libc::MAP_FAILED { Err(errno()) } else { Ok(()) }
}

/// Frees the pages of a range of a file.
pub fn punch_hole(fd: &OwnedFd, offset: u64, len: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: No memory is passed.
    check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset as i64, len as i64) }.into()).unwrap();
}

/// Writes a byte to any address: to be killed for it, in a child.
pub fn write_byte(address: usize) {
    // SAFETY: There is none: the caller is a process that exists to be killed here.
    unsafe { (address as *mut u8).write_volatile(1) };
}
