//! Flags of `generate` and `chat`.

use super::{ComputeArgs, ModelArgs, TextArgs};
use crate::failure::Failure;
use clap::Args;
use rustai::sampler::{Sampler, SamplerParams};

/// Flags of `generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub prompt: TextArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Most tokens to generate; without it, until the model ends its answer or the context is full.
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Ends the answer before this text appears; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Instruction that precedes the prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Takes the prompt as it stands: no chat template, special tokens are parsed, BOS only if the file asks for it.
    #[arg(long)]
    pub raw: bool,
    /// Prints one JSON object at the end instead of the text as it comes.
    #[arg(long)]
    pub json: bool,
    /// Packs the weights for the CPU before the first token, which comes later then, rather than behind it.
    #[arg(long)]
    pub pack_first: bool,
    // Last, because its heading holds for all flags that follow.
    #[command(flatten)]
    pub sampler: SamplerArgs,
}

/// Flags of `chat`.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Most tokens of one answer.
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Instruction at the start of the conversation.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampler: SamplerArgs,
}

/// How tokens are chosen. What is not given keeps the library's default.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplerArgs {
    /// 0 always takes the best token; higher is more varied [default: 0.8].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Considers the K best tokens; 0 is off [default: 40].
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Considers the best tokens that together have this probability; 1 is off [default: 0.95].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Drops tokens less likely than this share of the best one's probability; 0 is off [default: 0.05].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Locally typical sampling; 1 is off [default: 1].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub typical: Option<f32>,
    /// Divides the logits of tokens seen before; 1 is off [default: 1].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time it was seen; 0 is off [default: 0].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Subtracted once from the logits of tokens seen before; 0 is off [default: 0].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Tokens that the three penalties look back at [default: 64].
    #[arg(long, value_name = "N")]
    pub repeat_last_n: Option<usize>,
    /// The same seed and the same flags give the same tokens; without it, each run differs.
    #[arg(short, long, value_name = "S")]
    pub seed: Option<u64>,
    /// Has a GPU draw the tokens, if there is no more to it than temperature, top-k of up to 1024, top-p and min-p. Faster; a seed gives
    /// other tokens than on a CPU.
    #[arg(long)]
    pub device_sampling: bool,
}

impl SamplerArgs {
    /// The settings, checked before a model is loaded for nothing.
    pub fn checked(&self) -> Result<SamplerParams, Failure> {
        let params = self.params();
        match Sampler::new(params.clone(), 1) {
            Ok(_) => Ok(params),
            Err(error) => {
                Err(Failure::usage(format!("{} = {} is out of range", error.name, error.value)).help(error.remedy))
            }
        }
    }

    /// The library's settings with what was given put in.
    fn params(&self) -> SamplerParams {
        let mut params = SamplerParams::default();
        fn put<T: Copy>(slot: &mut T, given: Option<T>) {
            *slot = given.unwrap_or(*slot);
        }
        put(&mut params.temperature, self.temperature);
        put(&mut params.top_k, self.top_k);
        put(&mut params.top_p, self.top_p);
        put(&mut params.min_p, self.min_p);
        put(&mut params.typical_p, self.typical);
        put(&mut params.repetition_penalty, self.repeat_penalty);
        put(&mut params.frequency_penalty, self.frequency_penalty);
        put(&mut params.presence_penalty, self.presence_penalty);
        put(&mut params.penalty_last_n, self.repeat_last_n);
        params.seed = self.seed;
        params
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    /// The help texts name the library's defaults; this notices if they change.
    #[test]
    fn help_names_the_defaults_of_the_library() {
        // Not wrapped, so that no value is cut from its flag.
        let mut command = SamplerArgs::augment_args(clap::Command::new("test").term_width(0));
        let help = command.render_long_help().to_string();
        let given = SamplerArgs::from_arg_matches(&command.get_matches_from(["test"])).unwrap().params();
        assert_eq!(given, SamplerParams::default());
        for (flag, value) in [
            ("--temperature", given.temperature),
            ("--top-k", given.top_k as f32),
            ("--top-p", given.top_p),
            ("--min-p", given.min_p),
            ("--typical", given.typical_p),
            ("--repeat-penalty", given.repetition_penalty),
            ("--frequency-penalty", given.frequency_penalty),
            ("--presence-penalty", given.presence_penalty),
            ("--repeat-last-n", given.penalty_last_n as f32),
        ] {
            let text = help.split(flag).nth(1).unwrap_or_default();
            let default = text.split("[default: ").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
            assert_eq!(default.parse::<f32>().unwrap(), value, "{flag}");
        }
    }
}
