//! The scheduler thread: owns the executable, takes jobs from any thread, and steps as long as there is work.
//!
//! The only things shared with other threads are the inbox and a cell for the reason of a failure. No lock is held while
//! the model computes.

use super::{
    EngineError,
    scheduler::{Driver, End, Job, Scheduler},
};
use crate::backend::Executable;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

/// How long nobody asks for anything before an idle thread catches up with what loading has put off. Who loads a model for a
/// question asks it sooner.
const CALM: Duration = Duration::from_millis(100);

/// A handle to the thread. Dropping it stops the thread after the step that is being computed.
pub(super) struct Worker<D> {
    inbox: Option<Sender<Job<D>>>,
    thread: Option<JoinHandle<()>>,
    failure: Arc<OnceLock<EngineError>>,
}

impl<D: Driver + Send + 'static> Worker<D> {
    /// Starts the thread.
    pub(super) fn spawn(executable: Box<dyn Executable>) -> Result<Self, EngineError> {
        let (inbox, jobs) = channel();
        let failure = Arc::new(OnceLock::new());
        let cell = failure.clone();
        let thread = std::thread::Builder::new()
            .name("rustai-scheduler".into())
            .spawn(move || main(executable, &jobs, &cell))
            .map_err(|error| EngineError::Thread(Arc::new(error)))?;
        Ok(Self { inbox: Some(inbox), thread: Some(thread), failure })
    }

    /// Hands a job to the thread. Its driver hears of all that happens next, even of a failure.
    pub(super) fn submit(&self, job: Job<D>) -> Result<(), EngineError> {
        if let Some(error) = self.failure.get() {
            return Err(error.clone());
        }
        // PANIC: the sender leaves only in `drop`.
        let inbox = self.inbox.as_ref().expect("the worker lives");
        inbox.send(job).map_err(|_| self.failure.get().cloned().unwrap_or(EngineError::Stopped))
    }

    /// Why the engine takes no more work, once that is so.
    pub(super) fn failure(&self) -> &Arc<OnceLock<EngineError>> {
        &self.failure
    }
}

impl<D> Drop for Worker<D> {
    fn drop(&mut self) {
        // The closed inbox is the signal to stop.
        self.inbox = None;
        if let Some(thread) = self.thread.take() {
            // A waker that owns the last handle of the engine may drop it on the scheduler thread itself, which cannot
            // wait for its own end.
            if thread.thread().id() != std::thread::current().id() {
                // The thread catches all panics; there is nothing to learn from the result.
                let _ = thread.join();
            }
        }
    }
}

fn main<D: Driver>(mut executable: Box<dyn Executable>, jobs: &Receiver<Job<D>>, failure: &OnceLock<EngineError>) {
    let mut scheduler = Scheduler::new(executable.limits());
    let run = catch_unwind(AssertUnwindSafe(|| serve(&mut scheduler, &mut *executable, jobs)));
    let error = match run {
        Ok(error) => error,
        Err(panic) => EngineError::Panicked { message: message(&*panic).into() },
    };
    if matches!(error, EngineError::Panicked { .. } | EngineError::Device { .. }) {
        tracing::error!(%error, "the scheduler ended");
    }
    // First the reason, then the ends: whoever finds a closed channel must find the reason too.
    let _ = failure.set(error.clone());
    scheduler.abort(&error);
    // Jobs that were on their way. The loop ends when the last handle is gone.
    for job in jobs.iter() {
        job.driver.finish(End::Failed(error.clone()));
    }
}

/// Steps until all handles are gone or the model is broken, and returns which it was.
///
/// What loading has put off is done when nothing else is to do, or else between the first step and the second: it delays no
/// first token, and no more than one later one.
fn serve<D: Driver>(
    scheduler: &mut Scheduler<D>,
    executable: &mut dyn Executable,
    jobs: &Receiver<Job<D>>,
) -> EngineError {
    let mut behind = true;
    loop {
        let mut calm = CALM;
        while scheduler.is_idle() {
            let job =
                if behind { jobs.recv_timeout(calm) } else { jobs.recv().map_err(|_| RecvTimeoutError::Disconnected) };
            match job {
                Ok(job) => scheduler.submit(job),
                Err(RecvTimeoutError::Timeout) => (behind, calm) = (catch_up(executable), Duration::ZERO),
                Err(RecvTimeoutError::Disconnected) => return EngineError::Stopped,
            }
        }
        if !submit_all(scheduler, jobs) {
            return EngineError::Stopped;
        }
        if let Err(error) = scheduler.step(executable) {
            return error;
        }
        while behind {
            if !submit_all(scheduler, jobs) {
                return EngineError::Stopped;
            }
            behind = catch_up(executable);
        }
    }
}

/// Hands over all jobs that have come; `false` if no handle is left.
fn submit_all<D: Driver>(scheduler: &mut Scheduler<D>, jobs: &Receiver<Job<D>>) -> bool {
    loop {
        match jobs.try_recv() {
            Ok(job) => scheduler.submit(job),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}

/// Does a piece of what loading has put off; whether more is left that can be done.
fn catch_up(executable: &mut dyn Executable) -> bool {
    executable.catch_up().unwrap_or_else(|error| {
        tracing::warn!(%error, "loading cannot be completed; the model goes on as it is, and is slower");
        false
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{super::fake, super::scheduler::Rows, *};
    use std::{
        sync::{Mutex, mpsc},
        time::Duration,
    };

    /// Sends its tokens and its end to the test; waits for a permit before each token if it has a gate.
    struct Probe {
        count: usize,
        tokens: Sender<Result<u32, String>>,
        gate: Option<Receiver<()>>,
    }

    impl Driver for Probe {
        fn is_cancelled(&self) -> bool {
            false
        }

        fn admitted(&mut self, _first: usize) {}

        fn logits(&mut self, _position: usize, logits: &[f32]) -> Option<u32> {
            if let Some(gate) = &self.gate {
                let _ = gate.recv();
            }
            let token = fake::greedy(logits);
            let _ = self.tokens.send(Ok(token));
            self.count -= 1;
            (self.count > 0).then_some(token)
        }

        fn finish(self, end: End) {
            if let End::Failed(error) = end {
                let _ = self.tokens.send(Err(error.to_string()));
            }
        }
    }

    #[test]
    fn a_question_comes_before_what_loading_has_put_off_and_its_second_token_after() {
        let (worker, steps) = start_behind(3);
        let tokens: Vec<u32> = submit(&worker, &[4, 5], 3).iter().map(Result::unwrap).collect();
        assert_eq!(tokens, fake::expected(&[4, 5], 3));
        let piece = fake::Step::new();
        let asked = vec![vec![(0, 2)], piece.clone(), piece.clone(), piece, vec![(2, 1)], vec![(3, 1)]];
        assert_eq!(*steps.lock().unwrap(), asked);
    }

    #[test]
    fn an_idle_thread_completes_what_loading_has_put_off() {
        let (worker, steps) = start_behind(3);
        let begun = std::time::Instant::now();
        while steps.lock().unwrap().len() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing was done");
            std::thread::sleep(Duration::from_millis(1));
        }
        let tokens: Vec<u32> = submit(&worker, &[4], 1).iter().map(Result::unwrap).collect();
        assert_eq!(tokens, fake::expected(&[4], 1));
        let piece = fake::Step::new();
        assert_eq!(*steps.lock().unwrap(), [piece.clone(), piece.clone(), piece, vec![(0, 1)]]);
    }

    /// Of a model that has put off some pieces of loading; and what its steps were.
    fn start_behind(pieces: usize) -> (Worker<Probe>, Arc<Mutex<Vec<fake::Step>>>) {
        let mut model = fake::FakeModel::new(32, 8, 16);
        model.behind = pieces;
        let steps = model.steps.clone();
        (Worker::spawn(Box::new(model)).unwrap(), steps)
    }

    fn start() -> Worker<Probe> {
        Worker::spawn(Box::new(fake::FakeModel::new(32, 8, 16))).unwrap()
    }

    fn submit(worker: &Worker<Probe>, prompt: &[u32], count: usize) -> mpsc::Receiver<Result<u32, String>> {
        submit_gated(worker, prompt, count, None)
    }

    fn submit_gated(
        worker: &Worker<Probe>,
        prompt: &[u32],
        count: usize,
        gate: Option<Receiver<()>>,
    ) -> mpsc::Receiver<Result<u32, String>> {
        let (tokens, received) = channel();
        let job = Job {
            prompt: prompt.to_vec(),
            session: None,
            positions: prompt.len() + count,
            rows: Rows::Last,
            driver: Probe { count, tokens, gate },
        };
        worker.submit(job).unwrap();
        received
    }

    /// Two requests of which the second, a prompt of `token`, joins the first while that is running.
    fn together(worker: &Worker<Probe>, token: u32) -> [mpsc::Receiver<Result<u32, String>>; 2] {
        let (permit, gate) = channel();
        let running = submit_gated(worker, &[1, 2], 200, Some(gate));
        permit.send(()).unwrap();
        running.recv().unwrap().unwrap();
        // The first waits for its next permit, or for the end of permits.
        let joining = submit(worker, &[token], 1);
        drop(permit);
        [running, joining]
    }

    #[test]
    fn threads_share_the_model_and_each_gets_its_own_answer() {
        let worker = start();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let worker = &worker;
                scope.spawn(move || {
                    for round in 0..5 {
                        let prompt = [thread, round, 9];
                        let tokens: Vec<u32> = submit(worker, &prompt, 20).iter().map(Result::unwrap).collect();
                        assert_eq!(tokens, fake::expected(&prompt, 20));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_ends_all_requests_and_is_told_to_later_ones() {
        let worker = start();
        let [running, culprit] = together(&worker, fake::PANICS);
        for received in [running, culprit] {
            let error = received.iter().find_map(Result::err).expect("an end with an error");
            assert!(error.contains("internal error") && error.contains("token 60 panics"), "{error}");
        }
        let (tokens, _received) = channel();
        let job = Job {
            prompt: vec![1],
            session: None,
            positions: 1,
            rows: Rows::Last,
            driver: Probe { count: 1, tokens, gate: None },
        };
        assert!(matches!(worker.submit(job), Err(EngineError::Panicked { .. })));
    }

    #[test]
    fn a_model_that_cannot_be_used_again_ends_all_requests() {
        let worker = start();
        let [running, culprit] = together(&worker, fake::BREAKS);
        for received in [running, culprit] {
            let error = received.iter().find_map(Result::err).expect("an end with an error");
            assert!(error.contains("a kernel panicked"), "{error}");
        }
        assert!(matches!(worker.failure().get(), Some(EngineError::Panicked { .. })));
    }

    #[test]
    fn dropping_the_handle_ends_running_and_waiting_requests() {
        let worker = start();
        let (permit, gate) = channel();
        let running = submit_gated(&worker, &[1], 400, Some(gate));
        let waiting = submit(&worker, &[2], 400);
        permit.send(()).unwrap();
        running.recv().unwrap().unwrap();
        // The driver waits for a permit that comes only once the inbox is closed.
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(permit);
        });
        drop(worker);
        release.join().unwrap();
        for received in [running, waiting] {
            let error = received.iter().find_map(Result::err).expect("an end with an error");
            assert!(error.contains("shut down"), "{error}");
        }
    }

    /// Drops the handle of its own worker where its tokens should be chosen.
    struct Saw {
        worker: Receiver<Worker<Saw>>,
        done: Sender<()>,
    }

    impl Driver for Saw {
        fn is_cancelled(&self) -> bool {
            false
        }

        fn admitted(&mut self, _first: usize) {}

        fn logits(&mut self, _position: usize, _logits: &[f32]) -> Option<u32> {
            drop(self.worker.recv());
            let _ = self.done.send(());
            None
        }

        fn finish(self, _end: End) {}
    }

    #[test]
    fn the_scheduler_thread_may_drop_the_last_handle() {
        let (hand_over, worker) = channel();
        let (done, received) = channel();
        let own = Worker::spawn(Box::new(fake::FakeModel::new(32, 8, 16))).unwrap();
        own.submit(Job {
            prompt: vec![1],
            session: None,
            positions: 1,
            rows: Rows::Last,
            driver: Saw { worker, done },
        })
        .unwrap();
        hand_over.send(own).unwrap();
        received.recv_timeout(Duration::from_secs(60)).expect("the thread does not wait for its own end");
    }
}
