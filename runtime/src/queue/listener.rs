//! The socket at which clients reach a broker.
//!
//! Each connection has a thread, which runs quick jobs itself. A client that is slow, stuck or hostile keeps only its own
//! thread busy; one that breaks the rules of the messages is hung up on.

use super::{
    QueueError,
    broker::{Answer, Broker, Member, With},
    lane::{Lane, Other, Spin},
    message::{self, Jobs},
};
use crate::sys::socket;
use rustai_abi::queue::{Errno, Submit, op};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FlockOperation, Mode, OFlags, chmod, flock, open},
    net::{
        AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, shutdown,
        socket_with,
    },
};
use std::{
    collections::HashMap,
    io::{self, IoSlice, Write},
    mem::offset_of,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Listens for clients until it is dropped; then it hangs up on all of them.
pub struct Listener {
    shared: Arc<Listening>,
    threads: Vec<JoinHandle<()>>,
    path: PathBuf,
    /// Removed at the end.
    made: Vec<PathBuf>,
    /// Held as long as this server owns the path.
    _lock: Option<OwnedFd>,
}

struct Listening {
    broker: Arc<Broker>,
    socket: OwnedFd,
    monitor: Option<UnixListener>,
    connections: Mutex<HashMap<u64, OwnedFd>>,
    next: AtomicU64,
    closing: AtomicBool,
    spin: Duration,
}

/// Settings of a [`Listener`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerOptions {
    /// How long a connection's thread spins for the next message before it sleeps; it does so while messages come that soon.
    /// The default, 50 microseconds, is about what it costs to sleep and be woken; zero always sleeps.
    pub spin: Duration,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self { spin: Spin::LIMIT }
    }
}

impl Listener {
    /// Listens at `path`, which only this user and its group may connect to. A socket that a dead server left is replaced. Beside
    /// it, at `path` with `.stat` appended, this user may ask for the counters of all clients.
    ///
    /// # Errors
    /// [`QueueError::Taken`] if another server listens there, [`QueueError::Listen`] if it cannot be made.
    pub fn bind(broker: &Arc<Broker>, path: &Path, options: ListenerOptions) -> Result<Self, QueueError> {
        let wrong = |source: io::Error| QueueError::Listen { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(wrong)?;
        }
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        // Whoever holds the lock owns the path, so what lies there is a dead server's.
        let lock = open(beside(".lock"), OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let lock = lock.map_err(|error| wrong(error.into()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(QueueError::Taken(path.to_owned()));
        }
        let stat = beside(".stat");
        for old in [path, &stat] {
            match std::fs::remove_file(old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(error)),
                _ => {}
            }
        }
        let make = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            chmod(path, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)?;
            listen(&socket, 128)?;
            let monitor = UnixListener::bind(&stat)?;
            chmod(&stat, Mode::RUSR | Mode::WUSR)?;
            io::Result::Ok((socket, monitor))
        };
        let (socket, monitor) = make().map_err(wrong)?;
        let mut this = Self::over(broker, socket, Some(monitor), options)?;
        this.path = path.to_owned();
        this.made = vec![path.to_owned(), stat];
        this._lock = Some(lock);
        tracing::info!(socket = %path.display(), "listening for clients of the queue");
        Ok(this)
    }

    /// Takes over a socket that systemd listens at already (`LISTEN_FDS`); `None` if it passed none to this process.
    ///
    /// # Errors
    /// [`QueueError::System`] if no thread can be started.
    pub fn inherited(broker: &Arc<Broker>, options: ListenerOptions) -> Result<Option<Self>, QueueError> {
        match socket::inherited() {
            Some(socket) => Self::over(broker, socket, None, options).map(Some),
            None => Ok(None),
        }
    }

    fn over(
        broker: &Arc<Broker>,
        socket: OwnedFd,
        monitor: Option<UnixListener>,
        options: ListenerOptions,
    ) -> Result<Self, QueueError> {
        let shared = Arc::new(Listening {
            broker: broker.clone(),
            socket,
            monitor,
            connections: Mutex::default(),
            next: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            spin: options.spin,
        });
        let mut threads = Vec::new();
        let mut start = |name: &str, run: fn(&Arc<Listening>)| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
            threads.push(thread.map_err(QueueError::system("a thread for the socket"))?);
            Ok(())
        };
        start("rustai-queue-accept", Listening::accept)?;
        start("rustai-queue-stat", Listening::tell)?;
        Ok(Self { shared, threads, path: PathBuf::new(), made: Vec::new(), _lock: None })
    }

    /// Where it listens; empty if systemd made the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A connection that has said nothing yet.
struct Silent {
    connection: OwnedFd,
    member: Member,
}

impl Listening {
    /// Takes in clients. A connection gets a thread with its first message, so that one who only connects, again and again, costs
    /// little of the processors that others need.
    fn accept(self: &Arc<Self>) {
        let mut silent: Vec<Silent> = Vec::new();
        while !self.closing.load(Ordering::Acquire) {
            let mut ready: Vec<PollFd<'_>> = std::iter::once(PollFd::new(&self.socket, PollFlags::IN))
                .chain(silent.iter().map(|silent| PollFd::new(&silent.connection, PollFlags::IN)))
                .collect();
            if poll(&mut ready, None).is_err() {
                // Interrupted, or out of memory: others may go, so try again.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let ready: Vec<PollFlags> = ready.iter().map(PollFd::revents).collect();
            // From the last on, so that what is taken out moves only those that were looked at.
            for (index, events) in ready[1..].iter().enumerate().rev() {
                if events.is_empty() {
                    continue;
                }
                let Silent { connection, member } = silent.swap_remove(index);
                // Of one that has gone nobody waits for answers.
                if !events.contains(PollFlags::HUP)
                    && let Err(error) = self.start(connection, member)
                {
                    tracing::warn!(%error, "a client was turned away");
                }
            }
            if !ready[0].is_empty() {
                match accept_with(&self.socket, SocketFlags::CLOEXEC) {
                    Ok(connection) => match self.admit(connection) {
                        Ok(client) => silent.push(client),
                        Err(error) => tracing::warn!(%error, "a client was turned away"),
                    },
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                    Err(_) if self.closing.load(Ordering::Acquire) => return,
                    Err(error) => {
                        // Out of descriptors, perhaps: others may go, so try again.
                        tracing::warn!(%error, "a client could not be accepted");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        }
    }

    fn admit(&self, connection: OwnedFd) -> io::Result<Silent> {
        let peer = socket::peer(&connection)?;
        let member = match self.broker.open(peer.uid, peer.pid, true) {
            Ok(member) => member,
            Err(errno) => {
                turn_away(connection, errno)?;
                return Err(io::Error::other(errno.to_string()));
            }
        };
        tracing::debug!(uid = peer.uid, pid = peer.pid, known_by_pidfd = peer.pidfd.is_some(), "client connected");
        Ok(Silent { connection, member })
    }

    /// Gives a connection its thread.
    fn start(self: &Arc<Self>, connection: OwnedFd, member: Member) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, connection.try_clone()?);
        let shared = self.clone();
        let thread = std::thread::Builder::new().name(format!("rustai-client-{number}"));
        let spawned = thread.spawn(move || {
            if let Err(error) = shared.converse(&connection, &member) {
                tracing::debug!(number, %error, "connection ended");
            }
            drop(member);
            shared.lock().remove(&number);
        });
        if spawned.is_err() {
            self.lock().remove(&number);
        }
        spawned.map(drop)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, OwnedFd>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one request after the other until the client is gone.
    fn converse(&self, connection: &OwnedFd, member: &Member) -> io::Result<()> {
        let mut inbox = Inbox { connection, lane: None, spin: Spin::new(self.spin) };
        let mut request = vec![0; message::LONGEST];
        loop {
            let received = inbox.receive(&mut request)?;
            if received.len == 0 {
                return Ok(());
            }
            let broken = || io::Error::new(io::ErrorKind::InvalidData, "a message that breaks the rules");
            if received.truncated {
                return Err(broken());
            }
            let (number, bytes, rest) = message::parse_request(&mut request[..received.len]).ok_or_else(broken)?;
            let fd = received.fd.as_ref().map(AsFd::as_fd);
            // An address is the client's own: the jobs come in the message.
            let address = bytes.get(offset_of!(Submit, jobs)..).and_then(|bytes| bytes.first_chunk::<8>());
            let outcome = match number {
                message::LOOK => continue,
                message::LANE => inbox.open_lane(bytes, fd).map(|()| Answer::default()),
                op::SUBMIT if address.is_some_and(|address| *address != [0; 8]) => Err(Errno::EFAULT),
                _ => member.call(number, bytes, With { jobs: Jobs::Bytes(rest), fd, socket: Some(connection.as_fd()) }),
            };
            let head = message::reply(number, outcome.as_ref().map(|_| bytes.len()).map_err(|errno| *errno));
            let answer = if outcome.is_ok() { &*bytes } else { &[] };
            let ring = outcome.as_ref().ok().and_then(|answer| answer.ring.as_ref());
            // The client looks into a lane only after it knows that there is one.
            inbox.send(&head, answer, ring, number != message::LANE)?;
        }
    }

    /// Tells the counters of all clients to whoever connects to the monitor's socket: one line of JSON.
    fn tell(self: &Arc<Self>) {
        let Some(monitor) = &self.monitor else { return };
        while !self.closing.load(Ordering::Acquire) {
            let Ok((mut reader, _)) = monitor.accept() else { continue };
            let _ = reader.set_write_timeout(Some(Duration::from_secs(1)));
            let _ = writeln!(reader, "{}", super::monitor::Snapshot::of(&self.broker).json());
        }
    }
}

/// A connection's two ways in, of which the client takes one for each message.
struct Inbox<'a> {
    connection: &'a OwnedFd,
    /// What the client has given, if it has.
    lane: Option<Lane>,
    spin: Spin,
}

impl Inbox<'_> {
    fn open_lane(&mut self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        if bytes != message::LANE_STRUCT {
            return Err(Errno::EINVAL);
        }
        if self.lane.is_some() {
            return Err(Errno::EBUSY);
        }
        self.lane = Some(Lane::of(fd.ok_or(Errno::EBADF)?)?);
        Ok(())
    }

    /// The next message, by either way; of length 0 at the end of the connection.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<socket::Received> {
        let (began, spin) = (Instant::now(), self.spin);
        let has_lane = self.lane.is_some();
        if let Some(found) = spin.until(began, has_lane, |socket_too| self.look(into, socket_too)) {
            return found;
        }
        let received = match &self.lane {
            // What came and is not there any more is a client's that breaks the rules.
            Some(lane) if lane.rest(&self.spin) => {
                lane.awake();
                self.look(into, false).unwrap_or_else(|| Ok(socket::Received { len: 0, fd: None, truncated: false }))
            }
            _ => {
                let received = self.receive_by_socket(into, true);
                if let Some(lane) = &self.lane {
                    lane.awake();
                }
                received
            }
        };
        self.spin.learn(began.elapsed());
        received
    }

    /// The message that has come: to the lane, or with `socket_too` to the socket.
    fn look(&mut self, into: &mut [u8], socket_too: bool) -> Option<io::Result<socket::Received>> {
        if let Some(len) = self.lane.as_mut().and_then(|lane| lane.take(into)) {
            if !is_look(&into[..len]) {
                return Some(Ok(socket::Received { len, fd: None, truncated: false }));
            }
            // The message is on the socket. What wakes those who sleep there may lie in front of it.
            loop {
                match self.receive_by_socket(into, true) {
                    Ok(received) if is_look(&into[..received.len]) => {}
                    other => return Some(other),
                }
            }
        }
        if !socket_too {
            return None;
        }
        match self.receive_by_socket(into, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => Some(other),
        }
    }

    fn receive_by_socket(&mut self, into: &mut [u8], wait: bool) -> io::Result<socket::Received> {
        let received = socket::receive(self.connection, into, wait)?;
        if let Some(lane) = &mut self.lane
            && !is_look(&into[..received.len])
        {
            lane.skip();
        }
        Ok(received)
    }

    /// Answers: with `to_lane`, by the lane unless the client sleeps on the socket, else by the socket.
    fn send(&mut self, head: &[u8], answer: &[u8], ring: Option<&OwnedFd>, to_lane: bool) -> io::Result<()> {
        let look = message::reply(message::LOOK, Ok(0));
        let posted = match &mut self.lane {
            Some(lane) if to_lane && lane.other() != Other::Sleeps => match ring {
                None => lane.post(&[head, answer]),
                // Tells one who does not look at the socket to do so.
                Some(_) => lane.post(&[&look]).and(None),
            },
            _ => None,
        };
        match posted {
            Some(Other::Looks | Other::Naps) => Ok(()),
            Some(Other::Sleeps) => socket::send(self.connection, &[IoSlice::new(&look)], None),
            None => socket::send(self.connection, &[IoSlice::new(head), IoSlice::new(answer)], ring.map(AsFd::as_fd)),
        }
    }
}

fn is_look(message: &[u8]) -> bool {
    message::operation(message) == Some(message::LOOK)
}

/// Tells a client that there is no place for it, in answer to its first request; it has a second to make one. A connection that
/// is closed before that would tell it less.
fn turn_away(connection: OwnedFd, errno: Errno) -> io::Result<()> {
    let tell = move || {
        let mut request = [0; message::REQUEST];
        let second = super::clock::timespec(Duration::from_secs(1));
        let mut fds = [PollFd::new(&connection, PollFlags::IN)];
        if poll(&mut fds, Some(&second)).is_ok_and(|ready| ready > 0)
            && socket::receive(&connection, &mut request, false).is_ok_and(|received| received.len == request.len())
        {
            let number = u32::from_ne_bytes([request[0], request[1], request[2], request[3]]);
            // A client that is gone needs no answer.
            let _ = socket::send(&connection, &[IoSlice::new(&message::reply(number, Err(errno)))], None);
        }
    };
    std::thread::Builder::new().name("rustai-queue-full".into()).spawn(tell).map(drop)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        // By the way that Linux treats listening unix sockets, this wakes those that accept.
        let _ = shutdown(&self.shared.socket, Shutdown::Both);
        if let Some(monitor) = &self.shared.monitor {
            let _ = shutdown(monitor, Shutdown::Both);
        }
        for path in &self.made {
            let _ = std::fs::remove_file(path);
        }
        for thread in self.threads.drain(..) {
            // The threads do not panic; there is nothing to learn.
            let _ = thread.join();
        }
        for connection in self.shared.lock().values() {
            let _ = shutdown(connection, Shutdown::Both);
        }
        // The connections' threads end by themselves, and each closes its client.
        let until = Instant::now() + Duration::from_secs(5);
        while !self.shared.lock().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
