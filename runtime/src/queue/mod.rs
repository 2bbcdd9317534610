//! The tensor queue: programs on this computer hand tensors to the runtime and get tensors back, without copying them.
//!
//! A client makes a [`Buffer`], which is memory that the server maps, too, lays tensors into it, and submits [`Job`]s that name
//! them. Completions come through a ring that the client maps read-only, so that it can look for them without a system
//! call. The queue is the kernel module's (`/dev/rustai`), or a server's own behind a unix socket, or this process's:
//!
//! ```
//! use rustai::queue::{Broker, BrokerOptions, Client, ClientOptions, InProcess, Job, Server, ServerOptions};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Broker::new(BrokerOptions::default())?;
//! let server = Server::start(broker.clone(), None, ServerOptions::default())?;
//! let client = Client::over(Arc::new(InProcess::open(&broker)?), ClientOptions::default())?;
//!
//! let buffer = client.buffer(4096)?;
//! let x = buffer.tensor::<f32>(0, &[4])?;
//! let w = buffer.tensor::<f32>(64, &[4, 2])?;
//! let y = buffer.tensor::<f32>(128, &[2])?;
//! x.write(0, &[1.0, 2.0, 3.0, 4.0]);
//! w.write(0, &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]);
//! let completion = client.run(&Job::matmul(&x, &w, &y))?;
//! assert_eq!(completion.result, 0);
//! assert_eq!(y.to_vec(), [1.0, 2.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Over a socket or the device, [`Client::connect`] finds the queue; `rustai serve --queue` is a server.
//!
//! # What each way gives
//! | | device | socket | in-process |
//! |---|---|---|---|
//! | who decides about jobs | the kernel | the server's process | this process |
//! | a job needs | one system call | a message each way: while both sides are awake, no system call, else two on each side | a function call |
//! | death of the server | jobs wait or fail, by policy | takes the queue along: all jobs fail with `EOWNERDEAD` | there is none |
//! | payload copied | never | never | never |
//!
//! What the opcodes take is told by [`params`]; error numbers mean what [`Errno`] says. The structs are those of
//! `kernel/include/uapi/rustai.h`.
//!
//! # Messages on the socket
//! It is a `SOCK_SEQPACKET` unix socket. Requests are answered one after the other; a call that waits keeps later ones
//! waiting.
//!
//! | | bytes |
//! |---|---|
//! | request | `{u32 op, u32 len}`, the operation's struct (`len` bytes), then what the struct's address would lead to |
//! | reply | `{u32 op, u32 len, i32 result, u32 zero}`, then the struct as answered (`len` bytes, 0 if `result` is not 0) |
//!
//! Addresses in structs are 0, for the other side cannot follow them: SUBMIT is followed by each job and its tensors. A
//! memory file or an eventfd goes with the request as `SCM_RIGHTS`, and the completion ring's memory comes with the reply to
//! SETUP, sealed so that only the server writes it. `result` is 0 or a negative error number. Integers are in the machine's
//! order. An eventfd becomes non-blocking, because a client whose counter is full must not stop the queue.
//!
//! # Messages in memory
//! A client may share memory with the server through which messages pass without a system call. Operation 0x80 with the struct
//! `{u32 size, u32 flags}` gives it over, as a memfd of 192 KiB, writable and sealed in size (SHRINK, GROW, SEAL); the answer comes
//! by the socket. Requests take the first 176 KiB, replies the rest, each in this form:
//!
//! | byte | holds | written by |
//! |---|---|---|
//! | 0 | `u32`: messages so far, written last | who sends |
//! | 4 | `u32`: bytes of the newest | who sends |
//! | 64 | `u32`: 1 while it sleeps on the socket, 2 while it naps, or is about to | who receives |
//! | 128 | the newest message, as on the socket | who sends |
//!
//! Both ways stay open, and an answer comes by either. Whoever has written a number has a full fence, and looks whether the other
//! side naps or sleeps. Whoever wants to nap or to sleep says so, has a full fence, and looks at the number once more. Napping is
//! `FUTEX_WAIT` on the number, for 10 milliseconds at most, and `FUTEX_WAKE` ends it. Then a side sleeps on the socket; what
//! wakes it there is operation 0x81 (a head without a struct), which has no answer, or better the message itself. A message with
//! a descriptor always goes by the socket; to one who does not sleep there, operation 0x81 in memory announces it. A side
//! spins while its waits end within about 50 microseconds, and naps otherwise.
//!
//! # Who a client is
//! A client is who the kernel says it is (`SO_PEERCRED`); it is gone when its last descriptor of the connection is closed. A
//! message has at most 160 KiB, so that a SUBMIT of very many jobs with many tensors is refused with `E2BIG`.
//!
//! This module owns the ways to the queue and both of its ends. It must never decide what the queue itself decides: that is
//! `rustai_abi::queue`, which the kernel module compiles in, too.

mod broker;
mod client;
mod clock;
mod engine_side;
mod error;
mod lane;
mod listener;
mod memory;
mod message;
mod monitor;
pub mod params;
mod server;
mod transport;

pub use broker::{Broker, BrokerOptions, ClientStat};
pub use client::{
    Buffer, Class, Client, ClientOptions, Element, Ended, GenerateParams, Job, Pending, Policy, Session, TensorView,
    Update, Uring,
};
pub use clock::{deadline, now_ns};
pub use engine_side::{EngineSide, Helper, Mapped, Patience};
pub use error::QueueError;
pub use listener::{Listener, ListenerOptions};
pub use monitor::{ClientRow, Snapshot};
pub use rustai_abi::queue::{Completion, Errno};
pub use server::{Server, ServerOptions, ServerStat};
pub use transport::{
    CharDev, Choice, DEVICE, ENGINE_DEVICE, Extra, Fault, InProcess, RingMap, Socket, Transport, default_socket,
    open_engine_device,
};
