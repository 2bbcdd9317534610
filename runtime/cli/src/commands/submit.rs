//! `submit`: one job for a server that runs elsewhere.

use crate::{
    args::{LogitsArgs, MatmulArgs, QueueArgs, SubmitArgs, SubmitGenerateArgs, SubmitJob, TextArgs},
    failure::Failure,
    input,
    interrupt::Guard,
    ui::{self, Printer},
};
use rustai::queue::{
    Choice, Client, ClientOptions, Completion, Errno, GenerateParams, Job, TensorView, Update, params,
};
use serde::Serialize;
use std::time::{Duration, Instant};

/// The job's number for cancelling it.
const OURS: u64 = 1;

/// Opens the queue that the flags name.
pub fn open(args: &QueueArgs) -> Result<Client, Failure> {
    Ok(Client::over(choice(args)?.open()?, ClientOptions { entries: 256, ..ClientOptions::default() })?)
}

/// The queue that the flags name.
pub fn choice(args: &QueueArgs) -> Result<Choice, Failure> {
    match &args.queue {
        Some(text) => Choice::parse(text).map_err(|_| {
            Failure::usage(format!("--queue {text:?} is no queue"))
                .help("give device, device:PATH, socket or socket:PATH")
        }),
        None => Choice::from_env().map_err(|error| Failure::from(error).into_usage()),
    }
}

/// A client with the flags that all jobs have.
struct Session<'a> {
    client: Client,
    args: &'a SubmitArgs,
    guard: Guard,
}

#[derive(Serialize)]
struct Report<T> {
    transport: &'static str,
    result: i32,
    count: u32,
    microseconds: f64,
    server_copied_bytes: u64,
    #[serde(flatten)]
    answer: T,
}

/// Submits the job and prints its answer.
pub fn run(args: &SubmitArgs) -> Result<(), Failure> {
    let session = Session { client: open(&args.queue)?, args, guard: Guard::new() };
    match &args.job {
        SubmitJob::Nop => session.nop(Job::nop()),
        SubmitJob::Echo(echo) => session.nop(Job::echo(Duration::from_millis(echo.delay), echo.result, echo.count)),
        SubmitJob::Tokenize(text) => session.tokenize(text),
        SubmitJob::Embed(text) => session.embed(text),
        SubmitJob::Logits(args) => session.logits(args),
        SubmitJob::Generate(args) => session.generate(args),
        SubmitJob::Matmul(args) => session.matmul(args),
    }
}

impl Session<'_> {
    fn prepare(&self, job: Job) -> Job {
        let job = job.user_data(OURS);
        match self.args.deadline {
            Some(seconds) => job.deadline_in(Duration::from_secs_f64(seconds)),
            None => job,
        }
    }

    /// Ctrl-C cancels what is in flight.
    fn cancels(&self) {
        let client = self.client.clone();
        self.guard.cancels(move || drop(client.cancel(OURS)));
    }

    /// Runs a job whose failure is the command's.
    fn run(&self, job: Job) -> Result<(Completion, Duration), Failure> {
        let (completion, time) = self.ask(job)?;
        succeeded(&completion, &self.guard)?;
        Ok((completion, time))
    }

    fn ask(&self, job: Job) -> Result<(Completion, Duration), Failure> {
        self.cancels();
        let start = Instant::now();
        let completion = self.client.run(&self.prepare(job))?;
        Ok((completion, start.elapsed()))
    }

    fn report<T: Serialize>(&self, completion: &Completion, time: Duration, answer: T) -> Result<(), Failure> {
        ui::json(&Report {
            transport: self.client.transport(),
            result: completion.result,
            count: completion.count,
            microseconds: time.as_secs_f64() * 1e6,
            server_copied_bytes: self.client.stat()?.server_copied,
            answer,
        })
    }

    fn tensor<T: rustai::queue::Element>(&self, dims: &[usize]) -> Result<TensorView<T>, Failure> {
        let bytes = dims.iter().product::<usize>() * size_of::<T>();
        Ok(self.client.buffer(bytes)?.tensor(0, dims)?)
    }

    fn nop(&self, job: Job) -> Result<(), Failure> {
        let (completion, time) = self.run(job)?;
        if self.args.json {
            return self.report(&completion, time, ());
        }
        let (result, transport) = (completion.result, self.client.transport());
        Printer::default().line(format_args!("{result} after {:.1} us over the {transport}", time.as_secs_f64() * 1e6))
    }

    /// The tokens of a text, as the server's model has them.
    fn tokens(&self, text: &TextArgs) -> Result<(TensorView<u32>, Completion, Duration), Failure> {
        let text = input::text(text)?;
        if text.is_empty() {
            return Err(Failure::usage("the text is empty").help("give at least one character"));
        }
        let bytes = self.tensor::<u8>(&[text.len()])?;
        bytes.write(0, text.as_bytes());
        // No text has more tokens than bytes, but BOS.
        let out = self.tensor::<u32>(&[text.len() + 1])?;
        let (completion, time) = self.run(Job::tokenize(&bytes, &out, params::tokenize::SPECIALS))?;
        let tokens = out.buffer().tensor(0, &[completion.count as usize])?;
        Ok((tokens, completion, time))
    }

    fn tokenize(&self, text: &TextArgs) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Answer {
            tokens: Vec<u32>,
        }
        let (tokens, completion, time) = self.tokens(text)?;
        if self.args.json {
            return self.report(&completion, time, Answer { tokens: tokens.to_vec() });
        }
        let ids: Vec<String> = tokens.iter().map(|token| token.to_string()).collect();
        Printer::default().line(ids.join(" "))
    }

    /// A row of numbers for the tokens of a text. How long it is, the server tells a job whose output is too short.
    fn numbers(
        &self,
        text: &TextArgs,
        job: fn(&TensorView<u32>, &TensorView<f32>) -> Job,
    ) -> Result<(TensorView<f32>, Completion, Duration), Failure> {
        let (tokens, ..) = self.tokens(text)?;
        let (short, _) = self.ask(job(&tokens, &self.tensor(&[1])?))?;
        if short.result != -Errno::EMSGSIZE.raw() {
            succeeded(&short, &self.guard)?;
        }
        let out = self.tensor(&[short.count as usize])?;
        let (completion, time) = self.run(job(&tokens, &out))?;
        Ok((out, completion, time))
    }

    fn embed(&self, text: &TextArgs) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Answer {
            embedding: Vec<f32>,
        }
        let (out, completion, time) = self.numbers(text, Job::embed)?;
        let embedding = out.to_vec();
        if self.args.json {
            return self.report(&completion, time, Answer { embedding });
        }
        let mut printer = Printer::default();
        embedding.iter().try_for_each(|x| printer.line(x))
    }

    fn logits(&self, args: &LogitsArgs) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Answer {
            top: Vec<(u32, f32)>,
        }
        let (out, completion, time) = self.numbers(&args.text, Job::logits)?;
        let mut top: Vec<(u32, f32)> = out.iter().enumerate().map(|(token, logit)| (token as u32, logit)).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        top.truncate(args.top);
        if self.args.json {
            return self.report(&completion, time, Answer { top });
        }
        let mut printer = Printer::default();
        top.iter().try_for_each(|(token, logit)| printer.line(format_args!("{token:>7}  {logit:.4}")))
    }

    fn generate(&self, args: &SubmitGenerateArgs) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Answer {
            text: String,
            tokens: Vec<u32>,
        }
        let prompt = input::text(&args.text)?;
        if prompt.is_empty() {
            return Err(Failure::usage("the prompt is empty").help("give at least one character"));
        }
        let bytes = self.tensor::<u8>(&[prompt.len()])?;
        bytes.write(0, prompt.as_bytes());
        let room = args.max_tokens as usize;
        // Few tokens are longer; a text that does not fit ends early, and its tokens are all there.
        let (tokens, text) = (self.tensor::<u32>(&[room])?, self.tensor::<u8>(&[room * 32])?);
        let params = GenerateParams {
            max_tokens: Some(room),
            temperature: args.temperature,
            seed: args.seed,
            chat: !args.raw,
            specials: args.raw,
            ..GenerateParams::default()
        };
        self.cancels();
        let start = Instant::now();
        let mut pending = self.client.submit(&self.prepare(Job::generate_text(&bytes, &tokens, &text, &params)))?;
        let (mut printer, mut shown) = (Printer::default(), 0);
        let completion = loop {
            let update = pending.update()?;
            // Text never holds a zero byte, so it shows by itself how far it is.
            let fresh: Vec<u8> = (shown..text.len()).map(|i| text.get(i)).take_while(|&byte| byte != 0).collect();
            let whole = fresh.utf8_chunks().next().map_or("", |chunk| chunk.valid());
            shown += whole.len();
            if !self.args.json {
                printer.piece(whole)?;
            }
            if let Update::Done(done) = update {
                break done;
            }
        };
        printer.end_line()?;
        let time = start.elapsed();
        succeeded(&completion, &self.guard)?;
        if self.args.json {
            let mut bytes = vec![0; completion.result as usize];
            text.read(0, &mut bytes);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let tokens = tokens.iter().take(completion.count as usize).collect();
            return self.report(&completion, time, Answer { text, tokens });
        }
        Ok(())
    }

    fn matmul(&self, args: &MatmulArgs) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Answer {
            gigaflops: f64,
            largest_error: f64,
        }
        let (m, n, k) = (args.m as usize, args.n as usize, args.k as usize);
        let (x, w, out) = (self.tensor::<f32>(&[k, m])?, self.tensor::<f32>(&[k, n])?, self.tensor::<f32>(&[n, m])?);
        let mut state = 1u32;
        for tensor in [&x, &w] {
            for i in 0..tensor.len() {
                // A generator good enough for test data (Marsaglia's xorshift32).
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                tensor.set(i, state as f32 / u32::MAX as f32 - 0.5);
            }
        }
        let (completion, time) = self.run(Job::matmul(&x, &w, &out))?;
        let mut largest_error = 0f64;
        for step in 0..64.min(m * n) {
            let at = step * (m * n / 64.min(m * n));
            let (row, column) = (at / n, at % n);
            let exact: f64 = (0..k).map(|i| f64::from(x.get(row * k + i)) * f64::from(w.get(column * k + i))).sum();
            largest_error = largest_error.max((exact - f64::from(out.get(at))).abs());
        }
        if largest_error > 1e-5 * (k as f64) {
            return Err(Failure::new(format!("the product is wrong by {largest_error}")).help("report this"));
        }
        let gigaflops = 2.0 * (m * n * k) as f64 / time.as_secs_f64() / 1e9;
        if self.args.json {
            return self.report(&completion, time, Answer { gigaflops, largest_error });
        }
        Printer::default().line(format_args!(
            "{m} x {k} times {n} x {k}, transposed: {:.1} us, {gigaflops:.2} GFLOP/s, largest error {largest_error:.1e}",
            time.as_secs_f64() * 1e6
        ))
    }
}

/// Makes a job that failed the command's failure.
fn succeeded(completion: &Completion, guard: &Guard) -> Result<(), Failure> {
    if completion.result >= 0 {
        return Ok(());
    }
    guard.check()?;
    let Some(errno) = Errno::from_raw(-completion.result) else {
        return Err(Failure::new(format!("the job failed with the unknown error {}", completion.result)));
    };
    let remedy = match errno {
        Errno::ETIMEDOUT | Errno::ETIME => "give --deadline more seconds, or a server that is less busy",
        Errno::EOPNOTSUPP => "the server cannot do that: it may run without a model (--no-model), or with another kind",
        Errno::EMSGSIZE => "give a shorter text, or start the server with a larger --ctx",
        Errno::EOWNERDEAD => "the server died: start it again, then submit the job again",
        Errno::EAGAIN | Errno::EDQUOT => "the server is busy: try again later",
        _ => "see `rustai submit --help` for what jobs take",
    };
    Err(Failure::new(format!("the job failed: {errno}")).help(remedy))
}
