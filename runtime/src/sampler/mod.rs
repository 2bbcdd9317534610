//! Choosing the next token from logits: one ordered, documented chain.
//!
//! ```text
//! logits ─► penalties ─► top-k ─► typical ─► top-p ─► min-p ─► temperature ─► draw
//!              │                                                             (seed)
//!              └─► at temperature 0: the best token (of equals the lowest id), and no other stage matters
//! ```
//!
//! Each stage is a file with its paper; each sees only the tokens that the stages before kept, with probabilities that sum
//! to one over those. All but temperature work on probabilities at temperature 1.
//!
//! **Same seed, same tokens.** The random numbers are ChaCha8's (RFC 8439 with 8 rounds), keyed by the seed: its first 8
//! bytes are the seed in little endian, the other 24 are zero. A draw takes one 64-bit number, and its 53 high bits are the fraction
//! of the probability mass at which the token is found, in the order of the stage that came last (best first, or by id
//! where nothing was cut or only min-p was used). So a seed gives the same tokens on every machine for the same logits.
//!
//! **Odd logits.** NaN counts as minus infinity: such tokens are never chosen. Plus infinity counts as the largest finite
//! number. If no token is left, there is no answer: the model is broken, and whoever asked says so.
//!
//! This module never sees text or tensors, and never allocates once its buffers have grown (at the first call).

mod candidates;
mod chain;
mod min_p;
mod params;
mod penalties;
mod temperature;
mod top_k;
mod top_p;
mod typical;

pub use chain::Sampler;
pub use params::{SamplerError, SamplerParams};
