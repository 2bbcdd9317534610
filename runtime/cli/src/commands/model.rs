//! From the word on the command line to an open file and a loaded model.

use crate::{failure::Failure, ui::Progress};
use rustai::{
    DType,
    backend::{BuildError, Executable},
    gguf::{GgufError, GgufFile},
    model::{self, LoadError, LoadOptions},
    plan::PlanError,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where the model's file lies; fetches it if it is not there yet.
pub fn find(spec: &str) -> Result<PathBuf, Failure> {
    super::pull::fetch(spec)
}

/// Opens a file and checks its header.
pub fn open(path: &Path) -> Result<GgufFile, Failure> {
    GgufFile::open(path).map_err(|error| match error {
        // These name the file themselves.
        GgufError::Io { .. } | GgufError::NotAFile { .. } => error.into(),
        error => Failure::from(error).within(path.display()),
    })
}

/// Loads the weights, with a progress bar. `path` is where the file lies, for messages.
pub fn load(path: &Path, file: &GgufFile, options: &LoadOptions) -> Result<Box<dyn Executable>, Failure> {
    let progress = Progress::bytes("loading");
    let loaded = model::load(file, options, &mut |state| progress.set(state.done, Some(state.total)));
    loaded.map_err(|error| explain_in(path, error))
}

/// As [`explain`], and names the file if the file has to do with it.
pub fn explain_in(path: &Path, error: LoadError) -> Failure {
    if error.is_about_the_host() { explain(error) } else { explain(error).within(path.display()) }
}

/// Tells why a model cannot be used, with a remedy where the library's message has none.
pub fn explain(error: LoadError) -> Failure {
    let remedy = match &error {
        LoadError::UnsupportedArchitecture { .. } | LoadError::Unsupported { .. } => "use another model",
        // The library says to use another type; here that type has an option's name.
        LoadError::Build(BuildError::Plan(PlanError::KvType { .. })) => {
            return Failure::from(error).help("leave --kv-type at f16 for this model");
        }
        LoadError::Build(BuildError::Device(_) | BuildError::NoCut { .. } | BuildError::OutOfDeviceMemory { .. }) => {
            return Failure::from(error).help("give --device cpu, or see `rustai info` and `rustai fit`");
        }
        _ => "convert or download the file again, or use another model; `rustai inspect` shows what it holds",
    };
    Failure::from(error).or_help(remedy)
}

/// What a file holds, in short.
pub struct Summary {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, if the file has one.
    pub name: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors and bytes of each type, in the order of the type identifiers.
    pub types: BTreeMap<DType, (usize, u64)>,
}

impl Summary {
    /// Adds up a file's tensors.
    pub fn of(file: &GgufFile) -> Result<Self, Failure> {
        let text = |key| file.metadata().str(key).map(|text| text.map(str::to_owned));
        let mut summary = Self {
            architecture: text("general.architecture")?.unwrap_or_else(|| "unknown".to_owned()),
            name: text("general.name")?,
            parameters: 0,
            bytes: 0,
            types: BTreeMap::new(),
        };
        for tensor in file.tensors() {
            let entry = summary.types.entry(tensor.dtype).or_default();
            entry.0 += 1;
            entry.1 += tensor.bytes as u64;
            summary.bytes += tensor.bytes as u64;
            summary.parameters += tensor.dims.iter().map(|&dim| dim as u64).product::<u64>();
        }
        Ok(summary)
    }

    /// Architecture and the type that most bytes have, such as `llama Q4_1`.
    pub fn description(&self) -> String {
        match self.types.iter().max_by_key(|(_, (_, bytes))| *bytes) {
            Some((dtype, _)) => format!("{} {dtype}", self.architecture),
            None => self.architecture.clone(),
        }
    }
}
