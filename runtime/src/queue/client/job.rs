//! What a client asks for.

use super::{Buffer, Element, TensorView};
use crate::queue::{QueueError, clock, params};
use rustai_abi::queue::{self as abi, MAX_TENSORS, Tensor, class, job_flag, opcode, tensor_flag};
use std::time::Duration;

/// A job: an opcode with tensors and settings; [`params`] tells what each opcode takes.
///
/// ```
/// use rustai::queue::Job;
/// use std::time::Duration;
///
/// let job = Job::nop().user_data(7).deadline_in(Duration::from_secs(1));
/// # let _ = job;
/// ```
#[derive(Clone, Debug)]
pub struct Job {
    pub(super) job: abi::Job,
    tensors: Vec<Tensor>,
    /// Keeps what the tensors lie in registered until the job is handed over; then the queue keeps it.
    buffers: Vec<Buffer>,
}

/// Settings of GENERATE. What is `None` is the server's default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerateParams {
    /// Most tokens; `None` for as many as the output holds.
    pub max_tokens: Option<usize>,
    /// The temperature; 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// The seed.
    pub seed: Option<u64>,
    /// Candidates.
    pub top_k: Option<usize>,
    /// Probability mass of the candidates.
    pub top_p: Option<f32>,
    /// Probability of a candidate relative to the likeliest.
    pub min_p: Option<f32>,
    /// End tokens do not end the answer.
    pub ignore_end: bool,
    /// A text is a user's message, to be written with the model's chat template.
    pub chat: bool,
    /// Special tokens written in a text are parsed.
    pub specials: bool,
}

impl Job {
    /// A job of any opcode, of the class NORMAL.
    pub fn new(opcode: u16) -> Self {
        let job = abi::Job { opcode, sched_class: class::NORMAL, ..abi::Job::default() };
        Self { job, tensors: Vec::new(), buffers: Vec::new() }
    }

    /// Nothing.
    pub fn nop() -> Self {
        Self::new(opcode::NOP)
    }

    /// Completes after `delay` with `result` and `count`.
    pub fn echo(delay: Duration, result: i32, count: u32) -> Self {
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let job = Self::new(opcode::ECHO).param(params::echo::DELAY_NS, delay);
        job.param(params::echo::RESULT, u64::from(result as u32)).param(params::echo::COUNT, count.into())
    }

    /// Text to token ids.
    pub fn tokenize(text: &TensorView<u8>, tokens: &TensorView<u32>, flags: u64) -> Self {
        Self::new(opcode::TOKENIZE).input(text).output(tokens).param(params::tokenize::FLAGS, flags)
    }

    /// Tokens to an embedding: of the last token, or a row for each.
    pub fn embed(tokens: &TensorView<u32>, out: &TensorView<f32>) -> Self {
        Self::new(opcode::EMBED).indices(tokens).output(out)
    }

    /// Tokens to logits: those behind the last token, or a row for each.
    pub fn logits(tokens: &TensorView<u32>, out: &TensorView<f32>) -> Self {
        Self::new(opcode::LOGITS).indices(tokens).output(out)
    }

    /// Goes on from tokens. Of the class INTERACTIVE.
    pub fn generate(prompt: &TensorView<u32>, out: &TensorView<u32>, params: &GenerateParams) -> Self {
        Self::new(opcode::GENERATE).indices(prompt).output(out).generates(params)
    }

    /// Goes on from a text; the answer comes as tokens and as text. Of the class INTERACTIVE.
    pub fn generate_text(
        prompt: &TensorView<u8>,
        tokens: &TensorView<u32>,
        text: &TensorView<u8>,
        params: &GenerateParams,
    ) -> Self {
        Self::new(opcode::GENERATE).input(prompt).output(tokens).output(text).generates(params)
    }

    fn generates(self, given: &GenerateParams) -> Self {
        use params::generate as p;
        let GenerateParams { max_tokens, temperature, seed, top_k, top_p, min_p, ignore_end, chat, specials } = *given;
        let float = |value: Option<f32>| value.map(|value| u64::from(value.to_bits()));
        let mut job = self.class(Class::Interactive).param(p::MAX_TOKENS, max_tokens.unwrap_or(0) as u64);
        let mut flags = 0;
        for (flag, at, value) in [
            (p::HAS_TEMPERATURE, p::TEMPERATURE, float(temperature)),
            (p::HAS_SEED, p::SEED, seed),
            (p::HAS_TOP_K, p::TOP_K, top_k.map(|k| k as u64)),
            (p::HAS_TOP_P, p::TOP_P, float(top_p)),
            (p::HAS_MIN_P, p::MIN_P, float(min_p)),
        ] {
            if let Some(value) = value {
                flags |= flag;
                job = job.param(at, value);
            }
        }
        for (flag, set) in [(p::IGNORE_END, ignore_end), (p::CHAT, chat), (p::SPECIALS, specials)] {
            flags |= if set { flag } else { 0 };
        }
        job.param(p::FLAGS, flags)
    }

    /// `out = x · wᵀ`, with a matrix of any type.
    pub fn matmul<W>(x: &TensorView<f32>, w: &TensorView<W>, out: &TensorView<f32>) -> Self {
        Self::new(opcode::MATMUL).input(x).input(w).output(out)
    }

    /// Opens a session for `tokens` tokens; 0 for the model's context.
    pub fn session_open(tokens: usize) -> Self {
        Self::new(opcode::SESSION_OPEN).param(params::session::TOKENS, tokens as u64)
    }

    /// Closes a session.
    pub fn session_close(session: Session) -> Self {
        Self::new(opcode::SESSION_CLOSE).in_session(session)
    }

    /// Adds an input.
    pub fn input<T>(self, tensor: &TensorView<T>) -> Self {
        self.place(tensor, 0)
    }

    /// Adds an input of indices, which the server copies and checks before it uses them.
    pub fn indices<T: Element>(self, tensor: &TensorView<T>) -> Self {
        self.place(tensor, tensor_flag::INDEX)
    }

    /// Adds an output.
    pub fn output<T>(self, tensor: &TensorView<T>) -> Self {
        self.place(tensor, tensor_flag::OUT)
    }

    /// Adds an output that may overlap an input.
    pub fn in_place<T>(self, tensor: &TensorView<T>) -> Self {
        self.place(tensor, tensor_flag::OUT | tensor_flag::IN_PLACE)
    }

    fn place<T>(mut self, tensor: &TensorView<T>, flags: u32) -> Self {
        self.buffers.push(tensor.buffer().clone());
        self.tensor(Tensor { flags, ..tensor.descriptor() })
    }

    /// Adds a tensor as it is described. Its buffer is the caller's to keep.
    pub fn tensor(mut self, tensor: Tensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// Sets a parameter.
    ///
    /// # Panics
    /// If there is no such parameter: they are numbered 0 to 7.
    pub fn param(mut self, index: usize, value: u64) -> Self {
        self.job.params[index] = value;
        self
    }

    /// What the completion is to be known by.
    pub fn user_data(mut self, user_data: u64) -> Self {
        self.job.user_data = user_data;
        self
    }

    /// How it is scheduled beside other jobs.
    pub fn class(mut self, class: Class) -> Self {
        self.job.sched_class = class as u8;
        self
    }

    /// Fails with `ETIMEDOUT` after this time of `CLOCK_MONOTONIC`, in nanoseconds.
    pub fn deadline(mut self, deadline_ns: u64) -> Self {
        self.job.flags |= job_flag::DEADLINE;
        self.job.deadline_ns = deadline_ns;
        self
    }

    /// As [`deadline`](Self::deadline), for a time from now.
    pub fn deadline_in(self, time: Duration) -> Self {
        self.deadline(clock::deadline(time))
    }

    /// Starts after the job `seq` of the same client, and fails if that fails.
    pub fn after(mut self, seq: u64) -> Self {
        self.job.flags |= job_flag::DEP;
        self.job.dep_seq = seq;
        self
    }

    /// Runs in a session.
    pub fn in_session(mut self, session: Session) -> Self {
        self.job.flags |= job_flag::SESSION;
        (self.job.session, self.job.session_epoch) = (session.number, session.epoch);
        self
    }

    /// Runs on another model than the server's default.
    pub fn model(mut self, model: u32) -> Self {
        self.job.model = model;
        self
    }
}

/// Scheduling classes: a higher one gets a larger share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// What has time.
    Batch = class::BATCH,
    /// The usual one.
    #[default]
    Normal = class::NORMAL,
    /// Someone waits for each token.
    Interactive = class::INTERACTIVE,
}

/// A session: what earlier jobs computed stays in the cache. It ends with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number.
    pub number: u32,
    /// The epoch of the server that opened it.
    pub epoch: u32,
}

impl Session {
    /// What a completion of SESSION_OPEN says; `None` if that failed.
    pub fn opened(completion: &abi::Completion) -> Option<Self> {
        Some(Self { number: u32::try_from(completion.result).ok()?, epoch: completion.count })
    }
}

/// Jobs as the queue wants them, and all their tensors.
pub(super) fn flatten(jobs: &[Job]) -> Result<(Vec<abi::Job>, Vec<Tensor>), QueueError> {
    let mut tensors = Vec::new();
    let flat = jobs.iter().map(|job| {
        let count = job.tensors.len();
        if count > MAX_TENSORS {
            return Err(QueueError::Job(format!("a job has at most {MAX_TENSORS} tensors, not {count}")));
        }
        tensors.extend_from_slice(&job.tensors);
        Ok(abi::Job { tensor_count: count as u32, ..job.job })
    });
    let flat = flat.collect::<Result<_, _>>()?;
    Ok((flat, tensors))
}
