//! What the opcodes take: tensors, and the eight parameters of a job.
//!
//! Tensors are told apart by direction and order: inputs are those without the flag OUT. `[a, b]` is a shape, the length of a
//! row first. What is not named must be zero or absent, or the job completes with `EINVAL`.
//!
//! | opcode | inputs | outputs | result | count |
//! |---|---|---|---|---|
//! | NOP | any | any | 0 | 0 |
//! | ECHO | any | one for each input, of the same bytes | as [`echo`] says | as [`echo`] says |
//! | TOKENIZE | I8 `[n]`: UTF-8 | I32 `[m]` | tokens | the same |
//! | EMBED | I32 `[n]` INDEX: tokens | F32 `[width]` or `[width, n]` | rows | the same |
//! | LOGITS | I32 `[n]` INDEX: tokens | F32 `[vocab]` or `[vocab, n]` | rows | the same |
//! | GENERATE | I32 `[n]` INDEX: tokens, or I8 `[n]`: UTF-8 | I32 `[m]`: tokens; then perhaps I8 `[k]`: text | bytes of text | tokens |
//! | MATMUL | F32 `[k, m]`, then any type `[k, n]` | F32 `[n, m]` | 0 | 0 |
//! | SESSION_OPEN | none | none | number of the session | epoch |
//! | SESSION_CLOSE | none | none | 0 | 0 |
//!
//! - TOKENIZE completes with `EMSGSIZE` and the number of tokens in `count` if the output is too short; nothing is written.
//! - EMBED and LOGITS complete with `EMSGSIZE` and the length of a row in `count` if the output has another shape.
//! - An output with a row per token gets all rows, one of a single row that behind the last token.
//! - GENERATE stops where its output is full. Text never holds a zero byte, so in an output that was zero it shows by itself
//!   how far it is; it ends early where the next character does not fit.
//! - With a session, tokens of EMBED, LOGITS and GENERATE continue those of earlier jobs.
//! - Inputs and outputs of EMBED, LOGITS and MATMUL are used in place, whatever their size; a MATMUL whose first input does
//!   not start at a multiple of 64 bytes is copied, and the copy is counted.
//! - What is copied (text, tokens, such an input) has at most 64 MiB, and a MATMUL at most 65,536 rows `m`; otherwise the job
//!   completes with `EMSGSIZE`.

/// Parameters of ECHO, for tests and for measuring the queue.
pub mod echo {
    /// Nanoseconds until it completes; at most a minute.
    pub const DELAY_NS: usize = 0;
    /// The result, as an `i32`: what the completion holds.
    pub const RESULT: usize = 1;
    /// The count.
    pub const COUNT: usize = 2;
    /// What is done with the tensors: one of the modes below.
    pub const MODE: usize = 3;
    /// The first and the last byte of each input go to its output: proof that both are mapped, at a cost that does not
    /// depend on their size.
    pub const TOUCH: u64 = 0;
    /// Each input is copied to its output, and the bytes are counted.
    pub const COPY: u64 = 1;
    /// The server's process ends at once: for tests of its death. Refused with `EPERM` unless the server allows faults.
    pub const CRASH: u64 = 2;
}

/// Parameters of TOKENIZE.
pub mod tokenize {
    /// Flags, as below.
    pub const FLAGS: usize = 0;
    /// Leaves out the BOS token that the model may want.
    pub const NO_BOS: u64 = 1;
    /// Special tokens written in the text are parsed.
    pub const SPECIALS: u64 = 2;
    /// All flags.
    pub const ALL: u64 = NO_BOS | SPECIALS;
}

/// Parameters of GENERATE.
pub mod generate {
    /// Flags, as below: which of the others count.
    pub const FLAGS: usize = 0;
    /// Most tokens; 0 for as many as the output holds.
    pub const MAX_TOKENS: usize = 1;
    /// `f32` bits of the temperature.
    pub const TEMPERATURE: usize = 2;
    /// The seed.
    pub const SEED: usize = 3;
    /// Candidates.
    pub const TOP_K: usize = 4;
    /// `f32` bits.
    pub const TOP_P: usize = 5;
    /// `f32` bits.
    pub const MIN_P: usize = 6;
    /// [`TEMPERATURE`] counts.
    pub const HAS_TEMPERATURE: u64 = 1 << 0;
    /// [`SEED`] counts.
    pub const HAS_SEED: u64 = 1 << 1;
    /// [`TOP_K`] counts.
    pub const HAS_TOP_K: u64 = 1 << 2;
    /// [`TOP_P`] counts.
    pub const HAS_TOP_P: u64 = 1 << 3;
    /// [`MIN_P`] counts.
    pub const HAS_MIN_P: u64 = 1 << 4;
    /// End tokens do not end the answer.
    pub const IGNORE_END: u64 = 1 << 5;
    /// The text is a user's message, to be written with the model's chat template.
    pub const CHAT: u64 = 1 << 6;
    /// Special tokens written in the text are parsed.
    pub const SPECIALS: u64 = 1 << 7;
    /// All flags.
    pub const ALL: u64 = (1 << 8) - 1;
}

/// Parameters of SESSION_OPEN.
pub mod session {
    /// Most tokens that it will hold; 0 for the model's context.
    pub const TOKENS: usize = 0;
}
