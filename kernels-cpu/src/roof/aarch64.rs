//! The loops for AArch64. They are assembly where the standard library has no stable function for an instruction.

use super::{Loop, Loops};
use crate::Isa;
use std::{
    arch::{aarch64::*, asm},
    hint::black_box,
};

/// The loops of an instruction set.
pub(super) fn loops(isa: Isa) -> Option<Loops> {
    let float = Loop { instruction: "fmla v.4s", macs: 16 * 4, run: float };
    let integer = match isa {
        Isa::Neon => Loop { instruction: "smull + smlal2 + sadalp", macs: 16 * 16, run: integer_neon },
        Isa::NeonDotprod => Loop { instruction: "sdot v.4s", macs: 16 * 16, run: integer_dotprod },
        Isa::NeonI8mm => Loop { instruction: "smmla v.4s", macs: 16 * 32, run: integer_i8mm },
        _ => return None,
    };
    Some(Loops { integer, float })
}

macro_rules! integer_loops {
    ($($name:ident, $features:literal, [$($instruction:literal),+];)+) => {
        $(
            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            unsafe fn $name(turns: u64) -> f64 {
                let (a, b) = (black_box(vdupq_n_s8(2)), black_box(vdupq_n_s8(3)));
                let mut all: [int32x4_t; 16] = std::array::from_fn(|i| black_box(vdupq_n_s32(i as i32)));
                for _ in 0..turns {
                    for one in &mut all {
                        // SAFETY: the processor has the instructions, and they touch no memory.
                        unsafe {
                            asm!(
                                $($instruction,)+
                                "/* {t:v} */",
                                one = inout(vreg) *one,
                                a = in(vreg) a,
                                b = in(vreg) b,
                                t = out(vreg) _,
                                options(pure, nomem, nostack, preserves_flags)
                            );
                        }
                    }
                }
                all.into_iter().map(|one| f64::from(vaddvq_s32(one))).sum()
            }
        )+
    };
}

integer_loops! {
    integer_neon, "neon",
        ["smull {t:v}.8h, {a:v}.8b, {b:v}.8b", "smlal2 {t:v}.8h, {a:v}.16b, {b:v}.16b", "sadalp {one:v}.4s, {t:v}.8h"];
    integer_dotprod, "neon,dotprod", ["sdot {one:v}.4s, {a:v}.16b, {b:v}.16b"];
    integer_i8mm, "neon,i8mm", ["smmla {one:v}.4s, {a:v}.16b, {b:v}.16b"];
}

/// # Safety
/// The processor has NEON.
#[target_feature(enable = "neon")]
unsafe fn float(turns: u64) -> f64 {
    let (a, b) = (black_box(vdupq_n_f32(0.5)), black_box(vdupq_n_f32(0.5)));
    let mut all: [float32x4_t; 16] = std::array::from_fn(|i| black_box(vdupq_n_f32(i as f32)));
    for _ in 0..turns {
        for one in &mut all {
            *one = vfmaq_f32(*one, a, b);
        }
    }
    all.into_iter().map(|one| f64::from(vaddvq_f32(one))).sum()
}
