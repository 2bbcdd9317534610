//! Tile kernels for F16 and F32 weights with `f32` activations.
//!
//! SAFETY of the whole file: as in the integer kernels, functions are called through the entry points that
//! [`float_kernels`] makes, whose contract is that of [`TileKernel`](crate::tile::TileKernel).

use crate::{
    pack::GROUP,
    simd::Simd,
    tile::{TILE_ROWS, Tile},
};

/// `T` tokens from `token` on times `N` vectors of rows from `group` on.
#[inline(always)]
unsafe fn micro<V: Simd, const HALF: bool, const T: usize, const N: usize>(tile: &Tile, group: usize, token: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let per_group = GROUP / V::LANES;
        let x: [*const f32; T] = std::array::from_fn(|t| tile.x.add((token + t) * tile.x_stride).cast());
        let w: [*const u8; N] = std::array::from_fn(|n| {
            let bytes = if HALF { 2 } else { 4 };
            tile.group.add((group + n / per_group) * tile.stride + n % per_group * V::LANES * bytes)
        });
        let mut acc = [[V::splat(0.0); N]; T];
        for k in 0..tile.cols {
            let w: [V; N] = std::array::from_fn(|n| {
                if HALF {
                    V::load_f16(w[n].cast::<u16>().add(k * GROUP))
                } else {
                    V::load(w[n].cast::<f32>().add(k * GROUP))
                }
            });
            for t in 0..T {
                let x = V::splat(*x[t].add(k));
                for n in 0..N {
                    acc[t][n] = w[n].fma(x, acc[t][n]);
                }
            }
        }
        for (t, acc) in acc.into_iter().enumerate() {
            for (n, acc) in acc.into_iter().enumerate() {
                acc.store(tile.out.add((token + t) * TILE_ROWS + group * GROUP + n * V::LANES));
            }
        }
    }
}

/// All tokens; `MAIN` at a time, the rest in ever smaller steps. `ONE` vectors make a group, `TWO` two of them; if
/// they are the same, groups are computed one after the other.
#[inline(always)]
pub(crate) unsafe fn tile<V: Simd, const HALF: bool, const MAIN: usize, const ONE: usize, const TWO: usize>(
    tile: &Tile,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let mut t = 0;
        macro_rules! steps {
            ($($tokens:expr),+) => {
                $(
                    while t + $tokens <= tile.tokens {
                        if TWO > ONE && tile.groups == 2 {
                            micro::<V, HALF, { $tokens }, TWO>(tile, 0, t);
                        } else {
                            for group in 0..tile.groups {
                                micro::<V, HALF, { $tokens }, ONE>(tile, group, t);
                            }
                        }
                        t += $tokens;
                    }
                )+
            };
        }
        steps!(MAIN, 2, 1);
    }
}

/// Makes tile kernels: name, features, vector, whether weights are F16, and the numbers that [`tile`] takes.
macro_rules! float_kernels {
    ($($name:ident: $features:literal, $vector:ty, $half:literal, $main:literal, $one:literal, $two:literal;)+) => {
        $(
            /// # Safety
            /// See [`TileKernel`](crate::tile::TileKernel).
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(args: &$crate::tile::Tile) {
                // SAFETY: the caller's promise is ours.
                unsafe { $crate::vector::float::tile::<$vector, $half, $main, $one, $two>(args) }
            }
        )+
    };
}
pub(crate) use float_kernels;
