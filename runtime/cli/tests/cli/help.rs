//! Help texts, versions, completions, and wrong command lines.

use super::program::Rustai;

const COMMANDS: [&str; 13] = [
    "generate",
    "chat",
    "bench",
    "perplexity",
    "tokenize",
    "inspect",
    "info",
    "pull",
    "graph",
    "serve",
    "submit",
    "queue",
    "completions",
];

#[test]
fn help_names_every_command_and_every_command_has_help() {
    let help = Rustai::line("--help").ok();
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in the help");
        let own = Rustai::new([command, "--help"]).ok();
        assert!(own.contains(&format!("Usage: rustai {command}")), "{own}");
    }
    assert!(help.contains("Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted."));
    assert!(!help.contains('\u{1b}'), "colours without a terminal");
}

#[test]
fn help_names_every_variable_that_the_readme_does() {
    let help = Rustai::line("--help").ok();
    let readme = include_str!("../../../../README.md");
    let table = readme.split("| Variable | Meaning |").nth(1).expect("the table").split("\n\n").next().unwrap();
    let names: Vec<&str> =
        table.lines().filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`')).collect();
    let names: Vec<&str> =
        names.into_iter().filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase())).collect();
    assert!(names.len() > 9, "{names:?}");
    for name in names {
        assert!(help.contains(&format!("  {name} ")), "{name} is not in the help");
    }
    assert!(help.contains("device:PATH"), "{help}");
}

#[test]
fn help_is_wrapped_at_the_width_of_the_terminal() {
    let help = Rustai::line("generate --help").env("COLUMNS", "60").ok();
    let longest = help.lines().map(|line| line.chars().count()).max();
    assert!(longest.is_some_and(|longest| longest <= 60), "{help}");
}

#[test]
fn the_version_is_the_crates() {
    assert_eq!(Rustai::line("--version").ok(), format!("rustai {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_manual_come_from_the_same_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Rustai::new(["completions", shell]).ok();
        assert!(script.contains("repeat-last-n"), "{shell}");
    }
    let manual = Rustai::line("man").ok();
    assert!(manual.starts_with(".ie") && manual.contains("temperature"), "{manual}");
}

#[test]
fn wrong_command_lines_exit_with_2() {
    for line in ["", "fly", "generate --fly", "bench -r 0", "bench -o xml", "completions cmd", "perplexity"] {
        let ended = Rustai::line(line).run();
        assert_eq!(ended.code, Some(2), "{line}: {}", ended.err);
        assert!(ended.out.is_empty(), "{line}");
    }
}
