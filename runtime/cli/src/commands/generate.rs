//! `generate`: one prompt, one answer, printed as it comes or as one JSON object.

use super::session;
use crate::{
    args::{GenerateArgs, GlobalArgs},
    failure::Failure,
    input,
    interrupt::Guard,
    ui::{self, Printer},
};
use rustai::{
    engine::{Completion, Finish, Request},
    text::Message,
};
use serde::Serialize;
use std::time::{Duration, Instant};

/// The object that `--json` prints; described in `docs/json.md`.
#[derive(Serialize)]
struct Report<'a> {
    prompt_tokens: Vec<u32>,
    tokens: &'a [u32],
    text: &'a str,
    finish: &'static str,
    seed: u64,
    timing: Timing,
}

/// Seconds and rates.
#[derive(Serialize)]
struct Timing {
    load_s: f64,
    first_token_s: f64,
    prompt_s: f64,
    generation_s: f64,
    prompt_tokens_per_s: f64,
    tokens_per_s: f64,
}

/// Answers one prompt.
pub fn run(args: &GenerateArgs, global: GlobalArgs) -> Result<(), Failure> {
    let params = args.sampler.checked()?;
    let text = input::text(&args.prompt)?;
    let started = Instant::now();
    let engine = session::engine(&args.model, &args.compute, |builder| {
        builder.device_sampling(args.sampler.device_sampling).pack_later(!args.pack_first)
    })?;
    let load = started.elapsed();

    let mut request = prompt(args, text)?.sampling(params);
    if let Some(tokens) = args.max_tokens {
        request = request.max_tokens(tokens);
    }
    for stop in &args.stop {
        request = request.stop(stop);
    }
    let prompt_tokens = engine.prompt_tokens(&request).map_err(session::explain)?;

    let guard = Guard::new();
    let mut out = Printer::default();
    let piece = |text: &str| if args.json { Ok(()) } else { out.piece(text) };
    let completion = session::answer(&engine, request, &guard, piece)?;
    if args.json {
        ui::json(&report(&completion, prompt_tokens, load))?;
    } else {
        out.end_line()?;
    }
    session::tell_finish(&completion.summary);
    if global.verbose > 0 {
        session::tell_timing(&completion.summary);
    }
    match completion.summary.finish {
        Finish::Cancelled => Err(Failure::Interrupted),
        _ => Ok(()),
    }
}

/// With `--raw` the text as it stands; otherwise a conversation of one turn.
fn prompt(args: &GenerateArgs, text: String) -> Result<Request, Failure> {
    if args.raw {
        return Ok(Request::raw(text));
    }
    // The line end that editors and `echo` put at the end of a file is not part of the question.
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() {
        return Err(input::empty());
    }
    let mut messages: Vec<Message> = args.system.iter().map(|system| Message::new("system", system)).collect();
    messages.push(Message::new("user", text));
    Ok(Request::chat(messages))
}

fn report(completion: &Completion, prompt_tokens: Vec<u32>, load: Duration) -> Report<'_> {
    let summary = &completion.summary;
    Report {
        prompt_tokens,
        tokens: &completion.tokens,
        text: &completion.text,
        finish: summary.finish.name(),
        seed: summary.seed,
        timing: Timing {
            load_s: load.as_secs_f64(),
            first_token_s: summary.timing.first_token.as_secs_f64(),
            prompt_s: summary.timing.prompt.as_secs_f64(),
            generation_s: summary.timing.generation.as_secs_f64(),
            prompt_tokens_per_s: summary.prompt_tokens_per_second(),
            tokens_per_s: summary.generated_tokens_per_second(),
        },
    }
}
