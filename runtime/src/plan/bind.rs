//! From a plan to a program of the CPU kernels: weights and addresses are filled in.

use super::{BufferId, Form, Plan, Step};
use crate::graph;
use rustai_kernels_cpu::{Act, Buf, Call, Matrix, Program, Projection, QBuf, Rope, RopeStyle, Rows};
use std::sync::Arc;

/// A weight of a graph in the forms that its readers want. A weight may need several: a tied embedding is a table and a
/// matrix.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// For products.
    pub matrix: Option<Arc<Matrix>>,
    /// For norms and biases.
    pub vector: Option<Arc<[f32]>>,
    /// For embeddings.
    pub table: Option<Arc<Matrix>>,
}

impl Resolved {
    /// Whether what the weight was made from is still read.
    pub fn needs_the_source(&self) -> bool {
        [&self.matrix, &self.table].into_iter().flatten().any(|matrix| !matrix.is_packed())
    }
}

impl Plan {
    /// The program that computes this plan with `weights`, which are numbered as the weights of [`Plan::graph`].
    ///
    /// # Errors
    /// The name of a weight that lacks the form that a step needs.
    pub fn bind(&self, weights: &[Resolved]) -> Result<Program, String> {
        let binder = Binder { plan: self, weights };
        let mut calls = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            calls.push(binder.call(step)?);
            // A call of its own here.
            if let Step::Attention { out, quants: Some(quants), .. } = step {
                calls.push(Call::Quantize { x: binder.buf(*out), out: binder.qbuf(*quants) });
            }
        }
        Ok(Program {
            calls,
            arena_bytes: self.arena_bytes,
            max_tokens: self.options.max_tokens,
            max_outputs: self.options.max_outputs,
            kv: self.kv,
            inputs: self.inputs.iter().map(|id| binder.buf(*id)).collect(),
            output: binder.buf(self.output),
        })
    }
}

struct Binder<'a> {
    plan: &'a Plan,
    weights: &'a [Resolved],
}

impl Binder<'_> {
    fn call(&self, step: &Step) -> Result<Call, String> {
        Ok(match *step {
            Step::Embed { table, scale, out } => Call::Embed { table: self.table(table)?, out: self.buf(out), scale },
            Step::RmsNorm { x, weight, eps, out } => {
                Call::RmsNorm { x: self.buf(x), weight: self.vector(weight)?, eps, out: self.act(out) }
            }
            Step::Quantize { x, out } => Call::Quantize { x: self.buf(x), out: self.qbuf(out) },
            Step::MatMul { x, ref projections } => {
                let bind = |projection: &super::PlannedProjection| {
                    Ok(Projection {
                        weight: self.matrix(projection.weight)?,
                        bias: projection.bias.map(|bias| self.vector(bias)).transpose()?,
                        out: self.buf(projection.out),
                        accumulate: projection.residual.is_some(),
                    })
                };
                let projections = projections.iter().map(bind).collect::<Result<_, String>>()?;
                Call::MatMul { x: self.act(x), projections }
            }
            Step::GatedMatMul { x, gate, up, out } => {
                Call::GatedMatMul { x: self.act(x), gate: self.matrix(gate)?, up: self.matrix(up)?, out: self.buf(out) }
            }
            Step::RopeAppend { q, k, v, layer, ref rope, .. } => Call::RopeAppend {
                q: self.buf(q),
                k: self.buf(k),
                v: self.buf(v),
                layer,
                rope: rope.as_deref().map(kernel_rope),
            },
            Step::Attention { q, layer, scale, window, out, .. } => {
                Call::Attention { q: self.buf(q), out: self.buf(out), layer, scale, window }
            }
            Step::Add { a, b, out } => Call::Add { a: self.buf(a), b: self.buf(b), out: self.buf(out) },
            Step::Mul { a, b, out } => Call::Mul { a: self.buf(a), b: self.buf(b), out: self.buf(out) },
            Step::Silu { x, out } => Call::Silu { x: self.buf(x), out: self.buf(out) },
            Step::Softmax { x, out } => Call::Softmax { x: self.buf(x), out: self.buf(out) },
            Step::SelectOutputs { x, out } => Call::SelectOutputs { x: self.buf(x), out: self.buf(out) },
        })
    }

    fn act(&self, id: BufferId) -> Act {
        match self.plan.buffer(id).form {
            Form::F32 => Act::F32(self.buf(id)),
            Form::Q8 | Form::Q8Pair => Act::Q8(self.qbuf(id)),
        }
    }

    fn buf(&self, id: BufferId) -> Buf {
        let buffer = self.plan.buffer(id);
        Buf { offset: buffer.offset, width: buffer.width, rows: kernel_rows(buffer.rows) }
    }

    fn qbuf(&self, id: BufferId) -> QBuf {
        let buffer = self.plan.buffer(id);
        let planes = if buffer.form == Form::Q8Pair { 2 } else { 1 };
        QBuf { offset: buffer.offset, width: buffer.width, rows: kernel_rows(buffer.rows), planes }
    }

    fn matrix(&self, id: graph::WeightId) -> Result<Arc<Matrix>, String> {
        self.weights.get(id.index()).and_then(|weight| weight.matrix.clone()).ok_or_else(|| self.name(id))
    }

    fn vector(&self, id: graph::WeightId) -> Result<Arc<[f32]>, String> {
        self.weights.get(id.index()).and_then(|weight| weight.vector.clone()).ok_or_else(|| self.name(id))
    }

    fn table(&self, id: graph::WeightId) -> Result<Arc<Matrix>, String> {
        self.weights.get(id.index()).and_then(|weight| weight.table.clone()).ok_or_else(|| self.name(id))
    }

    fn name(&self, id: graph::WeightId) -> String {
        self.plan.graph.weight(id).name.clone()
    }
}

fn kernel_rows(rows: graph::Rows) -> Rows {
    match rows {
        graph::Rows::Tokens => Rows::Tokens,
        graph::Rows::Outputs => Rows::Outputs,
    }
}

fn kernel_rope(rope: &graph::Rope) -> Rope {
    let style = match rope.style {
        graph::RopeStyle::Interleaved => RopeStyle::Interleaved,
        graph::RopeStyle::Neox => RopeStyle::Neox,
    };
    Rope { style, inv_freq: rope.inv_freq.clone(), magnitude: rope.magnitude }
}
