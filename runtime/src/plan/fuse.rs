//! From nodes to steps: which nodes become one kernel call, and in which form activations are handed on.

use super::{Buffer, BufferId, Form, PlanError, PlannedProjection, Step, Target};
use crate::graph::{Graph, Op, Rope, ValueId, WeightId};
use std::sync::Arc;

/// Steps whose buffers have no place yet.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub steps: Vec<Step>,
    pub buffers: Vec<Buffer>,
    pub inputs: Vec<BufferId>,
    pub output: BufferId,
}

/// Values per block of 8-bit activations.
const Q8_BLOCK: usize = 32;

/// Lowers a graph node by node, in its own order. A node that another one absorbs makes no step of its own.
pub(super) fn lower(graph: &Graph, target: &dyn Target) -> Result<Draft, PlanError> {
    let mut lowering = Lowering {
        graph,
        target,
        users: graph.users(),
        absorbed: vec![false; graph.nodes().len()],
        plain: vec![None; graph.nodes().len()],
        quantized: vec![None; graph.nodes().len()],
        steps: Vec::new(),
        buffers: Vec::new(),
    };
    let gates = lowering.find_gates();
    lowering.absorb_rotations()?;
    let mut inputs = Vec::new();
    for (id, node) in graph.values() {
        if lowering.absorbed[id.0] {
            continue;
        }
        if matches!(node.op, Op::Input) {
            inputs.push(lowering.buffer(id, Form::F32));
        } else if let Some(gate) = gates.iter().find(|gate| gate.product == id) {
            lowering.emit_gate(gate)?;
        } else {
            lowering.emit(id)?;
        }
    }
    let output = lowering.value(graph.output());
    Ok(Draft { steps: lowering.steps, buffers: lowering.buffers, inputs, output })
}

/// `Mul(Silu(MatMul(x, gate)), MatMul(x, up))`.
struct Gate {
    product: ValueId,
    x: ValueId,
    gate: WeightId,
    up: WeightId,
}

struct Lowering<'a> {
    graph: &'a Graph,
    target: &'a dyn Target,
    users: Vec<Vec<ValueId>>,
    /// Nodes that a step of another node computes.
    absorbed: Vec<bool>,
    /// Plain and quantized buffers of values that were computed.
    plain: Vec<Option<BufferId>>,
    quantized: Vec<Option<BufferId>>,
    steps: Vec<Step>,
    buffers: Vec<Buffer>,
}

impl Lowering<'_> {
    fn wants(&self, weight: WeightId) -> Form {
        self.target.wants(self.graph, weight)
    }

    fn op(&self, id: ValueId) -> &Op {
        &self.graph.node(id).op
    }

    /// Whether `user` alone reads `id`, once.
    fn is_only_for(&self, id: ValueId, user: ValueId) -> bool {
        self.users[id.0] == [user] && self.graph.output() != id
    }

    fn find_gates(&mut self) -> Vec<Gate> {
        let mut gates = Vec::new();
        for (product, node) in self.graph.values() {
            let Op::Mul { a, b } = node.op else { continue };
            let Some((nodes, gate)) = self.gate(product, a, b).or_else(|| self.gate(product, b, a)) else { continue };
            nodes.iter().for_each(|node| self.absorbed[node.0] = true);
            gates.push(gate);
        }
        gates
    }

    /// Whether `product` multiplies a gated branch `silu` with a linear branch `up`, and the nodes that it would absorb.
    fn gate(&self, product: ValueId, silu: ValueId, up: ValueId) -> Option<([ValueId; 3], Gate)> {
        let &Op::Silu { x: gate } = self.op(silu) else { return None };
        let &Op::MatMul { x, weight: gate_weight, bias: None } = self.op(gate) else { return None };
        let &Op::MatMul { x: up_x, weight: up_weight, bias: None } = self.op(up) else { return None };
        let fits = x == up_x
            && self.wants(gate_weight) == self.wants(up_weight)
            && self.target.gates(self.graph, gate_weight, up_weight)
            && self.is_only_for(gate, silu)
            && self.is_only_for(silu, product)
            && self.is_only_for(up, product);
        fits.then_some(([gate, silu, up], Gate { product, x, gate: gate_weight, up: up_weight }))
    }

    /// Rotations are part of the attention that they feed.
    fn absorb_rotations(&mut self) -> Result<(), PlanError> {
        for (id, node) in self.graph.values() {
            let Op::Rope { .. } = node.op else { continue };
            let mut users = self.users[id.0].iter();
            let feeds_attention = users.all(|user| match self.op(*user) {
                &Op::Attention { q, k, v, .. } => (q == id || k == id) && v != id,
                _ => false,
            });
            if !feeds_attention || self.graph.output() == id {
                return Err(PlanError::Rope { node: node.name.clone() });
            }
            self.absorbed[id.0] = true;
        }
        Ok(())
    }

    fn emit(&mut self, id: ValueId) -> Result<(), PlanError> {
        let node = self.graph.node(id);
        let step = match node.op {
            // Inputs are buffers without a step, rotations belong to attentions.
            Op::Input | Op::Rope { .. } => return Ok(()),
            Op::MatMul { x, weight, .. } => return self.emit_projections(x, self.wants(weight)),
            Op::Attention { .. } => return self.emit_attention(id),
            Op::RmsNorm { x, weight, eps } => {
                let x = self.value(x);
                // Where every reader wants 8 bits, plain values need never be written.
                let form = if self.is_read_as(id, Form::F32) { Form::F32 } else { Form::Q8 };
                if form == Form::Q8 {
                    self.check_width(id)?;
                }
                Step::RmsNorm { x, weight, eps, out: self.buffer(id, form) }
            }
            Op::Embedding { table, scale } => Step::Embed { table, scale, out: self.buffer(id, Form::F32) },
            Op::Add { a, b } => {
                let (a, b) = (self.value(a), self.value(b));
                Step::Add { a, b, out: self.buffer(id, Form::F32) }
            }
            Op::Mul { a, b } => {
                let (a, b) = (self.value(a), self.value(b));
                Step::Mul { a, b, out: self.buffer(id, Form::F32) }
            }
            Op::Silu { x } => Step::Silu { x: self.value(x), out: self.buffer(id, Form::F32) },
            Op::Softmax { x } => Step::Softmax { x: self.value(x), out: self.buffer(id, Form::F32) },
            Op::SelectOutputs { x } => Step::SelectOutputs { x: self.value(x), out: self.buffer(id, Form::F32) },
        };
        self.steps.push(step);
        Ok(())
    }

    /// All products of `x` with matrices that want it in the same form, as one step.
    fn emit_projections(&mut self, x: ValueId, form: Form) -> Result<(), PlanError> {
        let input = self.activation(x, form)?;
        let mut users = self.users[x.0].clone();
        users.dedup();
        let mut projections = Vec::new();
        for user in users {
            let &Op::MatMul { weight, bias, .. } = self.op(user) else { continue };
            if !self.absorbed[user.0] && self.wants(weight) == form {
                let out = self.buffer(user, Form::F32);
                projections.push(PlannedProjection { weight, bias, residual: None, out });
                self.absorbed[user.0] = true;
            }
        }
        self.steps.push(Step::MatMul { x: input, projections });
        Ok(())
    }

    fn emit_gate(&mut self, gate: &Gate) -> Result<(), PlanError> {
        let x = self.activation(gate.x, self.wants(gate.gate))?;
        let out = self.buffer(gate.product, Form::F32);
        self.steps.push(Step::GatedMatMul { x, gate: gate.gate, up: gate.up, out });
        Ok(())
    }

    fn emit_attention(&mut self, id: ValueId) -> Result<(), PlanError> {
        let node = self.graph.node(id);
        let &Op::Attention { q, k, v, attention } = &node.op else { return Ok(()) };
        let ((q_plain, q_rope), (k_plain, k_rope)) = (self.before_rotation(q), self.before_rotation(k));
        // The kernel turns queries in place, so nobody else may read them, and turns the attention's own heads, both queries
        // and keys by the same angles.
        let turned = q_rope.is_some();
        let heads_fit = q_rope.is_none_or(|(head_dim, _)| head_dim == attention.head_dim);
        if q_rope != k_rope || !heads_fit || turned && !(self.is_only_for(q, id) && self.is_only_for(q_plain, q)) {
            return Err(PlanError::Rope { node: node.name.clone() });
        }
        if turned && matches!(self.op(q_plain), Op::Input) {
            return Err(PlanError::Rope { node: node.name.clone() });
        }
        let rope = q_rope.map(|(_, rope)| rope.clone());
        let (q_buffer, k, v) = (self.value(q_plain), self.value(k_plain), self.value(v));
        let rotated = if turned { self.buffer(q, Form::F32) } else { q_buffer };
        self.steps.push(Step::RopeAppend { q: q_buffer, k, v, layer: attention.layer, rope, rotated });
        let out = self.buffer(id, Form::F32);
        self.steps.push(Step::Attention {
            q: rotated,
            layer: attention.layer,
            scale: attention.scale,
            window: attention.window,
            out,
            quants: None,
        });
        Ok(())
    }

    /// The value that `id` rotates, the length of its heads and the rotation; `id` itself if it rotates nothing.
    fn before_rotation(&self, id: ValueId) -> (ValueId, Option<(usize, &Arc<Rope>)>) {
        match self.op(id) {
            Op::Rope { x, head_dim, rope } => (*x, Some((*head_dim, rope))),
            _ => (id, None),
        }
    }

    /// Whether some reader of `id` takes it in `form`.
    fn is_read_as(&self, id: ValueId, form: Form) -> bool {
        let reads = |user: &ValueId| match self.op(*user) {
            Op::MatMul { weight, .. } => self.wants(*weight) == form,
            _ => form == Form::F32,
        };
        (self.graph.output() == id && form == Form::F32) || self.users[id.0].iter().any(reads)
    }

    /// The value in the form that a matrix wants, quantized now if nobody needed that before.
    fn activation(&mut self, id: ValueId, form: Form) -> Result<BufferId, PlanError> {
        match (form, self.quantized[id.0]) {
            (Form::F32, _) => Ok(self.value(id)),
            (Form::Q8 | Form::Q8Pair, Some(buffer)) => Ok(buffer),
            (Form::Q8 | Form::Q8Pair, None) => {
                self.check_width(id)?;
                let x = self.value(id);
                let out = self.buffer(id, Form::Q8);
                let quantizes = self.target.quantizes_attention() && !self.is_read_as(id, Form::F32);
                match self.steps.last_mut() {
                    Some(Step::Attention { out: attended, quants, .. }) if quantizes && *attended == x => {
                        *quants = Some(out);
                    }
                    _ => self.steps.push(Step::Quantize { x, out }),
                }
                Ok(out)
            }
        }
    }

    fn check_width(&self, id: ValueId) -> Result<(), PlanError> {
        let node = self.graph.node(id);
        match node.shape.width.is_multiple_of(Q8_BLOCK) {
            true => Ok(()),
            false => Err(PlanError::Width { node: node.name.clone(), width: node.shape.width }),
        }
    }

    /// The plain buffer of a value that an earlier step has computed.
    fn value(&self, id: ValueId) -> BufferId {
        // PANIC: nodes are lowered in topological order, and `is_read_as` keeps plain values that have a plain reader.
        self.plain[id.0].expect("operands are lowered before their readers")
    }

    fn buffer(&mut self, id: ValueId, form: Form) -> BufferId {
        let node = self.graph.node(id);
        let buffer = BufferId(self.buffers.len());
        self.buffers.push(Buffer {
            name: node.name.clone(),
            form,
            rows: node.shape.rows,
            width: node.shape.width,
            offset: 0,
            bytes: 0,
            life: (0, 0),
        });
        let slot = match form {
            Form::F32 => &mut self.plain[id.0],
            Form::Q8 | Form::Q8Pair => &mut self.quantized[id.0],
        };
        *slot = Some(buffer);
        buffer
    }
}
