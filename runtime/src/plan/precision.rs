//! Chooses how precisely quantized activations are held.
//!
//! Where rows are narrow, rounding to 8 bits is what keeps a model from its `f32` self (errors of a dot product average out
//! over its terms), and a second plane of 8 bits costs as much arithmetic as the first. Not every product is worth it. What
//! becomes queries and keys goes through a softmax, and what becomes logits is the result; but what is added to a residual or
//! multiplied by a gate is a small part of a sum. Measured on SmolLM2-135M (576 wide), Q4_1, 128 positions, mean KL divergence from
//! the `f32` path: 0.0005 with two planes everywhere, 0.0014 with one for gates and residuals; with one everywhere 0.0035
//! (AVX2).

use super::{Form, Step, Target, fuse::Draft};

/// Makes inputs of products whose results are neither gated nor added to a residual a pair of planes, where the target holds
/// such.
pub(super) fn choose(draft: &mut Draft, target: &dyn Target) {
    for step in &draft.steps {
        let Step::MatMul { x, projections } = step else { continue };
        let x = &mut draft.buffers[x.0];
        let is_sensitive = projections.iter().any(|projection| projection.residual.is_none());
        if x.form == Form::Q8 && is_sensitive && target.pairs(x.width) {
            x.form = Form::Q8Pair;
        }
    }
}
