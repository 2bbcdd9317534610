//! Choosing the next token from logits: one ordered, documented chain.

/// Settings of the chain, applied in the order of the fields. The defaults change nothing but temperature.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamplerParams {
    /// Tokens looked back at by the three penalties.
    pub penalty_last_n: usize,
    /// Divides (multiplies, if negative) the logits of seen tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted per occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once from seen tokens; 0 is off.
    pub presence_penalty: f32,
    /// Keeps the k best; 0 is off.
    pub top_k: usize,
    /// Locally typical sampling; 1 is off.
    pub typical_p: f32,
    /// Nucleus; 1 is off.
    pub top_p: f32,
    /// Least probability relative to the best; 0 is off.
    pub min_p: f32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Seed; `None` draws one from the system.
    pub seed: Option<u64>,
}
impl Default for SamplerParams {
    fn default() -> Self {
        Self { penalty_last_n: 64, repetition_penalty: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, top_k: 40, typical_p: 1.0, top_p: 0.95, min_p: 0.05, temperature: 0.8, seed: None }
    }
}
/// A setting out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} = {value} is out of range; {remedy}")]
pub struct SamplerError {
    /// The setting.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// What is allowed.
    pub remedy: &'static str,
}
/// The chain with its state.
pub struct Sampler {}
impl Sampler {
    /// Checks the settings.
    pub fn new(params: SamplerParams, vocab: usize) -> Result<Self, SamplerError> { todo!() }
    /// The seed in use.
    pub fn seed(&self) -> u64 { todo!() }
    /// Tells the chain a token of the prompt (for the penalties).
    pub fn observe(&mut self, token: u32) { todo!() }
    /// Chooses a token (and observes it). `logits` is read only; no allocation after the first call.
    pub fn sample(&mut self, logits: &[f32]) -> u32 { todo!() }
}
