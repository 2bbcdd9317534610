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
