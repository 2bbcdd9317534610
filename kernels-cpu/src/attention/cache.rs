//! One layer of the key/value cache: what its bytes mean, and how keys and values get in and, for the reference, out.
//!
//! A layer is a run of pages of `PAGE_TOKENS` positions. A page holds each key/value head's keys and then its values, in the
//! order that the kernels read them: keys transposed as `[head_dim][PAGE_TOKENS]`, values as `[PAGE_TOKENS][head_dim]`.
//!
//! 8-bit entries are blocks of 32 values along a head with one half-precision scale each, by the rule of Q8_0 weights.
//! Quants lie as above; behind them comes a plane of scales, `[head_dim / 32][PAGE_TOKENS]` for keys and
//! `[PAGE_TOKENS][head_dim / 32]` for values. A quant times its scale is exact in `f32`, so it does not matter when a kernel
//! multiplies.

use crate::{KvShape, KvType, formats::q8_0};
use half::f16;
use rustai_abi::PAGE_TOKENS;

/// Values along a head that share a scale in an 8-bit cache.
pub(crate) const BLOCK: usize = 32;

/// How cache entries are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvElement {
    F16,
    /// The reference keeps full precision where half precision is asked for.
    F32,
    Q8_0,
}

impl KvElement {
    /// What an instruction set with (`fast`) or without attention kernels stores for `kv_type`.
    pub(crate) const fn of(kv_type: KvType, fast: bool) -> Self {
        match kv_type {
            KvType::F16 if fast => Self::F16,
            KvType::F16 => Self::F32,
            KvType::Q8_0 => Self::Q8_0,
        }
    }

    /// Bytes of one head's keys, or values, in a page; they saturate.
    const fn side_bytes(self, head_dim: usize) -> usize {
        let values = PAGE_TOKENS.saturating_mul(head_dim);
        match self {
            Self::F16 => values.saturating_mul(2),
            Self::F32 => values.saturating_mul(4),
            Self::Q8_0 => values.saturating_add(values / BLOCK * 2),
        }
    }
}

/// Where the pages of one layer lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerCache {
    /// First byte of the layer.
    pub(crate) start: *mut u8,
    pub(crate) element: KvElement,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// A head's entries for one position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) page: u32,
    /// Position within the page.
    pub(crate) slot: usize,
    pub(crate) head: usize,
}

impl LayerCache {
    /// Bytes of a page of one layer; they saturate.
    pub(crate) const fn page_bytes(shape: &KvShape, element: KvElement) -> usize {
        element.side_bytes(shape.head_dim).saturating_mul(2).saturating_mul(shape.kv_heads)
    }

    /// First byte of the keys and of the values of head `head` in page `page`.
    ///
    /// # Safety
    /// The layer has the page and the head.
    pub(crate) unsafe fn head(&self, page: u32, head: usize) -> (*mut u8, *mut u8) {
        let side = self.element.side_bytes(self.head_dim);
        // SAFETY: the caller says that the page and the head exist.
        unsafe {
            let keys = self.start.add((page as usize * self.kv_heads + head) * 2 * side);
            (keys, keys.add(side))
        }
    }

    /// Writes one position's key and value of one head.
    ///
    /// # Safety
    /// The layer has the place, and nobody else accesses its entries; key and value are `head_dim` long, which is a
    /// multiple of 32 for 8-bit entries.
    pub(crate) unsafe fn append(&self, place: Place, key: &[f32], value: &[f32]) {
        // SAFETY: the offsets stay inside the head's share of the page, which the caller vouches for.
        unsafe {
            let (keys, values) = self.head(place.page, place.head);
            match self.element {
                KvElement::F16 => {
                    let half = |value: &f32| f16::from_f32(*value);
                    scatter(keys.cast(), place.slot, key.iter().map(half));
                    place_row(values.cast(), place.slot * self.head_dim, value.iter().map(half));
                }
                KvElement::F32 => {
                    scatter(keys.cast(), place.slot, key.iter().copied());
                    place_row(values.cast(), place.slot * self.head_dim, value.iter().copied());
                }
                KvElement::Q8_0 => self.append_q8_0(place, key, value),
            }
        }
    }

    /// [`append`](Self::append) of 8-bit entries. Inlined, so that it is compiled for its caller's instruction set; the bytes
    /// are the same for all.
    ///
    /// # Safety
    /// As of `append`.
    #[inline(always)]
    pub(crate) unsafe fn append_q8_0(&self, place: Place, key: &[f32], value: &[f32]) {
        let (slot, dim) = (place.slot, self.head_dim);
        // SAFETY: the offsets follow the layout that the module describes, inside the head's share of the page.
        unsafe {
            let (keys, values) = self.head(place.page, place.head);
            let [key_scales, value_scales] = scale_planes(keys, values, dim);
            for (b, (key, value)) in key.as_chunks().0.iter().zip(value.as_chunks().0).enumerate() {
                let (scale, quants) = q8_0::quantize_block(key);
                key_scales.add(b * PAGE_TOKENS + slot).write(f16::from_f32(scale).to_bits());
                scatter(keys.cast::<i8>().add(b * BLOCK * PAGE_TOKENS), slot, quants.into_iter());
                let (scale, quants) = q8_0::quantize_block(value);
                value_scales.add(slot * (dim / BLOCK) + b).write(f16::from_f32(scale).to_bits());
                values.cast::<[i8; BLOCK]>().add(slot * (dim / BLOCK) + b).write(quants);
            }
        }
    }

    /// Reads what [`append`](Self::append) wrote.
    ///
    /// # Safety
    /// The layer has the place, and nobody writes its entries meanwhile; key and value are `head_dim` long.
    pub(crate) unsafe fn read(&self, place: Place, key: &mut [f32], value: &mut [f32]) {
        let (slot, dim) = (place.slot, self.head_dim);
        // SAFETY: the offsets follow the layout that the module describes, inside the head's share of the page.
        unsafe {
            let (keys, values) = self.head(place.page, place.head);
            let [key_scales, value_scales] = match self.element {
                KvElement::Q8_0 => scale_planes(keys, values, dim),
                _ => [std::ptr::null_mut(); 2],
            };
            let scaled = |scale: *mut u16, quant: *mut u8| {
                f16::from_bits(scale.read()).to_f32() * f32::from(quant.cast::<i8>().read())
            };
            for (d, (key, value)) in key.iter_mut().zip(value).enumerate() {
                let (at_key, at_value) = (d * PAGE_TOKENS + slot, slot * dim + d);
                (*key, *value) = match self.element {
                    KvElement::F16 => (
                        keys.cast::<f16>().add(at_key).read().to_f32(),
                        values.cast::<f16>().add(at_value).read().to_f32(),
                    ),
                    KvElement::F32 => {
                        (keys.cast::<f32>().add(at_key).read(), values.cast::<f32>().add(at_value).read())
                    }
                    KvElement::Q8_0 => (
                        scaled(key_scales.add(d / BLOCK * PAGE_TOKENS + slot), keys.add(at_key)),
                        scaled(value_scales.add(at_value / BLOCK), values.add(at_value)),
                    ),
                };
            }
        }
    }
}

/// The scales behind the 8-bit keys and values of a head.
///
/// # Safety
/// The pointers are those of [`LayerCache::head`] in an 8-bit cache of heads of `dim` values.
pub(crate) unsafe fn scale_planes(keys: *mut u8, values: *mut u8, dim: usize) -> [*mut u16; 2] {
    // SAFETY: the planes lie behind as many quants, by the layout that the module describes.
    unsafe { [keys.add(PAGE_TOKENS * dim).cast(), values.add(PAGE_TOKENS * dim).cast()] }
}

/// Writes a key down a column of the transposed keys.
///
/// # Safety
/// The values lie in the page.
#[inline(always)]
unsafe fn scatter<T>(keys: *mut T, slot: usize, key: impl Iterator<Item = T>) {
    for (d, key) in key.enumerate() {
        // SAFETY: promised by the caller.
        unsafe { keys.add(d * PAGE_TOKENS + slot).write(key) };
    }
}

/// Writes a value, element by element, from element `first` on.
///
/// # Safety
/// The values lie in the page.
#[inline(always)]
unsafe fn place_row<T>(values: *mut T, first: usize, value: impl Iterator<Item = T>) {
    for (d, value) in value.enumerate() {
        // SAFETY: promised by the caller.
        unsafe { values.add(first + d).write(value) };
    }
}
