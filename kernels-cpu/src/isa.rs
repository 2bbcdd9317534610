//! Which instruction set the kernels use, and why.

/// An instruction set that kernels are written for; within an architecture, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Plain scalar code over dequantized `f32` weights; the law that the others are tested against.
    Reference,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with dot products of bytes too (AVX-VNNI: `vpdpbusd`).
    AvxVnni,
    /// AVX-512 F, BW, DQ and VL: products of bytes are added up in 16 bits.
    Avx512Bw,
    /// AVX-512 with dot products of bytes too (VNNI: `vpdpbusd`).
    Avx512,
    /// NEON as every AArch64 processor has it: products of bytes are added up in 16 bits.
    Neon,
    /// NEON with dot products of bytes (FEAT_DotProd: `sdot`).
    NeonDotprod,
    /// NEON with products of matrices of bytes too (FEAT_I8MM: `smmla`).
    NeonI8mm,
}

/// The instruction set in use and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// What kernels will run.
    pub isa: Isa,
    /// One sentence for people.
    pub reason: String,
}

/// A forced instruction set that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is not one of the known ones.
    #[error("RUSTAI_CPU={0:?} names no instruction set; use {names}, or unset it", names = Isa::names())]
    Unknown(String),
    /// The name is that of another architecture's instruction set.
    #[error(
        "RUSTAI_CPU={forced} is for {architecture} processors and this program is built for {}; use {names}, or unset it",
        std::env::consts::ARCH,
        names = Isa::names()
    )]
    OtherArchitecture {
        /// What was asked for.
        forced: &'static str,
        /// The architecture that has it.
        architecture: &'static str,
    },
    /// This processor lacks a feature.
    #[error(
        "RUSTAI_CPU={forced} needs a processor feature that is missing here ({missing}); the best available is {best}"
    )]
    Unavailable {
        /// What was asked for.
        forced: &'static str,
        /// The missing feature.
        missing: &'static str,
        /// What this processor can do.
        best: &'static str,
    },
}

/// Environment variable that forces an instruction set.
pub const ENVIRONMENT: &str = "RUSTAI_CPU";

/// The first of the features that this processor lacks.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! missing {
    ($detected:ident: $($feature:tt),+) => {{
        let mut missing = None;
        $(if missing.is_none() && !std::arch::$detected!($feature) { missing = Some($feature); })+
        missing
    }};
}

impl Isa {
    /// The instruction sets of the architecture that this program is built for, slowest first.
    #[cfg(target_arch = "x86_64")]
    pub const ALL: [Self; 5] = [Self::Reference, Self::Avx2, Self::AvxVnni, Self::Avx512Bw, Self::Avx512];
    /// The instruction sets of the architecture that this program is built for, slowest first.
    #[cfg(target_arch = "aarch64")]
    pub const ALL: [Self; 4] = [Self::Reference, Self::Neon, Self::NeonDotprod, Self::NeonI8mm];
    /// The instruction sets of the architecture that this program is built for, slowest first.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub const ALL: [Self; 1] = [Self::Reference];

    /// The instruction sets of all architectures.
    pub const KNOWN: [Self; 8] = [
        Self::Reference,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512Bw,
        Self::Avx512,
        Self::Neon,
        Self::NeonDotprod,
        Self::NeonI8mm,
    ];

    /// The name that `RUSTAI_CPU` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Bw => "avx512bw",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// The architecture that has the instruction set, named as `std::env::consts::ARCH` does; `None` if all have it.
    pub const fn architecture(self) -> Option<&'static str> {
        match self {
            Self::Reference => None,
            Self::Avx2 | Self::AvxVnni | Self::Avx512Bw | Self::Avx512 => Some("x86_64"),
            Self::Neon | Self::NeonDotprod | Self::NeonI8mm => Some("aarch64"),
        }
    }

    /// A feature that this instruction set needs and this processor lacks, or the name of its architecture if this is
    /// another; `None` if it can run here.
    pub fn missing_feature(self) -> Option<&'static str> {
        match self {
            Self::Reference => None,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => missing!(is_x86_feature_detected: "avx2", "fma", "f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => missing!(is_x86_feature_detected: "avx2", "fma", "f16c", "avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bw => missing!(
                is_x86_feature_detected: "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"
            ),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => missing!(
                is_x86_feature_detected: "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl",
                "avx512vnni"
            ),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => missing!(is_aarch64_feature_detected: "neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => missing!(is_aarch64_feature_detected: "neon", "dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => missing!(is_aarch64_feature_detected: "neon", "dotprod", "i8mm"),
            _ => self.architecture(),
        }
    }

    /// The names of [`ALL`](Self::ALL), as a sentence lists them.
    fn names() -> String {
        let names = Self::ALL.map(Self::name);
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }

    /// The fastest instruction set that this processor can run.
    pub fn best() -> Self {
        let mut best = Self::Reference;
        for isa in Self::ALL {
            if isa.missing_feature().is_none() {
                best = isa;
            }
        }
        best
    }

    /// The best instruction set, or the one that the environment variable `RUSTAI_CPU` forces.
    ///
    /// # Errors
    /// [`IsaError`] if the variable holds an unknown name or names a set that this processor cannot run.
    pub fn select() -> Result<Selection, IsaError> {
        Self::select_from(std::env::var(ENVIRONMENT).ok().as_deref())
    }

    fn select_from(forced: Option<&str>) -> Result<Selection, IsaError> {
        let best = Self::best();
        let Some(name) = forced.filter(|name| !name.is_empty()) else {
            let reason = match Self::ALL.iter().find(|isa| **isa > best) {
                Some(next) => format!(
                    "the best that this processor runs; {} needs {}",
                    next.name(),
                    next.missing_feature().unwrap_or("nothing more")
                ),
                None => "the best there is, and this processor runs it".to_owned(),
            };
            return Ok(Selection { isa: best, reason });
        };
        let isa = Self::KNOWN
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
        if let Some(architecture) = isa.architecture().filter(|name| *name != std::env::consts::ARCH) {
            return Err(IsaError::OtherArchitecture { forced: isa.name(), architecture });
        }
        if let Some(missing) = isa.missing_feature() {
            return Err(IsaError::Unavailable { forced: isa.name(), missing, best: best.name() });
        }
        Ok(Selection {
            isa,
            reason: format!("forced by {ENVIRONMENT}={}; the best here is {}", isa.name(), best.name()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_name_wins_and_a_wrong_one_is_refused() {
        assert_eq!(Isa::select_from(Some("reference")).unwrap().isa, Isa::Reference);
        assert_eq!(Isa::select_from(None).unwrap().isa, Isa::best());
        assert_eq!(Isa::select_from(Some("")).unwrap().isa, Isa::best());
        assert_eq!(Isa::select_from(Some("sse9")), Err(IsaError::Unknown("sse9".into())));
        let text = IsaError::Unknown("sse9".into()).to_string();
        assert!(Isa::ALL.iter().all(|isa| text.contains(isa.name())), "{text}");
    }

    #[test]
    fn instruction_sets_of_other_architectures_are_told_from_missing_features() {
        for isa in Isa::KNOWN {
            let here = Isa::ALL.contains(&isa);
            assert_eq!(here, isa.architecture().is_none_or(|name| name == std::env::consts::ARCH));
            let other = matches!(Isa::select_from(Some(isa.name())), Err(IsaError::OtherArchitecture { .. }));
            assert_eq!(other, !here, "{isa:?}");
            assert!(here || isa.missing_feature() == isa.architecture(), "{isa:?}");
        }
    }

    /// The emulated processors of `scripts/cross_test.sh` and `scripts/emulate_x86.sh` differ in what they detect, and each
    /// level has to be met.
    #[test]
    fn the_best_is_the_one_that_the_environment_says_this_processor_has() {
        if let Ok(name) = std::env::var("RUSTAI_TEST_BEST") {
            assert_eq!(Isa::best().name(), name);
        }
    }
}
