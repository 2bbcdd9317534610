//! Reads, checks and packs the weights of a graph.

use super::BuildError;
use crate::{
    graph::{Graph, Op, Weight, WeightInfo, WeightSource, read_floats},
    plan::Resolved,
};
use rustai_abi::DType;
use rustai_kernels_cpu::{ActKind, Isa, Matrix, MatrixError, SharedBytes};
use std::{collections::HashMap, io, sync::Arc};

/// What the readers of a weight need.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    pub(super) matrix: bool,
    pub(super) vector: bool,
    pub(super) table: bool,
}

pub(super) fn needs(graph: &Graph) -> Vec<Needs> {
    let mut needs = vec![Needs::default(); graph.weights().len()];
    for node in graph.nodes() {
        match node.op {
            Op::Embedding { table, .. } => needs[table.index()].table = true,
            Op::MatMul { weight, bias, .. } => {
                needs[weight.index()].matrix = true;
                bias.iter().for_each(|bias| needs[bias.index()].vector = true);
            }
            Op::RmsNorm { weight, .. } => needs[weight.index()].vector = true,
            _ => {}
        }
    }
    needs
}

/// The forms of activations that the matrices of a graph will want, found on matrices of one row, before anything is
/// loaded. Fails for a tensor whose type has no kernel.
pub(super) fn forms(graph: &Graph, isa: Isa) -> Result<Vec<ActKind>, BuildError> {
    let mut known = HashMap::<(DType, usize), ActKind>::new();
    let mut forms = vec![ActKind::F32; graph.weights().len()];
    for ((weight, needs), form) in graph.weights().iter().zip(needs(graph)).zip(&mut forms) {
        let unsupported = || BuildError::UnsupportedType { tensor: weight.name.clone(), dtype: weight.dtype };
        if needs.vector && !matches!(weight.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(unsupported());
        }
        if needs.matrix || needs.table {
            let cols = weight.dims[0];
            *form = match known.get(&(weight.dtype, cols)) {
                Some(form) => *form,
                None => {
                    let row = vec![0; weight.dtype.bytes_for(cols).ok_or_else(unsupported)?];
                    let matrix = matrix(Matrix::deferred, isa, weight, 1, row.into())?;
                    known.insert((weight.dtype, cols), matrix.wants());
                    matrix.wants()
                }
            };
        }
    }
    Ok(forms)
}

/// Checks that the source holds the weights of `graph` in the type and shape that the graph says.
pub(super) fn check(graph: &Graph, source: &dyn WeightSource) -> Result<(), BuildError> {
    for weight in graph.weights().iter().filter(|weight| weight.inline.is_none()) {
        let found = source.info(&weight.name);
        let fits =
            |info: &WeightInfo| info.dtype == weight.dtype && info.dims_of_rank(weight.dims.len()) == weight.dims;
        if !found.as_ref().is_some_and(fits) {
            return Err(BuildError::Weight {
                tensor: weight.name.clone(),
                expected: format!("{} {:?}", weight.dtype, weight.dims),
                found: found.map_or("no such tensor".into(), |info| format!("{} {:?}", info.dtype, info.dims)),
            });
        }
    }
    Ok(())
}

/// Bytes of all weights.
pub(super) fn total_bytes(graph: &Graph) -> u64 {
    graph.weights().iter().fold(0, |sum, weight| sum.saturating_add(weight.bytes() as u64))
}

/// Bytes of memory that all weights take once they are packed; those that stay in the file count too, since each step reads
/// them there.
pub(super) fn resident_bytes(graph: &Graph, isa: Isa) -> u64 {
    let resident = |(weight, needs): (&Weight, Needs)| match (needs, &weight.dims[..]) {
        (Needs { matrix: true, .. }, &[cols, rows]) => {
            Matrix::packed_bytes(isa, weight.dtype, rows, cols).unwrap_or(weight.bytes()) as u64
        }
        _ => weight.bytes() as u64,
    };
    graph.weights().iter().zip(needs(graph)).map(resident).fold(0, u64::saturating_add)
}

/// What becomes of matrices while they are loaded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Making {
    /// They are packed, on so many threads.
    Packed { threads: usize },
    /// They stay in the file, for an [`Executor`](rustai_kernels_cpu::Executor) to pack later.
    Deferred,
}

impl Making {
    fn matrix(self) -> MakeMatrix {
        match self {
            Self::Packed { .. } => Matrix::new,
            Self::Deferred => Matrix::deferred,
        }
    }
}

/// Makes all weights ready; `progress` takes the bytes done and their total.
pub(super) fn load(
    graph: &Graph,
    source: &dyn WeightSource,
    isa: Isa,
    making: Making,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Resolved>, BuildError> {
    let (weights, needs, total) = (graph.weights(), needs(graph), total_bytes(graph));
    // The largest first: while a weight is packed, its pages of the file are in memory too, which costs least at the start.
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(weights[index].bytes()));
    let mut resolved = vec![Resolved::default(); weights.len()];
    let mut done = 0;
    progress(done, total);
    let threads = match making {
        Making::Packed { threads } => threads.max(1),
        Making::Deferred => 1,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("load-{i}")).build();
    let pool = pool.map_err(|error| BuildError::Thread(io::Error::other(error)))?;
    // One weight after the other, each by all threads, so that no two are in memory twice at once.
    for index in order {
        let weight = &weights[index];
        resolved[index] = pool.install(|| resolve(weight, needs[index], source, isa, making))?;
        // At once, even of small ones: reading a page of a file brings its neighbours along.
        if weight.inline.is_none() && !resolved[index].needs_the_source() {
            source.release(&weight.name);
        }
        done += weight.bytes() as u64;
        progress(done, total);
    }
    Ok(resolved)
}

/// The bytes of a weight as the source or the graph has them.
pub(super) fn bytes(weight: &Weight, source: &dyn WeightSource) -> Result<SharedBytes, BuildError> {
    let fail = |found: String| BuildError::Weight { tensor: weight.name.clone(), expected: weight.to_string(), found };
    let bytes: SharedBytes = match &weight.inline {
        Some(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
        None => source.bytes(&weight.name).ok_or_else(|| fail("no such tensor".into()))?,
    };
    if bytes.len() == weight.bytes() { Ok(bytes) } else { Err(fail(format!("{} bytes", bytes.len()))) }
}

/// The values of a weight that is added or multiplied element by element.
pub(super) fn vector(weight: &Weight, bytes: &[u8]) -> Result<Vec<f32>, BuildError> {
    read_floats(weight.dtype, bytes, weight.elements())
        .ok_or_else(|| BuildError::UnsupportedType { tensor: weight.name.clone(), dtype: weight.dtype })
}

fn resolve(
    weight: &Weight,
    needs: Needs,
    source: &dyn WeightSource,
    isa: Isa,
    making: Making,
) -> Result<Resolved, BuildError> {
    let bytes = bytes(weight, source)?;
    let mut resolved = Resolved::default();
    if needs.vector {
        resolved.vector = Some(vector(weight, &bytes)?.into());
    }
    if needs.matrix {
        let matrix = Arc::new(matrix(making.matrix(), isa, weight, weight.dims[1], bytes)?);
        // A tied embedding is looked up in the packed matrix, so the file is not needed again.
        resolved.table = needs.table.then(|| Arc::clone(&matrix));
        resolved.matrix = Some(matrix);
    } else if needs.table {
        resolved.table = Some(Arc::new(matrix(Matrix::unpacked, isa, weight, weight.dims[1], bytes)?));
    }
    Ok(resolved)
}

type MakeMatrix = fn(Isa, DType, usize, usize, SharedBytes) -> Result<Matrix, MatrixError>;

fn matrix(make: MakeMatrix, isa: Isa, weight: &Weight, rows: usize, bytes: SharedBytes) -> Result<Matrix, BuildError> {
    make(isa, weight.dtype, rows, weight.dims[0], bytes).map_err(|source| match source {
        MatrixError::Unsupported(dtype) => BuildError::UnsupportedType { tensor: weight.name.clone(), dtype },
        source => BuildError::Matrix { tensor: weight.name.clone(), source },
    })
}
