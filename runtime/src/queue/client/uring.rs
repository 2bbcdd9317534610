//! Jobs by io_uring: a ring that hands them over and tells of their ends.
//!
//! Over a device that has the feature URING each job is a command of the ring, and the ring's completion is the job's: no completion
//! ring, no eventfd. Over the other ways jobs go as always, and the ring waits for the completion eventfd and for the end of
//! the connection. Either way one descriptor tells of everything, so that a service with an io_uring of its own can watch it.

use super::{Client, Job, Pending, job};
use crate::{
    queue::{QueueError, clock},
    sys::uring::{self, Command, Ring},
};
use rustai_abi::queue::{self as abi, Errno, UringSubmit, Wire, ioctl, op};
use std::{
    collections::{HashMap, VecDeque},
    io,
    mem::offset_of,
    os::fd::{AsFd, BorrowedFd},
};

/// Jobs of one client by io_uring, for one thread or task.
///
/// While there is one, other threads should not wait for jobs of the same client: they would take the news from each other.
pub struct Uring {
    client: Client,
    ring: Ring,
    flights: HashMap<u64, Flight>,
    next: u64,
    ended: VecDeque<Ended>,
    /// Whether the ring waits for news of the eventfd, and of the connection.
    watched: [bool; 2],
}

enum Flight {
    /// A command of the ring; keeps what its tensors lie in.
    Command(Job),
    /// A job that was submitted as always.
    Submitted(Pending),
}

/// The end of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What the job was given to be known by.
    pub user_data: u64,
    /// What its completion holds: 0 or more is the opcode's result, negative an error number.
    pub result: i32,
}

/// Tokens of the ring that are no job.
const NEWS: u64 = u64::MAX;
const HANGS_UP: u64 = u64::MAX - 1;

fn failed(source: io::Error) -> QueueError {
    QueueError::System { what: "io_uring", source }
}

impl Uring {
    /// A ring for `entries` jobs at once.
    ///
    /// # Errors
    /// [`QueueError::System`] if the system has no io_uring or forbids it (`/proc/sys/kernel/io_uring_disabled`).
    pub fn new(client: &Client, entries: u32) -> Result<Self, QueueError> {
        let ring = Ring::new(entries.max(8)).map_err(failed)?;
        let client = client.clone();
        if client.inner.transport.command_device().is_none() {
            client.inner.listen()?;
        }
        Ok(Self { client, ring, flights: HashMap::new(), next: 0, ended: VecDeque::new(), watched: [false; 2] })
    }

    /// Whether jobs are commands of the ring.
    pub fn has_commands(&self) -> bool {
        self.client.inner.transport.command_device().is_some()
    }

    /// Hands a job over. As a command, what is wrong with it is told by its end, and its progress not at all.
    ///
    /// # Errors
    /// As [`Client::submit`]; [`QueueError::System`] if the ring refuses.
    pub fn submit(&mut self, job: &Job) -> Result<(), QueueError> {
        let token = self.next;
        let Self { client, ring, .. } = self;
        let flight = match client.inner.transport.command_device() {
            None => Flight::Submitted(client.submit(job)?),
            Some(device) => {
                ring.command(device, command(job)?, token).map_err(failed)?;
                Flight::Command(job.clone())
            }
        };
        self.flights.insert(token, flight);
        self.next += 1;
        Ok(())
    }

    /// Jobs whose end was not told yet.
    pub fn in_flight(&self) -> usize {
        self.flights.len() + self.ended.len()
    }

    /// The next end, if there is one.
    ///
    /// # Errors
    /// If the transport fails.
    pub fn try_wait(&mut self) -> Result<Option<Ended>, QueueError> {
        if let Some(ended) = self.ended.pop_front() {
            return Ok(Some(ended));
        }
        while let Some(uring::Ended { token, result }) = self.ring.next() {
            match token {
                NEWS => {
                    self.watched[0] = false;
                    let _ = rustix::io::read(&self.client.inner.eventfd, &mut [0u8; 8]);
                }
                HANGS_UP => {
                    self.watched[1] = false;
                    self.client.inner.lose(&mut self.client.inner.lock());
                }
                token => {
                    if let Some(Flight::Command(job)) = self.flights.remove(&token) {
                        return Ok(Some(Ended { user_data: job.job.user_data, result }));
                    }
                }
            }
        }
        let ended = &mut self.ended;
        let mut failure = None;
        self.flights.retain(|_, flight| {
            let Flight::Submitted(pending) = flight else { return true };
            let user_data = pending.user_data();
            match pending.try_wait() {
                Ok(None) => return true,
                Ok(Some(done)) => ended.push_back(Ended { user_data, result: done.result }),
                Err(QueueError::Gone) => ended.push_back(Ended { user_data, result: -Errno::EOWNERDEAD.raw() }),
                Err(error) => {
                    failure = Some(error);
                    return true;
                }
            }
            false
        });
        failure.map_or(Ok(self.ended.pop_front()), Err)
    }

    /// Sleeps until a job has ended.
    ///
    /// # Errors
    /// [`QueueError::Job`] if none is in flight; if the transport or the ring fails.
    pub fn wait(&mut self) -> Result<Ended, QueueError> {
        self.end_by(None)
    }

    /// As [`wait`](Self::wait) until a time of `CLOCK_MONOTONIC`, in nanoseconds.
    ///
    /// # Errors
    /// [`QueueError::TimedOut`] if the time is over; as [`wait`](Self::wait).
    pub fn wait_until(&mut self, deadline_ns: u64) -> Result<Ended, QueueError> {
        self.end_by(Some(deadline_ns))
    }

    fn end_by(&mut self, deadline: Option<u64>) -> Result<Ended, QueueError> {
        loop {
            self.watch()?;
            // What came before the ring watched is found here, what comes later wakes it.
            if let Some(ended) = self.try_wait()? {
                return Ok(ended);
            }
            if self.flights.is_empty() {
                return Err(QueueError::Job("no job is in flight: submit one first".to_owned()));
            }
            if self.watched[0] || self.has_commands() {
                let left = match deadline {
                    Some(at) => Some(clock::until(at).ok_or(QueueError::TimedOut)?),
                    None => None,
                };
                self.ring.wait(left).map_err(failed)?;
            }
        }
    }

    /// Has the ring wait for news, where jobs are no commands. For services that watch the ring themselves: call this and then
    /// [`try_wait`](Self::try_wait) before sleeping on the ring's descriptor.
    ///
    /// # Errors
    /// [`QueueError::System`] if the ring refuses.
    pub fn watch(&mut self) -> Result<(), QueueError> {
        if self.has_commands() {
            return Ok(());
        }
        let Self { client, ring, watched, .. } = self;
        if !std::mem::replace(&mut watched[0], true) {
            ring.watch(client.inner.eventfd.as_fd(), NEWS).map_err(failed)?;
        }
        if let Some(socket) = &client.inner.hangs_up
            && !std::mem::replace(&mut watched[1], true)
        {
            ring.watch_end(socket.as_fd(), HANGS_UP).map_err(failed)?;
        }
        Ok(())
    }
}

/// The ring's descriptor: readable when there is news.
impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("commands", &self.has_commands()).finish_non_exhaustive()
    }
}

fn bytes_of(value: &impl Wire) -> Box<[u8]> {
    let mut bytes = Vec::new();
    crate::queue::message::push(&mut bytes, value);
    bytes.into()
}

fn command(job: &Job) -> Result<Command, QueueError> {
    let (jobs, tensors) = job::flatten(std::slice::from_ref(job))?;
    let mut pointed = Vec::new();
    tensors.iter().for_each(|tensor| crate::queue::message::push(&mut pointed, tensor));
    let mut area = [0; 16];
    let written = UringSubmit::new().write(&mut area);
    debug_assert!(written);
    Ok(Command {
        operation: ioctl(op::SUBMIT),
        area,
        address: offset_of!(UringSubmit, job),
        bytes: bytes_of(&jobs[0]),
        pointed: (pointed.into(), offset_of!(abi::Job, tensors)),
    })
}
