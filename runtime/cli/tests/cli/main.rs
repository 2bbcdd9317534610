//! The program as its users meet it: each test starts the built binary.

mod answers;
mod bad_input;
#[cfg(target_os = "linux")]
mod device;
mod help;
mod interrupt;
mod program;
mod quantize;
#[cfg(target_os = "linux")]
mod queue;
mod tools;
