//! Compiles the kernels on the host that runs them, with NVIDIA's run-time compiler (NVRTC), where the program carries none
//! for the device. That takes a while, so the results are kept in a folder.
//!
//! The compiler's library is opened by hand: cudarc looks for one of a single version, and any that is not newer than the
//! driver serves.

use crate::DeviceInfo;
use libloading::{Library, Symbol};
use rayon::prelude::*;
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write as _},
    path::Path,
    ptr,
};

/// The sources: families of kernels, each an image of its own, and the headers that they include.
const FAMILIES: &[(&str, &str)] = &[
    ("attention", include_str!("../../cuda/attention.cu")),
    ("attention_prefill", include_str!("../../cuda/attention_prefill.cu")),
    ("gemm", include_str!("../../cuda/gemm.cu")),
    ("gemm_float", include_str!("../../cuda/gemm_float.cu")),
    ("gemm_sm90a", include_str!("../../cuda/gemm_sm90a.cu")),
    ("gemv", include_str!("../../cuda/gemv.cu")),
    ("probe", include_str!("../../cuda/probe.cu")),
    ("probe_sm90a", include_str!("../../cuda/probe_sm90a.cu")),
    ("roof", include_str!("../../cuda/roof.cu")),
    ("roof_sm90a", include_str!("../../cuda/roof_sm90a.cu")),
    ("rows", include_str!("../../cuda/rows.cu")),
    ("sample", include_str!("../../cuda/sample.cu")),
];
const HEADERS: &[(&str, &str)] = &[
    ("attention.cuh", include_str!("../../cuda/attention.cuh")),
    ("common.cuh", include_str!("../../cuda/common.cuh")),
    ("formats.cuh", include_str!("../../cuda/formats.cuh")),
    ("fragments.cuh", include_str!("../../cuda/fragments.cuh")),
    ("gemm.cuh", include_str!("../../cuda/gemm.cuh")),
    ("hopper.cuh", include_str!("../../cuda/hopper.cuh")),
    ("matmul.cuh", include_str!("../../cuda/matmul.cuh")),
    ("quantize.cuh", include_str!("../../cuda/quantize.cuh")),
];

/// Names under which the library is found, the newest first.
const LIBRARIES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

type Program = *mut c_void;

/// The functions of the library that are used (NVRTC documentation, "Compilation").
struct Nvrtc {
    library: Library,
    name: &'static str,
    /// As a driver's version is counted: `1000 * major + 10 * minor`.
    version: i32,
}

impl Nvrtc {
    /// The first library there is that makes something for the device, and what.
    fn open(device: &DeviceInfo) -> Result<(Self, Target), String> {
        let driver = device.driver;
        let mut too_new = None;
        for name in LIBRARIES {
            // SAFETY: the library's initialisers are what its installer expects to run.
            let Ok(library) = (unsafe { Library::new(name) }) else { continue };
            let nvrtc = Self { library, name, version: 0 };
            let Some((major, minor)) = nvrtc.numbers()? else { continue };
            let nvrtc = Self { version: 1000 * major + 10 * minor, ..nvrtc };
            let target = Target::of(device.capability, &nvrtc.architectures()?)
                .ok_or_else(|| format!("{name} knows no architecture that runs there"))?;
            // A driver takes code of its own major version, and text of no version newer than its own.
            let fits = match target {
                Target::Code(_) => nvrtc.version / 1000 <= driver / 1000,
                Target::Text(_) => nvrtc.version <= driver,
            };
            if fits {
                return Ok((nvrtc, target));
            }
            let (of, at) = (driver / 1000, driver % 1000 / 10);
            too_new = Some(format!("{name} is of CUDA {major}.{minor}, newer than the driver's {of}.{at}"));
        }
        Err(too_new.unwrap_or_else(|| format!("none of the libraries {} was found", LIBRARIES.join(", "))))
    }

    /// Major and minor version.
    fn numbers(&self) -> Result<Option<(i32, i32)>, String> {
        let (mut major, mut minor) = (0, 0);
        let version = self.function::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(c"nvrtcVersion")?;
        // SAFETY: both pointers are to locals.
        let result = unsafe { version(&raw mut major, &raw mut minor) };
        Ok((result == 0).then_some((major, minor)))
    }

    fn function<T>(&self, name: &CStr) -> Result<Symbol<'_, T>, String> {
        // SAFETY: callers name the type that NVRTC's documentation gives the function.
        unsafe { self.library.get(name.to_bytes_with_nul()) }.map_err(|error| format!("{}: {error}", self.name))
    }

    /// Architectures that it makes code for, as `10 * major + minor`.
    fn architectures(&self) -> Result<Vec<u32>, String> {
        type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
        let (count_of, list) =
            (self.function::<Count>(c"nvrtcGetNumSupportedArchs")?, self.function::<Count>(c"nvrtcGetSupportedArchs")?);
        let mut count = 0;
        // SAFETY: the pointer is to a local.
        if unsafe { count_of(&raw mut count) } != 0 || count <= 0 {
            return Err(format!("{} names no architectures", self.name));
        }
        let mut architectures = vec![0; count as usize];
        // SAFETY: there is room for as many as it counts.
        if unsafe { list(architectures.as_mut_ptr()) } != 0 {
            return Err(format!("{} names no architectures", self.name));
        }
        Ok(architectures.into_iter().map(|architecture| architecture as u32).collect())
    }

    /// Compiles one family. The result ends with a zero byte if it is text.
    fn compile(&self, family: &str, source: &str, target: &Target) -> Result<Vec<u8>, String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let text = |text: &str| CString::new(text).map_err(|_| format!("{family}: a zero byte in the source"));
        let (source, name) = (text(source)?, text(&format!("{family}.cu"))?);
        let names = HEADERS.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let headers = HEADERS.iter().map(|(_, source)| text(source)).collect::<Result<Vec<_>, _>>()?;
        let options = target.options().iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (name_list, header_list, option_list) = (pointers(&names), pointers(&headers), pointers(&options));
        let (create, compile, destroy) = (
            self.function::<Create>(c"nvrtcCreateProgram")?,
            self.function::<Compile>(c"nvrtcCompileProgram")?,
            self.function::<Destroy>(c"nvrtcDestroyProgram")?,
        );
        let mut program: Program = ptr::null_mut();
        let count = HEADERS.len() as c_int;
        // SAFETY: all texts end with a zero and outlive the call; both lists have `count` entries.
        let created = unsafe {
            create(&raw mut program, source.as_ptr(), name.as_ptr(), count, header_list.as_ptr(), name_list.as_ptr())
        };
        if created != 0 {
            return Err(format!("{} makes no program (error {created})", self.name));
        }
        // SAFETY: the program was created, and there are as many options.
        let compiled = unsafe { compile(program, option_list.len() as c_int, option_list.as_ptr()) };
        let result = if compiled == 0 {
            let (size, bytes) = target.getters();
            self.bytes(program, size, bytes)
        } else {
            let log = self.bytes(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog").unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let first = log.lines().find(|line| line.contains("error")).unwrap_or("no reason given");
            Err(format!("{} does not compile {family}.cu for {}: {first}", self.name, target.name()))
        };
        // SAFETY: the program was created, and is not used again.
        unsafe { destroy(&raw mut program) };
        result
    }

    /// What a pair of functions gives: first how many bytes, then the bytes.
    fn bytes(&self, program: Program, size: &CStr, bytes: &CStr) -> Result<Vec<u8>, String> {
        let size_of = self.function::<unsafe extern "C" fn(Program, *mut usize) -> c_int>(size)?;
        let read = self.function::<unsafe extern "C" fn(Program, *mut c_char) -> c_int>(bytes)?;
        let mut count = 0;
        // SAFETY: the program is alive, and the pointer is to a local.
        if unsafe { size_of(program, &raw mut count) } != 0 || count == 0 {
            return Err(format!("{} gives no result", self.name));
        }
        let mut result = vec![0u8; count];
        // SAFETY: there is room for as many bytes as it counts.
        match unsafe { read(program, result.as_mut_ptr().cast()) } {
            0 => Ok(result),
            error => Err(format!("{} gives no result (error {error})", self.name)),
        }
    }
}

/// What is made: machine code of an architecture, or text that the driver compiles further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Code(u32),
    Text(u32),
}

impl Target {
    /// For a device and a compiler that knows some architectures: code if it knows the device's, else text for the newest
    /// before it.
    fn of(capability: (u32, u32), known: &[u32]) -> Option<Self> {
        let device = capability.0 * 10 + capability.1;
        if known.contains(&device) {
            return Some(Self::Code(device));
        }
        known.iter().copied().filter(|known| (80..device).contains(known)).max().map(Self::Text)
    }

    /// Named as the embedded images are.
    fn name(&self) -> String {
        match self {
            // Hopper's own instructions are in the code for exactly that architecture.
            Self::Code(90) => "sm_90a".into(),
            Self::Code(number) => format!("sm_{number}"),
            Self::Text(number) => format!("compute_{number}"),
        }
    }

    /// Families that are named for an architecture are for its code only.
    fn takes(&self, family: &str) -> bool {
        family.rsplit_once("_sm").is_none_or(|(_, number)| self.name() == format!("sm_{number}"))
    }

    fn options(&self) -> [String; 3] {
        [
            format!("--gpu-architecture={}", self.name()),
            "--std=c++17".into(),
            "--device-as-default-execution-space".into(),
        ]
    }

    fn getters(&self) -> (&'static CStr, &'static CStr) {
        match self {
            Self::Code(_) => (c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN"),
            Self::Text(_) => (c"nvrtcGetPTXSize", c"nvrtcGetPTX"),
        }
    }
}

/// The images of all families for a device, and the architecture that they are for: from `cache`, or compiled and written there.
pub(super) fn images(device: &DeviceInfo, cache: Option<&Path>) -> Result<(u32, Vec<Vec<u8>>), String> {
    let (nvrtc, target) = Nvrtc::open(device)?;
    let (Target::Code(architecture) | Target::Text(architecture)) = target;
    let path = |family: &str| Some(cache?.join(file_name(family, &target, nvrtc.version)));
    let images = FAMILIES
        .par_iter()
        .filter(|(family, _)| target.takes(family))
        .map(|(family, source)| {
            let path = path(family);
            if let Some(image) = path.as_deref().and_then(kept) {
                return Ok(image);
            }
            let image = nvrtc.compile(family, source, &target)?;
            if let Some(path) = path {
                keep(&path, &image);
            }
            Ok(image)
        })
        .collect::<Result<_, String>>()?;
    Ok((architecture, images))
}

/// The name of an image says all that it was made from, so a program with other sources does not take it.
fn file_name(family: &str, target: &Target, version: i32) -> String {
    let mut hasher = DefaultHasher::new();
    (FAMILIES, HEADERS, target.options(), version).hash(&mut hasher);
    let kind = if matches!(target, Target::Code(_)) { "cubin" } else { "ptx" };
    format!("{family}.{}.{:016x}.{kind}", target.name(), hasher.finish())
}

/// An image that a process has kept, if it is what that one wrote: its checksum is behind it.
fn kept(path: &Path) -> Option<Vec<u8>> {
    let mut image = fs::read(path).ok()?;
    let sum = image.split_off(image.len().checked_sub(8)?);
    (sum == checksum(&image)).then_some(image)
}

fn checksum(image: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    hasher.finish().to_le_bytes()
}

/// Writes an image and its checksum to where the next process looks. That it cannot be written costs only time.
fn keep(path: &Path, image: &[u8]) {
    let write = || -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(folder)?;
        // A name of its own: other processes, of other containers too, may be doing the same.
        let mut part = tempfile::NamedTempFile::new_in(folder)?;
        part.write_all(image)?;
        part.write_all(&checksum(image))?;
        part.as_file().sync_all()?;
        part.persist(path).map(drop).map_err(|error| error.error)
    };
    // What was begun is removed when it is dropped.
    let _ = write();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_made_where_the_compiler_knows_the_device_and_text_where_it_is_newer() {
        let known = [75, 80, 90, 100, 120];
        assert_eq!(Target::of((9, 0), &known), Some(Target::Code(90)));
        assert_eq!(Target::of((12, 1), &known), Some(Target::Text(120)));
        assert_eq!(Target::of((8, 6), &known), Some(Target::Text(80)));
        assert_eq!(Target::of((7, 0), &known), None);
        assert_eq!(Target::Code(90).name(), "sm_90a");
        assert!(Target::Code(90).takes("gemm_sm90a") && Target::Code(100).takes("gemm"));
        assert!(!Target::Code(100).takes("gemm_sm90a") && !Target::Text(90).takes("gemm_sm90a"));
    }

    #[test]
    fn every_source_is_listed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
        let mut found: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let mut listed: Vec<String> = FAMILIES.iter().map(|(family, _)| format!("{family}.cu")).collect();
        listed.extend(HEADERS.iter().map(|(name, _)| (*name).to_owned()));
        found.sort();
        listed.sort();
        assert_eq!(found, listed);
    }

    /// The run-time compiler brings no headers of the C library.
    #[test]
    fn sources_need_no_toolkit() {
        for (name, source) in FAMILIES.iter().chain(HEADERS) {
            for word in ["#include <", "INFINITY", "FLT_MAX", "UINT_MAX", "INT_MAX", "uint32_t"] {
                assert!(!source.contains(word), "{word} in {name}");
            }
        }
    }

    #[test]
    fn a_host_without_the_compiler_is_told_its_names() {
        let device = DeviceInfo {
            ordinal: 0,
            name: "x".into(),
            capability: (9, 0),
            multiprocessors: 1,
            memory: 1,
            l2_cache: 1,
            // No compiler is not newer than this.
            driver: 0,
        };
        let error = Nvrtc::open(&device).map(|_| ()).unwrap_err();
        assert!(error.contains("libnvrtc.so"), "{error}");
    }

    #[test]
    fn what_is_kept_is_found_unless_it_was_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels").join("x.cubin");
        keep(&path, b"image");
        assert_eq!(kept(&path).as_deref(), Some(&b"image"[..]));
        keep(&path, b"another");
        assert_eq!(kept(&path).as_deref(), Some(&b"another"[..]));
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(kept(&path), None);
        }
        keep(Path::new("/dev/null/x"), b"image");
    }
}
