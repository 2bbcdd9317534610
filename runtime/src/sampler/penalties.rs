//! Penalties for tokens seen lately: repetition (Keskar et al. 2019, "CTRL", section 4.1: logits are divided, negative ones
//! multiplied), frequency and presence (OpenAI API reference: `logit -= count * frequency + presence`), in that order.
use super::params::SamplerParams;
use rustc_hash::{FxBuildHasher, FxHashMap};

/// What was seen lately, and what it costs.
pub(super) struct Penalties {
    repetition: f32,
    frequency: f32,
    presence: f32,
    /// The last tokens, a ring once it is full.
    window: Vec<u32>,
    length: usize,
    oldest: usize,
    vocab: usize,
    /// How often each token is in the window.
    counts: FxHashMap<u32, u32>,
}

impl Penalties {
    /// `None` if the settings penalize nothing.
    pub(super) fn new(params: &SamplerParams, vocab: usize) -> Option<Self> {
        let on = params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
        let length = params.penalty_last_n;
        (on && length > 0).then(|| Self {
            repetition: params.repetition_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
            window: Vec::with_capacity(length),
            length,
            oldest: 0,
            vocab,
            // Twice what can be in it: then the map tidies up after removals in place.
            counts: FxHashMap::with_capacity_and_hasher(2 * (length.min(vocab) + 1), FxBuildHasher),
        })
    }

    /// Adds a token, and forgets the oldest if the window is full. What is not in the vocabulary has no logit to lower.
    pub(super) fn observe(&mut self, token: u32) {
        if token as usize >= self.vocab {
            return;
        }
        if self.window.len() < self.length {
            self.window.push(token);
        } else {
            let forgotten = std::mem::replace(&mut self.window[self.oldest], token);
            self.oldest = (self.oldest + 1) % self.length;
            if let Some(count) = self.counts.get_mut(&forgotten) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&forgotten);
                }
            }
        }
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Lowers the logits of the tokens in the window.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (&token, &count) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if !logit.is_finite() {
                continue;
            }
            // In f64 nothing overflows on the way, and a possible token stays possible.
            let (old, repetition) = (f64::from(*logit), f64::from(self.repetition));
            let scaled = if old > 0.0 { old / repetition } else { old * repetition };
            let lowered = scaled - f64::from(count) * f64::from(self.frequency) - f64::from(self.presence);
            *logit = lowered.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalties(last: usize, repetition: f32, frequency: f32, presence: f32) -> Penalties {
        let params = SamplerParams {
            penalty_last_n: last,
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            ..SamplerParams::default()
        };
        Penalties::new(&params, 4).expect("something is penalized")
    }

    fn apply(penalties: &Penalties) -> [f32; 4] {
        let mut logits = [2.0, -2.0, 1.0, 0.0];
        penalties.apply(&mut logits);
        logits
    }

    #[test]
    fn repetition_moves_logits_down_whatever_their_sign() {
        let mut seen = penalties(8, 2.0, 0.0, 0.0);
        [0, 1, 3].into_iter().for_each(|token| seen.observe(token));
        assert_eq!(apply(&seen), [1.0, -4.0, 1.0, 0.0]);
    }

    #[test]
    fn frequency_counts_and_presence_does_not() {
        let mut seen = penalties(8, 1.0, 0.5, 0.25);
        [0, 0, 2].into_iter().for_each(|token| seen.observe(token));
        assert_eq!(apply(&seen), [0.75, -2.0, 0.25, 0.0]);
    }

    #[test]
    fn what_left_the_window_costs_nothing() {
        let mut seen = penalties(2, 1.0, 1.0, 0.0);
        [0, 0, 1, 1].into_iter().for_each(|token| seen.observe(token));
        assert_eq!(apply(&seen), [2.0, -4.0, 1.0, 0.0]);
        seen.observe(2);
        assert_eq!(apply(&seen), [2.0, -3.0, 0.0, 0.0]);
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_ignored() {
        let mut seen = penalties(2, 2.0, 0.0, 0.0);
        seen.observe(u32::MAX);
        assert_eq!(apply(&seen), [2.0, -2.0, 1.0, 0.0]);
    }

    #[test]
    fn nothing_to_penalize_is_nothing_to_do() {
        assert!(Penalties::new(&SamplerParams::default(), 4).is_none());
        let none = SamplerParams { penalty_last_n: 0, repetition_penalty: 2.0, ..SamplerParams::default() };
        assert!(Penalties::new(&none, 4).is_none());
    }

    #[test]
    fn the_counts_never_grow_their_map() {
        let params = SamplerParams { penalty_last_n: 16, repetition_penalty: 2.0, ..SamplerParams::default() };
        let mut seen = Penalties::new(&params, 4096).expect("something is penalized");
        let capacity = seen.counts.capacity();
        for token in 0..100_000u32 {
            seen.observe(token.wrapping_mul(2_654_435_761) >> 20);
        }
        assert_eq!(seen.counts.values().sum::<u32>(), 16);
        // Places of removed tokens do not count as capacity, so it may shrink; growing would double it.
        assert!(seen.counts.capacity() <= capacity);
    }
}
