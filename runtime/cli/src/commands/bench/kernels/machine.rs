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

/// Bandwidth of copies within memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Copy {
    pub buffer_bytes: usize,
    /// Bytes read and written per second.
    pub bytes_per_second: f64,
}

/// Time from one launch of a graph to the next, of a kernel that does nothing.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Launches {
    /// Each waits for the end of the one before it.
    pub alone_ns: f64,
    /// Each may start earlier, as the kernels of a step do.
    pub overlapped_ns: f64,
}

/// An arithmetic roof.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Arithmetic {
    /// What `bound` says of a product that it limits.
    pub name: &'static str,
    pub instruction: &'static str,
    pub macs_per_second: f64,
}

/// The roofs for the kernels of one instruction set.
#[derive(Clone, Debug, Serialize)]
pub struct Roofs {
    pub isa: &'static str,
    pub reads: Vec<Read>,
    /// Of the instructions that kernels multiply with, as far as they are measured.
    pub peaks: Vec<Arithmetic>,
    /// Of a GPU.
    pub copy: Option<Copy>,
    /// Of a GPU.
    pub launches: Option<Launches>,
}

/// The name of the roof of CPU kernels that take such activations.
pub fn peak_name(wants: ActKind) -> &'static str {
    match wants {
        ActKind::Q8 => "integer",
        ActKind::F32 => "float",
    }
}

impl Roofs {
    /// Measures them, for these levels.
    pub fn measure(isa: Isa, threads: usize, caches: &Caches, levels: &[Level]) -> Result<Self, Failure> {
        let arithmetic = |wants, peak: Result<Option<Peak>, ExecutorError>| {
            let name = peak_name(wants);
            let told = |Peak { instruction, macs_per_second }| Arithmetic { name, instruction, macs_per_second };
            peak.map(|peak| peak.map(told))
        };
        let peaks = [
            arithmetic(ActKind::Q8, roof::integer(isa, threads))?,
            arithmetic(ActKind::F32, roof::float(isa, threads))?,
        ];
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
        Ok(Self { isa: isa.name(), reads, peaks: peaks.into_iter().flatten().collect(), copy: None, launches: None })
    }

    /// Those of a GPU.
    pub fn of_gpu(roofs: &cuda::Roofs) -> Self {
        let read = |level, buffer_bytes, rate| Read { level, buffer_bytes, one_thread: 0.0, all_threads: rate };
        let peak = |&(peak, macs_per_second): &(cuda::Peak, f64)| Arithmetic {
            name: peak.name(),
            instruction: peak.instruction(),
            macs_per_second,
        };
        let [alone_ns, overlapped_ns] = roofs.launch.map(|seconds| seconds * 1e9);
        Self {
            isa: Runner::Cuda.name(),
            reads: vec![
                read(Level::L2, roofs.cache_bytes, roofs.cache),
                read(Level::Memory, roofs.memory_bytes, roofs.memory),
            ],
            peaks: roofs.peaks.iter().map(peak).collect(),
            copy: Some(Copy { buffer_bytes: roofs.memory_bytes, bytes_per_second: roofs.copy }),
            launches: Some(Launches { alone_ns, overlapped_ns }),
        }
    }

    /// Takes over what a later measurement of the same roofs found to be higher.
    pub fn raise(&mut self, later: &Self) {
        for (read, later) in self.reads.iter_mut().zip(&later.reads) {
            read.one_thread = read.one_thread.max(later.one_thread);
            read.all_threads = read.all_threads.max(later.all_threads);
        }
        for (peak, later) in self.peaks.iter_mut().zip(&later.peaks) {
            peak.macs_per_second = peak.macs_per_second.max(later.macs_per_second);
        }
        if let (Some(copy), Some(later)) = (&mut self.copy, later.copy) {
            copy.bytes_per_second = copy.bytes_per_second.max(later.bytes_per_second);
        }
        if let (Some(launches), Some(later)) = (&mut self.launches, later.launches) {
            launches.alone_ns = launches.alone_ns.min(later.alone_ns);
            launches.overlapped_ns = launches.overlapped_ns.min(later.overlapped_ns);
        }
    }

    /// Bandwidth of a level. More threads do not lower it; if it seems so, other programs had the cores.
    fn bandwidth(&self, level: Level) -> Option<f64> {
        self.reads.iter().find(|read| read.level == level).map(Read::roof)
    }

    /// The most multiply-adds per second of a product that does `intensity` of them per byte of weights, and what sets that
    /// limit. Each multiply-add is done `planes` times, with the instruction of the roof of this name.
    pub fn limit(&self, level: Level, intensity: f64, peak: &str, planes: usize) -> Option<(f64, &'static str)> {
        let read = self.bandwidth(level)? * intensity;
        let peak = self.peaks.iter().find(|one| one.name == peak);
        match peak.map(|peak| (peak.macs_per_second / planes as f64, peak.name)) {
            Some((peak, name)) if peak < read => Some((peak, name)),
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
        let peak = |macs_per_second| vec![Arithmetic { name: "integer", instruction: "x", macs_per_second }];
        let read = Read { level: Level::Memory, buffer_bytes: 1, one_thread: 5.0, all_threads: 10.0 };
        let mut roofs = Roofs { isa: "x", reads: vec![read], peaks: peak(100.0), copy: None, launches: None };
        assert_eq!(roofs.limit(Level::Memory, 2.0, "integer", 1), Some((20.0, "memory")));
        assert_eq!(roofs.limit(Level::Memory, 200.0, "integer", 2), Some((50.0, "integer")));
        assert_eq!(roofs.limit(Level::Memory, 200.0, "float", 1), Some((2000.0, "memory")));
        assert_eq!(roofs.limit(Level::L2, 2.0, "integer", 1), None);
        let later = Roofs { peaks: peak(120.0), ..roofs.clone() };
        roofs.raise(&later);
        assert_eq!(roofs.limit(Level::Memory, 200.0, "integer", 1), Some((120.0, "integer")));
    }

    /// What a GPU multiplies with depends on type and tokens: each product stands against the roof of its own instruction.
    #[test]
    fn roofs_of_a_gpu_keep_their_names_and_the_better_figures() {
        let peaks = vec![(cuda::Peak::MmaBf16, 400.0), (cuda::Peak::Fma, 30.0)];
        let measured = cuda::Roofs {
            memory_bytes: 2,
            memory: 4.0,
            cache_bytes: 1,
            cache: 8.0,
            copy: 3.0,
            launch: [2e-6, 1e-6],
            peaks,
        };
        let mut roofs = Roofs::of_gpu(&measured);
        assert_eq!(roofs.limit(Level::Memory, 1e3, "mma bf16", 1), Some((400.0, "mma bf16")));
        assert_eq!(roofs.limit(Level::Memory, 1e3, "mma bf16", 3), Some((400.0 / 3.0, "mma bf16")));
        assert_eq!(roofs.limit(Level::Memory, 1e3, "fma", 1), Some((30.0, "fma")));
        assert_eq!(roofs.limit(Level::L2, 1e3, "wgmma f16", 1), Some((8e3, "L2")), "a roof that was not measured");
        let later = cuda::Roofs { copy: 3.5, launch: [3e-6, 0.5e-6], ..measured };
        roofs.raise(&Roofs::of_gpu(&later));
        assert_eq!(roofs.copy.map(|copy| copy.bytes_per_second), Some(3.5));
        let launches = roofs.launches.unwrap();
        assert!((launches.alone_ns - 2e3).abs() < 1e-6 && (launches.overlapped_ns - 500.0).abs() < 1e-6);
    }
}
