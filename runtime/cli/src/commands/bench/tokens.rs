//! What a token costs that is generated through the queue, beside the engine without a queue and the model without an engine.
//!
//! The three take turns in one process, so that a busy neighbour hits all; the queue's client comes by a unix socket. Differences
//! are taken within a turn.

use super::measure::{self, Test};
use crate::{args::BenchQueueArgs, commands::model, compute, failure::Failure, interrupt::Guard, ui};
use rustai::{
    Engine,
    backend::Executable,
    engine::{Event, Request},
    model::LoadOptions,
    queue::{
        Broker, BrokerOptions, Client, ClientOptions, GenerateParams, Job, Listener, ListenerOptions, Server,
        ServerOptions, Socket, Update,
    },
};
use serde::Serialize;
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Nanoseconds for a token; medians of the turns.
#[derive(Clone, Debug, Serialize)]
pub struct Tokens {
    model: String,
    threads: usize,
    /// Tokens of a turn.
    tokens: usize,
    turns: usize,
    /// A decode step of the model alone.
    step_ns: f64,
    /// A token of an answer that the engine streams: with sampler, scheduler and text.
    engine_ns: f64,
    /// A token of an answer that comes through the queue.
    queue_ns: f64,
    /// What the queue adds to the engine.
    queue_adds_ns: f64,
    /// Processor time of the queue's and the server's threads; on a busy machine it tells more than differences of wall time
    /// can. Absent where the system does not count it.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cpu_ns: Option<f64>,
}

/// Measures with a model.
pub fn measure(spec: &str, args: &BenchQueueArgs, folder: &Path, guard: &Guard) -> Result<Tokens, Failure> {
    let (tokens, turns) = if args.quick { (16, 3) } else { (64, 15) };
    let path = model::find(spec)?;
    let file = model::open(&path)?;
    let threads = compute::threads(args.threads);
    let context = tokens + 2;
    let options = LoadOptions { threads, context, max_sequences: 1, ..LoadOptions::default() };
    let mut alone = model::load(&path, &file, &options)?;
    let engine = Engine::builder(&path).threads(threads).context(context).max_sequences(1).build();
    let engine = engine.map_err(super::super::session::explain)?;
    let broker = Broker::new(BrokerOptions::default())?;
    let server = Server::start(broker.clone(), Some(engine.clone()), ServerOptions::default())?;
    let listener = Listener::bind(&broker, &folder.join("t"), ListenerOptions::default())?;
    let client = Client::over(Arc::new(Socket::connect(listener.path())?), ClientOptions::default())?;

    let mut times = Vec::new();
    for turn in 0..=turns {
        let step = step(&mut *alone, tokens, guard)?;
        let streamed = streamed(&engine, tokens)?;
        let before = server_time();
        let queued = queued(&client, tokens)?;
        let server =
            server_time().zip(before).map(|(after, before)| per_token(after.saturating_sub(before), tokens + 1));
        // The first turn warms up.
        if turn > 0 {
            times.push([step, streamed, queued, queued - streamed, server.unwrap_or(f64::NAN)]);
        }
    }
    drop((client, listener, server));
    let median = |which: usize| {
        let mut values: Vec<f64> = times.iter().map(|turn| turn[which]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(Tokens {
        model: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        threads,
        tokens,
        turns,
        step_ns: median(0),
        engine_ns: median(1),
        queue_ns: median(2),
        queue_adds_ns: median(3),
        server_cpu_ns: Some(median(4)).filter(|time| time.is_finite()),
    })
}

/// Processor time that threads of the queue and the server have used so far.
fn server_time() -> Option<Duration> {
    let mut sum = 0;
    for thread in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        let read = |name| std::fs::read_to_string(thread.path().join(name)).ok();
        // Both are named so where they are started; the model's threads are not.
        if read("comm")?.starts_with("rustai-queue") || read("comm")?.starts_with("rustai-client") {
            sum += read("schedstat")?.split_whitespace().next()?.parse::<u64>().ok()?;
        }
    }
    Some(Duration::from_nanos(sum))
}

fn per_token(time: Duration, tokens: usize) -> f64 {
    time.as_nanos() as f64 / tokens.max(1) as f64
}

fn step(model: &mut dyn Executable, tokens: usize, guard: &Guard) -> Result<f64, Failure> {
    let test = Test { prompt: 0, generate: tokens, depth: 0, sequences: 1 };
    let times = measure::measure(model, test, 1, 1, false, guard)?;
    Ok(per_token(times[0], tokens))
}

/// The prompt: one token, whichever.
const PROMPT: [u32; 1] = [1];

fn streamed(engine: &Engine, tokens: usize) -> Result<f64, Failure> {
    let request = Request::tokens(PROMPT).temperature(0.0).ignore_end(true).max_tokens(tokens + 1);
    let (asked, mut count) = (Instant::now(), 0);
    for event in engine.stream(request)? {
        if let Event::Token { .. } = event? {
            count += 1;
        }
    }
    of_answer(asked, count)
}

fn queued(client: &Client, tokens: usize) -> Result<f64, Failure> {
    let buffer = client.buffer(8192)?;
    let (prompt, out) = (buffer.tensor::<u32>(0, &[1])?, buffer.tensor::<u32>(4096, &[tokens + 1])?);
    prompt.write(0, &PROMPT);
    let params = GenerateParams { temperature: Some(0.0), ignore_end: true, ..GenerateParams::default() };
    let asked = Instant::now();
    let mut job = client.submit(&Job::generate(&prompt, &out, &params))?;
    loop {
        match job.update()? {
            Update::Progress(_) => {}
            Update::Done(done) if done.result >= 0 => return of_answer(asked, done.count as usize),
            Update::Done(done) => {
                return Err(Failure::new(format!("a job failed with error {}", -done.result)));
            }
        }
    }
}

/// Nanoseconds for a token of an answer that is whole. The prompt is one token, so each token costs one step, the first as well. When
/// the first came does not count: where the model has all processors, nobody sees it before the last.
fn of_answer(asked: Instant, count: usize) -> Result<f64, Failure> {
    match count {
        0 => Err(Failure::new("the model answered with no tokens")),
        _ => Ok(per_token(asked.elapsed(), count)),
    }
}

impl std::fmt::Display for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { model, threads, step_ns, engine_ns, queue_ns, queue_adds_ns, server_cpu_ns, .. } = self;
        write!(
            f,
            "a token of {model}, {}: {:.1} us the model alone, {:.1} us the engine, {:.1} us through the queue, \
             which adds {:.1} us = {:.2} % of a step",
            ui::counted(*threads, "thread"),
            step_ns / 1e3,
            engine_ns / 1e3,
            queue_ns / 1e3,
            queue_adds_ns / 1e3,
            100.0 * queue_adds_ns / step_ns
        )?;
        match server_cpu_ns {
            Some(time) => {
                write!(f, "; its threads take {:.1} us of a processor = {:.2} %", time / 1e3, 100.0 * time / step_ns)
            }
            None => Ok(()),
        }
    }
}
