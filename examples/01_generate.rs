//! Example 1: link the library, load a model, get an answer.
//!
//! ```text
//! cargo run --release -p rustai-examples --example 01_generate
//! ```
//!
//! A model of your own may be named: `... --example 01_generate -- path/to/model.gguf`.

use rustai::{Engine, Error, Request};

fn main() -> Result<(), Error> {
    let engine = Engine::builder(rustai_examples::model()?).context(2048).build()?;
    let info = engine.info();
    println!("model   {} ({} parameters, {})", info.architecture, info.parameters, info.dtypes[0].dtype);
    println!("runs on {}", info.executable);

    // `ask` writes the question with the model's own chat template. Temperature 0 makes the answer repeatable.
    let answer = engine.generate(Request::ask("Why is the sky blue?").temperature(0.0).max_tokens(120))?;
    println!("\n{}\n", answer.text);

    let summary = &answer.summary;
    println!(
        "{} prompt tokens at {:.0}/s, {} tokens at {:.0}/s, ended by {}",
        summary.usage.prompt_tokens,
        summary.prompt_tokens_per_second(),
        summary.usage.generated,
        summary.generated_tokens_per_second(),
        summary.finish.name(),
    );
    Ok(())
}
