//! Which instruction set the kernels use, and why.

/// An instruction set that kernels are written for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Plain scalar code over dequantized `f32` weights; the law that the others are tested against.
    Reference,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
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
    #[error("RUSTAI_CPU={0:?} names no instruction set; use reference, avx2 or avx512, or unset it")]
    Unknown(String),
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

#[cfg(target_arch = "x86_64")]
macro_rules! missing {
    ($($feature:tt),+) => {{
        let mut missing = None;
        $(if missing.is_none() && !std::arch::is_x86_feature_detected!($feature) { missing = Some($feature); })+
        missing
    }};
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Avx2, Self::Avx512];

    /// The name that `RUSTAI_CPU` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// A feature that this instruction set needs and this processor lacks; `None` if it can run here.
    pub fn missing_feature(self) -> Option<&'static str> {
        match self {
            Self::Reference => None,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => missing!("avx2", "fma", "f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                missing!("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => Some("x86-64"),
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
        let isa = Self::ALL
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
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
    }
}
