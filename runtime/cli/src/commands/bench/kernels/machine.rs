//! What the machine can do at most: its caches, as the system tells them, and its roofs, as this run measures them.

use super::select::Runner;
use crate::failure::Failure;
use rustai::{Isa, backend::cuda};
use rustai_kernels_cpu::{
    ActKind, ExecutorError,
    roof::{self, Peak},
};
use serde::Serialize;
use std::{fs, path::Path};

/// Where weights are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// The cache of each core.
    L2,
    /// The cache that cores share.
    L3,
    /// Main memory.
    #[serde(rename = "memory")]
    Memory,
}

impl Level {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::L2 => "L2",
            Self::L3 => "L3",
            Self::Memory => "memory",
        }
    }
}

/// Sizes of the caches in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// Second level, of each core.
    l2: usize,
    /// Last level, which cores share; 0 if there is none, or the system does not tell.
    last: usize,
    /// So much that no cache keeps enough of it to matter.
    overflow: usize,
}

impl Caches {
    /// What the system says about the first core.
    pub fn detect() -> Self {
        let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
        let entries = (0..8).filter_map(|index| {
            let read = |name: &str| fs::read_to_string(folder.join(format!("index{index}/{name}"))).ok();
            Some((read("level")?, read("type")?, read("size")?))
        });
        Self::of(entries)
    }

    /// From the contents of `level`, `type` and `size` of each cache.
    fn of(entries: impl Iterator<Item = (String, String, String)>) -> Self {
        // Where the system does not tell, a second level that hardly a processor falls short of.
        let mut caches = Self { l2: 256 << 10, last: 0, overflow: 0 };
        for (level, kind, size) in entries {
            let kibibytes = size.trim().strip_suffix('K').and_then(|number| number.parse::<usize>().ok());
            match (level.trim(), kind.trim(), kibibytes) {
                (_, "Instruction", _) | (_, _, None) => {}
                ("2", _, Some(size)) => caches.l2 = size << 10,
                ("3" | "4", _, Some(size)) => caches.last = caches.last.max(size << 10),
                _ => {}
            }
        }
        caches.overflow = (12 * caches.last).clamp(256 << 20, 512 << 20);
        caches
    }

    /// Those of a GPU, whose second level is the last.
    pub fn of_gpu(l2: usize) -> Self {
        Self { l2, last: 0, overflow: 3 * l2 }
    }

    /// The level that keeps `bytes` bytes of which each of `threads` cores uses its share again and again. Other data need
    /// some room, too.
    pub fn level(&self, bytes: u64, threads: usize) -> Level {
        if bytes <= (threads * self.l2) as u64 * 3 / 4 {
            Level::L2
        } else if bytes <= self.last as u64 * 6 / 10 {
            Level::L3
        } else {
            Level::Memory
        }
    }

    /// So much that no cache keeps enough of it to matter.
    pub fn overflow(&self) -> usize {
        self.overflow
    }

    /// The buffer that a level's bandwidth is measured with.
    fn buffer(&self, level: Level, threads: usize) -> usize {
        match level {
            Level::L2 => threads * self.l2 / 2,
            Level::L3 => self.last / 3,
            Level::Memory => self.overflow(),
        }
    }
}

/// Bandwidth of a level.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Read {
    pub level: Level,
    pub buffer_bytes: usize,
    /// Bytes per second of one thread alone; for L2 and L3 its share of the buffer.
    pub one_thread: f64,
    /// Bytes per second of all threads together.
    pub all_threads: f64,
}

impl Read {
    /// What counts as the roof, in bytes per second.
    pub fn roof(&self) -> f64 {
        self.one_thread.max(self.all_threads)
    }
}

/// An arithmetic roof.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Arithmetic {
    pub instruction: &'static str,
    pub macs_per_second: f64,
}

/// The roofs for the kernels of one instruction set.
#[derive(Clone, Debug, Serialize)]
pub struct Roofs {
    pub isa: &'static str,
    pub reads: Vec<Read>,
    /// Of kernels that multiply 8-bit activations; `null` if it is not measured for the instruction set.
    pub integer: Option<Arithmetic>,
    /// Of kernels that multiply `f32` activations.
    pub float: Option<Arithmetic>,
}

impl Roofs {
    /// Measures them, for these levels.
    pub fn measure(isa: Isa, threads: usize, caches: &Caches, levels: &[Level]) -> Result<Self, Failure> {
        let arithmetic = |peak: Result<Option<Peak>, ExecutorError>| {
            let told = |Peak { instruction, macs_per_second }| Arithmetic { instruction, macs_per_second };
            peak.map(|peak| peak.map(told))
        };
        let mut reads = Vec::new();
        for &level in levels {
            let buffer_bytes = caches.buffer(level, threads);
            let alone = if level == Level::Memory { buffer_bytes } else { buffer_bytes / threads };
            reads.push(Read {
                level,
                buffer_bytes,
                one_thread: roof::read(isa, 1, alone)?,
                all_threads: roof::read(isa, threads, buffer_bytes)?,
            });
        }
        Ok(Self {
            isa: isa.name(),
            reads,
            integer: arithmetic(roof::integer(isa, threads))?,
            float: arithmetic(roof::float(isa, threads))?,
        })
    }

    /// Those of a GPU.
    pub fn of_gpu(roofs: &cuda::Roofs) -> Self {
        let read = |level, buffer_bytes, rate| Read { level, buffer_bytes, one_thread: 0.0, all_threads: rate };
        let peak =
            |peak: cuda::Peak, macs_per_second| Some(Arithmetic { instruction: peak.instruction(), macs_per_second });
        Self {
            isa: Runner::Cuda.name(),
            reads: vec![
                read(Level::L2, roofs.cache_bytes, roofs.cache),
                read(Level::Memory, roofs.memory_bytes, roofs.memory),
            ],
            integer: peak(cuda::Peak::MmaInt8, roofs.integer),
            float: peak(cuda::Peak::Fma, roofs.float),
        }
    }

    /// Takes over what a later measurement of the same roofs found to be higher.
    pub fn raise(&mut self, later: &Self) {
        for (read, later) in self.reads.iter_mut().zip(&later.reads) {
            read.one_thread = read.one_thread.max(later.one_thread);
            read.all_threads = read.all_threads.max(later.all_threads);
        }
        for (peak, later) in [(&mut self.integer, later.integer), (&mut self.float, later.float)] {
            if let (Some(peak), Some(later)) = (peak, later) {
                peak.macs_per_second = peak.macs_per_second.max(later.macs_per_second);
            }
        }
    }

    /// Bandwidth of a level. More threads do not lower it; if it seems so, other programs had the cores.
    fn bandwidth(&self, level: Level) -> Option<f64> {
        self.reads.iter().find(|read| read.level == level).map(Read::roof)
    }

    /// The most multiply-adds per second of a product that does `intensity` of them per byte of weights, and what sets that
    /// limit. Each multiply-add is done `planes` times.
    pub fn limit(&self, level: Level, intensity: f64, wants: ActKind, planes: usize) -> Option<(f64, &'static str)> {
        let read = self.bandwidth(level)? * intensity;
        let (peak, name) = match wants {
            ActKind::Q8 => (self.integer, "integer"),
            ActKind::F32 => (self.float, "float"),
        };
        match peak.map(|peak| peak.macs_per_second / planes as f64) {
            Some(peak) if peak < read => Some((peak, name)),
            _ => Some((read, level.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sizes_are_read_and_filled_to_a_part() {
        let entry = |level: &str, kind: &str, size: &str| (level.to_owned(), kind.to_owned(), size.to_owned());
        let listed = [
            entry("1\n", "Data\n", "32K\n"),
            entry("1\n", "Instruction\n", "32K\n"),
            entry("2\n", "Unified\n", "1024K\n"),
            entry("3\n", "Unified\n", "32768K\n"),
        ];
        let caches = Caches::of(listed.into_iter());
        assert_eq!(caches, Caches { l2: 1 << 20, last: 32 << 20, overflow: 384 << 20 });
        assert_eq!(caches.level(1 << 20, 2), Level::L2);
        assert_eq!(caches.level(1 << 20, 1), Level::L3);
        assert_eq!(caches.level(30 << 20, 2), Level::Memory);
        let unknown = Caches::of(std::iter::once(entry("2", "Unified", "lots")));
        assert_eq!(unknown.level(1 << 20, 1), Level::Memory);
        assert_eq!(unknown.overflow(), 256 << 20);
    }

    #[test]
    fn the_lower_roof_is_the_limit() {
        let peak = |macs_per_second| Some(Arithmetic { instruction: "x", macs_per_second });
        let read = Read { level: Level::Memory, buffer_bytes: 1, one_thread: 5.0, all_threads: 10.0 };
        let mut roofs = Roofs { isa: "x", reads: vec![read], integer: peak(100.0), float: None };
        assert_eq!(roofs.limit(Level::Memory, 2.0, ActKind::Q8, 1), Some((20.0, "memory")));
        assert_eq!(roofs.limit(Level::Memory, 200.0, ActKind::Q8, 2), Some((50.0, "integer")));
        assert_eq!(roofs.limit(Level::Memory, 200.0, ActKind::F32, 1), Some((2000.0, "memory")));
        assert_eq!(roofs.limit(Level::L2, 2.0, ActKind::Q8, 1), None);
        let later = Roofs { integer: peak(120.0), ..roofs.clone() };
        roofs.raise(&later);
        assert_eq!(roofs.limit(Level::Memory, 200.0, ActKind::Q8, 1), Some((120.0, "integer")));
    }
}
