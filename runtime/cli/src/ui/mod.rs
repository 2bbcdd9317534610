//! What people see: colours, progress bars, tables and numbers. All of it plain where no terminal is.

mod format;
mod output;
mod progress;
pub mod style;
mod table;

pub use format::{bytes, count, counted, plain, seconds};
pub use output::{Printer, json};
pub use progress::Progress;
pub use table::Table;

/// Tells something that the user should know but that stops nothing.
pub fn warn(message: impl std::fmt::Display) {
    let style = style::WARNING;
    anstream::eprintln!("{style}warning:{style:#} {message}");
}

/// Tells something beside the answer, on standard error.
pub fn note(message: impl std::fmt::Display) {
    let style = style::FAINT;
    anstream::eprintln!("{style}{message}{style:#}");
}
