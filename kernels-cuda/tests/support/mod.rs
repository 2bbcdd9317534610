//! What the tests of kernels share: the stand-in's device, numbers and how far results are off.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod products;

use rustai_kernels_cuda::{Device, KernelSources, Kernels, Stream};

pub use rustai_cuda_standin::Standin;

/// The stand-in as it is at first.
pub fn standin() -> Standin {
    Standin::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The stand-in's device with its kernels and a stream.
pub fn open(standin: &Standin) -> (Device, Kernels, Stream) {
    let device = Device::open(0).expect("a device");
    let kernels = if standin.is_real() {
        let folder = std::env::var_os("RUSTAI_CUDA_KERNELS").map(Into::into);
        Kernels::load(&device, &KernelSources { folder, cache: None })
    } else {
        Kernels::from_images(&device, 90, &[b"// the stand-in has all kernels in it\0"])
    }
    .unwrap();
    let stream = Stream::new(&device).unwrap();
    (device, kernels, stream)
}

/// Numbers that look random and are the same everywhere.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Between -1 and 1.
    pub fn value(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// The largest difference, relative to the largest magnitude expected.
pub fn error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(f32::MIN_POSITIVE, |scale, x| scale.max(x.abs()));
    got.iter().zip(expected).fold(0.0, |worst, (got, expected)| {
        let off = (got - expected).abs() / scale;
        // NaN is the worst.
        if off >= worst || off.is_nan() { if off.is_nan() { f32::INFINITY } else { off } } else { worst }
    })
}
