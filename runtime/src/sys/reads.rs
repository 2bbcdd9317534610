//! Reads of files, several at a time, by io_uring.
//!
//! A buffer belongs to the ring while it is read into, so nobody can free it or look at it before the kernel is done with it.

use io_uring::{IoUring, Probe, opcode, types::Fd};
use rustai_kernels_cuda::UploadBuffer;
use std::{collections::HashMap, fs::File, io, os::fd::AsRawFd};

/// Memory that can be read into.
///
/// # Safety
/// The bytes stay where they are while the buffer is moved, until it is dropped, and nothing else uses them meanwhile.
pub(crate) unsafe trait Buffer {
    /// All of the bytes.
    fn bytes(&mut self) -> io::Result<&mut [u8]>;
}

// SAFETY: the memory is an allocation of the driver's, which the buffer points to; `values` has waited for the last copy, and
// only a new one, for which one needs the buffer, uses it again.
unsafe impl Buffer for UploadBuffer<u8> {
    fn bytes(&mut self) -> io::Result<&mut [u8]> {
        self.values().map_err(io::Error::other)
    }
}

/// A read under way.
struct Read<'f, B, T> {
    file: &'f File,
    offset: u64,
    buffer: B,
    /// Start of the buffer.
    memory: *mut u8,
    len: usize,
    /// Bytes that have come.
    done: usize,
    about: T,
}

/// A read that has ended.
pub(crate) struct Ended<B, T> {
    /// What the caller said of it.
    pub(crate) about: T,
    pub(crate) buffer: B,
    /// Whether all bytes have come; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the file ends before.
    pub(crate) result: io::Result<()>,
}

/// A ring of reads.
pub(crate) struct Reads<'f, B: Buffer, T> {
    ring: IoUring,
    /// By token.
    running: HashMap<u64, Read<'f, B, T>>,
    next: u64,
    depth: usize,
}

impl<'f, B: Buffer, T> Reads<'f, B, T> {
    /// A ring for `depth` reads at once. Fails where the kernel has no io_uring, forbids it, or cannot read with it.
    pub(crate) fn new(depth: u32) -> io::Result<Self> {
        let ring = IoUring::new(depth)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Filters of system calls may allow the one and forbid the other.
        ring.submit()?;
        Ok(Self { ring, running: HashMap::new(), next: 0, depth: depth as usize })
    }

    /// Whether one more read may start.
    pub(crate) fn has_room(&self) -> bool {
        self.running.len() < self.depth
    }

    /// Starts to read `len` bytes at `offset` to the start of `buffer`. Fails if they do not fit, the ring is full, or the
    /// kernel does not take the read.
    pub(crate) fn start(&mut self, file: &'f File, offset: u64, mut buffer: B, len: usize, about: T) -> io::Result<()> {
        let bytes = buffer.bytes()?;
        if len == 0 || len > bytes.len() || !self.has_room() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let memory = bytes.as_mut_ptr();
        let token = self.next;
        self.next += 1;
        self.running.insert(token, Read { file, offset, buffer, memory, len, done: 0, about });
        self.push(token)
    }

    /// Asks for what a read lacks.
    fn push(&mut self, token: u64) -> io::Result<()> {
        let Some(read) = self.running.get(&token) else { return Ok(()) };
        let rest = u32::try_from(read.len - read.done).unwrap_or(u32::MAX);
        let memory = read.memory.wrapping_add(read.done);
        let entry = opcode::Read::new(Fd(read.file.as_raw_fd()), memory, rest);
        let entry = entry.offset(read.offset.saturating_add(read.done as u64)).build().user_data(token);
        // SAFETY: the buffer has `rest` bytes from there on. It stays in `running`, untouched, until the read has ended; `drop`
        // waits for that too. The file is open as long as `'f`, which outlives the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // There are as many entries as reads, and each has one at most.
        pushed.map_err(|_| io::Error::other("the io_uring has no free entry"))?;
        self.enter(0)
    }

    /// Waits for a read that has ended; `None` if none runs. What came short goes on by itself.
    pub(crate) fn next(&mut self) -> io::Result<Option<Ended<B, T>>> {
        while !self.running.is_empty() {
            let Some(entry) = self.ring.completion().next() else {
                self.enter(1)?;
                continue;
            };
            let token = entry.user_data();
            let Some(read) = self.running.get_mut(&token) else { continue };
            let result = match entry.result() {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                count if count > 0 => {
                    read.done += count as usize;
                    Ok(())
                }
                error => Err(io::Error::from_raw_os_error(-error)),
            };
            let again = match &result {
                Ok(()) => read.done < read.len,
                Err(error) => matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock),
            };
            if again {
                self.push(token)?;
            } else if let Some(Read { about, buffer, .. }) = self.running.remove(&token) {
                return Ok(Some(Ended { about, buffer, result }));
            }
        }
        Ok(None)
    }

    /// Hands over what was pushed, and sleeps until so many reads have ended.
    fn enter(&mut self, ended: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(ended) {
            // What was not handed over goes with the next call.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(()),
            result => result.map(drop),
        }
    }
}

impl<B: Buffer, T> Drop for Reads<'_, B, T> {
    fn drop(&mut self) {
        while let Ok(Some(_)) = self.next() {}
        if !self.running.is_empty() {
            tracing::warn!("reads by io_uring could not be awaited; their memory is not freed");
            // The kernel may still write there.
            std::mem::forget(std::mem::take(&mut self.running));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write},
        os::fd::OwnedFd,
    };

    // SAFETY: the bytes of a box are not in the box.
    unsafe impl Buffer for Box<[u8]> {
        fn bytes(&mut self) -> io::Result<&mut [u8]> {
            Ok(self)
        }
    }

    fn buffer(len: usize) -> Box<[u8]> {
        vec![0; len].into()
    }

    /// A ring, unless this kernel has none.
    fn reads<'f>(depth: u32) -> Option<Reads<'f, Box<[u8]>, usize>> {
        Reads::new(depth).inspect_err(|error| eprintln!("not tried, no io_uring: {error}")).ok()
    }

    #[test]
    fn parts_of_a_file_are_read_several_at_a_time() {
        let bytes: Vec<u8> = (0..1_000_003_u32).map(|i| (i * 7 / 3) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let Some(mut reads) = reads(4) else { return };
        let mut next = (0..bytes.len()).step_by(10_007);
        let (mut got, mut most) = (vec![0; bytes.len()], 0);
        loop {
            while reads.has_room()
                && let Some(at) = next.next()
            {
                let len = 10_007.min(bytes.len() - at);
                reads.start(&file, at as u64, buffer(10_007), len, at).unwrap();
            }
            most = most.max(reads.running.len());
            let Some(Ended { about, buffer, result }) = reads.next().unwrap() else { break };
            result.unwrap();
            let len = 10_007.min(bytes.len() - about);
            got[about..][..len].copy_from_slice(&buffer[..len]);
        }
        assert_eq!(most, 4);
        assert!(got == bytes);
    }

    #[test]
    fn what_comes_short_goes_on() {
        let (pipe, mut end) = io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(pipe));
        let Some(mut reads) = reads(1) else { return };
        end.write_all(b"abc").unwrap();
        reads.start(&pipe, 0, buffer(8), 6, 1).unwrap();
        assert!(reads.start(&pipe, 0, buffer(8), 6, 2).is_err(), "the ring is full");
        end.write_all(b"defg").unwrap();
        let ended = reads.next().unwrap().unwrap();
        ended.result.unwrap();
        assert_eq!((ended.about, &ended.buffer[..]), (1, &b"abcdef\0\0"[..]));
        let mut left = [0];
        (&pipe).read_exact(&mut left).unwrap();
        assert_eq!(&left, b"g");
    }

    #[test]
    fn the_end_of_a_file_and_a_failing_read_are_errors() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        // The first page of a process is mapped nowhere.
        let memory = File::open("/proc/self/mem").unwrap();
        let Some(mut reads) = reads(2) else { return };
        let mut ended = |file, offset, len| {
            reads.start(file, offset, buffer(64), len, 0).unwrap();
            reads.next().unwrap().unwrap().result.unwrap_err()
        };
        assert_eq!(ended(&file, 60, 64).kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(ended(&memory, 0, 64).raw_os_error(), Some(libc::EIO));
        assert!(reads.start(&file, 0, buffer(64), 65, 0).is_err(), "more than the buffer holds");
        assert!(reads.next().unwrap().is_none());
    }

    #[test]
    fn a_ring_that_goes_waits_for_its_reads() {
        let (pipe, mut end) = io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(pipe));
        let Some(mut reads) = reads(1) else { return };
        reads.start(&pipe, 0, buffer(8), 8, 1).unwrap();
        let writes = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            end.write_all(b"12345678").unwrap();
            std::time::Instant::now()
        });
        drop(reads);
        let gone = std::time::Instant::now();
        assert!(gone >= writes.join().unwrap() - std::time::Duration::from_millis(20));
    }
}
