//! Tile kernels for F16, BF16 and F32 weights with `f32` activations.
//!
//! SAFETY of the whole file: as in the integer kernels, functions are called through the entry points that
//! [`float_kernels`] makes, whose contract is that of [`TileKernel`](crate::tile::TileKernel).

use crate::{
    pack::GROUP,
    simd::Simd,
    tile::{TILE_ROWS, Tile},
};

/// How weights are stored.
pub(crate) trait Element {
    const BYTES: usize;
    /// `V::LANES` weights.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<V: Simd>(from: *const u8) -> V;
}

macro_rules! elements {
    ($($name:ident: $bytes:literal, $load:ident;)+) => {
        $(
            pub(crate) struct $name;

            impl Element for $name {
                const BYTES: usize = $bytes;

                #[inline(always)]
                unsafe fn load<V: Simd>(from: *const u8) -> V {
                    // SAFETY: promised by the caller.
                    unsafe { V::$load(from.cast()) }
                }
            }
        )+
    };
}

elements! {
    F16: 2, load_f16;
    BF16: 2, load_bf16;
    F32: 4, load;
}

/// `T` tokens from `token` on times `N` vectors of rows from `group` on.
#[inline(always)]
unsafe fn micro<V: Simd, E: Element, const T: usize, const N: usize>(tile: &Tile, group: usize, token: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let per_group = GROUP / V::LANES;
        let x: [*const f32; T] = std::array::from_fn(|t| tile.x.add((token + t) * tile.x_stride).cast());
        let w: [*const u8; N] = std::array::from_fn(|n| {
            tile.group.add((group + n / per_group) * tile.stride + n % per_group * V::LANES * E::BYTES)
        });
        let mut acc = [[V::splat(0.0); N]; T];
        for k in 0..tile.cols {
            let w: [V; N] = std::array::from_fn(|n| E::load(w[n].add(k * GROUP * E::BYTES)));
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
pub(crate) unsafe fn tile<V: Simd, E: Element, const MAIN: usize, const ONE: usize, const TWO: usize>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        let mut t = 0;
        macro_rules! steps {
            ($($tokens:expr),+) => {
                $(
                    while t + $tokens <= tile.tokens {
                        if TWO > ONE && tile.groups == 2 {
                            micro::<V, E, { $tokens }, TWO>(tile, 0, t);
                        } else {
                            for group in 0..tile.groups {
                                micro::<V, E, { $tokens }, ONE>(tile, group, t);
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

/// Makes tile kernels: name, features, vector, element of the weights, and the numbers that [`tile`] takes.
macro_rules! float_kernels {
    ($($name:ident: $features:literal, $vector:ty, $element:ident, $main:literal, $one:literal, $two:literal;)+) => {
        $(
            /// # Safety
            /// See [`TileKernel`](crate::tile::TileKernel).
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(args: &$crate::tile::Tile) {
                // SAFETY: the caller's promise is ours.
                unsafe { $crate::vector::float::tile::<$vector, $crate::vector::float::$element, $main, $one, $two>(args) }
            }
        )+
    };
}
pub(crate) use float_kernels;
