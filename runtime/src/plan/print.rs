//! A plan as text: one line per call with its buffers, then the memory that it takes.

use super::{Buffer, BufferId, Form, Plan, Step};
use crate::graph::{Rows, WeightId};
use rustai_kernels_cpu::KvShape;
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            let writes: Vec<String> = step.writes().iter().map(|id| self.written(*id)).collect();
            writeln!(f, "{at:4} {} = {}({})", writes.join(", "), step.name(), self.operands(step).join(", "))?;
        }
        let inputs: Vec<String> = self.inputs.iter().map(|id| self.written(*id)).collect();
        if !inputs.is_empty() {
            writeln!(f, "inputs {}", inputs.join(", "))?;
        }
        writeln!(f, "output {}", self.written(self.output))?;
        let (tokens, outputs) = (self.options.max_tokens, self.options.max_outputs);
        writeln!(
            f,
            "arena {} bytes for {tokens} tokens and {outputs} outputs ({} bytes without reuse)",
            self.arena_bytes, self.unshared_bytes
        )?;
        match &self.kv {
            Some(kv) => {
                let KvShape { layers, kv_heads, head_dim, pages, kv_type } = kv;
                writeln!(f, "cache {layers} layers, {kv_heads} heads of {head_dim}, {pages} pages, {kv_type}")
            }
            None => Ok(()),
        }
    }
}

impl Plan {
    /// `#3 q8[T, 576]@4096`: buffer, form, rows, width and offset.
    fn written(&self, id: BufferId) -> String {
        let Buffer { form, rows, width, offset, .. } = self.buffer(id);
        let form = match form {
            Form::F32 => "f32",
            Form::Q8 => "q8",
            Form::Q8Pair => "q8 pair",
        };
        let rows = match rows {
            Rows::Tokens => 'T',
            Rows::Outputs => 'O',
        };
        format!("#{} {form}[{rows}, {width}]@{offset}", id.index())
    }

    fn operands(&self, step: &Step) -> Vec<String> {
        let buffer = |id: &BufferId| format!("#{}", id.index());
        let weight = |id: &WeightId| self.graph.weight(*id).to_string();
        match step {
            Step::Embed { table, .. } => vec![weight(table)],
            Step::RmsNorm { x, weight: factors, .. } => vec![buffer(x), weight(factors)],
            Step::MatMul { x, projections } => std::iter::once(buffer(x))
                .chain(projections.iter().map(|projection| {
                    let bias = projection.bias.map_or(String::new(), |bias| format!(" + {}", weight(&bias)));
                    let residual =
                        projection.residual.map_or(String::new(), |residual| format!(" += {}", buffer(&residual)));
                    format!("{}{bias}{residual}", weight(&projection.weight))
                }))
                .collect(),
            Step::GatedMatMul { x, gate, up, .. } => vec![buffer(x), weight(gate), weight(up)],
            Step::RopeAppend { q, k, v, layer, rope, .. } => {
                let mut operands = vec![buffer(q), buffer(k), buffer(v), format!("layer={layer}")];
                operands.extend(rope.as_ref().map(|rope| format!("rotated={}", 2 * rope.inv_freq.len())));
                operands
            }
            Step::Attention { q, layer, window, .. } => {
                let mut operands = vec![buffer(q), format!("layer={layer}")];
                operands.extend(window.map(|window| format!("window={window}")));
                operands
            }
            _ => step.reads().iter().map(buffer).collect(),
        }
    }
}
