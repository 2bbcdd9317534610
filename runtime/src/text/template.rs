//! Chat templates: a conversation becomes the prompt text that the model was trained on.
//!
//! Files carry the Jinja template of their model's publisher, written for the environment of Hugging Face `transformers`:
//! blocks trimmed (`trim_blocks`, `lstrip_blocks`), loop controls, the functions `raise_exception` and
//! `strftime_now`, `tojson` as Python's `json.dumps` writes it, and Python's methods on strings, lists and mappings.
//! `minijinja` provides that here. A template is a program of a stranger: it can read nothing but what it is given, its
//! steps and the bytes that it makes are counted, and it runs on a stack that is deep enough for the deepest value that
//! so many steps can make.
use super::TextError;
use super::tokenizer::Tokenizer;
use crate::gguf::Metadata;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, context, syntax::SyntaxConfig};
use serde::Serialize;
use std::fmt;
use std::io::Write as _;
use std::thread;

/// Instructions that a template may execute, or sixty-four times as many bytes that it may make: far more than any
/// conversation needs.
const FUEL: u64 = 2_000_000;
/// Bytes of stack that a template runs on. Lists in lists are dropped and written recursively, and each level costs a
/// template some instructions: this holds what [`FUEL`] can build. Only what is used takes memory.
const STACK: usize = 512 << 20;
/// Longest text that a method or `tojson` may make, in bytes: those that are not `minijinja`'s own do not count as they
/// go.
const LONGEST: usize = 16 << 20;
const DEFAULT: &str = "default";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A chat template (Jinja, from the file). Usable from many threads.
pub struct ChatTemplate {
    environment: Environment<'static>,
    name: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// From the file's `tokenizer.chat_template`; `None` if it has none.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        let source = match metadata.str("tokenizer.chat_template")? {
            Some(source) => Some(source),
            None => metadata.str("tokenizer.chat_template.default")?,
        };
        source.map(|source| Self::new(source, tokenizer)).transpose()
    }

    /// One of several templates in the file (`tokenizer.chat_template.NAME`), such as `tool_use`. `default` is the one
    /// of [`from_metadata`](Self::from_metadata).
    pub fn named(metadata: &Metadata, tokenizer: &Tokenizer, name: &str) -> Result<Self, TextError> {
        let found = match metadata.str(&format!("tokenizer.chat_template.{name}"))? {
            Some(source) => Some(Self::compile(source, tokenizer, name)?),
            None if name == DEFAULT => Self::from_metadata(metadata, tokenizer)?,
            None => None,
        };
        match found {
            Some(template) => Ok(template),
            None => {
                let mut known: Vec<&str> = Vec::new();
                known.extend(metadata.str("tokenizer.chat_template")?.map(|_| DEFAULT));
                known.extend(metadata.strings("tokenizer.chat_templates")?.unwrap_or_default().iter());
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(TextError::UnknownTemplate { name: name.to_owned(), known })
            }
        }
    }

    /// From the template's text, such as a file that the user provides for a model without one.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        Self::compile(source, tokenizer, DEFAULT)
    }

    fn compile(source: &str, tokenizer: &Tokenizer, name: &str) -> Result<Self, TextError> {
        let failed = |error: minijinja::Error| template_error(name, &error);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(write_value);
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_test("iterable", is_iterable);
        environment.add_template_owned(name.to_owned(), without_generation_marks(source)).map_err(failed)?;
        let written = |token: Option<u32>| token.and_then(|id| tokenizer.piece(id)).unwrap_or_default().to_owned();
        Ok(Self { environment, name: name.to_owned(), bos: written(tokenizer.bos()), eos: written(tokenizer.eos()) })
    }

    /// The prompt text of a conversation. `add_generation_prompt` ends it with the beginning of the assistant's turn.
    ///
    /// Encode the result with [`encode_prompt`](Tokenizer::encode_prompt) and [`Specials::Parse`](super::Specials): it has the
    /// template's special tokens in it, and with them whatever special tokens the messages spell out.
    ///
    /// # Errors
    /// [`TextError::Template`] if the template fails or refuses the conversation, for example because two turns of the
    /// same role follow each other.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let failed = |error: minijinja::Error| template_error(&self.name, &error);
        let messages: Vec<Value> =
            messages.iter().map(|message| context! { role => &message.role, content => &message.content }).collect();
        let render = || {
            self.environment.get_template(&self.name)?.render(context! {
                messages,
                add_generation_prompt,
                bos_token => &self.bos,
                eos_token => &self.eos,
                tools => Value::from(()),
                documents => Value::from(()),
            })
        };
        let broken = |reason: String| TextError::Template { name: self.name.clone(), reason };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("chat-template".into()).stack_size(STACK);
            let rendering = thread
                .spawn_scoped(scope, || render().map_err(failed))
                .map_err(|error| broken(format!("no thread could be started for it: {error}")))?;
            rendering.join().unwrap_or_else(|_| Err(broken("the template engine panicked".into())))
        })
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("name", &self.name).finish_non_exhaustive()
    }
}

fn template_error(name: &str, error: &minijinja::Error) -> TextError {
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        reason.push_str(": ");
        reason.push_str(&inner.to_string());
        cause = inner.source();
    }
    TextError::Template { name: name.to_owned(), reason }
}

/// Drops `{% generation %}` and `{% endgeneration %}`, with which training code marks the assistant's words: they are
/// made a condition that always holds, which keeps their white-space control.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let (before, after) = (&rest[..open], &rest[open + length + 2..]);
        let tag = &rest[open..open + length + 2];
        let word = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(before);
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// As in Python, where none has no elements, and templates ask this before they count them.
fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
}

/// Writes a value to the output. Lists and mappings are written apart first, where their length is watched.
fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    if value.as_object().is_none() {
        return minijinja::escape_formatter(out, state, value);
    }
    let mut text = Bounded(Vec::new());
    let written = write!(text, "{value}").map_err(|error| error.to_string());
    let text = written.and_then(|()| String::from_utf8(text.0).map_err(|error| error.to_string()));
    let text = text.map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error))?;
    Ok(out.write_str(&text)?)
}

/// Python's methods. Those that make much out of little are held to [`LONGEST`] before they do.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let too_long = || {
        let message = format!("{name}() would make a text of more than {LONGEST} bytes");
        minijinja::Error::new(ErrorKind::InvalidOperation, message)
    };
    let text = |value: Option<&Value>| value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    match (value.as_str(), name) {
        (Some(s), "replace") => {
            let (old, new) = (text(args.first()), text(args.get(1)));
            let added = s.matches(old.as_str()).count().saturating_mul(new.len());
            if s.len().saturating_add(added) > LONGEST {
                return Err(too_long());
            }
        }
        (Some(separator), "join") if args.len() == 1 => return join(separator, &args[0], too_long),
        // A width of five digits is a longer line than any prompt has.
        (Some(s), "format") if s.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4) => {
            return Err(too_long());
        }
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `separator.join(items)`: as in Python, all items must be strings.
fn join(separator: &str, items: &Value, too_long: impl Fn() -> minijinja::Error) -> Result<Value, minijinja::Error> {
    let mut out = String::new();
    for (place, item) in items.try_iter()?.enumerate() {
        let item = item.as_str().ok_or_else(|| {
            let message = format!("join() takes strings, and item {place} is of type {}", item.kind());
            minijinja::Error::new(ErrorKind::InvalidOperation, message)
        })?;
        let separator = if place == 0 { "" } else { separator };
        if out.len() + separator.len() + item.len() > LONGEST {
            return Err(too_long());
        }
        out.push_str(separator);
        out.push_str(item);
    }
    Ok(Value::from(out))
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time now, in the notation of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: a space after `,` and `:`, nothing escaped for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Bounded(Vec::new());
    match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    }
    .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    String::from_utf8(out.0)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))
}

/// A text of at most [`LONGEST`] bytes: a few lists that hold each other twice would make terabytes.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(std::io::Error::other(format!("the text would be longer than {LONGEST} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Python's separators.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::samples::{byte_level, sentence_piece};

    fn render(source: &str, turns: &[(&str, &str)]) -> Result<String, TextError> {
        let messages: Vec<Message> = turns.iter().map(|&(role, content)| Message::new(role, content)).collect();
        ChatTemplate::new(source, &byte_level())?.render(&messages, true)
    }

    #[test]
    fn chatml_becomes_a_prompt() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
            {{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
            message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
            {{ '<|im_start|>assistant\n' }}{% endif %}";
        assert_eq!(
            render(source, &[("user", "<b>hi</b>")]).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<b>hi</b><|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn blocks_are_trimmed_and_loops_controlled() {
        let source = "{%- for m in messages %}\n  {% if m.role == 'system' %}\n  {% continue %}\n  {% endif %}\n{{ m.content }}\n{% endfor %}\n";
        assert_eq!(render(source, &[("system", "s"), ("user", "a"), ("user", "b")]).unwrap(), "a\nb\n");
    }

    #[test]
    fn pythons_methods_work() {
        let source = "{{ messages[0].content.strip().split(',')[1].upper() }}{% if messages[0].content.startswith(' a') %}!{% endif %}\
            {% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}\
            {% for k, v in messages[0].items() %}{{ k }};{% endfor %}{{ messages[0].get('x', 'none') }}";
        assert_eq!(render(source, &[("user", " a,b ")]).unwrap(), "B!1role;content;none");
    }

    #[test]
    fn json_is_written_as_python_does() {
        let source = "{{ {'a': [1, 2.5, true, none], 'b<': 'é\"'} | tojson }}{{ [1] | tojson(indent=2) }}";
        assert_eq!(render(source, &[]).unwrap(), "{\"a\": [1, 2.5, true, null], \"b<\": \"é\\\"\"}[\n  1\n]");
    }

    #[test]
    fn what_is_absent_is_none_or_undefined() {
        let source = "{{ tools is none }},{{ tools is defined }},{{ messages[0].tool_calls is defined }}\
            {% if messages[0]['tool_calls'] %}x{% endif %}{% if tools is iterable and tools | length > 0 %}x{% endif %}";
        assert_eq!(render(source, &[("user", "")]).unwrap().to_lowercase(), "true,true,false");
    }

    #[test]
    fn special_tokens_come_from_the_vocabulary() {
        let template = ChatTemplate::new("{{ bos_token }}|{{ eos_token }}", &sentence_piece()).unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "<s>|</s>");
    }

    #[test]
    fn a_template_can_refuse() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(
            matches!(&error, TextError::Template { name, reason } if name == "default" && reason.contains("roles must alternate"))
        );
    }

    #[test]
    fn faults_of_a_template_are_errors() {
        for source in ["{% if %}", "{{ nonsense() }}", "{{ 1 + [] }}", "{{ strftime_now('%!') }}"] {
            assert!(matches!(render(source, &[]), Err(TextError::Template { .. })), "{source}");
        }
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(source, &[]), Err(TextError::Template { .. })));
    }

    #[test]
    fn a_template_that_makes_too_much_is_stopped() {
        let grow = |start: &str, step: &str, end: &str| {
            format!(
                "{{% set ns = namespace(x={start}) %}}{{% for i in range(100) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}"
            )
        };
        for source in [
            grow("'abcdefgh'", "ns.x ~ ns.x", ""),
            grow("'aaaaaaaa'", "ns.x.replace('a', 'aaaaaaaa')", ""),
            grow("'aaaaaaaa'", "ns.x.join([ns.x, ns.x, ns.x])", ""),
            grow("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"),
            grow("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
            "{{ '{:>99999999999}'.format(3) }}".into(),
            "{{ '%99999999999d' | format(3) }}".into(),
            "{{ 'a' | indent(99999999999999, true) }}".into(),
            "{{ 'a' * 99999999999999 }}".into(),
        ] {
            assert!(matches!(render(&source, &[]), Err(TextError::Template { .. })), "{source}");
        }
        assert_eq!(render("{{ ', '.join(['a', 'b']) }}{{ 'aXb'.replace('X', '--') }}", &[]).unwrap(), "a, ba--b");
        assert_eq!(render("{{ '{:>4}'.format('a') }}", &[]).unwrap(), "   a");
    }

    /// Values are dropped and written recursively: the deepest one that the fuel allows must fit the stack.
    #[test]
    fn deeply_nested_values_do_not_overflow_the_stack() {
        let nest = "{% set ns = namespace(x=[]) %}{% for j in range(99999) %}{% for i in range(99999) %}\
            {% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
        assert!(matches!(render(nest, &[]), Err(TextError::Template { .. })), "out of fuel");
        let nest = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
        for end in ["", "{{ ns.x | tojson }}", "{{ ns.x }}", "{{ ns.x == [ns.x] }}"] {
            // Whether it is refused is not the point.
            let _ = render(&format!("{nest}{end}"), &[]);
        }
    }

    #[test]
    fn the_date_can_be_written() {
        assert_eq!(render("{{ strftime_now('%Y') }}", &[]).unwrap().len(), 4);
    }

    #[test]
    fn marks_for_training_are_ignored() {
        let source = "a\n{%- generation -%}\nb{% endgeneration %}{{ '%}' }}{% unclosed";
        assert_eq!(without_generation_marks(source), "a\n{%- if true -%}\nb{% endif %}{{ '%}' }}{% unclosed");
    }
}
