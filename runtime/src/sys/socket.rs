//! Messages with descriptors over a `SOCK_SEQPACKET` unix socket, and who is at its other end.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Descriptors that one message may carry.
pub(crate) const MAX_FDS: usize = 1;

/// Sends one message, whole.
pub(crate) fn send(socket: impl AsFd, parts: &[IoSlice<'_>], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    loop {
        match sendmsg(&socket, parts, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its bytes; 0 at the end of the connection.
    pub(crate) len: usize,
    /// The descriptor that came with it.
    pub(crate) fd: Option<OwnedFd>,
    /// It was longer than the room for it, or carried more descriptors.
    pub(crate) truncated: bool,
}

/// Receives one message into `into`. With `wait` unset, fails with [`io::ErrorKind::WouldBlock`] if there is none.
pub(crate) fn receive(socket: impl AsFd, into: &mut [u8], wait: bool) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = if wait { RecvFlags::CMSG_CLOEXEC } else { RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT };
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(into)], &mut ancillary, flags) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let mut fd = None;
    for ancillary in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
            // Those that are too many are closed as they are dropped.
            fd = fds.last().or(fd);
        }
    }
    Ok(Received { len: message.bytes, fd, truncated })
}

/// Who is at the other end of a connection, as the kernel noted it when the connection was made.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Effective user.
    pub(crate) uid: u32,
    /// Process; its number may be another's by now, which [`Self::pidfd`] would tell.
    pub(crate) pid: i32,
    /// The process itself, where the system has `SO_PEERPIDFD` (Linux 6.5).
    pub(crate) pidfd: Option<OwnedFd>,
}

/// Asks for the peer's credentials.
pub(crate) fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(&socket)?;
    let pidfd = peer_pidfd(socket.as_fd());
    Ok(Peer { uid: credentials.uid.as_raw(), pid: credentials.pid.as_raw_nonzero().get(), pidfd })
}

fn peer_pidfd(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    /// `SO_PEERPIDFD` of `asm-generic/socket.h`.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an `int`, for which `fd` has room, and `len` says so.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    if result != 0 || fd < 0 {
        return None;
    }
    // SAFETY: by socket(7) the call has installed a new descriptor, which is ours alone.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The listening socket that systemd passed to this process, by sd_listen_fds(3): descriptor 3, if `LISTEN_PID` is this
/// process and `LISTEN_FDS` is not 0. Gives it once.
pub(crate) fn inherited() -> Option<OwnedFd> {
    static GIVEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID")? != std::process::id() || number("LISTEN_FDS")? == 0 {
        return None;
    }
    if GIVEN.swap(true, std::sync::atomic::Ordering::Relaxed) {
        return None;
    }
    // SAFETY: by sd_listen_fds(3) the descriptor was opened for this process before it started, nothing else in it knows of
    // it, and the flag above makes sure that it is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(3) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn messages_keep_their_bounds_and_carry_descriptors() {
        let (a, b) = pair();
        let memfd = super::super::memfd::memfd("x", 4096).unwrap();
        send(&a, &[IoSlice::new(b"one"), IoSlice::new(b"two")], Some(memfd.as_fd())).unwrap();
        send(&a, &[IoSlice::new(b"three")], None).unwrap();
        let mut bytes = [0; 16];
        let first = receive(&b, &mut bytes, true).unwrap();
        assert_eq!((&bytes[..first.len], first.truncated), (&b"onetwo"[..], false));
        let theirs = first.fd.expect("the descriptor");
        assert_eq!(rustix::fs::fstat(&theirs).unwrap().st_ino, rustix::fs::fstat(&memfd).unwrap().st_ino);
        let second = receive(&b, &mut bytes[..2], true).unwrap();
        assert!(second.truncated && second.fd.is_none());
        assert_eq!(receive(&b, &mut bytes, false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(&b, &mut bytes, true).unwrap().len, 0);
    }

    #[test]
    fn the_peer_is_this_process() {
        let (a, _b) = pair();
        let peer = peer(&a).unwrap();
        assert_eq!(peer.pid, rustix::process::getpid().as_raw_nonzero().get());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    }
}
