//! The work: a plan for all tensors of a file, then one piece of one tensor at a time, rows in parallel.
//!
//! The input is mapped and the output written as it comes, so that memory holds the pages of the tensor at hand and a few
//! megabytes, whatever the size of the model.

use super::{
    Imatrix, Output, QuantizeError,
    mix::{self, Choice, Facts, Mix, Wishes},
};
use crate::{
    gguf::{GgufFile, GgufWriter, TensorInfo, TensorWriter, Value},
    model,
};
use rayon::prelude::*;
use rustai_abi::DType;
use rustai_kernels_cpu::formats::{self, Format};
use std::{collections::HashMap, io::Write, num::NonZero, ops::ControlFlow, path::Path, sync::Arc};

/// Values that one task quantizes: enough to be worth a task.
const TASK_VALUES: usize = 1 << 16;

/// Tasks per thread in one piece: enough to share evenly, few enough that a piece takes a fraction of a second.
const TASKS_PER_THREAD: usize = 16;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// The mix.
    pub mix: Mix,
    /// What differs from the mix.
    pub wishes: Wishes,
    /// Whether tensors that are quantized already may be quantized again.
    pub allow_requantize: bool,
    /// Which columns matter most.
    pub imatrix: Option<Arc<Imatrix>>,
    /// Threads; 0 means one per core that this process may use.
    pub threads: usize,
}

impl Options {
    /// To this mix, with nothing special.
    pub fn to(mix: Mix) -> Self {
        Self { mix, wishes: Wishes::default(), allow_requantize: false, imatrix: None, threads: 0 }
    }
}

/// What becomes of one tensor.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Name.
    pub name: String,
    /// Dimensions, row length first.
    pub dims: Vec<usize>,
    /// Type in the input.
    pub from: DType,
    /// Type in the output; the data are copied if it is the same.
    pub to: DType,
    /// The type that the mix has for it, where rows do not divide into that type's blocks.
    pub instead_of: Option<DType>,
    /// Bytes in the input.
    pub bytes_before: usize,
    /// Bytes in the output.
    pub bytes_after: usize,
    /// Whether the importance matrix knows it, and it is quantized.
    pub weighted: bool,
}

/// How far the work has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor at hand.
    pub tensor: &'a Planned,
    /// Whether this was its last piece.
    pub finished: bool,
    /// Bytes of the input that are done.
    pub done: u64,
    /// All.
    pub total: u64,
}

/// Told of each piece that is written; may end the work.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// A planned quantization of one file.
#[derive(Debug)]
pub struct Job<'a> {
    file: &'a GgufFile,
    imatrix: Option<Arc<Imatrix>>,
    threads: usize,
    header: GgufWriter,
    tensors: Vec<Planned>,
}

impl<'a> Job<'a> {
    /// Decides what becomes of each tensor. No weight is read.
    ///
    /// # Errors
    /// [`QuantizeError`] if the file is a part of a model, a tensor may not or cannot be quantized, or the importance
    /// matrix is of another model.
    pub fn plan(file: &'a GgufFile, options: &Options) -> Result<Self, QuantizeError> {
        model::check_whole(file)?;
        let facts = Facts::of(file.metadata())?;
        let imatrix = options.imatrix.clone();
        let choices = mix::choose(file.tensors(), &facts, options.mix, &options.wishes, imatrix.is_some());
        let mut tensors = Vec::with_capacity(choices.len());
        let mut header = GgufWriter::new();
        header.version(file.version());
        for (key, value) in entries(file, options) {
            header.set(key, value);
        }
        for (tensor, choice) in file.tensors().iter().zip(choices) {
            let planned = plan_tensor(tensor, choice, options)?;
            header.tensor(&planned.name, planned.to, &planned.dims)?;
            tensors.push(planned);
        }
        if let Some(imatrix) = &imatrix
            && !tensors.iter().any(|tensor| imatrix.get(&tensor.name).is_some())
        {
            let known = imatrix.entries().next().map_or("nothing", |(name, _)| name).to_owned();
            return Err(QuantizeError::ForeignImatrix { known });
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        };
        Ok(Self { file, imatrix, threads, header, tensors })
    }

    /// What becomes of each tensor, in the order of the file.
    pub fn tensors(&self) -> &[Planned] {
        &self.tensors
    }

    /// Bytes of all tensors in the input.
    pub fn bytes_before(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes_before as u64).sum()
    }

    /// Bytes of all tensors in the output.
    pub fn bytes_after(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes_after as u64).sum()
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.dims.iter().map(|&dim| dim as u64).product::<u64>()).sum()
    }

    /// Does the work and puts the result at `path`, which then is either whole or as it was before.
    ///
    /// # Errors
    /// As [`write`](Self::write) and [`Output::create`], whose check is made before the work.
    pub fn write_file(&self, path: &Path, progress: &mut OnProgress<'_>) -> Result<(), QuantizeError> {
        self.write_output(Output::create(path, self.file.path().as_slice())?, progress)
    }

    /// Does the work and puts the result in its place.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`QuantizeError::Output`].
    pub fn write_output(&self, output: Output, progress: &mut OnProgress<'_>) -> Result<(), QuantizeError> {
        output.fill(|sink| self.write(sink, progress))
    }

    /// Does the work, on `threads` threads, and writes the file to `sink` as it comes.
    ///
    /// # Errors
    /// [`QuantizeError`]; [`QuantizeError::Cancelled`] if `progress` ended the work.
    pub fn write<W: Write>(&self, sink: W, progress: &mut OnProgress<'_>) -> Result<(), QuantizeError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build();
        let pool = pool.map_err(|error| QuantizeError::Threads { threads: self.threads, reason: error.to_string() })?;
        let mut writer = self.header.begin(sink)?;
        let (mut done, total) = (0, self.bytes_before());
        for (tensor, planned) in self.file.tensors().iter().zip(&self.tensors) {
            let mut tell = |bytes: usize, finished| {
                done += bytes as u64;
                match progress(Progress { tensor: planned, finished, done, total }) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(QuantizeError::Cancelled),
                }
            };
            self.write_tensor(&pool, tensor, planned, &mut writer, &mut tell)?;
            self.file.release(tensor);
        }
        writer.finish()?;
        Ok(())
    }

    fn write_tensor<W: Write>(
        &self,
        pool: &rayon::ThreadPool,
        tensor: &TensorInfo,
        planned: &Planned,
        writer: &mut TensorWriter<'_, W>,
        tell: &mut dyn FnMut(usize, bool) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let data = self.file.data(tensor);
        let cols = planned.dims[0];
        let rows = planned.dims[1..].iter().product::<usize>();
        let (row_before, row_after) = (planned.bytes_before / rows, planned.bytes_after / rows);
        let rows_per_task = (TASK_VALUES / cols).max(1);
        let rows_per_piece = rows_per_task * TASKS_PER_THREAD * self.threads;
        let work = Rows {
            planned,
            from: format_of(planned.from).filter(|_| planned.from != planned.to),
            to: format_of(planned.to),
            importance: self
                .imatrix
                .as_ref()
                .filter(|_| planned.weighted)
                .and_then(|imatrix| imatrix.get(&planned.name)),
            rows_per_matrix: planned.dims.get(1).copied().unwrap_or(1),
        };
        let mut out = Vec::new();
        for first in (0..rows).step_by(rows_per_piece) {
            let count = rows_per_piece.min(rows - first);
            let piece = &data[first * row_before..(first + count) * row_before];
            if planned.from == planned.to {
                writer.write_part(piece)?;
            } else {
                out.resize(count * row_after, 0);
                let tasks =
                    out.par_chunks_mut(rows_per_task * row_after).zip(piece.par_chunks(rows_per_task * row_before));
                pool.install(|| {
                    tasks.enumerate().try_for_each_init(Vec::<f32>::new, |values, (task, (out, bytes))| {
                        values.resize(cols, 0.0);
                        let rows = bytes.chunks_exact(row_before).zip(out.chunks_exact_mut(row_after));
                        for (i, (bytes, out)) in rows.enumerate() {
                            work.row(first + task * rows_per_task + i, bytes, values, out)?;
                        }
                        Ok::<(), QuantizeError>(())
                    })
                })?;
                writer.write_part(&out)?;
            }
            tell(piece.len(), first + count == rows)?;
        }
        Ok(())
    }
}

/// What the rows of one tensor need.
struct Rows<'a> {
    planned: &'a Planned,
    from: Option<&'static Format>,
    to: Option<&'static Format>,
    /// A value per column, for each of the tensor's matrices.
    importance: Option<&'a [f32]>,
    rows_per_matrix: usize,
}

impl Rows<'_> {
    fn row(&self, row: usize, bytes: &[u8], values: &mut [f32], out: &mut [u8]) -> Result<(), QuantizeError> {
        // PANIC: the plan refuses types without these.
        let (from, to) = (self.from.expect("a type that is read"), self.to.expect("a type that is written"));
        (from.dequantize)(bytes, values);
        if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
            return Err(QuantizeError::NotFinite { tensor: self.planned.name.clone(), row, value });
        }
        let importance = self.importance.map(|importance| {
            let matrices = importance.len() / values.len();
            &importance[row / self.rows_per_matrix % matrices * values.len()..][..values.len()]
        });
        to.quantize.expect("a type that is written")(values, importance, out);
        // A scale or a value that overflowed would make all that the model computes NaN.
        (to.dequantize)(out, values);
        if let Some(&read) = values.iter().find(|value| !value.is_finite()) {
            (from.dequantize)(bytes, values);
            let largest = values.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
            let (tensor, value) = (self.planned.name.clone(), largest.unwrap_or_default());
            return Err(QuantizeError::OutOfRange { tensor, row, value, to: self.planned.to, read });
        }
        Ok(())
    }
}

fn plan_tensor(tensor: &TensorInfo, choice: Choice, options: &Options) -> Result<Planned, QuantizeError> {
    let (to, instead_of) = match choice {
        Choice::Keep => (tensor.dtype, None),
        Choice::To { dtype, instead_of } => (dtype, instead_of),
    };
    let mut planned = Planned {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        from: tensor.dtype,
        to,
        instead_of,
        bytes_before: tensor.bytes,
        bytes_after: tensor.bytes,
        weighted: false,
    };
    if to == tensor.dtype {
        return Ok(planned);
    }
    let is_float = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    // F32 holds every value of the other types as it is.
    if !is_float(tensor.dtype) && to != DType::F32 && !options.allow_requantize {
        return Err(QuantizeError::Requantize { tensor: tensor.name.clone(), from: tensor.dtype, to });
    }
    if format_of(tensor.dtype).is_none() {
        return Err(QuantizeError::Unreadable { tensor: tensor.name.clone(), dtype: tensor.dtype });
    }
    let bytes = to.bytes_for(tensor.elements()).filter(|_| is_writable(to));
    planned.bytes_after =
        bytes.ok_or_else(|| QuantizeError::Unwritable { dtype: to, known: writable().map(DType::name).collect() })?;
    if let Some(importance) = options.imatrix.as_ref().and_then(|imatrix| imatrix.get(&tensor.name)) {
        let (cols, matrices) = (tensor.dims[0], tensor.dims.get(2).copied().unwrap_or(1));
        // One matrix's importance serves all experts, too.
        if importance.len() != cols && importance.len() != cols * matrices {
            let (tensor, found) = (tensor.name.clone(), importance.len());
            return Err(QuantizeError::ImportanceSize { tensor, expected: cols, found });
        }
        planned.weighted = !is_float(to);
    }
    Ok(planned)
}

fn format_of(dtype: DType) -> Option<&'static Format> {
    formats::of(dtype)
}

/// Q8_K is written for activations only: it is larger than Q8_0, and few programs read it from files.
fn is_writable(dtype: DType) -> bool {
    dtype != DType::Q8_K && format_of(dtype).is_some_and(|format| format.quantize.is_some())
}

/// The types that tensors can be quantized to.
pub fn writable() -> impl Iterator<Item = DType> {
    DType::all().filter(|dtype| is_writable(*dtype))
}

/// The metadata of the result: the input's, with what says how it was made.
fn entries(file: &GgufFile, options: &Options) -> Vec<(String, Value)> {
    let mut entries: Vec<(String, Value)> = Vec::new();
    let mut changed: HashMap<&str, Value> = HashMap::from([
        ("general.file_type", options.mix.file_type().into()),
        // The number that ggml gives to the present layouts.
        ("general.quantization_version", 2u32.into()),
    ]);
    if let Some(imatrix) = &options.imatrix {
        if let Some(dataset) = imatrix.datasets.first() {
            changed.insert("quantize.imatrix.dataset", dataset.as_str().into());
        }
        changed.insert("quantize.imatrix.entries_count", (imatrix.len() as u32).into());
        changed.insert("quantize.imatrix.chunks_count", imatrix.chunks.into());
    }
    for (key, value) in file.metadata().iter().filter(|(key, _)| !key.starts_with("split.")) {
        entries.push((key.to_owned(), changed.remove(key).unwrap_or_else(|| value.clone())));
    }
    let mut added: Vec<_> = changed.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    added.sort_by(|a, b| a.0.cmp(&b.0));
    entries.extend(added);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::Entry;
    use std::{fs, path::PathBuf};

    const MATRIX: &str = "blk.0.attn_q.weight";

    /// A file with one matrix of this type, whose second row has these values at its start.
    fn file(dtype: DType, values: &[f32]) -> GgufFile {
        let mut row = vec![0.5f32; 256];
        row[..values.len()].copy_from_slice(values);
        let mut data = Vec::new();
        for row in [&[1.0; 256][..], &row] {
            let mut out = vec![0; dtype.bytes_for(256).unwrap()];
            (format_of(dtype).unwrap().quantize.unwrap())(row, None, &mut out);
            data.extend(out);
        }
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", "llama").tensor(MATRIX, dtype, &[256, 2]).unwrap();
        GgufFile::from_bytes(writer.to_bytes([data]).unwrap()).unwrap()
    }

    fn made(file: &GgufFile, options: &Options) -> Result<Vec<u8>, QuantizeError> {
        let mut bytes = Vec::new();
        Job::plan(file, options)?.write(&mut bytes, &mut |_| ControlFlow::Continue(()))?;
        Ok(bytes)
    }

    /// What a program that reads the file sees in its matrix.
    fn values(file: &GgufFile) -> Vec<f32> {
        let tensor = file.tensor(MATRIX).unwrap();
        let mut values = vec![0.0; 512];
        (format_of(tensor.dtype).unwrap().dequantize)(&file.data(tensor), &mut values);
        values
    }

    #[test]
    fn weights_beyond_the_range_of_a_type_are_refused() {
        // What halves hold as such, or as the scale of a block, ends at 65504; that of MXFP4 ends with the floats.
        for value in [1.0e7, -3.0e38] {
            let file = file(DType::F32, &[0.25, value]);
            for mix in Mix::all() {
                match made(&file, &Options::to(mix)) {
                    Ok(bytes) => {
                        let read = values(&GgufFile::from_bytes(bytes).unwrap());
                        assert!(read.iter().all(|value| value.is_finite()), "{mix}");
                        assert!(value == 1.0e7 || matches!(mix, Mix::F32 | Mix::BF16 | Mix::MXFP4), "{mix}");
                    }
                    Err(QuantizeError::OutOfRange { tensor, row, value: told, read, .. }) => {
                        assert_eq!((tensor.as_str(), row, told), (MATRIX, 1, value), "{mix}");
                        assert!(!read.is_finite() && !matches!(mix, Mix::F32 | Mix::BF16), "{mix}");
                    }
                    Err(error) => panic!("{mix}: {error}"),
                }
            }
            let error = made(&file, &Options::to(Mix::Q4_0)).unwrap_err().to_string();
            assert!(error.contains(MATRIX) && error.contains("choose F32 or BF16"), "{error}");
        }
        let error = made(&file(DType::F32, &[f32::MAX]), &Options::to(Mix::BF16)).unwrap_err().to_string();
        assert!(error.contains("choose F32, whose"), "{error}");
        made(&file(DType::F32, &[65504.0]), &Options::to(Mix::F16)).unwrap();
    }

    #[test]
    fn quantized_tensors_become_f32_without_further_errors() {
        let file = file(DType::Q8_0, &[0.3, -0.7]);
        let floats = GgufFile::from_bytes(made(&file, &Options::to(Mix::F32)).unwrap()).unwrap();
        assert_eq!(values(&floats), values(&file));
        for mix in [Mix::F16, Mix::BF16, Mix::Q4_0] {
            let error = made(&file, &Options::to(mix)).unwrap_err();
            assert!(matches!(error, QuantizeError::Requantize { .. }), "{mix}: {error}");
        }
    }

    #[test]
    fn an_importance_matrix_of_a_stranger_is_refused() {
        let file = file(DType::F32, &[]);
        let with = |name: &str| {
            let mut imatrix = Imatrix::default();
            imatrix.insert(name, Entry::new(&[1.0; 256], vec![1.0]).unwrap());
            made(&file, &Options { imatrix: Some(Arc::new(imatrix)), ..Options::to(Mix::Q4_0) })
        };
        with(MATRIX).unwrap();
        let error = with("h.0.c_attn.weight").unwrap_err();
        assert!(matches!(&error, QuantizeError::ForeignImatrix { known } if known == "h.0.c_attn.weight"), "{error}");
    }

    #[test]
    fn the_output_is_tried_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(DType::F32, &[]);
        let job = Job::plan(&file, &Options::to(Mix::Q4_0)).unwrap();
        let places: [PathBuf; 2] = [folder.path().into(), folder.path().join("none/out")];
        for place in places {
            job.write_file(&place, &mut |_| panic!("work was done for {}", place.display())).unwrap_err();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
