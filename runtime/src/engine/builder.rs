//! How an engine is set up.

use super::{Engine, EngineError, Info};
use crate::{
    Error,
    backend::DeviceChoice,
    gguf::GgufFile,
    model::{self, LoadOptions, LoadProgress},
    text::{ChatTemplate, TextError, Tokenizer},
};
use rustai_kernels_cpu::{Isa, KvType};
use std::path::{Path, PathBuf};

/// Where a model comes from: a path, or a file that is open already.
pub enum ModelSource {
    /// A GGUF file on disk.
    Path(PathBuf),
    /// A checked file.
    File(Box<GgufFile>),
}

impl From<GgufFile> for ModelSource {
    fn from(file: GgufFile) -> Self {
        Self::File(Box::new(file))
    }
}

macro_rules! from_path {
    ($($path:ty),+) => {
        $(impl From<$path> for ModelSource {
            fn from(path: $path) -> Self {
                Self::Path(PathBuf::from(path))
            }
        })+
    };
}
from_path!(&str, String, &Path, PathBuf, &PathBuf);

/// Settings of an [`Engine`]. Every one has a default that suits one user on one machine.
#[must_use = "nothing is loaded before `build`"]
pub struct EngineBuilder {
    source: ModelSource,
    options: LoadOptions,
    queue: usize,
    device_sampling: bool,
    progress: Option<Box<dyn FnMut(LoadProgress)>>,
}

impl EngineBuilder {
    pub(super) fn new(source: ModelSource) -> Self {
        let options = LoadOptions { pack_later: true, ..LoadOptions::default() };
        Self { source, options, queue: 1024, device_sampling: false, progress: None }
    }

    /// Threads that compute. 0, the default, takes one per core that this process may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = threads;
        self
    }

    /// Most tokens of prompt and answer together. 0, the default, takes what the model was made for, but at most 4096.
    pub fn context(mut self, tokens: usize) -> Self {
        self.options.context = tokens;
        self
    }

    /// Sizes the key/value cache for this many sequences of full length; 1 by default. Shorter sequences share it, so
    /// more than these can run at once: as many as fit, and at most [`max_outputs`](Self::max_outputs).
    pub fn max_sequences(mut self, sequences: usize) -> Self {
        self.options.max_sequences = sequences;
        self
    }

    /// Most tokens in one step, 512 by default. Longer prompts are computed in chunks of this size, between which other
    /// sequences advance: a smaller number makes their tokens come more evenly, a larger one makes prompts faster.
    pub fn max_batch(mut self, tokens: usize) -> Self {
        self.options.max_batch = tokens;
        self
    }

    /// Most rows of logits in one step, and so most sequences that run at once; 8 by default, and never less than
    /// [`max_sequences`](Self::max_sequences). [`Engine::score`] gets through a text in chunks of this size, so raise it
    /// to [`max_batch`](Self::max_batch) for scoring; each row costs four bytes per token of the vocabulary.
    pub fn max_outputs(mut self, rows: usize) -> Self {
        self.options.max_outputs = rows;
        self
    }

    /// Forces an instruction set. By default the environment variable `RUSTAI_CPU` or else detection chooses.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.options.isa = Some(isa);
        self
    }

    /// What the model runs on. By default the environment variable `RUSTAI_DEVICE` decides, or else a GPU is taken if there is
    /// one that serves.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.options.device = device;
        self
    }

    /// Layers that run on a GPU, counted from the last; the CPU computes those before them. `None`, the default, takes as many
    /// as fit into the GPU's memory.
    pub fn gpu_layers(mut self, layers: Option<usize>) -> Self {
        self.options.gpu_layers = layers;
        self
    }

    /// A folder of compiled CUDA kernels that goes before those in the program. By default the environment variable
    /// `RUSTAI_CUDA_KERNELS` may name one.
    pub fn cuda_kernels(mut self, folder: impl Into<PathBuf>) -> Self {
        self.options.cuda_kernels = Some(folder.into());
        self
    }

    /// Has a GPU draw the tokens of requests whose sampling is no more than temperature, top-k of at most 1024, top-p and min-p,
    /// without log probabilities; off by default. Then 4 bytes come back for such a token, and not its row of logits. The
    /// distribution is the same, but a seed gives other tokens than on a CPU: the same only on the same device with the same
    /// kernels. Other requests, and all on a CPU, are sampled as ever.
    pub fn device_sampling(mut self, on: bool) -> Self {
        self.device_sampling = on;
        self
    }

    /// How keys and values are kept, [`KvType::F16`] by default. [`KvType::Q8_0`] takes about half the memory, at a loss of
    /// precision that perplexity hardly shows; heads must be a multiple of 32 long.
    pub fn kv_type(mut self, kv_type: KvType) -> Self {
        self.options.kv_type = kv_type;
        self
    }

    /// Packs the weights for the CPU after the first step of the model, or when nobody has asked for anything for a while, rather than
    /// before [`build`](Self::build) returns; on by default. The first token of an engine that has just been built comes sooner,
    /// and the second after a pause; tokens are the same either way. Until it is done, the model file must stay as it is (it may be
    /// replaced by renaming another over it).
    pub fn pack_later(mut self, on: bool) -> Self {
        self.options.pack_later = on;
        self
    }

    /// Most requests that may wait for their admission, 1024 by default; at least 1, since every request passes the
    /// queue. Further ones are refused with [`EngineError::QueueFull`].
    pub fn queue(mut self, requests: usize) -> Self {
        self.queue = requests;
        self
    }

    /// Called while the weights are loaded, on the thread that calls [`build`](Self::build).
    pub fn on_progress(mut self, callback: impl FnMut(LoadProgress) + 'static) -> Self {
        self.progress = Some(Box::new(callback));
        self
    }

    /// Opens the file, loads the weights and starts the scheduler.
    ///
    /// A chat template that cannot be compiled does not stop the model from being used: it makes conversations fail
    /// ([`Engine::prompt_tokens`]), and other prompts work.
    ///
    /// # Errors
    /// [`Error::Engine`] if a setting is out of range; [`Error::Gguf`], [`Error::Load`], [`Error::Text`] or
    /// [`Error::Engine`] if the file cannot be used, for a file on disk inside [`Error::Model`], which names its path.
    pub fn build(mut self) -> Result<Engine, Error> {
        self.check()?;
        let file = match std::mem::replace(&mut self.source, ModelSource::Path(PathBuf::new())) {
            ModelSource::Path(path) => GgufFile::open(&path).map_err(|error| Error::from(error).in_model(&path))?,
            ModelSource::File(file) => *file,
        };
        self.load(&file).map_err(|error| match file.path() {
            Some(path) => error.in_model(path),
            None => error,
        })
    }

    fn load(mut self, file: &GgufFile) -> Result<Engine, Error> {
        // The small parts first: a file without a usable tokenizer is refused before its weights are read.
        model::check_whole(file)?;
        let info = Info::of_file(file)?;
        let tokenizer = Tokenizer::from_metadata(file.metadata())?;
        let template = match ChatTemplate::from_metadata(file.metadata(), &tokenizer) {
            Ok(template) => Ok(template),
            Err(TextError::Template { name, reason }) => {
                // Who asks for a conversation is told so; nobody else misses it.
                tracing::info!(name, reason, "the chat template is not usable");
                Err((name, reason))
            }
            Err(error) => return Err(error.into()),
        };
        let mut ignore = |_: LoadProgress| {};
        let progress: &mut dyn FnMut(LoadProgress) = match &mut self.progress {
            Some(callback) => callback,
            None => &mut ignore,
        };
        let executable = model::load(file, &self.options, progress)?;
        Ok(Engine::start(executable, tokenizer, template, info, self.queue, self.device_sampling)?)
    }

    fn check(&mut self) -> Result<(), EngineError> {
        let options = &mut self.options;
        for (name, value) in [
            ("max_sequences", options.max_sequences),
            ("max_batch", options.max_batch),
            ("max_outputs", options.max_outputs),
            ("queue", self.queue),
        ] {
            if value == 0 {
                return Err(EngineError::Setting { name, value, remedy: "give at least 1" });
            }
        }
        // Each running sequence takes a token and a row of logits of every step.
        options.max_outputs = options.max_outputs.max(options.max_sequences).min(options.max_batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_zero_are_refused_by_name() {
        let error = EngineBuilder::new("missing.gguf".into()).max_batch(0).build().unwrap_err();
        assert!(matches!(error, Error::Engine(EngineError::Setting { name: "max_batch", value: 0, .. })), "{error}");
    }

    #[test]
    fn rows_of_logits_follow_the_sequences() {
        let mut builder = EngineBuilder::new("missing.gguf".into()).max_sequences(32);
        builder.check().unwrap();
        assert_eq!(builder.options.max_outputs, 32);
        let mut builder = EngineBuilder::new("missing.gguf".into()).max_batch(4);
        builder.check().unwrap();
        assert_eq!(builder.options.max_outputs, 4);
    }
}
