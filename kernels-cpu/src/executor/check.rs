//! Proofs about programs and batches that make running them sound.

use super::BatchLimits;
use crate::{Act, ActKind, Buf, Call, ExecutorError, External, Matrix, Outside, Program, QBuf, Rows};
use rustai_abi::Batch;
use std::ops::Range;

/// What running a program needs to know beyond the program itself.
pub(super) struct Facts {
    /// Most query heads that share a key/value head.
    pub(super) max_group: usize,
    /// Most values that a tile needs for dequantized rows.
    pub(super) dequantized_values: usize,
    /// Most bytes that packing the weights of a strip takes as they are used.
    pub(super) deferred_bytes: usize,
    /// Columns of the widest buffer that a call copies a row of: normalized, rotated or worked on in place.
    pub(super) max_width: usize,
}

impl Facts {
    fn weight(&mut self, weight: &Matrix) {
        self.dequantized_values = self.dequantized_values.max(weight.dequantized_values());
        self.deferred_bytes = self.deferred_bytes.max(weight.deferred_bytes());
    }
}

impl Program {
    /// Most rows that a buffer can have.
    pub(super) fn max_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.max_tokens,
            Rows::Outputs => self.max_outputs,
        }
    }

    /// The input of the last call, if that is a product that overwrites the output.
    fn last_product(&self) -> Option<Act> {
        match self.calls.last()? {
            Call::MatMul { x, projections } => {
                projections.iter().any(|p| p.out == self.output && !p.accumulate).then_some(*x)
            }
            _ => None,
        }
    }

    /// The input of the normalization before the last call, if that is a product of its result.
    fn last_norm(&self) -> Option<Buf> {
        let product = self.last_product()?;
        match self.calls.get(self.calls.len().checked_sub(2)?)? {
            Call::RmsNorm { x, out, .. } if *out == product => Some(*x),
            _ => None,
        }
    }
}

/// One call under examination.
struct Examiner<'a> {
    program: &'a Program,
}

type Reason = Result<(), String>;

fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Reason {
    if holds { Ok(()) } else { Err(reason()) }
}

impl Examiner<'_> {
    fn span(&self, offset: usize, bytes: usize) -> Result<Range<usize>, String> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.program.arena_bytes && offset.is_multiple_of(64) => Ok(offset..end),
            _ => Err(format!(
                "{bytes} bytes at {offset} do not lie aligned in {} bytes of arena",
                self.program.arena_bytes
            )),
        }
    }

    fn buf(&self, buf: Buf) -> Result<Range<usize>, String> {
        ensure(buf.width > 0, || "a buffer has no columns".into())?;
        self.span(buf.offset, Buf::bytes(buf.width, self.program.max_rows(buf.rows)))
    }

    fn qbuf(&self, buf: QBuf) -> Result<Range<usize>, String> {
        ensure(buf.width > 0 && buf.width.is_multiple_of(32), || format!("{} columns are no blocks of 32", buf.width))?;
        ensure(matches!(buf.planes, 1 | 2), || format!("{} planes instead of one or two", buf.planes))?;
        self.span(buf.offset, QBuf::bytes(buf.width, self.program.max_rows(buf.rows), buf.planes))
    }

    fn act(&self, act: Act) -> Result<Range<usize>, String> {
        match act {
            Act::F32(buf) => self.buf(buf),
            Act::Q8(buf) => self.qbuf(buf),
        }
    }

    fn apart(&self, a: &Range<usize>, b: &Range<usize>) -> Reason {
        ensure(a.end <= b.start || b.end <= a.start, || format!("buffers at {a:?} and {b:?} overlap"))
    }

    fn same_shape(&self, a: Buf, b: Buf) -> Reason {
        ensure(a.width == b.width && a.rows == b.rows, || format!("{a:?} and {b:?} differ in shape"))
    }

    /// `out` is `input` itself or does not touch it.
    fn in_place(&self, input: Buf, out: Buf) -> Reason {
        self.same_shape(input, out)?;
        let (from, to) = (self.buf(input)?, self.buf(out)?);
        if input == out { Ok(()) } else { self.apart(&from, &to) }
    }

    /// `weight` multiplies `x` into `out`.
    fn product(&self, weight: &Matrix, x: Act, out: Buf) -> Reason {
        let (kind, width, rows) = match x {
            Act::F32(x) => (ActKind::F32, x.width, x.rows),
            Act::Q8(x) => (ActKind::Q8, x.width, x.rows),
        };
        ensure(weight.wants() == kind, || format!("{} weights want {:?} input", weight.dtype(), weight.wants()))?;
        ensure(weight.cols() == width && weight.rows() == out.width && rows == out.rows, || {
            format!("a {} x {} matrix does not turn {x:?} into {out:?}", weight.rows(), weight.cols())
        })?;
        self.apart(&self.act(x)?, &self.buf(out)?)
    }

    fn layer(&self, layer: usize) -> Result<crate::KvShape, String> {
        let kv = self.program.kv.ok_or("the program has no key/value cache")?;
        ensure(layer < kv.layers, || format!("layer {layer} of {} in the cache", kv.layers))?;
        Ok(kv)
    }

    fn call(&self, call: &Call, facts: &mut Facts) -> Reason {
        match call {
            Call::Embed { table, out, .. } => {
                self.buf(*out)?;
                ensure(out.rows == Rows::Tokens, || "embeddings have a row per token".into())?;
                ensure(table.cols() == out.width, || format!("a table of {} columns for {out:?}", table.cols()))
            }
            Call::RmsNorm { x, weight, out, .. } => {
                facts.max_width = facts.max_width.max(x.width);
                let (width, rows) = match out {
                    Act::F32(out) => (out.width, out.rows),
                    Act::Q8(out) => (out.width, out.rows),
                };
                ensure(weight.len() == x.width && width == x.width && rows == x.rows, || {
                    format!("{} weights do not normalize {x:?} into {out:?}", weight.len())
                })?;
                if *out == Act::F32(*x) { self.buf(*x).map(drop) } else { self.apart(&self.buf(*x)?, &self.act(*out)?) }
            }
            Call::Quantize { x, out } => {
                facts.max_width = facts.max_width.max(x.width);
                ensure(x.width == out.width && x.rows == out.rows, || format!("{x:?} and {out:?} differ in shape"))?;
                self.apart(&self.buf(*x)?, &self.qbuf(*out)?)
            }
            Call::MatMul { x, projections } => {
                for (i, projection) in projections.iter().enumerate() {
                    let (weight, out) = (&projection.weight, projection.out);
                    self.product(weight, *x, out)?;
                    ensure(projection.bias.as_ref().is_none_or(|bias| bias.len() == out.width), || {
                        format!("the bias does not fit {out:?}")
                    })?;
                    for other in &projections[..i] {
                        self.apart(&self.buf(out)?, &self.buf(other.out)?)?;
                    }
                    facts.weight(weight);
                }
                Ok(())
            }
            Call::GatedMatMul { x, gate, up, out } => {
                self.product(gate, *x, *out)?;
                self.product(up, *x, *out)?;
                facts.weight(gate);
                facts.weight(up);
                Ok(())
            }
            Call::RopeAppend { q, k, v, layer, rope } => {
                let kv = self.layer(*layer)?;
                let width = kv.kv_heads * kv.head_dim;
                ensure(k.width == width && v.width == width && q.width.is_multiple_of(kv.head_dim), || {
                    format!("{q:?}, {k:?} and {v:?} do not fit {} heads of {}", kv.kv_heads, kv.head_dim)
                })?;
                ensure([q, k, v].iter().all(|buf| buf.rows == Rows::Tokens), || "a row per token is needed".into())?;
                ensure(rope.as_ref().is_none_or(|rope| rope.inv_freq.len() * 2 <= kv.head_dim), || {
                    format!("more pairs to rotate than a head of {} has", kv.head_dim)
                })?;
                let (q, k, v, turned) = (self.buf(*q)?, self.buf(*k)?, self.buf(*v)?, rope.is_some());
                if turned {
                    facts.max_width = facts.max_width.max(width);
                    self.apart(&q, &k)?;
                    self.apart(&q, &v)?;
                }
                Ok(())
            }
            Call::Attention { q, out, layer, .. } => {
                let kv = self.layer(*layer)?;
                ensure(q.rows == Rows::Tokens && q.width.is_multiple_of(kv.kv_heads * kv.head_dim), || {
                    format!("{q:?} is no whole number of groups of {} heads of {}", kv.kv_heads, kv.head_dim)
                })?;
                facts.max_group = facts.max_group.max(q.width / kv.head_dim / kv.kv_heads);
                self.in_place(*q, *out)
            }
            Call::Add { a, b, out } | Call::Mul { a, b, out } => {
                self.in_place(*a, *out)?;
                self.in_place(*b, *out)
            }
            Call::Silu { x, out } | Call::Softmax { x, out } => {
                facts.max_width = facts.max_width.max(x.width);
                self.in_place(*x, *out)
            }
            Call::SelectOutputs { x, out } => {
                ensure(x.width == out.width && x.rows == Rows::Tokens && out.rows == Rows::Outputs, || {
                    format!("{out:?} are no rows of {x:?}")
                })?;
                self.apart(&self.buf(*x)?, &self.buf(*out)?)
            }
        }
    }
}

/// Examines all calls.
pub(super) fn program(program: &Program) -> Result<Facts, ExecutorError> {
    let mut facts = Facts { max_group: 0, dequantized_values: 0, deferred_bytes: 0, max_width: 0 };
    let examiner = Examiner { program };
    let refuse = |index: usize| move |reason: String| ExecutorError::Program { index, reason };
    if let Some(kv) = program.kv {
        let sound = kv.layers > 0 && kv.kv_heads.checked_mul(kv.head_dim).is_some_and(|width| width > 0);
        ensure(sound, || format!("{kv:?} is no key/value cache")).map_err(refuse(0))?;
        ensure(kv.head_dim.is_multiple_of(kv.kv_type.block_len()), || {
            let block = kv.kv_type.block_len();
            format!("a {} cache takes heads of a multiple of {block} values, not of {}", kv.kv_type, kv.head_dim)
        })
        .map_err(refuse(0))?;
    }
    for (index, call) in program.calls.iter().enumerate() {
        examiner.call(call, &mut facts).map_err(refuse(index))?;
    }
    for buf in program.inputs.iter().chain([&program.output]) {
        examiner.buf(*buf).map_err(refuse(program.calls.len()))?;
    }
    Ok(facts)
}

/// Examines what lies outside the arena, for a batch that its [`limits`] are checked with, too.
pub(super) fn outside(program: &Program, batch: &Batch<'_>, outside: &Outside<'_>) -> Result<(), ExecutorError> {
    let refuse = |reason: String| Err(ExecutorError::Batch(reason));
    if outside.inputs.len() > program.inputs.len() {
        return refuse(format!("{} inputs of {}", outside.inputs.len(), program.inputs.len()));
    }
    for (buf, input) in program.inputs.iter().zip(outside.inputs) {
        let rows = match buf.rows {
            Rows::Tokens => batch.tokens.len(),
            Rows::Outputs => batch.outputs.len(),
        };
        let Some(input) = input else { continue };
        if Some(input.len()) != rows.checked_mul(buf.width) || input.as_ptr().align_offset(64) != 0 {
            return refuse(format!("{input:?} are not {rows} rows of {buf:?} at a multiple of 64 bytes"));
        }
        if let Some(index) = program.calls.iter().position(|call| !only_reads_rows(call, *buf)) {
            return refuse(format!("{buf:?} cannot lie outside: call {index} writes it, or reads more than a row"));
        }
    }
    let rows = match program.output.rows {
        Rows::Tokens => batch.tokens.len(),
        Rows::Outputs => batch.outputs.len(),
    };
    let fits = |given: &[Option<External>], width: usize| {
        given.len() <= rows && given.iter().flatten().all(|row| row.len() == width)
    };
    let given = |rows: &[Option<External>]| rows.iter().any(Option::is_some);
    if !fits(outside.output, program.output.width) {
        return refuse(format!("outputs outside the arena are not {rows} rows of {:?}", program.output));
    }
    if given(outside.output) && program.last_product().is_none() {
        return refuse("the program does not end with a product that overwrites its output".into());
    }
    if given(outside.normalized) {
        match program.last_norm() {
            Some(x) if x.rows == program.output.rows && fits(outside.normalized, x.width) => {}
            Some(x) => return refuse(format!("embeddings outside the arena are not rows of {x:?}")),
            None => return refuse("the program does not end with a normalization and a product".into()),
        }
    }
    Ok(())
}

/// Whether a call reads a buffer row by row at most, and does not write it: others may write it meanwhile.
fn only_reads_rows(call: &Call, buf: Buf) -> bool {
    match call {
        Call::RopeAppend { q, k, v, .. } => ![*q, *k, *v].contains(&buf),
        Call::Attention { q, out, .. } => ![*q, *out].contains(&buf),
        Call::RmsNorm { out: Act::F32(out), .. } => *out != buf,
        Call::RmsNorm { out: Act::Q8(_), .. } | Call::Quantize { .. } => true,
        Call::MatMul { projections, .. } => projections.iter().all(|projection| projection.out != buf),
        Call::Embed { out, .. }
        | Call::GatedMatMul { out, .. }
        | Call::Add { out, .. }
        | Call::Mul { out, .. }
        | Call::Silu { out, .. }
        | Call::Softmax { out, .. }
        | Call::SelectOutputs { out, .. } => *out != buf,
    }
}

/// What batches may ask of a program.
pub(super) fn limits(program: &Program) -> BatchLimits {
    let table_rows = |call: &Call| match call {
        Call::Embed { table, .. } => Some(table.rows()),
        _ => None,
    };
    BatchLimits {
        max_tokens: program.max_tokens,
        max_outputs: program.max_outputs,
        vocabulary: program.calls.iter().filter_map(table_rows).min(),
        pages: program.kv.map(|kv| kv.pages),
    }
}
