//! `completions` and `man`: both come from the definitions in [`crate::args`].

use crate::{
    args::{Cli, CompletionsArgs},
    failure::Failure,
    ui::Printer,
};
use clap::CommandFactory;

/// Prints a completion script.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rustai", &mut script);
    Printer::default().piece(&String::from_utf8_lossy(&script))
}

/// Prints the manual page: the program's page and one for each subcommand.
pub fn manual() -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        clap_mangen::Man::new(subcommand.clone()).render(&mut page)?;
    }
    Printer::default().piece(&String::from_utf8_lossy(&page))
}
