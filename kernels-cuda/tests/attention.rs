//! Rotation, the paged cache and attention, of single tokens and of many, against the scalar references.

mod support;

use half::f16;
use rustai_abi::{Batch, BatchSequence, DType, PAGE_TOKENS};
use rustai_kernels_cpu::{KvType, RopeStyle, formats, reference};
use rustai_kernels_cuda::{
    Arena, Device, DeviceError, Floats, Input, Kernels, Packed, Projection, Quants, Stream, Weights,
    ops::{Append, LayerCache, Places, Rotation, RunStates, Split, TILED_HEAD_DIMS, Targets, has_attention},
    weights::is_quantized,
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

/// The positions of each sequence that a batch has.
type Part<'a> = (&'a Sequence, std::ops::Range<usize>);

/// Device memory of a test.
struct Memory {
    cache: LayerCache,
    places: Places,
    inv_freq: Floats,
    states: Option<RunStates>,
}

impl Memory {
    fn new(device: &Device, shape: &Shape, tokens: usize, pages: usize, split: Split) -> Self {
        let Shape { kv_type, heads, kv_heads, dim, .. } = *shape;
        let room = LayerCache::room(kv_type, kv_heads, dim, pages) + Places::room(tokens, pages);
        let mut arena = Arena::new(device, "test", room).unwrap();
        let states = RunStates::bytes(tokens, [heads, kv_heads], dim, split);
        Self {
            cache: LayerCache::take(&mut arena, kv_type, kv_heads, dim, pages).unwrap(),
            places: Places::take(&mut arena, tokens, pages, pages).unwrap(),
            inv_freq: Floats::with(device, inv_freq(dim).len(), &inv_freq(dim)).unwrap(),
            states: RunStates::new(device, states).unwrap(),
        }
    }

    fn append(&self, shape: &Shape) -> Append<'_> {
        let rotation = Rotation { style: shape.style, inv_freq: &self.inv_freq, magnitude: MAGNITUDE };
        Append { rotation: Some(rotation), cache: &self.cache, places: &self.places }
    }

    /// Makes a batch the one whose places are known, and returns how many tokens it has.
    fn place(&mut self, parts: &[Part<'_>]) -> Result<usize, DeviceError> {
        let sequences: Vec<_> = parts
            .iter()
            .filter(|(_, range)| !range.is_empty())
            .map(|(sequence, range)| BatchSequence {
                len: range.len() as u32,
                start: range.start as u32,
                pages: &sequence.pages,
            })
            .collect();
        let tokens = parts.iter().map(|(_, range)| range.len()).sum();
        self.places.write(&Batch { tokens: &vec![0; tokens], sequences: &sequences, outputs: &[] })?;
        Ok(tokens)
    }
}

/// Rows of the positions of a batch.
fn rows(device: &Device, parts: &[Part<'_>], width: usize, of: fn(&Sequence) -> &[f32]) -> Floats {
    let values = parts.iter().flat_map(|(sequence, range)| &of(sequence)[range.start * width..range.end * width]);
    Floats::with(device, width, &values.copied().collect::<Vec<f32>>()).unwrap()
}

/// Appends a batch that is placed, and returns its rotated queries.
fn append(
    (device, kernels, stream): &(Device, Kernels, Stream),
    shape: &Shape,
    memory: &Memory,
    parts: &[Part<'_>],
) -> Result<Floats, DeviceError> {
    let Shape { heads, kv_heads, dim, .. } = *shape;
    let q = rows(device, parts, heads * dim, |s| &s.q);
    let k = rows(device, parts, kv_heads * dim, |s| &s.k);
    let v = rows(device, parts, kv_heads * dim, |s| &s.v);
    kernels.rope_append(stream, [&q, &k, &v], memory.append(shape), q.rows())?;
    Ok(q)
}

fn attend(
    opened: &(Device, Kernels, Stream),
    shape: &Shape,
    memory: &Memory,
    [q, out]: [&Floats; 2],
    split: Split,
) -> Result<(), DeviceError> {
    attend_to(opened, shape, memory, q, (out, Targets::default()), split)
}

fn attend_to(
    (_, kernels, stream): &(Device, Kernels, Stream),
    shape: &Shape,
    memory: &Memory,
    q: &Floats,
    to: (&Floats, Targets<'_>),
    split: Split,
) -> Result<(), DeviceError> {
    let scale = ((shape.dim as f32).powf(-0.5), shape.window);
    let Memory { cache, places, states, .. } = memory;
    kernels.attention(stream, q, to, states.as_ref(), cache, places, scale, split, q.rows())
}

/// Runs all positions of all sequences: those before `cuts` are appended in one batch, the others are another and attend.
fn run(
    opened: &(Device, Kernels, Stream),
    shape: &Shape,
    (sequences, cuts): (&[Sequence], &[usize]),
    pages: usize,
    split: Split,
) -> Result<Vec<f32>, DeviceError> {
    let device = &opened.0;
    let lengths = sequences.iter().map(|sequence| sequence.q.len() / (shape.heads * shape.dim));
    let mut memory = Memory::new(device, shape, lengths.clone().sum(), pages, split);
    let parts = |range: fn(usize, usize) -> std::ops::Range<usize>| -> Vec<Part<'_>> {
        let cut = sequences.iter().zip(cuts).zip(lengths.clone());
        cut.map(|((sequence, cut), len)| (sequence, range(*cut, len))).collect()
    };
    let (before, last) = (parts(|cut, _| 0..cut), parts(|cut, len| cut..len));
    if memory.place(&before).is_ok_and(|tokens| tokens > 0) {
        append(opened, shape, &memory, &before)?;
    }
    let tokens = memory.place(&last)?;
    let q = append(opened, shape, &memory, &last)?;
    let out = Floats::with(device, q.width(), &vec![0.0; tokens * q.width()])?;
    attend(opened, shape, &memory, [&q, &out], split)?;
    out.read(tokens)
}

fn check(standin: &Standin, shape: &Shape, lengths: &[usize], split: Split) {
    let opened = open(standin);
    let (sequences, pages) = sequences(shape, lengths);
    let expected: Vec<f32> =
        sequences.iter().zip(lengths).flat_map(|(sequence, len)| expected(shape, sequence, len - 1)).collect();
    standin.in_every_order(|schedule| {
        let cuts: Vec<_> = lengths.iter().map(|len| len - 1).collect();
        let got = run(&opened, shape, (&sequences, &cuts), pages, split).unwrap();
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

/// Heads of other lengths: short rows, lanes without columns, more columns than a block sums.
#[test]
fn heads_of_every_length_agree_with_the_reference() {
    let standin = standin();
    for kv_type in KvType::ALL {
        for (heads, kv_heads, dim) in
            [(2, 1, 16), (3, 3, 32), (4, 2, 80), (8, 1, 96), (2, 2, 112), (1, 1, 160), (8, 1, 256), (2, 1, 256)]
        {
            if has_attention(kv_type, dim) {
                let shape = Shape { kv_type, heads, kv_heads, dim, window: Some(90), ..BASE };
                check(&standin, &shape, &[1, 130], Split { runs: 2, run_pages: 3 });
                check(
                    &standin,
                    &Shape { style: RopeStyle::Interleaved, ..shape },
                    &[64],
                    Split { runs: 1, run_pages: 2 },
                );
            }
        }
    }
}

#[test]
fn heads_without_kernels_are_refused() {
    let standin = standin();
    let (device, ..) = open(&standin);
    for (kv_type, dim) in [(KvType::F16, 0), (KvType::F16, 100), (KvType::F16, 264), (KvType::Q8_0, 80)] {
        let mut arena = Arena::new(&device, "test", LayerCache::room(kv_type, 1, dim, 1)).unwrap();
        let refused = LayerCache::take(&mut arena, kv_type, 1, dim, 1).unwrap_err().to_string();
        assert!(refused.contains(&format!("heads of {dim} values")) && refused.contains("up to 256"), "{refused}");
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

/// Quantized by the launch that attends, whether it merges runs or there is but one, results have the bytes that they have when
/// another launch quantizes them; and those are the same in every order of blocks.
#[test]
fn results_are_quantized_where_they_are_made() {
    let standin = standin();
    let opened = open(&standin);
    let (device, kernels, stream) = &opened;
    let one = Split { runs: 1, run_pages: 8 };
    let three = Split { runs: 3, run_pages: 2 };
    for (dim, heads, kv_heads, kv_type, split, tiled, launches) in [
        (64, 4, 2, KvType::F16, one, false, 1),
        (64, 4, 2, KvType::Q8_0, three, false, 1),
        (32, 1, 1, KvType::F16, three, false, 1),
        (96, 8, 1, KvType::F16, three, false, 1),
        (128, 3, 1, KvType::F16, one, false, 1),
        (256, 2, 1, KvType::Q8_0, three, false, 1),
        // Heads that are no whole blocks, and tiles beside tokens by themselves.
        (80, 4, 2, KvType::F16, three, false, 2),
        (64, 4, 2, KvType::F16, three, true, 3),
    ] {
        let shape = Shape { dim, heads, kv_heads, kv_type, ..BASE };
        let lengths = [170, 3, 64];
        let (sequences, pages) = sequences(&shape, &lengths);
        let first = if tiled { [169, 2, 40] } else { [169, 2, 63] };
        let mut memory = Memory::new(device, &shape, lengths.iter().sum(), pages, split);
        let before: Vec<Part<'_>> = sequences.iter().zip(first).map(|(sequence, first)| (sequence, 0..first)).collect();
        memory.place(&before).unwrap();
        append(&opened, &shape, &memory, &before).unwrap();
        let last = sequences.iter().zip(first).zip(lengths);
        let last: Vec<Part<'_>> = last.map(|((sequence, first), len)| (sequence, first..len)).collect();
        let tokens = memory.place(&last).unwrap();
        let q = append(&opened, &shape, &memory, &last).unwrap();
        let out = Floats::with(device, q.width(), &vec![0.0; tokens * q.width()]).unwrap();
        let mut arena = Arena::new(device, "test", Quants::room(tokens, q.width())).unwrap();
        let quants = Quants::take(&mut arena, tokens, q.width()).unwrap();
        let bytes = || {
            quants.spans().map(|span| {
                let mut bytes = vec![0u8; span.bytes()];
                span.download(&mut bytes).unwrap();
                bytes
            })
        };
        attend(&opened, &shape, &memory, [&q, &out], split).unwrap();
        let to_quants = Targets { quants: Some(&quants), ..Targets::default() };
        kernels.convert(stream, &out, to_quants, tokens).unwrap();
        stream.synchronize().unwrap();
        let expected = bytes();
        standin.in_every_order(|schedule| {
            // Twice, for counters that are left as they were.
            for _ in 0..2 {
                quants.spans().iter().for_each(|span| span.upload(&vec![0x55u8; span.bytes()]).unwrap());
                let count = if standin.is_real() { 0 } else { standin.get("launches") };
                attend_to(&opened, &shape, &memory, &q, (&out, to_quants), split).unwrap();
                stream.synchronize().unwrap();
                assert!(bytes() == expected, "{dim}, {heads} on {kv_heads}, {kv_type}, {split:?}, order {schedule}");
                assert!(standin.is_real() || standin.get("launches") - count == launches, "{dim}, tiled: {tiled}");
            }
        });
    }
}

#[test]
fn missing_synchronisations_of_merged_runs_are_noticed() {
    let standin = standin();
    let shape = Shape { heads: 4, kv_heads: 1, ..BASE };
    let (sequences, pages) = sequences(&shape, &[300]);
    let expected = expected(&shape, &sequences[0], 299);
    // One of the append, two of blocks and one of warps as for a single run, and those before and after a block counts itself.
    standin.expect_every_sync_to_matter(6, || {
        let opened = open(&standin);
        let got = run(&opened, &shape, (&sequences, &[299]), pages, Split { runs: 2, run_pages: 5 });
        got.is_ok_and(|got| error(&got, &expected) < 2e-4)
    });
    // States that are too small are refused.
    let opened = open(&standin);
    let (device, kernels, stream) = &opened;
    let split = Split { runs: 2, run_pages: 5 };
    let mut memory = Memory::new(device, &shape, 300, pages, split);
    memory.place(&[(&sequences[0], 0..1)]).unwrap();
    let q = Floats::with(device, 256, &[0.0; 256]).unwrap();
    let small = RunStates::new(device, RunStates::bytes(1, [4, 1], 64 - 8, split)).unwrap();
    for states in [None, small.as_ref()] {
        let Memory { cache, places, .. } = &memory;
        let refused =
            kernels.attention(stream, &q, (&q, Targets::default()), states, cache, places, (1.0, None), split, 1);
        assert!(matches!(refused, Err(DeviceError::Invalid(_))), "{refused:?}");
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
    let mut places = Places::take(&mut arena, 1, pages, 1).unwrap();
    let table = vec![0; pages];
    let sequence = BatchSequence { len: 1, start: position, pages: &table };
    places.write(&Batch { tokens: &[0], sequences: &[sequence], outputs: &[] }).unwrap();
    let row = Numbers::new(4).values(dim);
    let mut expected = row.clone();
    reference::rope(&mut expected, RopeStyle::Neox, &inv_freq(dim), 1.0, position);
    let [q, k, v] = [0; 3].map(|_| Floats::with(&device, dim, &row).unwrap());
    let inv_freq = Floats::with(&device, inv_freq(dim).len(), &inv_freq(dim)).unwrap();
    let rotation = Rotation { style: RopeStyle::Neox, inv_freq: &inv_freq, magnitude: 1.0 };
    let append = Append { rotation: Some(rotation), cache: &cache, places: &places };
    kernels.rope_append(&stream, [&q, &k, &v], append, 1).unwrap();
    let error = error(&q.read(1).unwrap(), &expected);
    assert!(error < 2e-6, "{error:e}");
}

/// Matrices of queries, keys and values, with biases, and a row of activations for each of some sequences' next positions.
struct Projected {
    weights: [Weights; 3],
    biases: [Floats; 3],
    x: Floats,
    quants: Option<Quants>,
}

impl Projected {
    fn new(
        (device, kernels, stream): &(Device, Kernels, Stream),
        shape: &Shape,
        dtypes: [DType; 3],
        rows: usize,
    ) -> Self {
        const COLUMNS: usize = 256;
        let heights = [shape.heads, shape.kv_heads, shape.kv_heads].map(|heads| heads * shape.dim);
        let mut numbers = Numbers::new(rows as u64);
        let x = Floats::with(device, COLUMNS, &numbers.values(rows * COLUMNS)).unwrap();
        let weights = [0, 1, 2].map(|i| {
            let (dtype, values) = (dtypes[i], numbers.values(heights[i] * COLUMNS));
            let mut bytes = vec![0; dtype.bytes_for(values.len()).unwrap()];
            (formats::of(dtype).unwrap().quantize.unwrap())(&values, None, &mut bytes);
            Packed::new(dtype, heights[i], COLUMNS, &bytes).unwrap().upload(device).unwrap()
        });
        let quants = is_quantized(dtypes[0]).unwrap().then(|| {
            let mut arena = Arena::new(device, "test", Quants::room(rows, COLUMNS)).unwrap();
            let quants = Quants::take(&mut arena, rows, COLUMNS).unwrap();
            let targets = Targets { quants: Some(&quants), ..Targets::default() };
            kernels.convert(stream, &x, targets, rows).unwrap();
            quants
        });
        let biases = heights.map(|height| Floats::with(device, height, &numbers.values(height)).unwrap());
        stream.synchronize().unwrap();
        Self { weights, biases, x, quants }
    }

    /// The rotated queries and what they attend to, and the launches of projections and append: as one call, or as several.
    fn run(
        &self,
        opened @ (device, kernels, stream): &(Device, Kernels, Stream),
        (standin, shape): (&Standin, &Shape),
        (sequences, lengths, pages): (&[Sequence], &[usize], usize),
        joined: bool,
    ) -> (Vec<f32>, i64) {
        let split = Split { runs: 1, run_pages: pages };
        let mut memory = Memory::new(device, shape, lengths.iter().sum(), pages, split);
        let before: Vec<_> = sequences.iter().zip(lengths).map(|(sequence, len)| (sequence, 0..len - 1)).collect();
        memory.place(&before).unwrap();
        append(opened, shape, &memory, &before).unwrap();
        let last: Vec<_> = sequences.iter().zip(lengths).map(|(sequence, len)| (sequence, len - 1..*len)).collect();
        let tokens = memory.place(&last).unwrap();
        let outs = self
            .biases
            .each_ref()
            .map(|bias| Floats::with(device, bias.width(), &vec![f32::NAN; tokens * bias.width()]).unwrap());
        let launches = || if standin.is_real() { 0 } else { standin.get("launches") };
        let count = launches();
        let x = self.quants.as_ref().map_or(Input::Floats(&self.x), Input::Quantized);
        let projections = [0, 1, 2].map(|i| Projection {
            weights: &self.weights[i],
            bias: Some(&self.biases[i]),
            out: &outs[i],
            accumulate: false,
        });
        if joined {
            kernels.project_append(stream, x, projections, None, memory.append(shape), tokens).unwrap();
        } else {
            kernels.matmul(stream, x, &projections, None, tokens).unwrap();
            kernels.rope_append(stream, outs.each_ref(), memory.append(shape), tokens).unwrap();
        }
        let mut got = outs[0].read(tokens).unwrap();
        let count = launches() - count;
        let out = Floats::with(device, outs[0].width(), &vec![0.0; got.len()]).unwrap();
        attend(opened, shape, &memory, [&outs[0], &out], split).unwrap();
        got.extend(out.read(tokens).unwrap());
        (got, count)
    }
}

/// What products write to the cache themselves is what they write by way of memory, with heads that are rotated in part.
#[test]
fn products_append_to_the_cache_themselves() {
    let standin = standin();
    let opened = open(&standin);
    const MIX: [DType; 3] = [DType::Q4_K, DType::Q5_K, DType::Q6_K];
    let neox = BASE;
    let interleaved = Shape { style: RopeStyle::Interleaved, dim: 80, heads: 2, kv_heads: 1, ..BASE };
    for (shape, dtypes, tokens, launches) in [
        (&neox, MIX, 1, 1),
        (&neox, [DType::Q4_0; 3], 3, 1),
        (&interleaved, MIX, 2, 1),
        (&interleaved, [DType::Q8_0; 3], 8, 1),
        (&Shape { dim: 128, heads: 1, kv_heads: 1, ..BASE }, [DType::BF16; 3], 4, 1),
        // More tokens than a launch takes, the kernels for many, several types of floats, and a cache of another type.
        (&neox, [DType::F16; 3], 12, 2),
        (&neox, [DType::Q4_0; 3], 9, 2),
        (&neox, [DType::F16, DType::F16, DType::F32], 2, 3),
        (&Shape { kv_type: KvType::Q8_0, ..neox.clone() }, MIX, 2, 2),
    ] {
        // Whole pages and parts of one, in pages that are mixed up.
        let lengths: Vec<_> = (0..tokens).map(|i| [33, 2, 40, 64][i % 4] + i / 4).collect();
        let (sequences, pages) = sequences(shape, &lengths);
        let projected = Projected::new(&opened, shape, dtypes, tokens);
        let run = |joined| projected.run(&opened, (&standin, shape), (&sequences, &lengths, pages), joined);
        let (expected, _) = run(false);
        assert!(expected.iter().all(|value| value.is_finite()));
        standin.in_every_order(|schedule| {
            let (got, count) = run(true);
            let what = format!("{dtypes:?}, {:?}, {tokens} tokens, order {schedule}", shape.style);
            if standin.is_real() {
                // Another kernel may round a sum once where this one rounds it twice.
                assert!(error(&got, &expected) < 2e-3, "{what}: {:e}", error(&got, &expected));
            } else {
                assert!(got == expected && count == launches, "{what}: {count} launches");
            }
        });
    }
}

#[test]
fn missing_barriers_are_noticed() {
    let standin = standin();
    // As many queries as the kernel is made for, so that the last that a warp writes is one that others read.
    let shape = Shape { kv_type: KvType::Q8_0, heads: 4, kv_heads: 1, ..BASE };
    let (sequences, pages) = sequences(&shape, &[300]);
    let expected = expected(&shape, &sequences[0], 299);
    standin.expect_every_sync_to_matter(4, || {
        let opened = open(&standin);
        let got = run(&opened, &shape, (&sequences, &[299]), pages, Split { runs: 1, run_pages: 10 });
        got.is_ok_and(|got| error(&got, &expected) < 2e-4)
    });
    // One of the append, two of blocks and one of warps in attention.
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let standin = standin();
    let (device, ..) = open(&standin);
    let mut arena = Arena::new(&device, "test", Places::room(4, 4)).unwrap();
    let mut places = Places::take(&mut arena, 4, 4, 3).unwrap();
    let mut refused = |sequence: BatchSequence<'_>, tokens: &[u32]| {
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

/// How far tiles may be off: queries and weights are rounded to 11 bits.
const TILED_CEILING: f32 = 1e-3;

/// Sequences of which so many positions are in the cache and so many come now, whose batch has tiles, in several orders.
fn check_tiles(standin: &Standin, shape: &Shape, cuts: &[(usize, usize)], schedules: &[u32]) {
    let opened = open(standin);
    let lengths: Vec<_> = cuts.iter().map(|(before, now)| before + now).collect();
    let (sequences, pages) = sequences(shape, &lengths);
    let positions = sequences
        .iter()
        .zip(cuts)
        .flat_map(|(sequence, (before, now))| (*before..before + now).map(move |position| (sequence, position)));
    let expected: Vec<f32> = positions.flat_map(|(sequence, at)| expected(shape, sequence, at)).collect();
    let before: Vec<_> = cuts.iter().map(|(before, _)| *before).collect();
    for schedule in schedules {
        standin.set("schedule", i64::from(*schedule));
        let got = run(&opened, shape, (&sequences, &before), pages, Split { runs: 1, run_pages: pages }).unwrap();
        let error = error(&got, &expected);
        let Shape { kv_type, heads, kv_heads, dim, window, .. } = shape;
        let what = format!("{kv_type} {heads} on {kv_heads} of {dim}, window {window:?}, {cuts:?}, order {schedule}");
        assert!(error < TILED_CEILING, "{what}: {error:e}");
    }
    standin.set("schedule", 0);
}

#[test]
fn tiles_agree_with_the_reference() {
    let standin = standin();
    for kv_type in KvType::ALL {
        for (heads, kv_heads, dim) in [(2, 2, 64), (3, 1, 64), (8, 1, 64), (4, 2, 128), (7, 1, 128), (1, 1, 128)] {
            let shape = Shape { kv_type, heads, kv_heads, dim, ..BASE };
            // Tiles that are not whole, steps that are not whole, and tokens by themselves before and between them.
            check_tiles(&standin, &shape, &[(0, 70)], &[0, 7]);
            check_tiles(&standin, &shape, &[(70, 1), (5, 35), (0, 3), (64, 16), (20, 2)], &[1, 12]);
        }
    }
}

#[test]
fn tiles_of_other_heads_agree_with_the_reference() {
    let standin = standin();
    for kv_type in KvType::ALL {
        for (heads, kv_heads, dim) in [(4, 4, 32), (3, 1, 80), (2, 2, 96), (8, 1, 96), (2, 1, 256), (1, 1, 256)] {
            if has_attention(kv_type, dim) {
                assert!(TILED_HEAD_DIMS.contains(&dim));
                let shape = Shape { kv_type, heads, kv_heads, dim, window: Some(60), ..BASE };
                check_tiles(&standin, &shape, &[(0, 70)], &[0]);
                check_tiles(&standin, &Shape { window: None, ..shape }, &[(70, 1), (5, 35), (0, 3), (64, 16)], &[7]);
            }
        }
        // There are no tiles for these: each token by itself.
        check_tiles(&standin, &Shape { kv_type, dim: 160, ..BASE }, &[(3, 20), (0, 40)], &[1]);
    }
}

#[test]
fn tiles_hide_what_is_older_than_the_window() {
    let standin = standin();
    for kv_type in KvType::ALL {
        for window in [1, 2, 40, 64, 1000] {
            let shape = Shape { kv_type, window: Some(window), ..BASE };
            check_tiles(&standin, &shape, &[(101, 50), (0, 40)], &[0, 2]);
        }
    }
}

#[test]
fn missing_barriers_of_tiles_are_noticed() {
    let standin = standin();
    // An 8-bit cache goes through registers, an f16 one through copies that have to be awaited. One is of the append.
    for (kv_type, syncs, dim) in
        [(KvType::Q8_0, 3, 64), (KvType::F16, 5, 64), (KvType::Q8_0, 3, 256), (KvType::F16, 5, 256)]
    {
        let shape = Shape { kv_type, heads: 4, kv_heads: 1, dim, ..BASE };
        let (sequences, pages) = sequences(&shape, &[150]);
        let expected: Vec<f32> = (134..150).flat_map(|at| expected(&shape, &sequences[0], at)).collect();
        standin.expect_every_sync_to_matter(syncs, || {
            let opened = open(&standin);
            let got = run(&opened, &shape, (&sequences, &[134]), pages, Split { runs: 1, run_pages: 10 });
            got.is_ok_and(|got| error(&got, &expected) < TILED_CEILING)
        });
    }
}

#[test]
fn a_recording_holds_for_other_sequences() {
    let standin = standin();
    let opened = open(&standin);
    let (device, _, stream) = &opened;
    let (sequences, pages) = sequences(&BASE, &[32, 20, 30]);
    let split = Split { runs: 1, run_pages: pages };
    let mut memory = Memory::new(device, &BASE, 32, pages, split);
    let whole = [(&sequences[0], 0..32)];
    memory.place(&whole).unwrap();
    let out = Floats::with(device, 256, &[0.0; 32 * 256]).unwrap();
    let q = Floats::with(device, 256, &[0.0; 32 * 256]).unwrap();
    let launches = || if standin.is_real() { 0 } else { standin.get("launches") };
    let before = launches();
    let recording = stream.capture(|_| attend(&opened, &BASE, &memory, [&q, &out], split)).unwrap();

    let other = [(&sequences[1], 0..20), (&sequences[2], 0..12)];
    memory.place(&other).unwrap();
    let rotated = append(&opened, &BASE, &memory, &other).unwrap();
    q.span().upload(&rotated.read(32).unwrap()).unwrap();
    recording.launch().unwrap();
    let got = out.read(32).unwrap();
    assert!(standin.is_real() || launches() - before == 2, "one of the append");
    let expected: Vec<f32> = other
        .iter()
        .flat_map(|(sequence, range)| range.clone().map(move |at| (sequence, at)))
        .flat_map(|(sequence, at)| expected(&BASE, sequence, at))
        .collect();
    assert!(error(&got, &expected) < 2e-4);
}

/// A tile has rows that see a position and rows that do not, and those must not notice what is there.
#[test]
fn what_is_not_finite_shows_only_where_it_is_seen() {
    let standin = standin();
    let opened = open(&standin);
    let split = Split { runs: 1, run_pages: 4 };
    for (kv_type, dim, window) in [
        (KvType::F16, 64, None),
        (KvType::Q8_0, 64, None),
        (KvType::F16, 128, Some(20)),
        (KvType::F16, 256, None),
        (KvType::Q8_0, 96, Some(20)),
    ] {
        let shape = Shape { kv_type, dim, window, ..BASE };
        let (heads, kv_heads) = (shape.heads, shape.kv_heads);
        let (tokens, wrong, column) = (90, 50, 7);
        let (sequences, pages) = sequences(&shape, &[tokens]);
        let attended = |change: &dyn Fn(&mut Sequence)| {
            let Sequence { pages: own, q, k, v } = &sequences[0];
            let mut sequence = Sequence { pages: own.clone(), q: q.clone(), k: k.clone(), v: v.clone() };
            change(&mut sequence);
            run(&opened, &shape, (&[sequence], &[0]), pages, split).unwrap()
        };
        let expected = attended(&|_| {});
        assert!(expected.iter().all(|value| value.is_finite()));
        let check = |what: &str, got: &[f32], is_wrong: &dyn Fn(usize, usize, usize) -> bool| {
            for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let (token, head, column) = (index / (heads * dim), index / dim % heads, index % dim);
                let right = match is_wrong(token, head, column) {
                    true => !got.is_finite(),
                    false => got.to_bits() == expected.to_bits(),
                };
                assert!(right, "{kv_type}, {dim}, {what}: {got} of token {token}, head {head}, column {column}");
            }
        };
        let sees = |token: usize| token >= wrong && window.is_none_or(|window| token - wrong < window as usize);
        let group = heads / kv_heads;
        // Of an 8-bit cache, a block of 32 values has one scale.
        let spoils = |at: usize| if kv_type == KvType::Q8_0 { at / 32 == column / 32 } else { at == column };
        // Beyond the range of f16, which the cache has.
        for value in [f32::NAN, f32::INFINITY, 1e6] {
            if kv_type == KvType::Q8_0 && value == 1e6 {
                continue;
            }
            // Of the second key/value head.
            let at = (wrong * kv_heads + 1) * dim + column;
            let got = attended(&|sequence| sequence.v[at] = value);
            check(&format!("value {value}"), &got, &|token, head, at| sees(token) && head / group == 1 && spoils(at));
            if value.is_finite() {
                continue;
            }
            // An infinite key may have a score that gives it no weight.
            if value.is_nan() {
                let got = attended(&|sequence| sequence.k[at] = value);
                check("key", &got, &|token, head, _| sees(token) && head / group == 1);
            }
            let got = attended(&|sequence| sequence.q[(wrong * heads + 1) * dim + column] = value);
            check(&format!("query {value}"), &got, &|token, head, _| token == wrong && head == 1);
        }
    }
}
