//! Tile kernels for F16, BF16 and F32 weights with `f32` activations.
//!
//! SAFETY of the whole file: as in the integer kernels, functions are called through the entry points that
//! [`float_kernels`] makes, whose contract is that of [`TileKernel`](crate::tile::TileKernel).

use crate::{
    pack::GROUP,
    simd::Simd,
    tile::{PANEL_BYTES, TILE_ROWS, Tile},
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

/// Columns that are expanded at a time, so that what all tokens are multiplied with stays in the first cache.
const CHUNK: usize = 128;

const FITS: () = assert!(CHUNK * TILE_ROWS * size_of::<f32>() <= PANEL_BYTES);

/// Where the weights of some columns are.
#[derive(Clone, Copy)]
struct Columns {
    /// The first row's weight of the first column; neighbouring rows follow.
    at: *const u8,
    /// Bytes from one group of rows to the next.
    group: usize,
    /// Bytes from one column to the next.
    column: usize,
    /// The first column, and how many there are.
    first: usize,
    count: usize,
}

/// `T` tokens from `token` on times `N` vectors of rows from `group` on, added to what earlier columns left.
#[inline(always)]
unsafe fn micro<V: Simd, E: Element, const T: usize, const N: usize>(
    tile: &Tile,
    columns: &Columns,
    group: usize,
    token: usize,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let per_group = GROUP / V::LANES;
        let out = |t: usize, n: usize| tile.out(token + t, group).add(n * V::LANES);
        let x: [*const f32; T] =
            std::array::from_fn(|t| tile.x.add((token + t) * tile.x_stride).cast::<f32>().add(columns.first));
        let w: [*const u8; N] = std::array::from_fn(|n| {
            columns.at.add((group + n / per_group) * columns.group + n % per_group * V::LANES * E::BYTES)
        });
        let mut acc = [[V::splat(0.0); N]; T];
        if columns.first > 0 {
            for t in 0..T {
                for n in 0..N {
                    acc[t][n] = V::load(out(t, n));
                }
            }
        }
        for k in 0..columns.count {
            // All tokens' values, then one vector of weights at a time: AVX2 has registers for no more.
            let mut values = [V::splat(0.0); T];
            for t in 0..T {
                values[t] = V::splat(*x[t].add(k));
            }
            for n in 0..N {
                let w: V = E::load(w[n].add(k * columns.column));
                for t in 0..T {
                    acc[t][n] = w.fma(values[t], acc[t][n]);
                }
            }
        }
        for t in 0..T {
            for n in 0..N {
                acc[t][n].store(out(t, n));
            }
        }
    }
}

/// All tokens with some columns; `MAIN` tokens at a time, the rest in ever smaller steps. `ONE` vectors make a group, `TWO`
/// two of them; if they are the same, groups are computed one after the other.
#[inline(always)]
unsafe fn multiply<V: Simd, E: Element, const MAIN: usize, const ONE: usize, const TWO: usize>(
    tile: &Tile,
    columns: &Columns,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let mut t = 0;
        macro_rules! steps {
            ($($tokens:expr),+) => {
                $(
                    while t + $tokens <= tile.tokens {
                        if TWO > ONE && tile.groups == 2 {
                            micro::<V, E, { $tokens }, TWO>(tile, columns, 0, t);
                        } else {
                            for group in 0..tile.groups {
                                micro::<V, E, { $tokens }, ONE>(tile, columns, group, t);
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

/// One tile; see [`multiply`] for the numbers. Sums grow column after column whatever the number of tokens.
#[inline(always)]
pub(crate) unsafe fn tile<V: Simd, E: Element, const MAIN: usize, const ONE: usize, const TWO: usize>(tile: &Tile) {
    const { FITS };
    let stored = Columns { at: tile.group, group: tile.stride, column: GROUP * E::BYTES, first: 0, count: tile.cols };
    // SAFETY: see the head of the file; the panel has room for a chunk of columns.
    unsafe {
        if tile.tokens < 2 * MAIN {
            // Each weight is read once or twice.
            return multiply::<V, E, MAIN, ONE, TWO>(tile, &stored);
        }
        let column = GROUP * size_of::<f32>();
        for first in (0..tile.cols).step_by(CHUNK) {
            let count = CHUNK.min(tile.cols - first);
            let panel = Columns { at: tile.panel, group: CHUNK * column, column, first, count };
            for g in 0..tile.groups {
                let from = stored.at.add(g * stored.group + first * stored.column);
                let to = tile.panel.add(g * panel.group).cast::<f32>();
                for i in (0..count * GROUP).step_by(V::LANES) {
                    E::load::<V>(from.add(i * E::BYTES)).store(to.add(i));
                }
            }
            multiply::<V, F32, MAIN, ONE, TWO>(tile, &panel);
        }
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
