//! Example 2: a service thread streams an answer, the caller stops it when it has seen enough.
//!
//! ```text
//! cargo run --release -p rustai-examples --example 02_stream_and_cancel
//! ```
//!
//! The engine is cloned into the threads that serve; here there are two, whose answers are computed in one batch. Each
//! sends its pieces of text over a channel, as a connection handler would. The main thread plays the client: it prints
//! what arrives and cancels the first answer after 200 characters. The second runs to its end undisturbed.

use rustai::{CancelHandle, Engine, Error, Event, Request};
use std::{
    sync::mpsc::{Sender, channel},
    thread::{JoinHandle, spawn},
};

/// What a service thread tells its client.
enum Message {
    /// The request was accepted; with this handle it can be stopped.
    Started(usize, CancelHandle),
    /// More text.
    Text(usize, String),
    /// One line about the end.
    Ended(usize, String),
}

fn serve(
    engine: Engine,
    number: usize,
    question: &'static str,
    client: Sender<Message>,
) -> JoinHandle<Result<(), Error>> {
    spawn(move || {
        let stream = engine.stream(Request::ask(question).max_tokens(150).seed(number as u64))?;
        // A client that has gone needs no messages; dropping the stream would cancel the request, too.
        let _ = client.send(Message::Started(number, stream.cancel_handle()));
        for event in stream {
            let message = match event? {
                Event::Token { text, .. } => Message::Text(number, text),
                Event::Done(summary) => {
                    let end = format!("{} after {} tokens", summary.finish.name(), summary.usage.generated);
                    Message::Ended(number, end)
                }
            };
            let _ = client.send(message);
        }
        Ok(())
    })
}

fn main() -> Result<(), Error> {
    let engine = Engine::builder(rustai_examples::model()?).context(1024).max_sequences(2).build()?;
    let (sender, messages) = channel();
    let threads = [
        serve(engine.clone(), 0, "Tell me a long story about a lighthouse.", sender.clone()),
        serve(engine.clone(), 1, "List three uses of a paper clip.", sender),
    ];

    let mut texts = [String::new(), String::new()];
    let mut cancel_first = CancelHandle::default();
    for message in messages {
        match message {
            Message::Started(0, handle) => cancel_first = handle,
            Message::Started(..) => {}
            Message::Text(number, text) => {
                texts[number].push_str(&text);
                if texts[0].len() > 200 {
                    cancel_first.cancel();
                }
            }
            Message::Ended(number, end) => println!("--- answer {number}: {end}\n{}\n", texts[number]),
        }
    }
    for thread in threads {
        // A panic of a service thread is a bug of this example.
        thread.join().expect("the service thread ran to its end")?;
    }
    Ok(())
}
