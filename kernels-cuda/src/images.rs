//! Compiled kernels that the program carries, and which of them run on a device.

use crate::{DeviceError, DeviceInfo};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The architectures of the embedded kernels, as `sm_90a` or `compute_80`; empty if the program was built without any.
pub fn embedded_targets() -> Vec<&'static str> {
    let mut targets: Vec<_> = EMBEDDED.iter().map(|(target, _)| *target).collect();
    targets.dedup();
    targets
}

/// The images for a device: of the best architecture that runs there.
pub(crate) fn for_device(device: &DeviceInfo) -> Result<Vec<Vec<u8>>, DeviceError> {
    let targets = embedded_targets();
    let Some(best) = best_target(&targets, device.capability) else {
        let reason = if targets.is_empty() {
            "this program was built without any; run kernels-cuda/check.py --build and build it again, or use the CPU"
                .into()
        } else {
            format!("this program carries kernels for {} only; use the CPU", targets.join(", "))
        };
        return Err(DeviceError::NoKernels { device: device.name.clone(), capability: device.capability, reason });
    };
    let images = EMBEDDED.iter().filter(|(target, _)| *target == best);
    Ok(images
        .map(|(target, bytes)| {
            let mut bytes = bytes.to_vec();
            if target.starts_with("compute_") {
                bytes.push(0);
            }
            bytes
        })
        .collect())
}

/// Of `targets`, the one to load on a device. Machine code runs on its own major version from its minor version on, and with
/// the suffix `a` on exactly its own; PTX runs on every later architecture (CUDA C++ Programming Guide, "Binary
/// Compatibility" and "PTX Compatibility").
fn best_target<'a>(targets: &[&'a str], (major, minor): (u32, u32)) -> Option<&'a str> {
    let device = major * 10 + minor;
    let rank = |target: &str| -> Option<u32> {
        let (kind, number) = target.split_once('_')?;
        let exact = number.ends_with('a');
        let number: u32 = number.trim_end_matches('a').parse().ok()?;
        match kind {
            "sm" if exact => (number == device).then_some(3000),
            "sm" => (number / 10 == major && number <= device).then_some(2000 + number),
            "compute" => (number <= device).then_some(1000 + number),
            _ => None,
        }
    };
    targets.iter().filter_map(|target| Some((rank(target)?, *target))).max().map(|(_, target)| target)
}

#[cfg(test)]
mod tests {
    use super::*;

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
