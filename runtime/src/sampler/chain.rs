//! The chain: its order, its state, its random numbers.
use super::candidates::Candidate;
use super::min_p::min_p;
use super::params::{SamplerError, SamplerParams};
use super::penalties::Penalties;
use super::temperature::draw;
use super::top_k::top_k;
use super::top_p::top_p;
use super::typical::typical;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The chain with its state: one per sequence.
pub struct Sampler {
    params: SamplerParams,
    seed: u64,
    random: ChaCha8Rng,
    penalties: Option<Penalties>,
    /// The logits after penalties.
    penalized: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Checks the settings. `vocab` is the number of logits that [`sample`](Self::sample) will get.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn new(params: SamplerParams, vocab: usize) -> Result<Self, SamplerError> {
        params.check()?;
        let seed = params.seed.unwrap_or_else(system_seed);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Ok(Self {
            penalties: Penalties::new(&params, vocab),
            penalized: Vec::new(),
            candidates: Vec::new(),
            random: ChaCha8Rng::from_seed(key),
            seed,
            params,
        })
    }

    /// The seed in use: with it, the same logits give the same tokens again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether [`sample`](Self::sample) always takes the largest logit as it is given, of equal ones the first.
    pub fn is_greedy(&self) -> bool {
        self.params.temperature == 0.0 && self.penalties.is_none()
    }

    /// The settings, if top-k, top-p, min-p and temperature are all that the chain looks at.
    pub(crate) fn cuts(&self) -> Option<&SamplerParams> {
        (self.penalties.is_none() && self.params.typical_p >= 1.0).then_some(&self.params)
    }

    /// Tells the chain a token of the prompt (for the penalties).
    pub fn observe(&mut self, token: u32) {
        if let Some(penalties) = &mut self.penalties {
            penalties.observe(token);
        }
    }

    /// Chooses a token (and observes it); `None` if none is possible: each logit is NaN or minus infinity. `logits` is read
    /// only; no allocation after the first call.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let token = self.choose(logits)?;
        self.observe(token);
        Some(token)
    }

    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let logits = match &self.penalties {
            None => logits,
            Some(penalties) => {
                self.penalized.clear();
                self.penalized.extend_from_slice(logits);
                penalties.apply(&mut self.penalized);
                &self.penalized
            }
        };
        let SamplerParams { top_k: k, typical_p, top_p: nucleus, min_p: least, temperature, .. } = self.params;
        if temperature == 0.0 {
            return best(logits);
        }
        let candidates = &mut self.candidates;
        if k == 0 || k >= logits.len() {
            candidates.clear();
            candidates.extend((0u32..).zip(logits).map(|(token, &logit)| Candidate::new(token, logit)));
        } else {
            top_k(logits, k, candidates);
        }
        if typical_p < 1.0 {
            typical(candidates, typical_p);
        }
        if nucleus < 1.0 {
            top_p(candidates, nucleus);
        }
        if least > 0.0 {
            min_p(candidates, least);
        }
        // 53 bits: as many as an f64 holds, so that every fraction is below 1.
        let fraction = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        draw(candidates, temperature, fraction)
    }
}

/// The best token, of equals the one with the lowest id; `None` if none is above minus infinity.
fn best(logits: &[f32]) -> Option<u32> {
    // A separate pass for the value keeps both loops free of dependencies, so that they vectorize.
    let highest = logits.iter().fold(f32::NEG_INFINITY, |highest, &logit| highest.max(logit));
    // If all are NaN, that is the value to start from.
    if highest == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&logit| logit == highest).map(|token| token as u32)
}

/// A seed that nobody can guess.
fn system_seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        // No random device, as in a bare container: the clock still differs from run to run.
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_nanos() as u64)
    })
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("params", &self.params).field("seed", &self.seed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(params: SamplerParams, seed: u64) -> Sampler {
        Sampler::new(SamplerParams { seed: Some(seed), ..params }, 16).expect("in range")
    }

    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 3.0).collect()
    }

    /// Share of each of `n` tokens in many draws.
    fn shares(sampler: &mut Sampler, logits: &[f32]) -> Vec<f64> {
        let draws = 50_000;
        let mut counts = vec![0u32; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts.iter().map(|&count| f64::from(count) / f64::from(draws)).collect()
    }

    /// Five standard deviations of a share in 50,000 draws are at most 0.0112.
    fn assert_close(shares: &[f64], expected: &[f64]) {
        for (share, expected) in shares.iter().zip(expected) {
            assert!((share - expected).abs() < 0.0112, "{shares:?} is not {expected:?}");
            assert_eq!(*share == 0.0, *expected == 0.0, "{shares:?}");
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = logits(&[0.1, 0.4, 0.2, 0.3]);
        assert_close(&shares(&mut sampler(SamplerParams::plain(), 1), &logits), &[0.1, 0.4, 0.2, 0.3]);
    }

    #[test]
    fn temperature_scales_logits() {
        let logits = logits(&[0.2, 0.8]);
        let cool = SamplerParams { temperature: 0.5, ..SamplerParams::plain() };
        assert_close(&shares(&mut sampler(cool, 2), &logits), &[0.04 / 0.68, 0.64 / 0.68]);
    }

    #[test]
    fn each_cut_leaves_a_renormalized_distribution() {
        let logits = logits(&[0.1, 0.4, 0.2, 0.3]);
        let plain = SamplerParams::plain();
        let k = SamplerParams { top_k: 2, ..plain.clone() };
        assert_close(&shares(&mut sampler(k, 3), &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        let nucleus = SamplerParams { top_p: 0.85, ..plain.clone() };
        assert_close(&shares(&mut sampler(nucleus, 4), &logits), &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        let least = SamplerParams { min_p: 0.7, ..plain.clone() };
        assert_close(&shares(&mut sampler(least, 5), &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // Entropy 1.280; surprises 1.023, 0.363, 0.330, 0.076 (natural logarithms).
        let typical = SamplerParams { typical_p: 0.45, ..plain };
        assert_close(&shares(&mut sampler(typical, 6), &logits), &[0.0, 0.0, 0.4, 0.6]);
    }

    #[test]
    fn stages_see_what_the_stages_before_kept() {
        let logits = logits(&[0.1, 0.4, 0.2, 0.3]);
        // Of the two that top-k keeps (4/7 and 3/7), the first alone reaches 0.5; without top-k it would not.
        let both = SamplerParams { top_k: 2, top_p: 0.5, ..SamplerParams::plain() };
        assert_close(&shares(&mut sampler(both, 7), &logits), &[0.0, 1.0, 0.0, 0.0]);
        let alone = SamplerParams { top_p: 0.5, ..SamplerParams::plain() };
        assert_close(&shares(&mut sampler(alone, 7), &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_does_not() {
        let logits: Vec<f32> = (0..16).map(|i| (i * 7 % 5) as f32 * 0.3).collect();
        for params in [SamplerParams::default(), SamplerParams::plain()] {
            let run = |seed| -> Vec<u32> {
                let mut sampler = sampler(params.clone(), seed);
                (0..64).map(|_| sampler.sample(&logits).unwrap()).collect()
            };
            assert_eq!(run(42), run(42));
            assert_ne!(run(42), run(43));
        }
    }

    #[test]
    fn a_seed_means_the_same_tokens_in_every_version() {
        let mut sampler = sampler(SamplerParams::plain(), 42);
        let tokens: Vec<u32> = (0..12).map(|_| sampler.sample(&[0.0; 16]).unwrap()).collect();
        assert_eq!(tokens, PINNED, "changing this breaks every seed that people noted down");
    }

    const PINNED: [u32; 12] = [5, 4, 7, 5, 13, 1, 7, 4, 7, 12, 9, 13];

    #[test]
    fn greedy_takes_the_best_and_the_lowest_of_equals() {
        let mut greedy = sampler(SamplerParams { temperature: 0.0, ..SamplerParams::default() }, 0);
        assert_eq!(greedy.sample(&[1.0, 3.0, 3.0, 2.0]), Some(1));
        assert_eq!(greedy.sample(&[f32::NAN, -1.0, f32::NEG_INFINITY]), Some(1));
        assert_eq!(greedy.sample(&[0.0, f32::INFINITY]), Some(1));
        assert_eq!(greedy.sample(&[-0.0, 0.0]), Some(0));
        assert!(greedy.is_greedy() && !sampler(SamplerParams::default(), 0).is_greedy());
    }

    #[test]
    fn penalties_come_first_and_see_prompt_and_answer() {
        let params = SamplerParams { repetition_penalty: 10.0, ..SamplerParams::greedy() };
        let mut sampler = sampler(params, 0);
        assert!(!sampler.is_greedy());
        sampler.observe(2);
        let logits = [1.0, 2.0, 3.0];
        assert_eq!(sampler.sample(&logits), Some(1), "2 was in the prompt");
        assert_eq!(sampler.sample(&logits), Some(0), "1 was in the answer");
    }

    #[test]
    fn of_broken_logits_the_usable_are_chosen_and_if_there_are_none_nothing_is() {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0];
        let everything = SamplerParams {
            repetition_penalty: 1.5,
            frequency_penalty: 0.5,
            presence_penalty: -0.5,
            top_k: 3,
            typical_p: 0.9,
            top_p: 0.9,
            min_p: 0.1,
            ..SamplerParams::default()
        };
        let cold = SamplerParams { temperature: f32::MIN_POSITIVE, ..SamplerParams::plain() };
        let hot = SamplerParams { temperature: f32::MAX, ..SamplerParams::plain() };
        let typical = SamplerParams { typical_p: 0.5, ..SamplerParams::plain() };
        let nucleus = SamplerParams { top_p: 0.5, ..SamplerParams::plain() };
        for params in [everything, cold, hot, typical, nucleus, SamplerParams::greedy(), SamplerParams::default()] {
            let mut sampler = sampler(params.clone(), 9);
            for a in odd {
                for b in odd {
                    for c in odd {
                        let logits = [a, b, c];
                        let token = sampler.sample(&logits);
                        let usable = |logit: &f32| !logit.is_nan() && *logit != f32::NEG_INFINITY;
                        let right = match token {
                            Some(token) => usable(&logits[token as usize]),
                            None => !logits.iter().any(usable),
                        };
                        assert!(right, "{params:?} chose {token:?} of {logits:?}");
                    }
                }
            }
            assert_eq!(sampler.sample(&[f32::NAN; 8]), None);
            assert_eq!(sampler.sample(&[]), None);
        }
    }

    #[test]
    fn buffers_stay_where_they_are() {
        let params = SamplerParams { repetition_penalty: 1.1, top_k: 0, top_p: 0.9, ..SamplerParams::default() };
        let mut sampler = sampler(params, 1);
        let logits: Vec<f32> = (0..1000).map(|i| (i * 31 % 17) as f32).collect();
        sampler.sample(&logits);
        let buffers = |sampler: &Sampler| {
            (sampler.candidates.as_ptr(), sampler.candidates.capacity(), sampler.penalized.as_ptr())
        };
        let before = buffers(&sampler);
        for _ in 0..200 {
            sampler.sample(&logits);
        }
        assert_eq!(buffers(&sampler), before);
    }

    #[test]
    fn no_seed_means_a_new_one_each_time() {
        let seed = || Sampler::new(SamplerParams::default(), 4).unwrap().seed();
        assert_ne!(seed(), seed());
    }
}
