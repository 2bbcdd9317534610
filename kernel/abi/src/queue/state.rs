//! The states of a job, a context and the server, and the legal steps between them.
//!
//! A job's state is one value; [`JobState::step`] is the only way from one to the next. A step says whether it completes
//! the job, and no path through the machine has two such steps: that is "exactly one completion".

use super::errno::Errno;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// The slot holds no job.
    Free,
    /// Waits for the job that it depends on.
    Waiting,
    /// Waits for the server.
    Queued,
    /// The server has it.
    Running,
    /// Completed towards the client, but the server still has it and may still touch its buffers.
    Abandoned,
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobEvent {
    /// Admitted; `waits` for another job.
    Admit {
        /// Whether it depends on a job in flight.
        waits: bool,
    },
    /// The job that it waited for completed well.
    DependencyDone,
    /// The job that it waited for failed.
    DependencyFailed,
    /// The server took it.
    Fetch,
    /// The server took it, but it did not reach it.
    Unfetch,
    /// It cannot be given to this server: opcode or session is not of it.
    Refuse(Errno),
    /// The server delivered its result.
    Commit,
    /// The client canceled it.
    Cancel,
    /// Its deadline passed.
    Deadline,
    /// The client is gone.
    ClientGone,
    /// The server is gone.
    ServerGone(Lost),
}

/// What the policy of the context means for a job whose server is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lost {
    /// All jobs fail.
    Fail,
    /// Running jobs fail.
    Hold,
    /// Running jobs are queued again.
    Reissue {
        /// Whether the job may run twice.
        idempotent: bool,
        /// How often it was queued again already.
        reissued: u8,
    },
}

/// Why a job completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The server's result.
    Result,
    /// An error of the queue.
    Error(Errno),
    /// `ECANCELED` because the job that it depends on failed.
    Dependency,
    /// Nobody is there to see it.
    Unseen,
}

/// A legal step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The next state.
    pub to: JobState,
    /// Whether the job completes by this step, and why.
    pub completes: Option<Cause>,
}

/// An event that cannot happen in this state: for the caller to refuse, never a reason to change anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Illegal;

impl JobState {
    /// Whether a completion is still owed.
    pub const fn is_in_flight(self) -> bool {
        matches!(self, Self::Waiting | Self::Queued | Self::Running)
    }

    /// Whether the server has the job, so that its buffers must stay.
    pub const fn is_with_server(self) -> bool {
        matches!(self, Self::Running | Self::Abandoned)
    }

    /// The step that `event` makes.
    ///
    /// # Errors
    /// [`Illegal`] if the event cannot happen here.
    pub fn step(self, event: JobEvent) -> Result<Step, Illegal> {
        use JobEvent as E;
        use JobState as S;
        let go = |to| Ok(Step { to, completes: None });
        let done = |to, cause| Ok(Step { to, completes: Some(cause) });
        let fails = |to, errno| Ok(Step { to, completes: Some(Cause::Error(errno)) });
        match (self, event) {
            (S::Free, E::Admit { waits: true }) => go(S::Waiting),
            (S::Free, E::Admit { waits: false }) => go(S::Queued),

            (S::Waiting, E::DependencyDone) => go(S::Queued),
            (S::Waiting, E::DependencyFailed) => done(S::Free, Cause::Dependency),

            (S::Queued, E::Fetch) => go(S::Running),
            (S::Queued, E::Refuse(errno)) => fails(S::Free, errno),
            (S::Running, E::Unfetch) => go(S::Queued),
            (S::Abandoned, E::Unfetch) => go(S::Free),

            (S::Running, E::Commit) => done(S::Free, Cause::Result),
            (S::Abandoned, E::Commit) => go(S::Free),

            (S::Waiting | S::Queued, E::Cancel) => fails(S::Free, Errno::ECANCELED),
            (S::Running, E::Cancel) => fails(S::Abandoned, Errno::ECANCELED),

            (S::Waiting | S::Queued, E::Deadline) => fails(S::Free, Errno::ETIMEDOUT),
            (S::Running, E::Deadline) => fails(S::Abandoned, Errno::ETIMEDOUT),

            (S::Waiting | S::Queued, E::ClientGone) => done(S::Free, Cause::Unseen),
            (S::Running, E::ClientGone) => done(S::Abandoned, Cause::Unseen),
            (S::Abandoned, E::ClientGone) => go(S::Abandoned),

            (S::Waiting | S::Queued, E::ServerGone(Lost::Fail)) => fails(S::Free, Errno::EOWNERDEAD),
            (S::Waiting, E::ServerGone(_)) => go(S::Waiting),
            (S::Queued, E::ServerGone(_)) => go(S::Queued),
            (S::Running, E::ServerGone(Lost::Reissue { idempotent: true, reissued })) => {
                if reissued < super::MAX_REISSUES { go(S::Queued) } else { fails(S::Free, Errno::ENOTRECOVERABLE) }
            }
            (S::Running, E::ServerGone(_)) => fails(S::Free, Errno::EOWNERDEAD),
            (S::Abandoned, E::ServerGone(_)) => go(S::Free),

            _ => Err(Illegal),
        }
    }
}

/// Where a client's context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContextState {
    /// The slot holds no context.
    Free,
    /// Open; SETUP was not done.
    New,
    /// Set up.
    Ready,
    /// The client broke the rules of the ring: nothing is admitted any more.
    Broken,
    /// Closed by the client; jobs or buffers are still with the server.
    Closing,
}

impl ContextState {
    /// What stands against an operation that needs a context which is set up.
    ///
    /// # Errors
    /// `ENOENT` before SETUP, `EPROTO` if it is broken.
    pub const fn check_ready(self) -> Result<(), Errno> {
        match self {
            Self::Ready => Ok(()),
            Self::Broken => Err(Errno::EPROTO),
            Self::Free | Self::New | Self::Closing => Err(Errno::ENOENT),
        }
    }

    /// After SETUP.
    ///
    /// # Errors
    /// `EBUSY` if it was done before.
    pub const fn set_up(self) -> Result<Self, Errno> {
        match self {
            Self::New => Ok(Self::Ready),
            Self::Ready | Self::Broken => Err(Errno::EBUSY),
            Self::Free | Self::Closing => Err(Errno::ENOENT),
        }
    }

    /// After a breach of the ring's rules.
    pub const fn breach(self) -> Self {
        match self {
            Self::Ready => Self::Broken,
            other => other,
        }
    }

    /// After the client closed it; `settled` if nothing of it is with the server.
    pub const fn close(self, settled: bool) -> Self {
        match (self, settled) {
            (Self::Free, _) | (_, true) => Self::Free,
            _ => Self::Closing,
        }
    }
}

/// Whether a server is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerState {
    /// None. `epoch` is that of the last one.
    Absent {
        /// Attachments so far.
        epoch: u32,
    },
    /// One is attached.
    Attached {
        /// Attachments so far.
        epoch: u32,
    },
}

impl ServerState {
    /// Attachments so far.
    pub const fn epoch(self) -> u32 {
        match self {
            Self::Absent { epoch } | Self::Attached { epoch } => epoch,
        }
    }

    /// Whether one is attached.
    pub const fn is_attached(self) -> bool {
        matches!(self, Self::Attached { .. })
    }

    /// After ATTACH.
    ///
    /// # Errors
    /// `EBUSY` if one is attached.
    pub const fn attach(self) -> Result<Self, Errno> {
        match self {
            Self::Absent { epoch } => Ok(Self::Attached { epoch: epoch.wrapping_add(1) }),
            Self::Attached { .. } => Err(Errno::EBUSY),
        }
    }

    /// After DETACH or the server's death.
    ///
    /// # Errors
    /// `ENOTCONN` if none is attached.
    pub const fn detach(self) -> Result<Self, Errno> {
        match self {
            Self::Attached { epoch } => Ok(Self::Absent { epoch }),
            Self::Absent { .. } => Err(Errno::ENOTCONN),
        }
    }
}
