//! The settings and what they may be.

/// Settings of the chain, applied in the order of the fields. The defaults are those people know from llama.cpp; see
/// [`SamplerParams::greedy`] for none at all.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamplerParams {
    /// Tokens looked back at by the three penalties, prompt included; 0 turns them off.
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
        Self {
            penalty_last_n: 64,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            temperature: 0.8,
            seed: None,
        }
    }
}

/// Longest look-back of the penalties: longer than any context, and still a buffer of a few megabytes.
const LONGEST_LOOK_BACK: usize = 1 << 20;

impl SamplerParams {
    /// Always the best token: no penalty, no cut, temperature 0.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::plain() }
    }

    /// The model's own distribution: no penalty, no cut, temperature 1.
    pub fn plain() -> Self {
        Self { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Self::default() }
    }

    /// Refuses the first setting that is out of range.
    pub fn check(&self) -> Result<(), SamplerError> {
        let fraction = 0.0..=1.0f32;
        let refuse = |name, value: f32, remedy| Err(SamplerError { name, value: f64::from(value), remedy });
        if self.penalty_last_n > LONGEST_LOOK_BACK {
            let value = self.penalty_last_n as f64;
            return Err(SamplerError { name: "penalty_last_n", value, remedy: "use 0 to 1048576 tokens" });
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse("repetition_penalty", self.repetition_penalty, "use a number above 0; 1 is off");
        }
        if !self.frequency_penalty.is_finite() {
            return refuse("frequency_penalty", self.frequency_penalty, "use a finite number; 0 is off");
        }
        if !self.presence_penalty.is_finite() {
            return refuse("presence_penalty", self.presence_penalty, "use a finite number; 0 is off");
        }
        if !(fraction.contains(&self.typical_p) && self.typical_p > 0.0) {
            return refuse("typical_p", self.typical_p, "use a number above 0 and at most 1; 1 is off");
        }
        if !fraction.contains(&self.top_p) {
            return refuse("top_p", self.top_p, "use 0 to 1; 1 is off, 0 keeps the best token only");
        }
        if !fraction.contains(&self.min_p) {
            return refuse("min_p", self.min_p, "use 0 to 1; 0 is off");
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "use 0 (greedy) or a finite number above it");
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let refused = |change: fn(&mut SamplerParams)| {
            let mut params = SamplerParams::default();
            change(&mut params);
            params.check().expect_err("out of range").name
        };
        assert_eq!(refused(|p| p.penalty_last_n = usize::MAX), "penalty_last_n");
        assert_eq!(refused(|p| p.repetition_penalty = 0.0), "repetition_penalty");
        assert_eq!(refused(|p| p.repetition_penalty = f32::INFINITY), "repetition_penalty");
        assert_eq!(refused(|p| p.frequency_penalty = f32::NAN), "frequency_penalty");
        assert_eq!(refused(|p| p.presence_penalty = f32::NEG_INFINITY), "presence_penalty");
        assert_eq!(refused(|p| p.typical_p = 0.0), "typical_p");
        assert_eq!(refused(|p| p.top_p = 1.01), "top_p");
        assert_eq!(refused(|p| p.top_p = f32::NAN), "top_p");
        assert_eq!(refused(|p| p.min_p = -0.1), "min_p");
        assert_eq!(refused(|p| p.temperature = -1.0), "temperature");
        assert_eq!(refused(|p| p.temperature = f32::NAN), "temperature");
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        for params in [SamplerParams::default(), SamplerParams::greedy(), SamplerParams::plain()] {
            params.check().unwrap();
        }
        SamplerParams { top_p: 0.0, min_p: 1.0, ..SamplerParams::default() }.check().unwrap();
    }

    #[test]
    fn the_message_says_what_to_do() {
        let error = SamplerParams { temperature: -1.0, ..SamplerParams::default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "temperature = -1 is out of range; use 0 (greedy) or a finite number above it");
    }
}
