//! The colours, in one place. `anstream` drops them where the stream is no terminal or `NO_COLOR` is set.

use anstyle::{AnsiColor, Style};
use clap::builder::Styles;

/// The word `error:`.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();
/// The word `warning:`.
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// The word `help:`.
pub const HELP: Style = AnsiColor::Cyan.on_default().bold();
/// Headings of tables and sections.
pub const HEADING: Style = Style::new().bold();
/// Remarks beside the answer.
pub const FAINT: Style = Style::new().dimmed();

/// The same colours for help texts.
pub const CLAP: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default())
    .error(ERROR)
    .valid(AnsiColor::Green.on_default())
    .invalid(WARNING);
