//! What the server answers, beside what the engine says when it is asked directly.

use super::rig::{Kind, Rig};
use rustai::{
    DType, Engine, Isa, Request,
    gguf::GgufFile,
    queue::{
        Choice, Client, ClientOptions, GenerateParams, Job, Policy, QueueError, Server, ServerOptions, Session,
        TensorView, Update, deadline, params,
    },
};
use rustai_abi::queue::{Completion, Errno, cqe_flag, opcode};
use rustai_tests::{Rng, TinyLlama};
use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

fn engine() -> Engine {
    let file = GgufFile::from_bytes(TinyLlama { context: 256, ..TinyLlama::default() }.bytes()).unwrap();
    Engine::builder(file).threads(2).isa(Isa::Reference).max_sequences(4).build().unwrap()
}

/// A server with a tiny model, and a client.
struct Service {
    client: Client,
    server: Server,
    engine: Engine,
    rig: Rig,
}

impl Service {
    fn new(kind: Kind, options: ServerOptions) -> Self {
        let rig = Rig::new(kind).unwrap();
        let engine = engine();
        let server = Server::start(rig.side.clone(), Some(engine.clone()), options).unwrap();
        let client = Client::over(rig.transport(), ClientOptions::default()).unwrap();
        Self { client, server, engine, rig }
    }

    /// Each test over both ways, with and without the help of the submitting thread.
    fn each(test: fn(&Self)) {
        for (kind, help) in [(Kind::InProcess, true), (Kind::InProcess, false), (Kind::Socket, true)] {
            let service = Self::new(kind, ServerOptions { help, threads: 2, ..ServerOptions::default() });
            test(&service);
            service.rig.audit();
            let Self { client, server, rig, .. } = service;
            drop(client);
            // The client's buffers go once the server has let go of them.
            for _ in 0..1000 {
                if server.stat().mapped == 0 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(server.stat().mapped, 0, "a mapping is left behind");
            drop(server);
            rig.audit();
        }
    }

    fn tokens(&self, tokens: &[u32]) -> TensorView<u32> {
        let tensor = self.client.buffer(tokens.len() * 4).unwrap().tensor(0, &[tokens.len()]).unwrap();
        tensor.write(0, tokens);
        tensor
    }

    fn bytes(&self, text: &str) -> TensorView<u8> {
        let tensor = self.client.buffer(text.len()).unwrap().tensor(0, &[text.len()]).unwrap();
        tensor.write(0, text.as_bytes());
        tensor
    }

    fn room<T: rustai::queue::Element>(&self, dims: &[usize]) -> TensorView<T> {
        let bytes = dims.iter().product::<usize>() * size_of::<T>();
        self.client.buffer(bytes).unwrap().tensor(0, dims).unwrap()
    }

    fn run(&self, job: &Job) -> Completion {
        self.client.run(job).unwrap()
    }
}

#[track_caller]
fn fails(completion: Completion, errno: Errno) {
    assert_eq!(completion.result, -errno.raw(), "{errno}");
}

#[test]
fn nop_and_echo() {
    Service::each(|s| {
        assert_eq!(s.run(&Job::nop().user_data(5)).user_data, 5);
        let echoed = s.run(&Job::echo(Duration::from_millis(5), 7, 9));
        assert_eq!((echoed.result, echoed.count), (7, 9));
        fails(s.run(&Job::echo(Duration::ZERO, -Errno::EDOM.raw(), 0)), Errno::EDOM);
        fails(s.run(&Job::echo(Duration::ZERO, -4000, 0)), Errno::EINVAL);
        fails(s.run(&Job::nop().param(7, 1)), Errno::EINVAL);
        fails(s.run(&Job::new(opcode::RERANK)), Errno::EOPNOTSUPP);
        fails(s.run(&Job::nop().model(1)), Errno::ENOENT);
        fails(s.run(&Job::echo(Duration::ZERO, 0, 0).param(params::echo::MODE, params::echo::CRASH)), Errno::EPERM);
        let (from, to) = (s.bytes("hello, world"), s.room::<u8>(&[12]));
        s.run(&Job::echo(Duration::ZERO, 0, 0).input(&from).output(&to));
        assert_eq!((to.get(0), to.get(1), to.get(11)), (b'h', 0, b'd'), "touched");
        assert_eq!(s.client.stat().unwrap().server_copied, 0);
        s.run(&Job::echo(Duration::ZERO, 0, 0).input(&from).output(&to).param(params::echo::MODE, params::echo::COPY));
        assert_eq!(to.to_vec(), from.to_vec());
        assert_eq!(s.client.stat().unwrap().server_copied, 12, "copies are counted");
        assert_eq!(s.client.call(&Job::nop()).unwrap().result, 0);
        assert_eq!(s.client.run_spinning(&Job::nop().user_data(8)).unwrap().user_data, 8);
    });
}

#[test]
fn tokenize() {
    Service::each(|s| {
        let text = s.bytes("hello <|im_start|> w\u{f6}rld");
        let out = s.room::<u32>(&[64]);
        for flags in [0, params::tokenize::SPECIALS, params::tokenize::NO_BOS] {
            let done = s.run(&Job::tokenize(&text, &out, flags));
            let specials = match flags & params::tokenize::SPECIALS {
                0 => rustai::text::Specials::Text,
                _ => rustai::text::Specials::Parse,
            };
            let expected = s.engine.tokenizer().encode("hello <|im_start|> w\u{f6}rld", specials).unwrap();
            let got: Vec<u32> = out.iter().take(done.count as usize).collect();
            assert_eq!((done.result as usize, got), (expected.len(), expected));
        }
        let short = s.room::<u32>(&[1]);
        let done = s.run(&Job::tokenize(&text, &short, 0));
        fails(done, Errno::EMSGSIZE);
        assert!(done.count > 1, "it says how many there are");
        assert_eq!(short.get(0), 0, "nothing was written");
        fails(s.run(&Job::tokenize(&text, &out, 4)), Errno::EINVAL);
        let bad = s.room::<u8>(&[2]);
        bad.write(0, &[0xff, 0xfe]);
        fails(s.run(&Job::tokenize(&bad, &out, 0)), Errno::EDOM);
    });
}

#[test]
fn logits_and_embeddings_are_the_engines_and_copy_nothing() {
    Service::each(|s| {
        let (vocab, width) = (s.engine.info().vocab, s.engine.info().embedding.unwrap());
        assert_eq!(width, 64);
        let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 200 + 10).collect();
        let tokens = s.tokens(&prompt);
        let one = s.room::<f32>(&[vocab]);
        let done = s.run(&Job::logits(&tokens, &one));
        assert_eq!((done.result, done.count), (1, 1));
        let expected = s.engine.logits(&prompt).unwrap();
        assert_eq!(one.to_vec(), expected);
        assert!(expected.iter().any(|&x| x != 0.0));

        let all = s.room::<f32>(&[vocab, prompt.len()]);
        let done = s.run(&Job::logits(&tokens, &all));
        assert_eq!(done.result as usize, prompt.len());
        assert_eq!(all.to_vec()[vocab * (prompt.len() - 1)..], expected);
        let early = s.engine.logits(&prompt[..9]).unwrap();
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance(&all.to_vec()[vocab * 8..vocab * 9], &early) < 1e-5);

        let embedding = s.room::<f32>(&[width]);
        s.run(&Job::embed(&tokens, &embedding));
        assert_eq!(embedding.to_vec(), s.engine.embed(&prompt).unwrap());
        // The embedding of a tied model times its embedding matrix are the logits.
        assert!(embedding.iter().any(|x| x != 0.0));
        let rows = s.room::<f32>(&[width, prompt.len()]);
        s.run(&Job::embed(&tokens, &rows));
        assert_eq!(rows.to_vec()[width * (prompt.len() - 1)..], embedding.to_vec());

        let stat = s.client.stat().unwrap();
        assert_eq!((stat.server_copied, stat.queue_copied), (0, 0));
    });
}

#[test]
fn an_embedding_times_the_output_matrix_gives_the_logits() {
    let model = TinyLlama { context: 256, ..TinyLlama::default() };
    let file = GgufFile::from_bytes(model.bytes()).unwrap();
    let table = file.tensor("token_embd.weight").unwrap();
    let table: Vec<f32> = file.data(table).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let engine = Engine::builder(file).threads(1).isa(Isa::Reference).build().unwrap();
    let prompt = [5, 17, 99, 3];
    let (embedding, logits) = (engine.embed(&prompt).unwrap(), engine.logits(&prompt).unwrap());
    for (row, logit) in table.chunks_exact(embedding.len()).zip(&logits) {
        let dot: f64 = row.iter().zip(&embedding).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((dot - f64::from(*logit)).abs() < 1e-4, "{dot} {logit}");
    }
}

#[test]
fn indices_out_of_range_and_wrong_shapes_are_refused() {
    Service::each(|s| {
        let (vocab, width) = (s.engine.info().vocab, s.engine.info().embedding.unwrap());
        let out = s.room::<f32>(&[vocab]);
        fails(s.run(&Job::logits(&s.tokens(&[1, vocab as u32]), &out)), Errno::EDOM);
        fails(s.run(&Job::logits(&s.tokens(&[u32::MAX]), &out)), Errno::EDOM);
        fails(s.run(&Job::embed(&s.tokens(&[1]), &out)), Errno::EMSGSIZE);
        fails(s.run(&Job::logits(&s.tokens(&[1; 3]), &s.room(&[vocab, 2]))), Errno::EMSGSIZE);
        fails(s.run(&Job::embed(&s.tokens(&[1; 300]), &s.room(&[width]))), Errno::EMSGSIZE);
        fails(s.run(&Job::new(opcode::EMBED).indices(&s.tokens(&[1]))), Errno::EINVAL);
        let params = GenerateParams::default();
        fails(s.run(&Job::generate(&s.tokens(&[vocab as u32]), &s.room(&[4]), &params)), Errno::EDOM);
        fails(s.run(&Job::new(opcode::GENERATE).indices(&s.tokens(&[1])).output(&out)), Errno::EINVAL);
        // Others are not affected.
        assert_eq!(s.run(&Job::logits(&s.tokens(&[1, 2]), &out)).result, 1);
    });
}

#[test]
fn generate_streams_what_the_engine_says() {
    // Enough that a client gets its turn in between, however busy the processors are.
    const COUNT: usize = 200;
    Service::each(|s| {
        let prompt: Vec<u32> = (0..20).map(|i| i * 11 % 200 + 10).collect();
        let request = || Request::tokens(prompt.clone()).temperature(0.0).ignore_end(true);
        let expected = s.engine.generate(request().max_tokens(COUNT)).unwrap();
        let params = GenerateParams { temperature: Some(0.0), ignore_end: true, ..GenerateParams::default() };
        let out = s.room::<u32>(&[COUNT]);
        let mut pending = s.client.submit(&Job::generate(&s.tokens(&prompt), &out, &params)).unwrap();
        let (mut last, mut news) = (0, 0);
        let done = loop {
            match pending.update().unwrap() {
                Update::Progress(count) => {
                    assert!(count > last, "progress goes forward: {count} after {last}");
                    let got: Vec<u32> = out.iter().take(count as usize).collect();
                    assert_eq!(got, expected.tokens[..count as usize], "what is told to be ready is");
                    (last, news) = (count, news + 1);
                }
                Update::Done(done) => break done,
            }
        };
        assert!(news >= 1, "it streams");
        assert_eq!((done.flags & cqe_flag::MORE, done.count), (0, COUNT as u32));
        assert_eq!(out.to_vec(), expected.tokens);
        assert_eq!(s.client.stat().unwrap().server_copied, 0);

        // As text, with limits of its own.
        let expected =
            s.engine.generate(Request::text("hello").temperature(0.0).ignore_end(true).max_tokens(12)).unwrap();
        let (tokens, text) = (s.room::<u32>(&[100]), s.room::<u8>(&[1000]));
        let params = GenerateParams { max_tokens: Some(12), ..params };
        let done = s.run(&Job::generate_text(&s.bytes("hello"), &tokens, &text, &params));
        assert_eq!(done.count, 12);
        let got: Vec<u8> = text.iter().take(done.result as usize).collect();
        assert_eq!(String::from_utf8(got).unwrap(), expected.text);
        assert_eq!(text.get(done.result as usize), 0);

        // Seeds and settings arrive.
        let seeded = |seed| {
            let out = s.room::<u32>(&[30]);
            let params = GenerateParams {
                temperature: Some(1.5),
                seed: Some(seed),
                ignore_end: true,
                ..GenerateParams::default()
            };
            s.run(&Job::generate(&s.tokens(&prompt), &out, &params));
            out.to_vec()
        };
        assert_eq!(seeded(1), seeded(1));
        assert_ne!(seeded(1), seeded(2));
        let nan = GenerateParams { temperature: Some(f32::NAN), ..GenerateParams::default() };
        fails(s.run(&Job::generate(&s.tokens(&prompt), &s.room(&[4]), &nan)), Errno::EINVAL);
    });
}

#[test]
fn a_generation_can_be_cancelled_and_has_a_deadline() {
    Service::each(|s| {
        let params = GenerateParams { ignore_end: true, ..GenerateParams::default() };
        let out = s.room::<u32>(&[4000]);
        let prompt = s.tokens(&[1, 2, 3]);
        let mut pending = s.client.submit(&Job::generate(&prompt, &out, &params).user_data(77)).unwrap();
        // The context ends before so many tokens do, so it is cancelled early.
        let first = pending.update().unwrap();
        if matches!(first, Update::Progress(_)) && s.client.cancel(77).unwrap() == 1 {
            fails(pending.wait().unwrap(), Errno::ECANCELED);
        }
        let late = Job::echo(Duration::from_secs(30), 0, 0).deadline_in(Duration::from_millis(20));
        fails(s.run(&late), Errno::ETIMEDOUT);
        let mut slow = s.client.submit(&Job::echo(Duration::from_secs(30), 0, 0).user_data(5)).unwrap();
        let timed_out = slow.wait_until(deadline(Duration::from_millis(10)));
        assert!(matches!(timed_out, Err(QueueError::TimedOut)), "{timed_out:?}");
        assert!(slow.try_wait().unwrap().is_none());
        assert_eq!(s.client.cancel_all(true).unwrap(), 1);
        fails(slow.wait().unwrap(), Errno::ECANCELED);
        assert_eq!(s.client.in_flight(), 0);
    });
}

#[test]
fn matmul_in_place() {
    Service::each(|s| {
        let mut rng = Rng::new(3);
        for (m, k, n) in [(1, 64, 48), (5, 96, 33), (32, 128, 100)] {
            let (x, w) = (s.room::<f32>(&[k, m]), s.room::<f32>(&[k, n]));
            let mut fill = |tensor: &TensorView<f32>| (0..tensor.len()).for_each(|i| tensor.set(i, rng.normal()));
            fill(&x);
            fill(&w);
            let out = s.room::<f32>(&[n, m]);
            assert_eq!(s.run(&Job::matmul(&x, &w, &out)).result, 0);
            let (x, w) = (x.to_vec(), w.to_vec());
            for row in 0..m {
                for column in 0..n {
                    let exact: f64 = (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(w[column * k + i])).sum();
                    let got = out.get(row * n + column);
                    assert!((exact - f64::from(got)).abs() < 1e-3, "{exact} {got}");
                }
            }
        }
        // Quantized weights, as a model file holds them.
        let blocks = rustai_tests::random_blocks(DType::Q4_0, 64 * 32, 1.0, &mut rng);
        let w = s.client.buffer(blocks.len()).unwrap().blocks(DType::Q4_0, 0, &[64, 32]).unwrap();
        (0..blocks.len()).for_each(|i| w.set(i, blocks[i]));
        let (x, out) = (s.room::<f32>(&[64]), s.room::<f32>(&[32]));
        x.set(0, 1.0);
        s.run(&Job::matmul(&x, &w, &out));
        let scale = half::f16::from_le_bytes([blocks[0], blocks[1]]).to_f32();
        let first = (f32::from(blocks[2] & 15) - 8.0) * scale;
        assert!((out.get(0) - first).abs() < 1e-4, "{} {first}", out.get(0));
        assert_eq!(s.client.stat().unwrap().server_copied, 0);

        // An input that is not aligned is copied, and that is counted.
        let buffer = s.client.buffer(4096).unwrap();
        let odd = buffer.tensor::<f32>(4, &[64]).unwrap();
        odd.set(0, 1.0);
        let again = s.room::<f32>(&[32]);
        s.run(&Job::matmul(&odd, &w, &again));
        assert_eq!(again.to_vec(), out.to_vec());
        assert_eq!(s.client.stat().unwrap().server_copied, 256);
        fails(s.run(&Job::matmul(&x, &w, &s.room::<f32>(&[31]))), Errno::EMSGSIZE);
    });
}

#[test]
fn sessions_keep_the_text_and_what_was_computed_of_it() {
    Service::each(|s| {
        let params = GenerateParams { temperature: Some(0.0), ignore_end: true, ..GenerateParams::default() };
        let session = Session::opened(&s.run(&Job::session_open(0))).unwrap();
        let first: Vec<u32> = (0..30).map(|i| i * 13 % 200 + 10).collect();
        let out = s.room::<u32>(&[10]);
        s.run(&Job::generate(&s.tokens(&first), &out, &params).in_session(session));
        let answer = out.to_vec();
        let second = [20, 30, 40];
        let out = s.room::<u32>(&[10]);
        s.run(&Job::generate(&s.tokens(&second), &out, &params).in_session(session));
        // The same in one go.
        let text = [&first[..], &answer, &second].concat();
        let whole = s.engine.generate(Request::tokens(text).temperature(0.0).ignore_end(true).max_tokens(10)).unwrap();
        assert_eq!(out.to_vec(), whole.tokens);
        let vocab = s.engine.info().vocab;
        let logits = s.room::<f32>(&[vocab, 2]);
        assert_eq!(s.run(&Job::logits(&s.tokens(&[50, 60]), &logits).in_session(session)).result, 2);
        let text = [&first[..], &answer, &second, &whole.tokens, &[50, 60]].concat();
        let expected = s.engine.logits(&text).unwrap();
        let got = &logits.to_vec()[vocab..];
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));

        // Of another client, of another server, closed: each has its error.
        let other = Client::over(s.rig.transport(), ClientOptions::default()).unwrap();
        let buffer = other.buffer(4096).unwrap();
        let (tokens, out) = (buffer.tensor(0, &[1]).unwrap(), buffer.tensor(64, &[1]).unwrap());
        fails(other.run(&Job::generate(&tokens, &out, &params).in_session(session)).unwrap(), Errno::ENOENT);
        let old = Session { epoch: session.epoch + 1, ..session };
        fails(s.run(&Job::session_close(old)), Errno::ESTALE);
        assert_eq!(s.run(&Job::session_close(session)).result, 0);
        fails(s.run(&Job::session_close(session)), Errno::ENOENT);
        let small = Session::opened(&s.run(&Job::session_open(8))).unwrap();
        let long = Job::logits(&s.tokens(&[1; 9]), &s.room(&[vocab])).in_session(small);
        fails(s.run(&long), Errno::EMSGSIZE);
        s.run(&Job::session_close(small));
        assert_eq!(s.server.stat().sessions, 0);
    });
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(10)),
        }
    }
}

#[test]
fn jobs_can_be_awaited() {
    Service::each(|s| {
        let jobs: Vec<_> =
            (0..20).map(|i| s.client.submit(&Job::echo(Duration::from_millis(20 - i), i as i32, 0)).unwrap()).collect();
        for (i, job) in jobs.into_iter().enumerate() {
            assert_eq!(block_on(job).unwrap().result, i as i32);
        }
        let params = GenerateParams { ignore_end: true, ..GenerateParams::default() };
        let generating = s.client.submit(&Job::generate(&s.tokens(&[1]), &s.room(&[20]), &params)).unwrap();
        assert_eq!(block_on(generating).unwrap().count, 20);
    });
}

#[test]
fn threads_share_a_client() {
    Service::each(|s| {
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    for round in 0..50u64 {
                        let value = (thread * 1000 + round) as i32;
                        let delay = Duration::from_micros(round % 3 * 200);
                        let job = Job::echo(delay, value, 0).user_data(value as u64);
                        let done = s.client.run(&job).unwrap();
                        assert_eq!((done.result, done.user_data), (value, value as u64));
                    }
                });
            }
        });
        let stat = s.client.stat().unwrap();
        assert_eq!((stat.admitted, stat.completed, stat.failed), (200, 200, 0));
    });
}

#[test]
fn batches_fill_the_ring_and_no_more() {
    Service::each(|s| {
        let jobs: Vec<Job> = (0..300).map(|i| Job::echo(Duration::ZERO, i, 0)).collect();
        let mut results = Vec::new();
        let mut rest = &jobs[..];
        while !rest.is_empty() {
            let pending = s.client.submit_all(&rest[..rest.len().min(100)]).unwrap();
            rest = &rest[pending.len()..];
            results.extend(pending.into_iter().map(|pending| pending.wait().unwrap().result));
        }
        assert_eq!(results, (0..300).collect::<Vec<_>>());
    });
}

#[test]
fn a_server_that_goes_fails_what_runs() {
    let mut s = Service::new(Kind::InProcess, ServerOptions::default());
    let pending = s.client.submit(&Job::echo(Duration::from_secs(50), 0, 0)).unwrap();
    drop(s.server);
    fails(pending.wait().unwrap(), Errno::EOWNERDEAD);
    // Under HOLD, what is queued waits for the next one.
    let waiting = s.client.submit(&Job::nop()).unwrap();
    s.server = Server::start(s.rig.side.clone(), None, ServerOptions::default()).unwrap();
    assert_eq!(waiting.wait().unwrap().result, 0);
    let failing =
        Client::over(s.rig.transport(), ClientOptions { policy: Policy::Fail, ..ClientOptions::default() }).unwrap();
    drop(s.server);
    assert_eq!(failing.submit(&Job::nop()).unwrap_err().errno(), Some(Errno::ENOTCONN));
}

#[test]
fn a_socket_that_goes_takes_the_queue_along() {
    let Service { client, rig, server, .. } = Service::new(Kind::Socket, ServerOptions::default());
    let pending: Vec<_> = (0..3).map(|_| client.submit(&Job::echo(Duration::from_secs(50), 0, 0)).unwrap()).collect();
    drop(rig);
    for job in pending {
        fails(job.wait().unwrap(), Errno::EOWNERDEAD);
    }
    assert!(matches!(client.submit(&Job::nop()), Err(QueueError::Gone)));
    drop(server);
    let error = Choice::parse("socket:/nonexistent/q").unwrap().open().map(drop).unwrap_err();
    assert!(matches!(error, QueueError::Open { .. }) && error.to_string().contains("rustai serve"), "{error}");
}
