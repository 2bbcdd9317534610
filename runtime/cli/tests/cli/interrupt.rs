//! Ctrl-C.

use super::program::Rustai;
use rustai_tests::fixtures;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
};

fn start(args: &str) -> Child {
    let mut command = Rustai::line(args).arg("-m").arg(fixtures::smollm2()).command();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

/// Waits for the first byte of an answer.
fn first_byte(child: &mut Child) -> u8 {
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    byte[0]
}

#[test]
fn generate_stops_with_130_and_keeps_what_was_said() {
    // Without an end token in sight this would run for minutes.
    let mut child = start("generate --raw --temperature 0 -c 8192 one,two,three,");
    first_byte(&mut child);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.ends_with(b"\n"), "the line is ended");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn bench_kernels_leaves_an_existing_picture_alone_when_it_ends_early() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("roofline.svg");
    std::fs::write(&picture, "the last picture").unwrap();
    let mut command = Rustai::line("bench kernels --all -t 1 --svg").arg(&picture).command();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // By then it has looked at the path, and measures the roofs for seconds.
    std::thread::sleep(std::time::Duration::from_millis(500));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    if output.stdout.is_empty() {
        assert_eq!(std::fs::read_to_string(&picture).unwrap(), "the last picture");
    }
}

#[test]
fn chat_at_its_prompt_ends_with_sigterm() {
    let mut child = start("chat --temperature 0 -n 4");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Hello\n").unwrap();
    first_byte(&mut child);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(ended.signal(), Some(Signal::TERM.as_raw()));
    drop(stdin);
}

#[test]
fn chat_goes_on_after_an_interrupted_answer() {
    let mut child = start("chat --temperature 0");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Write a very long story about the sea.\n").unwrap();
    first_byte(&mut child);
    interrupt(&child);
    stdin.write_all(b"/system\n/exit\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("There is no system prompt.\n"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("(stopped)"));
}
