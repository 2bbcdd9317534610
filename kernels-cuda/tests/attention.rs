//! Rotation, the paged cache and attention of single tokens, against the scalar references.

mod support;

use half::f16;
use rustai_abi::{Batch, BatchSequence, DType, PAGE_TOKENS};
use rustai_kernels_cpu::{KvType, RopeStyle, formats, reference};
use rustai_kernels_cuda::{
    Arena, Device, Floats, Kernels, Stream,
    ops::{LayerCache, Places, Rotation, Split},
};
use support::{Numbers, Standin, error, open, standin};

/// A step's queries, keys and values.
#[derive(Clone)]
struct Shape {
    kv_type: KvType,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    style: RopeStyle,
    window: Option<u32>,
}

/// Tokens that a sequence has, its pages, and its rows: queries, keys and values of each position.
struct Sequence {
    pages: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

const MAGNITUDE: f32 = 1.1;

fn inv_freq(dim: usize) -> Vec<f32> {
    // The last values of a head are not rotated.
    let pairs = dim / 2 - 4;
    (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect()
}

/// What the cache gives back for a head's values.
fn stored(kv_type: KvType, values: &[f32]) -> Vec<f32> {
    match kv_type {
        KvType::Q8_0 => {
            let format = formats::of(DType::Q8_0).unwrap();
            let mut bytes = vec![0; DType::Q8_0.bytes_for(values.len()).unwrap()];
            (format.quantize.unwrap())(values, None, &mut bytes);
            let mut back = vec![0.0; values.len()];
            (format.dequantize)(&bytes, &mut back);
            back
        }
        _ => values.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
    }
}

/// Attention of position `position`, from the references.
fn expected(shape: &Shape, sequence: &Sequence, position: usize) -> Vec<f32> {
    let Shape { heads, kv_heads, dim, .. } = *shape;
    let inv_freq = inv_freq(dim);
    let rotated = |row: &[f32], position: usize| {
        let mut row = row.to_vec();
        for head in row.chunks_exact_mut(dim) {
            reference::rope(head, shape.style, &inv_freq, MAGNITUDE, position as u32);
        }
        row
    };
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
    let q = rotated(&sequence.q[position * heads * dim..][..heads * dim], position);
    let row = |from: &[f32], at: usize| from[at * kv_heads * dim..][..kv_heads * dim].to_vec();
    let keys: Vec<_> =
        (first..=position).map(|at| stored(shape.kv_type, &rotated(&row(&sequence.k, at), at))).collect();
    let values: Vec<_> = (first..=position).map(|at| stored(shape.kv_type, &row(&sequence.v, at))).collect();
    let mut out = vec![0.0; heads * dim];
    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
        let at = head / (heads / kv_heads) * dim;
        let part =
            |rows: &'_ [Vec<f32>]| -> Vec<Vec<f32>> { rows.iter().map(|row| row[at..at + dim].to_vec()).collect() };
        let (keys, values) = (part(&keys), part(&values));
        let keys: Vec<&[f32]> = keys.iter().map(|row| &row[..]).collect();
        let values: Vec<&[f32]> = values.iter().map(|row| &row[..]).collect();
        reference::attention(&q[head * dim..][..dim], &keys, &values, (dim as f32).powf(-0.5), out);
    }
    out
}

/// Sequences of these lengths in a cache whose pages are mixed up.
fn sequences(shape: &Shape, lengths: &[usize]) -> (Vec<Sequence>, usize) {
    let mut numbers = Numbers::new(11);
    let total: usize = lengths.iter().map(|len| len.div_ceil(PAGE_TOKENS)).sum();
    // One page is nobody's. 7 and the number of pages have no common factor.
    let count = if (total + 1).is_multiple_of(7) { total + 2 } else { total + 1 };
    let mut next = 0;
    let made = lengths
        .iter()
        .map(|len| {
            let pages = (0..len.div_ceil(PAGE_TOKENS)).map(|_| {
                next += 7;
                (next % count) as u32
            });
            Sequence {
                pages: pages.collect(),
                q: numbers.values(len * shape.heads * shape.dim),
                k: numbers.values(len * shape.kv_heads * shape.dim),
                v: numbers.values(len * shape.kv_heads * shape.dim),
            }
        })
        .collect();
    (made, count)
}

/// Runs all positions of all sequences: everything but the last is appended in one batch, the last of each attends.
fn run(
    (device, kernels, stream): &(Device, Kernels, Stream),
    shape: &Shape,
    sequences: &[Sequence],
    pages: usize,
    split: Split,
) -> Result<Vec<f32>, rustai_kernels_cuda::DeviceError> {
    let Shape { kv_type, heads, kv_heads, dim, .. } = *shape;
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.q.len() / (heads * dim)).collect();
    let total: usize = lengths.iter().sum();
    let room = LayerCache::room(kv_type, kv_heads, dim, pages) + Places::room(total, pages);
    let mut arena = Arena::new(device, "test", room)?;
    let cache = LayerCache::take(&mut arena, kv_type, kv_heads, dim, pages)?;
    let places = Places::take(&mut arena, total, pages, pages)?;
    let inv_freq = Floats::with(device, inv_freq(dim).len(), &inv_freq(dim))?;
    let rotation = Rotation { style: shape.style, inv_freq: &inv_freq, magnitude: MAGNITUDE };
    let mut result = None;
    for (from_end, attends) in [(1, false), (0, true)] {
        let rows = |values: fn(&Sequence) -> &[f32], width: usize| -> Vec<f32> {
            let part = |(sequence, len): (&Sequence, &usize)| {
                let range = if attends { len - 1..*len } else { 0..len - from_end };
                values(sequence)[range.start * width..range.end * width].to_vec()
            };
            sequences.iter().zip(&lengths).flat_map(part).collect()
        };
        let batch_sequences: Vec<_> = sequences
            .iter()
            .zip(&lengths)
            .map(|(sequence, len)| {
                let (start, len) = if attends { (len - 1, 1) } else { (0, len - 1) };
                BatchSequence { len: len as u32, start: start as u32, pages: &sequence.pages }
            })
            .filter(|sequence| sequence.len > 0)
            .collect();
        let tokens: u32 = batch_sequences.iter().map(|sequence| sequence.len).sum();
        if tokens == 0 {
            continue;
        }
        let ids = vec![0; tokens as usize];
        places.write(&Batch { tokens: &ids, sequences: &batch_sequences, outputs: &[] })?;
        let q = Floats::with(device, heads * dim, &rows(|s| &s.q, heads * dim))?;
        let k = Floats::with(device, kv_heads * dim, &rows(|s| &s.k, kv_heads * dim))?;
        let v = Floats::with(device, kv_heads * dim, &rows(|s| &s.v, kv_heads * dim))?;
        let count = tokens as usize;
        kernels.rope_append(stream, [&q, &k, &v], Some(rotation), &cache, &places, count)?;
        if attends {
            let out = Floats::with(device, heads * dim, &vec![0.0; count * heads * dim])?;
            let width = split.state_width(heads, dim);
            let states = Floats::with(device, width, &vec![0.0; count * width])?;
            let scale = ((dim as f32).powf(-0.5), shape.window);
            kernels.attention(stream, &q, &out, Some(&states), &cache, &places, scale, split, count)?;
            result = Some(out.read(count)?);
        }
    }
    Ok(result.unwrap())
}

fn check(standin: &Standin, shape: &Shape, lengths: &[usize], split: Split) {
    let opened = open(standin);
    let (sequences, pages) = sequences(shape, lengths);
    let expected: Vec<f32> =
        sequences.iter().zip(lengths).flat_map(|(sequence, len)| expected(shape, sequence, len - 1)).collect();
    standin.in_every_order(|schedule| {
        let got = run(&opened, shape, &sequences, pages, split).unwrap();
        let error = error(&got, &expected);
        assert!(error < 2e-4, "{} {} of {}, order {schedule}: {error:e}", shape.kv_type, shape.heads, shape.dim);
    });
}

const BASE: Shape =
    Shape { kv_type: KvType::F16, heads: 4, kv_heads: 2, dim: 64, style: RopeStyle::Neox, window: None };

#[test]
fn attention_agrees_with_the_reference() {
    let standin = standin();
    for kv_type in KvType::ALL {
        for (heads, kv_heads, dim) in [(2, 2, 64), (3, 1, 64), (8, 1, 64), (2, 1, 128), (1, 1, 128)] {
            let style = if dim == 64 { RopeStyle::Neox } else { RopeStyle::Interleaved };
            let shape = Shape { kv_type, heads, kv_heads, dim, style, ..BASE };
            check(&standin, &shape, &[1, 33, 64, 171], Split { runs: 1, run_pages: 6 });
        }
    }
}

#[test]
fn runs_are_merged_and_windows_hide_what_is_older() {
    let standin = standin();
    for kv_type in KvType::ALL {
        for window in [None, Some(1), Some(40), Some(1000)] {
            let shape = Shape { kv_type, window, ..BASE };
            check(&standin, &shape, &[5, 200], Split { runs: 3, run_pages: 3 });
            check(&standin, &shape, &[150], Split { runs: 1, run_pages: 5 });
        }
    }
}

#[test]
fn far_positions_are_rotated_exactly_enough() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (dim, position) = (64, 130_000u32);
    let pages = position as usize / PAGE_TOKENS + 1;
    let mut arena =
        Arena::new(&device, "test", LayerCache::room(KvType::F16, 1, dim, 1) + Places::room(1, pages)).unwrap();
    let cache = LayerCache::take(&mut arena, KvType::F16, 1, dim, 1).unwrap();
    let places = Places::take(&mut arena, 1, pages, 1).unwrap();
    let table = vec![0; pages];
    let sequence = BatchSequence { len: 1, start: position, pages: &table };
    places.write(&Batch { tokens: &[0], sequences: &[sequence], outputs: &[] }).unwrap();
    let row = Numbers::new(4).values(dim);
    let mut expected = row.clone();
    reference::rope(&mut expected, RopeStyle::Neox, &inv_freq(dim), 1.0, position);
    let [q, k, v] = [0; 3].map(|_| Floats::with(&device, dim, &row).unwrap());
    let inv_freq = Floats::with(&device, inv_freq(dim).len(), &inv_freq(dim)).unwrap();
    let rotation = Rotation { style: RopeStyle::Neox, inv_freq: &inv_freq, magnitude: 1.0 };
    kernels.rope_append(&stream, [&q, &k, &v], Some(rotation), &cache, &places, 1).unwrap();
    let error = error(&q.read(1).unwrap(), &expected);
    assert!(error < 2e-6, "{error:e}");
}

#[test]
fn missing_barriers_are_noticed() {
    let standin = standin();
    // As many queries as the kernel is made for, so that the last that a warp writes is one that others read.
    let shape = Shape { kv_type: KvType::Q8_0, heads: 4, kv_heads: 1, ..BASE };
    let (sequences, pages) = sequences(&shape, &[300]);
    let expected = expected(&shape, &sequences[0], 299);
    let count = standin.expect_every_sync_to_matter(|| {
        let opened = open(&standin);
        let got = run(&opened, &shape, &sequences, pages, Split { runs: 1, run_pages: 10 });
        got.is_ok_and(|got| error(&got, &expected) < 2e-4)
    });
    // One of the append, two of blocks and one of warps in attention.
    assert_eq!(count, 4);
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let standin = standin();
    let (device, ..) = open(&standin);
    let mut arena = Arena::new(&device, "test", Places::room(4, 4)).unwrap();
    let places = Places::take(&mut arena, 4, 4, 3).unwrap();
    let refused = |sequence: BatchSequence<'_>, tokens: &[u32]| {
        places.write(&Batch { tokens, sequences: &[sequence], outputs: &[] }).unwrap_err().to_string()
    };
    let pages = [0, 2, 3];
    let text = refused(BatchSequence { len: 1, start: 32, pages: &pages[..1] }, &[0]);
    assert!(text.contains("do not hold 33 positions"), "{text}");
    let text = refused(BatchSequence { len: 1, start: 0, pages: &pages[2..] }, &[0]);
    assert!(text.contains("page 3 of a cache of 3"), "{text}");
    let text = refused(BatchSequence { len: 5, start: 0, pages: &pages[..1] }, &[0; 5]);
    assert!(text.contains("5 tokens"), "{text}");
    let text = refused(BatchSequence { len: 1, start: 0, pages: &pages[..1] }, &[0; 2]);
    assert!(text.contains("2 tokens (1 in sequences)"), "{text}");
    let text = refused(BatchSequence { len: 2, start: u32::MAX, pages: &pages[..1] }, &[0; 2]);
    assert!(text.contains("do not hold"), "{text}");
}
