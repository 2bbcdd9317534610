//! Shared helpers of the end-to-end tests: models that are fetched once and shared ([`fixtures`]), small random models
//! that are made on the spot ([`TinyLlama`]), files that are not where they say ([`Elsewhere`]), and how far logits are apart
//! ([`divergence`]).
//!
//! It owns no expectation: what is right is said in the tests. It panics freely, because a helper that fails is a failed
//! test.

mod blocks;
pub mod divergence;
mod elsewhere;
pub mod fixtures;
mod rng;
mod tiny_llama;
pub mod vocab;

pub use blocks::random_blocks;
pub use elsewhere::Elsewhere;
pub use rng::Rng;
pub use tiny_llama::TinyLlama;
