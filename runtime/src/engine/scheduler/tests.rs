//! The policy, on a model whose answers show every mistake in pages and positions. No threads.

use super::*;
use crate::backend::LogitsError;
use crate::engine::fake::{BROKEN, FakeModel, REFUSED, VOCAB, expected, greedy, logits};
use rustai_abi::PAGE_TOKENS;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What a test sees of one sequence.
#[derive(Default)]
struct Seen {
    admitted: Cell<bool>,
    cancel: Cell<bool>,
    tokens: RefCell<Vec<u32>>,
    positions: RefCell<Vec<usize>>,
    end: RefCell<Option<End>>,
}

struct Greedy {
    seen: Rc<Seen>,
    count: usize,
    rows: Rows,
    drawn: bool,
    failure: Option<LogitsError>,
}

impl Driver for Greedy {
    fn is_cancelled(&self) -> bool {
        self.seen.cancel.get()
    }

    fn admitted(&mut self, _first: usize) {
        assert!(!self.seen.admitted.replace(true), "admitted once");
    }

    fn logits(&mut self, position: usize, logits: &[f32]) -> Option<u32> {
        assert_eq!(logits.len(), VOCAB);
        self.seen.positions.borrow_mut().push(position);
        if logits[0].is_nan() {
            self.failure = Some(LogitsError { position });
            return None;
        }
        if self.rows == Rows::All {
            self.seen.tokens.borrow_mut().push(greedy(logits));
            return None;
        }
        if self.count == 0 {
            return None;
        }
        self.take(greedy(logits))
    }

    fn is_greedy(&self) -> bool {
        self.rows == Rows::Last && self.count > 0 && !self.drawn
    }

    fn draw(&self, position: usize) -> Option<Sampling> {
        self.drawn.then_some(Sampling { draw: position as u32, ..Sampling::LARGEST })
    }

    fn chosen(&mut self, position: usize, token: u32) -> Option<u32> {
        self.seen.positions.borrow_mut().push(position);
        self.take(token)
    }

    fn failure(&mut self) -> Option<EngineError> {
        self.failure.take().map(EngineError::from)
    }

    fn finish(self, end: End) {
        assert!(self.seen.end.replace(Some(end)).is_none(), "a sequence leaves once");
    }
}

impl Greedy {
    fn take(&mut self, token: u32) -> Option<u32> {
        self.seen.tokens.borrow_mut().push(token);
        self.count -= 1;
        (self.count > 0).then_some(token)
    }
}

impl Seen {
    fn is_done(&self) -> bool {
        matches!(*self.end.borrow(), Some(End::Done))
    }
}

fn submit(scheduler: &mut Scheduler<Greedy>, prompt: &[u32], count: usize, rows: Rows) -> Rc<Seen> {
    let seen = Rc::<Seen>::default();
    let positions = prompt.len() + count.saturating_sub(1);
    let driver = Greedy { seen: seen.clone(), count, rows, drawn: false, failure: None };
    scheduler.submit(Job { prompt: prompt.to_vec(), session: None, positions, rows, driver });
    seen
}

fn run_out(scheduler: &mut Scheduler<Greedy>, model: &mut FakeModel) {
    for _ in 0..10_000 {
        if scheduler.is_idle() {
            return;
        }
        scheduler.step(model).unwrap();
    }
    panic!("the scheduler makes no progress");
}

fn prompt(length: usize, salt: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 7 + salt * 13) % BROKEN).collect()
}

#[test]
fn mixed_sequences_get_what_they_get_alone() {
    // From roomy to so tight that most sequences wait, that chunks are one token, and that rows of logits are few.
    for (max_tokens, max_outputs, pages) in [(512, 16, 64), (40, 4, 7), (3, 3, 6), (2, 8, 6), (1, 1, 6), (64, 2, 9)] {
        let mut model = FakeModel::new(max_tokens, max_outputs, pages);
        let mut scheduler = Scheduler::new(model.limits());
        let mut random = 12345u32;
        let mut next = move |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % below
        };
        let mut jobs = Vec::new();
        for salt in 0..40 {
            let (length, count) = (1 + next(90) as usize, next(60) as usize);
            jobs.push((prompt(length, salt), count, submit(&mut scheduler, &prompt(length, salt), count, Rows::Last)));
            if next(3) == 0 {
                scheduler.step(&mut model).unwrap();
            }
        }
        run_out(&mut scheduler, &mut model);
        for (prompt, count, seen) in jobs {
            assert!(seen.is_done());
            assert_eq!(*seen.tokens.borrow(), expected(&prompt, count), "{} tokens of prompt", prompt.len());
        }
        assert_eq!(scheduler.pool.free(), pages, "all pages came back");
    }
}

#[test]
fn scoring_sees_every_row_in_order_between_decoding_sequences() {
    let mut model = FakeModel::new(16, 4, 16);
    let mut scheduler = Scheduler::new(model.limits());
    let text = prompt(45, 3);
    let decoding = submit(&mut scheduler, &prompt(5, 1), 40, Rows::Last);
    let scored = submit(&mut scheduler, &text, 0, Rows::All);
    run_out(&mut scheduler, &mut model);
    let rows: Vec<u32> = (1..=text.len()).map(|length| greedy(&logits(&text[..length]))).collect();
    assert_eq!(*scored.tokens.borrow(), rows);
    assert_eq!(*scored.positions.borrow(), (0..text.len()).collect::<Vec<_>>());
    assert_eq!(*decoding.tokens.borrow(), expected(&prompt(5, 1), 40));
}

#[test]
fn a_model_chooses_tokens_where_nobody_wants_logits() {
    let mut model = FakeModel::new(16, 4, 16);
    let chose = Arc::<AtomicUsize>::default();
    model.chose = Some(chose.clone());
    let steps = model.steps.clone();
    let mut scheduler = Scheduler::new(model.limits());
    let first = submit(&mut scheduler, &prompt(5, 1), 40, Rows::Last);
    let second = submit(&mut scheduler, &prompt(40, 2), 30, Rows::Last);
    (0..10).for_each(|_| scheduler.step(&mut model).unwrap());
    assert_eq!(chose.load(Ordering::Relaxed), 10);
    // Two steps of scoring want logits of all who are part of them.
    let scored = submit(&mut scheduler, &prompt(4, 3), 0, Rows::All);
    run_out(&mut scheduler, &mut model);
    assert_eq!(chose.load(Ordering::Relaxed), steps.lock().unwrap().len() - 2);
    assert_eq!(scored.tokens.borrow().len(), 4);
    assert_eq!(*first.tokens.borrow(), expected(&prompt(5, 1), 40));
    assert_eq!(*first.positions.borrow(), (4..44).collect::<Vec<_>>());
    assert_eq!(*second.tokens.borrow(), expected(&prompt(40, 2), 30));

    let refused = submit(&mut scheduler, &[REFUSED], 2, Rows::Last);
    run_out(&mut scheduler, &mut model);
    assert!(matches!(*refused.end.borrow(), Some(End::Failed(_))));
}

#[test]
fn tokens_are_drawn_for_those_who_want_it_beside_those_who_want_logits() {
    for draws in [true, false] {
        let mut model = FakeModel::new(48, 8, 16);
        let drew = Arc::<AtomicUsize>::default();
        // One that does not draw leaves it to the drivers.
        model.drew = draws.then(|| drew.clone());
        let mut scheduler = Scheduler::new(model.limits());
        let drawn = Rc::<Seen>::default();
        let driver = Greedy { seen: drawn.clone(), count: 20, rows: Rows::Last, drawn: true, failure: None };
        scheduler.submit(Job { prompt: prompt(5, 1), session: None, positions: 24, rows: Rows::Last, driver });
        let other = submit(&mut scheduler, &prompt(40, 2), 10, Rows::Last);
        let scored = submit(&mut scheduler, &prompt(4, 3), 0, Rows::All);
        run_out(&mut scheduler, &mut model);
        assert_eq!(*drawn.tokens.borrow(), expected(&prompt(5, 1), 20));
        assert_eq!(*drawn.positions.borrow(), (4..24).collect::<Vec<_>>());
        assert_eq!(*other.tokens.borrow(), expected(&prompt(40, 2), 10));
        assert_eq!(scored.tokens.borrow().len(), 4);
        assert_eq!(drew.load(Ordering::Relaxed), if draws { 20 } else { 0 });
    }
}

#[test]
fn a_long_prompt_does_not_stop_those_who_decode() {
    let mut model = FakeModel::new(8, 4, 16);
    let steps = model.steps.clone();
    let mut scheduler = Scheduler::new(model.limits());
    let first = submit(&mut scheduler, &[1, 2], 30, Rows::Last);
    scheduler.step(&mut model).unwrap();
    let long = submit(&mut scheduler, &prompt(100, 0), 2, Rows::Last);
    for step in 0..14 {
        let before = first.tokens.borrow().len();
        scheduler.step(&mut model).unwrap();
        assert_eq!(first.tokens.borrow().len(), before + 1, "step {step}");
        // One token of the eight is the decoding sequence's.
        assert_eq!(steps.lock().unwrap().last().unwrap()[1], (step * 7, 7));
    }
    run_out(&mut scheduler, &mut model);
    assert!(first.is_done() && long.is_done());
}

#[test]
fn admission_is_first_come_first_served_and_nobody_overtakes() {
    let mut model = FakeModel::new(64, 4, 4);
    let mut scheduler = Scheduler::new(model.limits());
    let running = submit(&mut scheduler, &prompt(10, 0), 2 * PAGE_TOKENS, Rows::Last);
    let large = submit(&mut scheduler, &prompt(10, 1), 2 * PAGE_TOKENS, Rows::Last);
    let small = submit(&mut scheduler, &prompt(10, 2), 1, Rows::Last);
    scheduler.step(&mut model).unwrap();
    assert!(running.admitted.get() && !large.admitted.get(), "three pages each, four there are");
    assert!(!small.admitted.get(), "it would fit, but is not the first");
    while !running.is_done() {
        scheduler.step(&mut model).unwrap();
        assert_eq!(small.admitted.get(), large.admitted.get());
    }
    scheduler.step(&mut model).unwrap();
    assert!(large.admitted.get() && small.admitted.get());
    run_out(&mut scheduler, &mut model);
}

#[test]
fn pages_are_taken_as_the_sequence_grows() {
    let mut model = FakeModel::new(64, 4, 8);
    let mut scheduler = Scheduler::new(model.limits());
    submit(&mut scheduler, &prompt(PAGE_TOKENS, 0), 100, Rows::Last);
    scheduler.step(&mut model).unwrap();
    assert_eq!(scheduler.pool.free(), 7);
    scheduler.step(&mut model).unwrap();
    assert_eq!(scheduler.pool.free(), 6);
}

#[test]
fn cancelled_sequences_leave_before_the_next_step() {
    let mut model = FakeModel::new(16, 4, 2);
    let steps = model.steps.clone();
    let mut scheduler = Scheduler::new(model.limits());
    let running = submit(&mut scheduler, &[1, 2, 3], 60, Rows::Last);
    let waiting = submit(&mut scheduler, &[4, 5, 6], 60, Rows::Last);
    let patient = submit(&mut scheduler, &[7, 8, 9], 60, Rows::Last);
    scheduler.step(&mut model).unwrap();
    waiting.cancel.set(true);
    scheduler.step(&mut model).unwrap();
    assert!(matches!(*waiting.end.borrow(), Some(End::Cancelled)) && !waiting.admitted.get());
    running.cancel.set(true);
    scheduler.step(&mut model).unwrap();
    assert!(matches!(*running.end.borrow(), Some(End::Cancelled)));
    assert_eq!(running.tokens.borrow().len(), 2);
    assert_eq!(*steps.lock().unwrap().last().unwrap(), [(0, 3)], "the freed pages admit the next at once");
    run_out(&mut scheduler, &mut model);
    assert_eq!(*patient.tokens.borrow(), expected(&[7, 8, 9], 60));
    assert_eq!(scheduler.pool.free(), 2);
}

#[test]
fn a_refused_step_ends_only_its_own_sequences() {
    let mut model = FakeModel::new(4, 4, 8);
    let mut scheduler = Scheduler::new(model.limits());
    let bad = submit(&mut scheduler, &[1, 2, 3, REFUSED], 5, Rows::Last);
    // The first fills the step, so this one is not part of it.
    let good = submit(&mut scheduler, &[5, 6], 5, Rows::Last);
    run_out(&mut scheduler, &mut model);
    let end = bad.end.borrow();
    let Some(End::Failed(error)) = &*end else { panic!("{end:?}") };
    assert!(matches!(error, EngineError::Step(_)) && error.to_string().contains("token 59"), "{error}");
    assert_eq!(*good.tokens.borrow(), expected(&[5, 6], 5));
    assert_eq!(scheduler.pool.free(), 8);
}

#[test]
fn logits_that_are_no_numbers_end_only_their_own_sequence() {
    let mut model = FakeModel::new(8, 4, 8);
    let mut scheduler = Scheduler::new(model.limits());
    let good = submit(&mut scheduler, &[5, 6], 9, Rows::Last);
    let broken = submit(&mut scheduler, &[1, 2, BROKEN], 5, Rows::Last);
    // A text is scored no further than to where nothing is known of it.
    let scored = submit(&mut scheduler, &[1, BROKEN, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 0, Rows::All);
    run_out(&mut scheduler, &mut model);
    for (seen, at) in [(broken, 2), (scored, 1)] {
        let end = seen.end.borrow();
        let Some(End::Failed(EngineError::Logits(LogitsError { position }))) = &*end else { panic!("{end:?}") };
        assert_eq!(*position, at);
        assert!(seen.positions.borrow().len() < 8, "{:?}", seen.positions);
    }
    assert_eq!(*good.tokens.borrow(), expected(&[5, 6], 9));
    assert_eq!(scheduler.pool.free(), 8);
}

#[test]
fn what_can_never_run_is_refused_and_abort_ends_everything() {
    let mut model = FakeModel::new(4, 1, 2);
    let mut scheduler = Scheduler::new(model.limits());
    let huge = submit(&mut scheduler, &prompt(2 * PAGE_TOKENS + 1, 0), 0, Rows::Last);
    let empty = submit(&mut scheduler, &[], 1, Rows::Last);
    assert!(matches!(*huge.end.borrow(), Some(End::Failed(EngineError::PromptTooLong { tokens: 65, context: 64 }))));
    assert!(matches!(*empty.end.borrow(), Some(End::Failed(EngineError::EmptyPrompt))));

    let running = submit(&mut scheduler, &[1], 9, Rows::Last);
    let waiting = submit(&mut scheduler, &[2], 9, Rows::Last);
    scheduler.step(&mut model).unwrap();
    scheduler.abort(&EngineError::Stopped);
    for seen in [running, waiting] {
        assert!(matches!(*seen.end.borrow(), Some(End::Failed(EngineError::Stopped))));
    }
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.pool.free(), 2);
}

#[test]
fn buffers_of_a_step_are_reused() {
    let mut model = FakeModel::new(64, 4, 8);
    let mut scheduler = Scheduler::new(model.limits());
    submit(&mut scheduler, &prompt(20, 0), 50, Rows::Last);
    submit(&mut scheduler, &prompt(20, 1), 50, Rows::Last);
    scheduler.step(&mut model).unwrap();
    let places = |s: &Scheduler<Greedy>| {
        let sequences: Vec<_> = s.running.iter().flat_map(|s| [s.tokens.as_ptr(), s.table.pages().as_ptr()]).collect();
        (
            s.views.as_ptr().cast::<u8>(),
            s.tokens.as_ptr(),
            s.outputs.as_ptr(),
            s.shares.as_ptr().cast::<u8>(),
            sequences,
        )
    };
    let before = places(&scheduler);
    for _ in 0..40 {
        scheduler.step(&mut model).unwrap();
        assert_eq!(places(&scheduler), before);
    }
}
