//! `chat`: a conversation in the terminal.
//!
//! Lines are edited with rustyline and remembered between sessions. Ctrl-C stops the answer, not the program; Ctrl-D or
//! `/exit` ends it.

use super::session;
use crate::{
    args::{ChatArgs, GlobalArgs},
    failure::Failure,
    interrupt::Guard,
    ui::{self, Printer, style},
};
use rustai::{
    Error,
    engine::{Engine, EngineError, Finish, Request},
    sampler::SamplerParams,
    text::Message,
};
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    fs,
    io::{IsTerminal, stdin, stdout},
    path::PathBuf,
};

const HELP: &str = "\
/clear          forget the conversation (the system prompt stays)
/system TEXT    set the system prompt and start again; without TEXT, show it
/help           this list
/exit           end (Ctrl-D does, too)
Ctrl-C stops an answer.";

/// Talks until the user ends it.
pub fn run(args: ChatArgs, global: GlobalArgs) -> Result<(), Failure> {
    let params = args.sampler.checked()?;
    let engine = session::engine(&args.model, &args.compute, |it| it.device_sampling(args.sampler.device_sampling))?;
    // Without a template no turn could be answered, and one that is broken says so now.
    engine.prompt_tokens(&Request::ask("Hello")).map_err(|error| match error {
        Error::Engine(EngineError::NoChatTemplate) => Failure::from(EngineError::NoChatTemplate)
            .help("use an instruct model, or `rustai generate --raw` to continue a text"),
        error => session::explain(error),
    })?;
    let people = stdin().is_terminal() && stdout().is_terminal();
    let mut editor = DefaultEditor::new().map_err(terminal)?;
    let history = history_file().filter(|_| people);
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    if people {
        ui::note("Ctrl-C stops an answer; Ctrl-D or /exit ends; /help lists the commands.");
    }
    let guard = Guard::new();
    let mut chat = Chat { engine, params, max_tokens: args.max_tokens, system: args.system, turns: Vec::new() };
    let mut out = Printer::default();
    loop {
        let line = match editor.readline(if people { "> " } else { "" }) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                ui::note("Ctrl-D or /exit ends the program.");
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(terminal(error)),
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if people {
            let _ = editor.add_history_entry(line);
        }
        match line.strip_prefix('/') {
            Some(command) => {
                if !chat.command(command, &mut out)? {
                    break;
                }
            }
            None => chat.turn(line, &guard, &mut out, global)?,
        }
    }
    if let Some(path) = history
        && let Err(error) = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| editor.save_history(&path).map_err(std::io::Error::other))
    {
        ui::warn(format_args!("the history was not saved to {}: {error}", path.display()));
    }
    Ok(())
}

struct Chat {
    engine: Engine,
    params: SamplerParams,
    max_tokens: Option<usize>,
    system: Option<String>,
    turns: Vec<Message>,
}

impl Chat {
    /// Obeys a command; false ends the conversation.
    fn command(&mut self, command: &str, out: &mut Printer) -> Result<bool, Failure> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("exit" | "quit", _) => return Ok(false),
            ("clear", _) => {
                self.turns.clear();
                ui::note("The conversation is forgotten.");
            }
            ("system", "") => out.line(self.system.as_deref().unwrap_or("There is no system prompt."))?,
            ("system", text) => {
                self.system = Some(text.to_owned());
                self.turns.clear();
                ui::note("The conversation starts again with this system prompt.");
            }
            ("help", _) => out.line(HELP)?,
            _ => ui::warn(format_args!("there is no command /{name}; /help lists the commands")),
        }
        Ok(true)
    }

    /// Answers one line. An error of the request is told, and the conversation goes on.
    fn turn(&mut self, line: &str, guard: &Guard, out: &mut Printer, global: GlobalArgs) -> Result<(), Failure> {
        self.turns.push(Message::new("user", line));
        let system = self.system.iter().map(|system| Message::new("system", system));
        let messages: Vec<Message> = system.chain(self.turns.iter().cloned()).collect();
        let mut request = Request::chat(messages).sampling(self.params.clone());
        if let Some(tokens) = self.max_tokens {
            request = request.max_tokens(tokens);
        }
        guard.reset();
        let answered = session::answer(&self.engine, request, guard, |text| out.piece(text));
        let ended = out.end_line();
        match answered {
            Ok(completion) => {
                if completion.summary.finish == Finish::Cancelled {
                    ui::note("(stopped)");
                }
                session::tell_finish(&completion.summary);
                if global.verbose > 0 {
                    session::tell_timing(&completion.summary);
                }
                self.turns.push(Message::new("assistant", completion.text));
                ended
            }
            Err(Failure::Told { message, .. }) => {
                self.turns.pop();
                let (error, help) = (style::ERROR, style::HELP);
                anstream::eprintln!("{error}error:{error:#} {}", ui::plain(&message));
                anstream::eprintln!(
                    "{help}help:{help:#} /clear forgets the conversation; a larger --ctx holds more of it"
                );
                Ok(())
            }
            Err(other) => Err(other),
        }
    }
}

/// `$XDG_STATE_HOME/rustai/chat_history`, by default under `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("rustai/chat_history"))
}

fn terminal(error: ReadlineError) -> Failure {
    Failure::new(format!("the terminal cannot be read: {error}"))
        .help("give text in UTF-8, or use `rustai generate` where there is no terminal")
}
