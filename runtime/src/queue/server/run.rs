//! What each opcode does.

use super::{
    Done, Shared,
    matmul::Product,
    outcome_of,
    stream::{Event, Generating},
    work::{Place, Work},
};
use crate::{
    DType, Engine, EngineError, Error, Request,
    engine::{OutputKind, Session, Wanted},
    queue::{clock, params},
    sampler::SamplerParams,
    text::{Message, Specials},
};
use rustai_abi::queue::{Errno, Outcome, job_flag, opcode};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The longest delay of an ECHO.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

impl Work<'_> {
    /// Runs or starts the job; its outcome, if it is done.
    pub(super) fn run(&self) -> Result<Option<Outcome>, Errno> {
        if self.job.model != 0 {
            return Err(Errno::ENOENT);
        }
        let done = match self.job.opcode {
            opcode::NOP => self.only_params(0).map(|()| Done::default()),
            opcode::ECHO => return self.echo(),
            opcode::TOKENIZE => self.tokenize(),
            opcode::EMBED => return self.numbers(OutputKind::Embedding),
            opcode::LOGITS => return self.numbers(OutputKind::Logits),
            opcode::GENERATE => return self.generate(),
            opcode::MATMUL => return self.matmul(),
            opcode::SESSION_OPEN => self.session_open(),
            opcode::SESSION_CLOSE => self.session_close(),
            _ => Err(Errno::EOPNOTSUPP),
        };
        done.map(|done| Some(outcome_of(self.ticket, Ok(done))))
    }

    /// Refuses parameters from the `count`th on.
    fn only_params(&self, count: usize) -> Result<(), Errno> {
        if self.job.params[count..].iter().all(|&param| param == 0) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn engine(&self) -> Result<&Engine, Errno> {
        self.shared.engine.as_ref().ok_or(Errno::EOPNOTSUPP)
    }

    /// The session that the job names.
    fn session(&self) -> Result<Option<Session>, Errno> {
        if self.job.flags & job_flag::SESSION == 0 {
            return Ok(None);
        }
        if self.job.session_epoch != self.shared.epoch {
            return Err(Errno::ESTALE);
        }
        self.shared.sessions.get(self.client(), self.job.session).map(Some)
    }

    fn no_session(&self) -> Result<(), Errno> {
        if self.job.flags & job_flag::SESSION != 0 { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn echo(&self) -> Result<Option<Outcome>, Errno> {
        use params::echo as p;
        self.only_params(4)?;
        self.no_session()?;
        let (inputs, outputs) = self.places()?;
        let pairs = || inputs.iter().zip(&outputs);
        if inputs.len() != outputs.len() && !outputs.is_empty()
            || pairs().any(|(input, output)| input.bytes.len() != output.bytes.len())
        {
            return Err(Errno::EINVAL);
        }
        let mut copied = 0;
        match self.job.params[p::MODE] {
            p::TOUCH => {
                for (input, output) in pairs() {
                    for at in [0, input.bytes.len() - 1] {
                        output.map.copy(output.bytes.start + at, &input.map, input.bytes.start + at, 1);
                    }
                }
            }
            p::COPY => {
                for (input, output) in pairs() {
                    output.map.copy(output.bytes.start, &input.map, input.bytes.start, input.bytes.len());
                    copied += input.bytes.len() as u64;
                }
            }
            p::CRASH if self.shared.options.allow_crash => std::process::abort(),
            p::CRASH => return Err(Errno::EPERM),
            _ => return Err(Errno::EINVAL),
        }
        let result = self.job.params[p::RESULT] as u32 as i32;
        if result < 0 && Errno::from_raw(result.wrapping_neg()).is_none() {
            return Err(Errno::EINVAL);
        }
        let count = u32::try_from(self.job.params[p::COUNT]).map_err(|_| Errno::EINVAL)?;
        let outcome = outcome_of(self.ticket, Ok(Done { result, count, copied }));
        let delay = Duration::from_nanos(self.job.params[p::DELAY_NS]);
        if delay > LONGEST_DELAY {
            return Err(Errno::EINVAL);
        }
        if delay.is_zero() {
            return Ok(Some(outcome));
        }
        self.shared.send(Event::Later(clock::deadline(delay), outcome))?;
        Ok(None)
    }

    fn tokenize(&self) -> Result<Done, Errno> {
        use params::tokenize as p;
        self.only_params(1)?;
        self.no_session()?;
        let flags = self.job.params[p::FLAGS];
        let (inputs, outputs) = self.places()?;
        let ([text], [out]) = (&inputs[..], &outputs[..]) else { return Err(Errno::EINVAL) };
        if flags & !p::ALL != 0 || out.dtype != DType::I32 {
            return Err(Errno::EINVAL);
        }
        let tokenizer = self.engine()?.tokenizer();
        let copied = text.bytes.len() as u64;
        let text = text.text()?;
        let specials = if flags & p::SPECIALS != 0 { Specials::Parse } else { Specials::Text };
        let tokens = match flags & p::NO_BOS {
            0 => tokenizer.encode_prompt(&text, specials),
            _ => tokenizer.encode(&text, specials),
        };
        let tokens = tokens.map_err(|_| Errno::EDOM)?;
        let count = u32::try_from(tokens.len()).map_err(|_| Errno::EOVERFLOW)?;
        if tokens.len() > out.len() {
            return Ok(Done { result: -Errno::EMSGSIZE.raw(), count, copied });
        }
        out.put(0, &tokens);
        Ok(Done { result: count as i32, count, copied })
    }

    /// EMBED and LOGITS: the kernels write into the client's tensor.
    fn numbers(&self, kind: OutputKind) -> Result<Option<Outcome>, Errno> {
        self.only_params(0)?;
        let engine = self.engine()?;
        let session = self.session()?;
        let (inputs, outputs) = self.places()?;
        let ([tokens], [out]) = (&inputs[..], &outputs[..]) else { return Err(Errno::EINVAL) };
        let width = match kind {
            OutputKind::Logits => engine.info().vocab,
            OutputKind::Embedding => engine.info().embedding.ok_or(Errno::EOPNOTSUPP)?,
        };
        let tokens = tokens.indices(engine.info().vocab)?;
        if !out.is_shape(&[width]) && !out.is_shape(&[width, tokens.len()]) {
            // A client learns the width from this.
            let refused = Done { result: -Errno::EMSGSIZE.raw(), count: width as u32, copied: 0 };
            return Ok(Some(outcome_of(self.ticket, Ok(refused))));
        }
        let rows = out.floats()?;
        let count = (rows.len() / width) as u32;
        let (shared, ticket) = (self.shared.clone(), self.ticket);
        // The engine may be done before this thread has noted that it began.
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let done = move |result: Result<(), EngineError>| {
            end.store(true, Ordering::Release);
            let done = Done { result: count as i32, count, copied: 0 };
            shared.finish(ticket, result.map(|()| done).map_err(|error| errno_of(&error)));
        };
        let cancel = engine.compute(tokens, session.as_ref(), Wanted { kind, rows }, done);
        let cancel = cancel.map_err(|error| errno_of_request(&error))?;
        self.shared.started(self.ticket, cancel);
        if ended.load(Ordering::Acquire) {
            self.shared.running().cancels.remove(&self.ticket);
        }
        Ok(None)
    }

    fn generate(&self) -> Result<Option<Outcome>, Errno> {
        use params::generate as p;
        self.only_params(7)?;
        let engine = self.engine()?;
        let (inputs, outputs) = self.places()?;
        let [prompt] = &inputs[..] else { return Err(Errno::EINVAL) };
        let (tokens, text) = match &outputs[..] {
            [tokens] => (tokens, None),
            [tokens, text] if text.dtype == DType::I8 => (tokens, Some(text.clone())),
            _ => return Err(Errno::EINVAL),
        };
        if tokens.dtype != DType::I32 {
            return Err(Errno::EINVAL);
        }
        let params = &self.job.params;
        let flags = params[p::FLAGS];
        if flags & !p::ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let specials = flags & p::SPECIALS != 0;
        let mut copied = 0;
        let mut request = match prompt.dtype {
            DType::I32 if flags & (p::CHAT | p::SPECIALS) == 0 => Request::tokens(prompt.indices(engine.info().vocab)?),
            DType::I8 => {
                copied = prompt.bytes.len() as u64;
                match prompt.text()? {
                    _ if specials && flags & p::CHAT != 0 => return Err(Errno::EINVAL),
                    text if flags & p::CHAT != 0 => Request::chat([Message::new("user", text)]),
                    text if specials => Request::raw(text),
                    text => Request::text(text),
                }
            }
            _ => return Err(Errno::EINVAL),
        };
        if let Some(session) = self.session()? {
            request = request.session(&session);
        }
        let asked = usize::try_from(params[p::MAX_TOKENS]).map_err(|_| Errno::EINVAL)?;
        let most = if asked == 0 { tokens.len() } else { asked.min(tokens.len()) };
        request = request.sampling(self.sampling()?).ignore_end(flags & p::IGNORE_END != 0).max_tokens(most);
        let stream = engine.stream(request).map_err(|error| errno_of_request(&error))?;
        self.shared.started(self.ticket, stream.cancel_handle());
        let generating = Generating::new(self.ticket, stream, tokens.clone(), text, copied);
        self.shared.send(Event::Generate(Box::new(generating)))?;
        Ok(None)
    }

    fn sampling(&self) -> Result<SamplerParams, Errno> {
        use params::generate as p;
        let (params, flags) = (&self.job.params, self.job.params[p::FLAGS]);
        let given = |flag, at: usize| match (flags & flag != 0, params[at]) {
            (true, value) => Ok(Some(value)),
            (false, 0) => Ok(None),
            (false, _) => Err(Errno::EINVAL),
        };
        let float = |flag, at| {
            let bits = given(flag, at)?.map(u32::try_from).transpose().map_err(|_| Errno::EINVAL)?;
            Ok(bits.map(f32::from_bits))
        };
        let mut sampling = SamplerParams::default();
        if let Some(temperature) = float(p::HAS_TEMPERATURE, p::TEMPERATURE)? {
            sampling.temperature = temperature;
        }
        if let Some(top_p) = float(p::HAS_TOP_P, p::TOP_P)? {
            sampling.top_p = top_p;
        }
        if let Some(min_p) = float(p::HAS_MIN_P, p::MIN_P)? {
            sampling.min_p = min_p;
        }
        if let Some(top_k) = given(p::HAS_TOP_K, p::TOP_K)? {
            sampling.top_k = usize::try_from(top_k).map_err(|_| Errno::EINVAL)?;
        }
        sampling.seed = given(p::HAS_SEED, p::SEED)?;
        Ok(sampling)
    }

    fn matmul(&self) -> Result<Option<Outcome>, Errno> {
        self.only_params(0)?;
        self.no_session()?;
        let (inputs, outputs) = self.places()?;
        let ([x, w], [out]) = (&inputs[..], &outputs[..]) else { return Err(Errno::EINVAL) };
        let product = Product::new(self.ticket, x, w, out)?;
        self.shared.started(self.ticket, product.cancel_handle());
        self.shared.products.send(product).map_err(|_| Errno::ENOTRECOVERABLE)?;
        Ok(None)
    }

    fn session_open(&self) -> Result<Done, Errno> {
        self.only_params(1)?;
        self.no_session()?;
        self.no_tensors()?;
        let tokens = usize::try_from(self.job.params[params::session::TOKENS]).map_err(|_| Errno::EINVAL)?;
        let session = self.engine()?.open_session(tokens);
        let number = self.shared.sessions.open(self.client(), session)?;
        Ok(Done { result: number as i32, count: self.shared.epoch, copied: 0 })
    }

    fn session_close(&self) -> Result<Done, Errno> {
        self.only_params(0)?;
        self.no_tensors()?;
        if self.job.flags & job_flag::SESSION == 0 {
            return Err(Errno::EINVAL);
        }
        if self.job.session_epoch != self.shared.epoch {
            return Err(Errno::ESTALE);
        }
        self.shared.sessions.close(self.client(), self.job.session).map(|()| Done::default())
    }

    fn no_tensors(&self) -> Result<(), Errno> {
        if self.tensors.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

impl Shared {
    pub(super) fn send(&self, event: Event) -> Result<(), Errno> {
        self.events.send(event).map_err(|_| Errno::ENOTRECOVERABLE)
    }
}

impl Place {
    /// Whether kernels can read it where it lies.
    pub(super) fn is_aligned(&self) -> bool {
        self.map.address(self.bytes.start).is_multiple_of(64)
    }
}

/// What a refused request means to a client.
fn errno_of_request(error: &Error) -> Errno {
    match error {
        Error::Engine(error) => errno_of(error),
        // A sampling setting out of range, or a text that the template or the tokenizer refuses.
        Error::Sampler(_) | Error::Text(_) => Errno::EINVAL,
        _ => Errno::ENOTRECOVERABLE,
    }
}

/// What an error of the engine means to a client.
pub(super) fn errno_of(error: &EngineError) -> Errno {
    match error {
        EngineError::PromptTooLong { .. } | EngineError::SessionFull { .. } | EngineError::OutputSize { .. } => {
            Errno::EMSGSIZE
        }
        EngineError::EmptyPrompt | EngineError::EmptyStop => Errno::EINVAL,
        EngineError::UnknownToken { .. } => Errno::EDOM,
        EngineError::NoChatTemplate | EngineError::NoEmbedding => Errno::EOPNOTSUPP,
        EngineError::QueueFull { .. } => Errno::EAGAIN,
        EngineError::SessionBusy => Errno::EBUSY,
        EngineError::Cancelled => Errno::ECANCELED,
        EngineError::Stopped => Errno::EOWNERDEAD,
        _ => Errno::ENOTRECOVERABLE,
    }
}
