//! Flags that several subcommands take.

use clap::{Args, ValueEnum};
use rustai::{KvType, backend::DeviceChoice};
use std::{fmt, path::PathBuf, str::FromStr};

/// Which model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// A path to a GGUF file, `hf:owner/repo/file.gguf`, or `default` (SmolLM2-135M-Instruct, fetched on first use).
    #[arg(short, long, value_name = "MODEL", default_value = "default")]
    pub model: String,
}

/// How much of the computer to use.
#[derive(Clone, Copy, Debug, Args)]
pub struct ComputeArgs {
    /// Threads; 0 means one per core. More than there are cores is lowered to that, with a warning.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Longest sequence in tokens, prompt and answer together; 0 means what the file says, but at most 4096.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub ctx: usize,
    /// How keys and values are kept.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = KvTypeArg::F16)]
    pub kv_type: KvTypeArg,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What a model runs on.
#[derive(Clone, Copy, Debug, Args)]
pub struct DeviceArgs {
    /// auto (a GPU if there is one that serves, else the CPU), cpu, cuda, or cuda:N with the GPU's number.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Layers that run on the GPU, counted from the last: a number, or auto for as many as fit into its memory.
    #[arg(long, value_name = "N", default_value_t = GpuLayers(None))]
    pub gpu_layers: GpuLayers,
}

/// A number of layers, or as many as fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuLayers(pub Option<usize>);

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            _ => {
                text.parse().map(|layers| Self(Some(layers))).map_err(|_| "give a number of layers, or auto".to_owned())
            }
        }
    }
}

impl fmt::Display for GpuLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(layers) => layers.fmt(f),
            None => f.write_str("auto"),
        }
    }
}

/// Types of the key/value cache; the names are those of [`KvType::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvTypeArg {
    /// Half precision.
    F16,
    /// 8 bits in blocks of 32: about half the memory; heads must be a multiple of 32 long.
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<KvTypeArg> for KvType {
    fn from(kv_type: KvTypeArg) -> Self {
        match kv_type {
            KvTypeArg::F16 => Self::F16,
            KvTypeArg::Q8_0 => Self::Q8_0,
        }
    }
}

/// A text, from one of three places.
#[derive(Clone, Debug, Args)]
pub struct TextArgs {
    /// The text; `-` or nothing reads standard input.
    #[arg(value_name = "PROMPT")]
    pub text: Option<String>,
    /// Reads the text from a file; `-` is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    pub file: Option<PathBuf>,
}
