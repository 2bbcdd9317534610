//! `info`: what this computer offers and what rustai makes of it.

use crate::{
    args::InfoArgs,
    compute,
    failure::Failure,
    ui::{self, Printer, Table},
};
use rustai::{
    Isa,
    backend::{DeviceChoice, cuda},
};
use rustai_kernels_cpu::placement::{HugePages, NodePolicy, Placement};
use serde::Serialize;
use std::fs;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    processor: String,
    features: Vec<&'static str>,
    /// The kernels chosen; `null` if the environment asks for some that cannot be had.
    isa: Option<&'static str>,
    isa_reason: String,
    instruction_sets: Vec<IsaReport>,
    cores: usize,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    huge_pages: Option<&'static str>,
    huge_pages_used: bool,
    memory_nodes: Vec<usize>,
    memory_policy: &'static str,
    /// Where models run unless a flag says otherwise; `null` if the environment names no device.
    device_choice: Option<String>,
    devices: Vec<DeviceReport>,
    devices_missing: Option<String>,
    cache: Option<String>,
    system: String,
}

#[derive(Serialize)]
struct IsaReport {
    name: &'static str,
    available: bool,
    missing: Option<&'static str>,
}

/// A GPU.
#[derive(Serialize)]
struct DeviceReport {
    device: String,
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    memory_bytes: u64,
    driver: String,
    /// Where its kernels come from.
    kernels: String,
}

impl DeviceReport {
    fn new(device: cuda::DeviceInfo) -> Self {
        let (major, minor) = device.capability;
        Self {
            device: format!("cuda:{}", device.ordinal),
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: device.multiprocessors,
            memory_bytes: device.memory,
            driver: format!("CUDA {}.{}", device.driver / 1000, device.driver % 1000 / 10),
            kernels: match (cuda::kernels_folder(), cuda::embedded_target(&device)) {
                (Some(folder), _) => format!("from {}", folder.display()),
                (None, Some(target)) => format!("{target} in this program"),
                (None, None) => "none in this program; compiled at first use, which needs NVRTC".to_owned(),
            },
            name: device.name,
        }
    }

    fn line(&self) -> String {
        format!(
            "{} {} ({}, {} multiprocessors, compute capability {}, {}, kernels: {})",
            self.device,
            self.name,
            ui::bytes(self.memory_bytes),
            self.multiprocessors,
            self.compute_capability,
            self.driver,
            self.kernels
        )
    }
}

/// Prints it. What is wrong in the environment is an error, but only after all else has been told: it is what people look
/// for here.
pub fn run(args: &InfoArgs) -> Result<(), Failure> {
    let selection = Isa::select();
    let device = DeviceChoice::Auto.or_environment();
    let instruction_sets = Isa::ALL.map(|isa| {
        let missing = isa.missing_feature();
        IsaReport { name: isa.name(), available: missing.is_none(), missing }
    });
    let placement = Placement::of_this_system();
    let (devices, devices_missing) = match cuda::devices() {
        Ok(devices) => (devices.into_iter().map(DeviceReport::new).collect(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        processor: processor(),
        features: features(),
        isa: selection.as_ref().ok().map(|selection| selection.isa.name()),
        isa_reason: match &selection {
            Ok(selection) => selection.reason.clone(),
            Err(error) => error.to_string(),
        },
        instruction_sets: instruction_sets.into(),
        cores: compute::cores(),
        memory_bytes: meminfo("MemTotal"),
        memory_available_bytes: meminfo("MemAvailable"),
        huge_pages: placement.huge_pages.map(HugePages::name),
        huge_pages_used: placement.gives_huge_pages(),
        memory_nodes: placement.nodes.clone(),
        memory_policy: policy(placement.policy).0,
        device_choice: device.as_ref().ok().map(DeviceChoice::to_string),
        devices,
        devices_missing,
        cache: cache(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    };
    if args.json {
        ui::json(&report)?
    } else {
        print(&report, placement)?
    }
    selection?;
    device.map(drop).map_err(|error| Failure::from(error).within("RUSTAI_DEVICE"))
}

/// Where models run, in one line.
fn device_choice(choice: Option<&str>) -> String {
    match choice {
        Some("auto") => "auto: a GPU if there is one that serves, else the CPU".to_owned(),
        Some(choice) => format!("{choice}: RUSTAI_DEVICE says so"),
        None => "nowhere: RUSTAI_DEVICE names no device".to_owned(),
    }
}

/// A policy as JSON names it, and what it means.
fn policy(policy: NodePolicy) -> (&'static str, &'static str) {
    match policy {
        NodePolicy::OneNode => ("one_node", "nothing to place"),
        NodePolicy::Interleave => ("interleave", "weights, cache and activations are dealt out to all, page by page"),
        NodePolicy::Inherited => ("inherited", "the memory policy that this process was started with is kept"),
        NodePolicy::Refused => ("refused", "the system refuses mbind, so memory lies where it is touched first"),
    }
}

/// Huge pages in one line.
fn huge_pages(placement: &Placement) -> String {
    match placement.huge_pages {
        None => "this kernel has none".to_owned(),
        Some(mode) if placement.huge_pages_disabled => format!("{}, but switched off for this process", mode.name()),
        Some(HugePages::Never) => "never: switched off; `madvise` in /sys/kernel/mm/transparent_hugepage/enabled lets \
                                   weights and cache have them"
            .to_owned(),
        Some(mode) => format!("{}: weights and cache get them", mode.name()),
    }
}

/// Memory nodes in one line.
fn nodes(placement: &Placement) -> String {
    match placement.nodes.len() {
        0 => "unknown".to_owned(),
        count => format!("{count}: {}", policy(placement.policy).1),
    }
}

fn print(report: &Report, placement: &Placement) -> Result<(), Failure> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), ui::bytes);
    let others = report.instruction_sets.iter().map(|isa| match isa.missing {
        None => format!("{} (available)", isa.name),
        Some(feature) => format!("{} (this processor lacks {feature})", isa.name),
    });
    let devices = match &report.devices_missing {
        Some(reason) => format!("CPU only: {reason}"),
        None => report.devices.iter().map(DeviceReport::line).collect::<Vec<_>>().join("; "),
    };
    let mut table = Table::new(&["", ""]);
    for (name, value) in [
        ("version", format!("rustai {}, {}", report.version, report.system)),
        ("processor", report.processor.clone()),
        ("features", report.features.join(" ")),
        ("kernels", format!("{}: {}", report.isa.unwrap_or("none"), report.isa_reason)),
        ("instruction sets", others.collect::<Vec<_>>().join(", ")),
        ("cores", format!("{} (threads by default)", report.cores)),
        ("memory", format!("{}, {} available", size(report.memory_bytes), size(report.memory_available_bytes))),
        ("huge pages", huge_pages(placement)),
        ("memory nodes", nodes(placement)),
        ("devices", devices),
        ("models run on", device_choice(report.device_choice.as_deref())),
        ("cache folder", report.cache.clone().unwrap_or_else(|| "none".to_owned())),
    ] {
        table.row(vec![name.to_owned(), value]);
    }
    let text = table.text();
    Printer::default().piece(text.trim_start_matches('\n'))
}

/// The processor's name.
pub fn processor() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| processor_name(&text))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The name in a `/proc/cpuinfo`: what it calls the model, or on ARM, where there is no such line, the numbers of the
/// designer and of the part (Arm Architecture Reference Manual, MIDR_EL1).
fn processor_name(text: &str) -> Option<String> {
    let field = |name: &str| {
        let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
        Some(value.trim())
    };
    if let Some(name) = field("model name") {
        return Some(name.to_owned());
    }
    Some(format!("ARM implementer {}, part {}", field("CPU implementer")?, field("CPU part")?))
}

/// Largest resident set of this process so far, in bytes.
pub fn peak_rss() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

fn meminfo(field: &str) -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, field)
}

/// A `Name:   123 kB` line of a file under `/proc`, in bytes.
fn kibibytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The folder of fetched models; `None` if the environment names none.
fn cache() -> Option<String> {
    rustai::hub::cache_dir().ok().map(|path| path.display().to_string())
}

/// Features of the processor that kernels use, or may come to use.
fn features() -> Vec<&'static str> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    macro_rules! detected {
        ($detected:ident: $($name:tt)*) => {{
            let mut list = Vec::new();
            $(if std::arch::$detected!($name) { list.push($name); })*
            list
        }};
    }
    #[cfg(target_arch = "x86_64")]
    {
        detected!(
            is_x86_feature_detected:
            "sse4.2" "avx" "avx2" "fma" "f16c" "bmi2" "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni"
            "avx512bf16" "avx512fp16" "avx512vbmi" "gfni"
        )
    }
    #[cfg(target_arch = "aarch64")]
    {
        detected!(is_aarch64_feature_detected: "neon" "fp16" "fhm" "bf16" "dotprod" "i8mm" "sve" "sve2" "sme")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_lines_are_read_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:  2048 kB\nOdd: 3\n";
        assert_eq!(kibibytes(text, "MemTotal"), Some(2048 * 1024));
        assert_eq!(kibibytes(text, "Odd"), None);
        assert_eq!(kibibytes(text, "Mem"), None);
        assert_eq!(processor_name("cpu\t: 0\nmodel name\t: A: B\n"), Some("A: B".to_owned()));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(processor_name(arm), Some("ARM implementer 0x41, part 0xd0c".to_owned()));
        assert_eq!(processor_name("hart\t: 0\n"), None);
        assert!(peak_rss().is_none_or(|bytes| bytes > 0));
    }
}
