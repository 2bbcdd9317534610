//! How the bytes of packed weights are multiplied with those of activations, for kernels that are generic over it.
//!
//! | | instruction | weights | sums |
//! |---|---|---|---|
//! | [`Vnni`] | `vpdpbusd` | unsigned; signed ones with an offset of 128 | of 32 bits, exact |
//! | [`Pairs`] | `vpmaddubsw`, later `vpmaddwd` | unsigned, or signed as magnitude and sign | of 16 bits, for as many steps as fit |
//!
//! `vpdpbusd` does not saturate on its way (Intel SDM vol. 2, VPDPBUSD); `vpmaddubsw` does (PMADDUBSW), but never here:
//! activations lie in -127 ..= 127, so a sum of two products is at most [`PAIR`] times the largest weight, and that fits 16
//! bits for every type. Signed weights are multiplied as |w| * sign(a, w) there.

use crate::pack::Packed;
use rustai_abi::DType;
use std::marker::PhantomData;

/// The largest magnitude of two activations together.
pub(super) const PAIR: i32 = 2 * 127;

/// A packed order, and how its bytes are multiplied.
pub(super) trait Dot: Packed {
    /// Whether `vpdpbusd` multiplies.
    const VNNI: bool;
}

/// A packed order whose bytes are multiplied by VNNI.
pub(super) struct Vnni<F>(PhantomData<F>);

/// A packed order whose bytes are multiplied in pairs that are added up in 16 bits.
pub(super) struct Pairs<F>(PhantomData<F>);

impl<F: Packed> Packed for Vnni<F> {
    const DTYPE: DType = F::DTYPE;
}

impl<F: Packed> Dot for Vnni<F> {
    const VNNI: bool = true;
}

impl<F: Packed> Packed for Pairs<F> {
    const DTYPE: DType = F::DTYPE;
}

impl<F: Packed> Dot for Pairs<F> {
    const VNNI: bool = false;
}

/// The largest magnitude in a table.
pub(super) const fn largest(table: &[i8; 16]) -> i32 {
    let (mut largest, mut i) = (0, 0);
    while i < table.len() {
        let size = (table[i] as i32).abs();
        largest = if size > largest { size } else { largest };
        i += 1;
    }
    largest
}
