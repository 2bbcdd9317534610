//! Compiled kernels that the program carries, and which of them run on a device.

mod compile;

use crate::{DeviceError, DeviceInfo};
use flate2::read::ZlibDecoder;
use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The architecture of the kernels in this program that a device would run, as `sm_90a` or `compute_80`; `None` if there are
/// none for it.
pub fn embedded_target(device: &DeviceInfo) -> Option<&'static str> {
    let targets: Vec<_> = EMBEDDED.iter().map(|(target, _)| *target).collect();
    best_target(&targets, device.capability)
}

/// Where kernels are taken from beside the program itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelSources {
    /// A folder of images that goes before those in the program: `FAMILY.sm_ARCH.cubin` or `FAMILY.compute_ARCH.ptx`, with
    /// `.zz` behind if they are compressed, as `check.py --build` writes them.
    pub folder: Option<PathBuf>,
    /// A folder where kernels are kept that are compiled on this host.
    pub cache: Option<PathBuf>,
}

/// An image and the architecture that it is for.
struct Image {
    target: String,
    bytes: Vec<u8>,
    compressed: bool,
}

impl Image {
    /// What the driver takes.
    fn unpacked(self) -> io::Result<Vec<u8>> {
        if !self.compressed {
            return Ok(ended(&self.target, self.bytes));
        }
        let mut bytes = Vec::new();
        ZlibDecoder::new(&self.bytes[..]).read_to_end(&mut bytes)?;
        Ok(ended(&self.target, bytes))
    }
}

/// The images for a device, of the best architecture that runs there, and that architecture as `10 * major + minor`: from the
/// folder if one is given, else from the program, else compiled here.
pub(crate) fn for_device(device: &DeviceInfo, sources: &KernelSources) -> Result<(u32, Vec<Vec<u8>>), DeviceError> {
    let none = |reason: String| DeviceError::NoKernels {
        device: device.name.clone(),
        capability: device.capability,
        reason: format!("{reason}; or use the CPU"),
    };
    let (all, owner) = match &sources.folder {
        Some(folder) => {
            let reason = |error| none(format!("the folder {} of kernels cannot be read: {error}", folder.display()));
            (read_folder(folder).map_err(reason)?, format!("the folder {}", folder.display()))
        }
        None => {
            let embedded = EMBEDDED.iter().map(|(target, bytes)| Image {
                target: (*target).to_owned(),
                bytes: bytes.to_vec(),
                compressed: true,
            });
            (embedded.collect(), "this program".to_owned())
        }
    };
    let mut targets: Vec<&str> = all.iter().map(|image| &image.target[..]).collect();
    targets.sort_unstable();
    targets.dedup();
    let best = best_target(&targets, device.capability);
    if let Some((best, (_, _, architecture))) = best.and_then(|best| Some((best.to_owned(), parsed(best)?))) {
        let best = all.into_iter().filter(|image| image.target == best);
        let damaged = |error| none(format!("an image in {owner} cannot be unpacked: {error}"));
        return Ok((architecture, best.map(Image::unpacked).collect::<io::Result<_>>().map_err(damaged)?));
    }
    let carried = match targets.as_slice() {
        [] => format!("{owner} holds none"),
        targets => format!("{owner} holds them for {} only", targets.join(", ")),
    };
    if sources.folder.is_some() {
        return Err(none(carried));
    }
    compile::images(device, sources.cache.as_deref()).map_err(|reason| {
        none(format!(
            "{carried}, and they cannot be compiled here: {reason}; run kernels-cuda/check.py --build and build the program \
             again, or install NVRTC (`pip install {}`, with its folder in LD_LIBRARY_PATH)",
            if device.driver >= 13_000 { "nvidia-cuda-nvrtc" } else { "nvidia-cuda-nvrtc-cu12" }
        ))
    })
}

/// The images of a folder, by name.
fn read_folder(folder: &Path) -> io::Result<Vec<Image>> {
    let mut images = Vec::new();
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let (plain, compressed) = name.strip_suffix(".zz").map_or((&name[..], false), |plain| (plain, true));
        if let [_, target, "cubin" | "ptx"] = plain.split('.').collect::<Vec<_>>()[..] {
            images.push(Image { target: target.to_owned(), bytes: fs::read(entry.path())?, compressed });
        }
    }
    Ok(images)
}

/// Whether an image is what it seems to be from its start to the end that the driver will look for: text up to a zero, an ELF
/// file up to its last table and section, or a fatbin of the length that it states.
pub(crate) fn is_whole(image: &[u8]) -> bool {
    let word = |at: usize, bytes: usize| -> Option<u64> {
        let field = image.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let inside = |start: u64, bytes: u64| start.checked_add(bytes).is_some_and(|end| end <= image.len() as u64);
    if image.starts_with(b"\x7fELF\x02\x01") {
        // ELF-64 Object File Format: where the section headers are, how large one is, and how many there are.
        let (Some(table), Some(size), Some(count)) = (word(0x28, 8), word(0x3a, 2), word(0x3c, 2)) else {
            return false;
        };
        const NO_BITS: u64 = 8;
        let section = |index: u64| {
            let at = usize::try_from(table + index * size).ok()?;
            let (kind, start, bytes) = (word(at.checked_add(4)?, 4)?, word(at + 0x18, 8)?, word(at + 0x20, 8)?);
            Some(kind == NO_BITS || inside(start, bytes))
        };
        return count > 0
            && size >= 0x40
            && inside(table, size * count)
            && (0..count).all(|index| section(index) == Some(true));
    }
    if image.starts_with(&[0x50, 0xed, 0x55, 0xba]) {
        let (Some(header), Some(bytes)) = (word(6, 2), word(8, 8)) else { return false };
        return inside(header, bytes);
    }
    image.starts_with(b"//") && image.iter().position(|byte| *byte == 0) == Some(image.len() - 1)
}

/// Text ends with a zero, by which the driver finds its end.
fn ended(target: &str, mut bytes: Vec<u8>) -> Vec<u8> {
    if target.starts_with("compute_") {
        bytes.push(0);
    }
    bytes
}

/// Of `targets`, the one to load on a device. Machine code runs on its own major version from its minor version on, and with
/// the suffix `a` on exactly its own; PTX runs on every later architecture (CUDA C++ Programming Guide, "Binary
/// Compatibility" and "PTX Compatibility").
fn best_target<'a>(targets: &[&'a str], (major, minor): (u32, u32)) -> Option<&'a str> {
    let device = major * 10 + minor;
    let rank = |target: &str| match parsed(target)? {
        ("sm", true, number) => (number == device).then_some(3000),
        ("sm", false, number) => (number / 10 == major && number <= device).then_some(2000 + number),
        ("compute", _, number) => (number <= device).then_some(1000 + number),
        _ => None,
    };
    targets.iter().filter_map(|target| Some((rank(target)?, *target))).max().map(|(_, target)| target)
}

/// The parts of a target's name: `sm` or `compute`, whether it is for exactly its architecture, and that.
fn parsed(target: &str) -> Option<(&str, bool, u32)> {
    let (kind, number) = target.split_once('_')?;
    Some((kind, number.ends_with('a'), number.trim_end_matches('a').parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_are_cut_off_are_not_whole() {
        let mut elf = vec![0u8; 0x40];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[0x28], elf[0x3a], elf[0x3c]) = (0x40, 0x40, 1);
        // One section of 8 bytes behind the headers.
        let mut section = vec![0u8; 0x40];
        (section[4], section[0x18], section[0x20]) = (1, 0x80, 8);
        elf.extend(section);
        elf.extend([1; 8]);
        assert!(is_whole(&elf));
        assert!((0..elf.len()).all(|len| !is_whole(&elf[..len])));
        let mut fatbin = vec![0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        fatbin.extend([7; 4]);
        assert!(is_whole(&fatbin) && !is_whole(&fatbin[..19]));
        assert!(
            is_whole(b"// text\0")
                && !is_whole(b"// text")
                && !is_whole(b"// a\0b\0")
                && !is_whole(b"")
                && !is_whole(b"x\0")
        );
    }

    /// `printf '// text' | python3 -c 'import sys, zlib; sys.stdout.buffer.write(zlib.compress(sys.stdin.buffer.read(), 9))'`
    #[test]
    fn images_are_unpacked_and_text_is_ended() {
        let packed = b"\x78\xda\xd3\xd7\x57\x28\x49\xad\x28\x01\x00\x07\x6d\x02\x44";
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.compute_80.ptx.zz"), packed).unwrap();
        fs::write(folder.path().join("b.compute_80.ptx"), b"// text").unwrap();
        fs::write(folder.path().join("c.sm_80.cubin.zz"), &packed[..9]).unwrap();
        let device = |capability| DeviceInfo {
            ordinal: 0,
            name: "x".into(),
            capability,
            multiprocessors: 1,
            memory: 1,
            l2_cache: 1,
            driver: 12_000,
        };
        let sources = KernelSources { folder: Some(folder.path().to_owned()), cache: None };
        let images = for_device(&device((9, 0)), &sources).unwrap();
        assert_eq!(images, (80, vec![b"// text\0".to_vec(), b"// text\0".to_vec()]));
        let error = for_device(&device((8, 0)), &sources).unwrap_err().to_string();
        assert!(error.contains("cannot be unpacked"), "{error}");
    }

    #[test]
    fn the_best_image_that_runs_is_chosen() {
        let all = ["compute_80", "sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"];
        for (capability, expected) in [
            ((7, 5), None),
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_80")),
            ((8, 9), Some("sm_89")),
            ((9, 0), Some("sm_90a")),
            ((10, 3), Some("sm_100")),
            ((11, 0), Some("compute_80")),
            ((12, 1), Some("sm_120")),
        ] {
            assert_eq!(best_target(&all, capability), expected, "{capability:?}");
        }
        assert_eq!(best_target(&["sm_90a"], (9, 1)), None, "architecture-specific code runs on its own only");
        assert_eq!(best_target(&[], (9, 0)), None);
    }
}
