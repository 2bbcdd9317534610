//! Measures candle on a GGUF file; see ../program.py. Built by ../candle.py in a project of its own.

use candle_core::{Device, Result, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::quantized_llama::ModelWeights;
use std::{fs::File, io::BufReader, time::Instant};

/// Seconds of a prompt and of the tokens after it, one by one.
fn seconds(model: &mut ModelWeights, prompt: usize, gen_: usize) -> Result<(f64, f64)> {
    let tokens: Vec<u32> = (0..(prompt + gen_) as u32).map(|i| i * 7919 % 30000 + 1000).collect();
    let step = |model: &mut ModelWeights, from: usize, to: usize| -> Result<()> {
        let input = Tensor::new(&tokens[from..to], &Device::Cpu)?.unsqueeze(0)?;
        model.forward(&input, from)?.flatten_all()?.to_vec1::<f32>().map(drop)
    };
    model.clear_kv_cache();
    let started = Instant::now();
    if prompt > 0 {
        step(model, 0, prompt)?;
    }
    let after_prompt = started.elapsed().as_secs_f64();
    for position in prompt..prompt + gen_ {
        step(model, position, position + 1)?;
    }
    Ok((after_prompt, started.elapsed().as_secs_f64() - after_prompt))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args[i].parse::<usize>().expect("a number");
    let prompt = number(4);
    let mut file = BufReader::with_capacity(1 << 20, File::open(&args[2])?);
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    if args[1] == "first" {
        return seconds(&mut model, prompt, 0).map(drop);
    }
    let gen_ = number(5);
    let mut rates = Vec::new();
    if prompt > 0 {
        seconds(&mut model, prompt, 0)?;
        rates.push(format!("\"prefill\": {}", prompt as f64 / seconds(&mut model, prompt, 0)?.0));
    }
    if gen_ > 0 {
        seconds(&mut model, 0, 1)?;
        rates.push(format!("\"decode\": {}", gen_ as f64 / seconds(&mut model, 0, gen_)?.1));
    }
    println!("{{{}}}", rates.join(", "));
    Ok(())
}
