//! What a reader sees of a scripted answer: which events come when, and how the answer ends.

use super::*;
use crate::{
    sampler::SamplerParams,
    text::{TokenType, Vocabulary},
};
use async_channel::Receiver;

const END: u32 = 2;
/// A control token that ends nothing.
const MARK: u32 = 1;

/// `<unk>`, `<s>`, `</s>`, then the bytes, then two words.
fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    let mut types = vec![TokenType::Unknown, TokenType::Control, TokenType::Control];
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), TokenType::Byte);
    tokens.extend(["stop", "▁word"].map(String::from));
    types.resize(tokens.len(), TokenType::Normal);
    let scores = vec![0.0; tokens.len()];
    Tokenizer::from_vocabulary(&Vocabulary {
        model: "llama",
        tokens: &tokens.into(),
        scores: &scores,
        types,
        bos: Some(MARK),
        eos: Some(END),
        unk: Some(0),
        ..Vocabulary::default()
    })
    .unwrap()
}

/// A token that is a letter and the first byte of `é`; the next one is the second byte.
const HALF: u32 = 3;

/// A byte-level vocabulary with [`HALF`].
fn byte_level() -> Tokenizer {
    let tokens = ["<unk>", "<s>", "</s>", "aÃ", "©"].map(String::from);
    let (control, normal) = (TokenType::Control, TokenType::Normal);
    Tokenizer::from_vocabulary(&Vocabulary {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: &tokens.into(),
        types: vec![TokenType::Unknown, control, control, normal, normal],
        merges: &["a Ã"].into(),
        eos: Some(END),
        ..Vocabulary::default()
    })
    .unwrap()
}

/// The token of a byte.
fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

struct Script {
    generation: Generation,
    events: Receiver<Result<Event, EngineError>>,
}

impl Script {
    fn new(stops: &[&str], max_tokens: usize) -> Self {
        Self::with(&tokenizer(), stops, max_tokens)
    }

    fn with(tokenizer: &Tokenizer, stops: &[&str], max_tokens: usize) -> Self {
        let (sender, events) = async_channel::unbounded();
        let params = SamplerParams { temperature: 0.0, seed: Some(5), ..SamplerParams::default() };
        let mut generation = Generation {
            sampler: Sampler::new(params, tokenizer.vocab_size()).unwrap(),
            drawn: None,
            detokenizer: tokenizer.detokenizer_after(&[byte(b'x')], false),
            tokenizer: tokenizer.clone(),
            stops: StopMatcher::new(stops.iter().map(|stop| stop.to_string()).collect()),
            limit: (max_tokens, Finish::Length),
            logprobs: false,
            ignore_end: false,
            prompt_tokens: 1,
            events: sender,
            cancel: CancelHandle::default(),
            ticket: None,
            clock: Clock::start(),
            output: Output::default(),
        };
        generation.admitted(0);
        Self { generation, events }
    }

    /// Lets the model choose `token`; returns what is asked for next and the texts of the events that came.
    fn choose(&mut self, token: u32) -> (Option<u32>, Vec<(u32, String)>) {
        let mut logits = vec![0.0; self.generation.tokenizer.vocab_size()];
        logits[token as usize] = 9.0;
        (self.generation.logits(0, &logits), texts(&self.events))
    }

    fn end(self, end: End) -> (Vec<(u32, String)>, Result<Summary, EngineError>) {
        self.generation.finish(end);
        let mut events: Vec<_> = std::iter::from_fn(|| self.events.try_recv().ok()).collect();
        let last = match events.pop().expect("a last event") {
            Ok(Event::Done(summary)) => Ok(summary),
            Ok(event) => panic!("{event:?} is no end"),
            Err(error) => Err(error),
        };
        (events.into_iter().map(text).collect(), last)
    }
}

fn text(event: Result<Event, EngineError>) -> (u32, String) {
    match event {
        Ok(Event::Token { id, text, .. }) => (id, text),
        other => panic!("{other:?} is no token"),
    }
}

fn texts(events: &Receiver<Result<Event, EngineError>>) -> Vec<(u32, String)> {
    std::iter::from_fn(|| events.try_recv().ok()).map(text).collect()
}

fn token(id: u32, text: &str) -> (u32, String) {
    (id, text.to_owned())
}

#[test]
fn an_end_token_ends_the_answer_and_is_not_part_of_it() {
    let mut script = Script::new(&[], 10);
    let word = 260;
    assert_eq!(script.choose(word), (Some(word), vec![token(word, " word")]));
    assert_eq!(script.choose(END), (None, vec![]));
    let (events, summary) = script.end(End::Done);
    let summary = summary.unwrap();
    assert_eq!(events, []);
    assert_eq!((summary.finish, summary.seed), (Finish::Stop, 5));
    assert_eq!(summary.usage, Usage { prompt_tokens: 1, generated: 1 });
    assert_eq!(summary.timing.steps, 1, "choosing the end token took a step");

    let mut script = Script::new(&[], 10);
    script.generation.ignore_end = true;
    assert_eq!(script.choose(END).0, Some(END));
}

#[test]
fn tokens_of_one_character_come_together() {
    let mut script = Script::new(&[], 10);
    let [first, second] = "é".as_bytes() else { unreachable!() };
    assert_eq!(script.choose(byte(*first)), (Some(byte(*first)), vec![]));
    let (_, events) = script.choose(byte(*second));
    assert_eq!(events, [token(byte(*first), ""), token(byte(*second), "é")]);
}

#[test]
fn half_a_character_at_the_end_is_a_broken_one() {
    for (end, max_tokens) in [(End::Done, 2), (End::Cancelled, 10)] {
        let mut script = Script::new(&[], max_tokens);
        script.choose(byte(b'a'));
        script.choose(byte(0xC3));
        let (events, _) = script.end(end);
        assert_eq!(events, [token(byte(0xC3), "\u{FFFD}")]);
    }
}

#[test]
fn a_possible_stop_string_waits_until_it_is_decided() {
    let mut script = Script::new(&["stop!"], 10);
    let stop = 259;
    assert_eq!(script.choose(stop).1, []);
    assert_eq!(script.choose(byte(b'?')).1, [token(stop, ""), token(byte(b'?'), "stop?")]);
    // Nothing but the stop string is cut, and its tokens are counted and told.
    script.choose(byte(b'a'));
    assert_eq!(script.choose(stop).1, []);
    assert_eq!(script.choose(byte(b'!')), (None, vec![]));
    let (events, summary) = script.end(End::Done);
    assert_eq!(events, [token(stop, ""), token(byte(b'!'), "")]);
    let summary = summary.unwrap();
    assert_eq!(summary.finish, Finish::StopString("stop!".into()));
    assert_eq!(summary.usage.generated, 5);
}

#[test]
fn a_held_beginning_of_a_stop_string_is_told_if_nothing_follows() {
    for finish in [Finish::Stop, Finish::Length, Finish::Cancelled] {
        let mut script = Script::new(&["stop!"], if finish == Finish::Length { 1 } else { 10 });
        let stop = 259;
        assert_eq!(script.choose(stop).1, []);
        if finish == Finish::Stop {
            assert_eq!(script.choose(END), (None, vec![]));
        }
        let (events, summary) = script.end(if finish == Finish::Cancelled { End::Cancelled } else { End::Done });
        assert_eq!(events, [token(stop, "stop")]);
        assert_eq!(summary.unwrap().finish, finish);
    }
}

#[test]
fn a_control_token_without_text_comes_at_once() {
    let mut script = Script::new(&[], 10);
    assert_eq!(script.choose(MARK).1, [token(MARK, "")]);
    assert_eq!(script.choose(byte(b'a')).1, [token(byte(b'a'), "a")]);
}

/// Byte-level vocabularies have tokens that end inside a character; what follows such a token may be an end token.
#[test]
fn half_a_character_behind_whole_text_is_not_lost() {
    for end in [Some(END), None] {
        let mut script = Script::with(&byte_level(), &[], 10);
        let (_, events) = script.choose(HALF);
        assert_eq!(events, [], "a part of the token's text is not certain yet");
        if let Some(end) = end {
            assert_eq!(script.choose(end), (None, vec![]));
        }
        let (events, _) = script.end(if end.is_some() { End::Done } else { End::Cancelled });
        assert_eq!(events, [token(HALF, "a\u{FFFD}")]);
    }
    let mut script = Script::with(&byte_level(), &[], 10);
    script.choose(HALF);
    assert_eq!(script.choose(HALF + 1).1, [token(HALF, ""), token(HALF + 1, "aé")]);
}

#[test]
fn limits_of_nothing_and_failures_are_told() {
    let mut script = Script::new(&[], 0);
    assert_eq!(script.choose(byte(b'a')), (None, vec![]));
    let (events, summary) = script.end(End::Done);
    let summary = summary.unwrap();
    assert_eq!((events, summary.finish), (vec![], Finish::Length));
    assert_eq!((summary.usage.generated, summary.timing.first_token.as_nanos()), (0, 0));
    assert!(summary.timing.prompt.as_nanos() > 0);

    let (_, end) = Script::new(&[], 5).end(End::Failed(EngineError::Stopped));
    assert!(matches!(end, Err(EngineError::Stopped)));
}

#[test]
fn logits_that_are_no_numbers_are_a_failure_and_no_token() {
    let mut script = Script::new(&[], 5);
    script.choose(byte(b'a'));
    assert!(script.generation.failure().is_none());
    let logits = vec![f32::NAN; script.generation.tokenizer.vocab_size()];
    assert_eq!(script.generation.logits(7, &logits), None);
    let failure = script.generation.failure().expect("a failure");
    assert!(matches!(failure, EngineError::Logits(LogitsError { position: 7 })), "{failure}");
    let (events, end) = script.end(End::Failed(failure));
    assert_eq!(events, []);
    let message = end.unwrap_err().to_string();
    assert!(message.contains("not numbers") && message.contains("; use another file"), "{message}");
}

#[test]
fn a_reader_that_is_gone_cancels() {
    let mut script = Script::new(&[], 10);
    script.events.close();
    script.choose(byte(b'a'));
    assert!(script.generation.is_cancelled());
}

#[test]
fn only_chains_that_devices_have_are_drawn_there() {
    let drawn = |params: SamplerParams| {
        drawn(&Sampler::new(SamplerParams { seed: Some(7), ..params }, 5000).unwrap(), 5000, 1024)
    };
    let base = SamplerParams::default();
    let expected = Sampling { top_k: 40, top_p: 0.95, min_p: 0.05, temperature: 0.8, seed: 7, draw: 0 };
    assert_eq!(drawn(base.clone()), Some(expected));
    assert_eq!(drawn(SamplerParams::greedy()), Some(Sampling::LARGEST));
    let narrow = drawn(SamplerParams { top_p: 0.0, ..base.clone() }).unwrap();
    assert!(narrow.top_p > 0.0 && narrow.top_p < 1e-30);
    for other in [
        SamplerParams { repetition_penalty: 1.1, ..base.clone() },
        SamplerParams { frequency_penalty: 0.1, ..base.clone() },
        SamplerParams { presence_penalty: 0.1, ..base.clone() },
        SamplerParams { typical_p: 0.9, ..base.clone() },
        SamplerParams { top_k: 1025, ..base.clone() },
        SamplerParams { temperature: 1e-9, ..base.clone() },
        // All tokens are more than a device draws from.
        SamplerParams::plain(),
    ] {
        assert_eq!(drawn(other.clone()), None, "{other:?}");
    }
    let few = Sampler::new(SamplerParams { seed: Some(7), ..SamplerParams::plain() }, 300).unwrap();
    assert_eq!(super::drawn(&few, 300, 1024).map(|drawn| drawn.top_k), Some(300));

    let mut script = Script::new(&[], 2);
    script.generation.drawn = Some(expected);
    assert_eq!(script.generation.draw(12), Some(Sampling { draw: 12, ..expected }));
    script.generation.logprobs = true;
    assert_eq!(script.generation.draw(12), None, "log probabilities need the logits");
    let mut script = Script::new(&[], 0);
    script.generation.drawn = Some(expected);
    assert_eq!(script.generation.draw(12), None, "nothing is chosen");
}
