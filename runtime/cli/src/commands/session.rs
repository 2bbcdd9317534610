//! What `generate` and `chat` share: an engine made from the flags, and one answer printed as it comes.

use super::model;
use crate::{
    args::{ComputeArgs, ModelArgs},
    compute,
    failure::Failure,
    interrupt::Guard,
    ui::{self, Progress},
};
use rustai::engine::{Completion, Engine, EngineBuilder, EngineError, Event, Finish, Request, Summary};

/// Loads the model into an engine for one sequence; `more` settings come last.
pub fn engine(
    model: &ModelArgs,
    compute: &ComputeArgs,
    more: impl FnOnce(EngineBuilder) -> EngineBuilder,
) -> Result<Engine, Failure> {
    let path = model::find(&model.model)?;
    let progress = Progress::bytes("loading");
    let builder = Engine::builder(&path)
        .threads(compute::threads(compute.threads))
        .context(compute.ctx)
        .kv_type(compute.kv_type.into())
        .device(compute.device.device)
        .gpu_layers(compute.device.gpu_layers.0)
        .max_sequences(1)
        .on_progress(move |state| progress.set(state.done, Some(state.total)));
    more(builder).build().map_err(explain)
}

/// Runs a request, handing each piece of text on as it comes. Ctrl-C cancels it; then the finish says so.
pub fn answer(
    engine: &Engine,
    request: Request,
    guard: &Guard,
    mut piece: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<Completion, Failure> {
    let mut stream = engine.stream(request).map_err(explain)?;
    let cancel = stream.cancel_handle();
    guard.cancels(move || cancel.cancel());
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for event in &mut stream {
        match event.map_err(explain)? {
            Event::Token { id, text: part, .. } => {
                piece(&part)?;
                text.push_str(&part);
                tokens.push(id);
            }
            Event::Done(summary) => return Ok(Completion { text, tokens, logprobs: Vec::new(), summary }),
        }
    }
    Err(EngineError::Stopped.into())
}

/// Tells on standard error how an answer ended, if that is not the usual way.
pub fn tell_finish(summary: &Summary) {
    match &summary.finish {
        Finish::Context => ui::warn("the context is full; the answer is cut off (a larger --ctx holds more)"),
        Finish::Length | Finish::Stop | Finish::StopString(_) | Finish::Cancelled => {}
        other => ui::note(format_args!("ended: {}", other.name())),
    }
}

/// Tells on standard error where the time went.
pub fn tell_timing(summary: &Summary) {
    let (timing, usage) = (summary.timing, summary.usage);
    ui::note(format_args!(
        "prompt: {} in {} ({:.1} tokens/s); answer: {} in {} ({:.1} tokens/s); first token after {}; \
         ended: {}; seed {}",
        ui::counted(usage.prompt_tokens, "token"),
        ui::seconds(timing.prompt),
        summary.prompt_tokens_per_second(),
        ui::counted(usage.generated, "token"),
        ui::seconds(timing.generation),
        summary.generated_tokens_per_second(),
        ui::seconds(timing.first_token),
        summary.finish.name(),
        summary.seed,
    ));
}

/// Puts remedies into the words of the command line.
pub fn explain(error: rustai::Error) -> Failure {
    let remedy = match error {
        rustai::Error::Model { path, source } => return explain(*source).within(path.display()),
        rustai::Error::Load(error) => return model::explain(error),
        rustai::Error::Engine(EngineError::PromptTooLong { .. }) => {
            "shorten the prompt, or give a larger context with --ctx"
        }
        rustai::Error::Engine(EngineError::NoChatTemplate) => {
            "give --raw to continue the text as it stands, or use an instruct model"
        }
        error => return error.into(),
    };
    Failure::from(error).help(remedy)
}
