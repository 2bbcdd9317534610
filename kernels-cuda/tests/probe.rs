//! Instructions of matrices and of packed numbers, one by one, against what the PTX ISA manual says of them. Under the emulator
//! this holds its formulas to the manual; on a GPU (`RUSTAI_TEST_DEVICE=1`) it confirms that the chip does the same, and so that
//! the emulator is an oracle for the kernels.

mod support;

use half::{bf16, f16};
use rustai_kernels_cuda::{
    DeviceError,
    ops::{Probe, TILE_WORDS},
};
use support::{Numbers, open, standin};

/// Runs a probe with words from `word`; returns those and the results.
fn run(probe: Probe, mut word: impl FnMut(usize) -> u32) -> (Vec<u32>, Vec<u32>) {
    let standin = standin();
    let (_device, kernels, stream) = open(&standin);
    let input: Vec<u32> = (0..probe.input_words()).map(&mut word).collect();
    let got = kernels.probe(&stream, probe, &input).unwrap();
    (input, got)
}

/// Two 16-bit numbers of a word, the first in the low half.
fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

/// Small whole numbers, of which sums of products are exact in every order.
fn whole(numbers: &mut Numbers) -> f32 {
    (numbers.bits() % 17) as f32 - 8.0
}

/// ldmatrix: thread i gets elements 2 (i % 4) and the next of row i / 4 of each matrix; with .trans, of column i / 4.
#[test]
fn pieces_of_matrices_come_as_the_manual_says() {
    for (probe, transposed) in [(Probe::LoadMatrices, false), (Probe::LoadMatricesTransposed, true)] {
        // Every element is its own number: matrix, row and column.
        let element = |matrix: usize, row: usize, column: usize| (matrix << 8 | row << 4 | column) as u16;
        let (_, got) = run(probe, |i| {
            let (lane, word) = (i / 4, i % 4);
            let at = |column| u32::from(element(lane / 8, lane % 8, column));
            at(2 * word) | at(2 * word + 1) << 16
        });
        for (lane, words) in got.chunks_exact(4).enumerate() {
            for (matrix, word) in words.iter().enumerate() {
                let expected = [0, 1].map(|i| {
                    let (row, column) = (lane / 4, lane % 4 * 2 + i);
                    if transposed { element(matrix, column, row) } else { element(matrix, row, column) }
                });
                assert_eq!(halves(*word), expected, "lane {lane}, matrix {matrix}, transposed: {transposed}");
            }
        }
    }
}

/// A product of a warp: of c, lane l holds rows l / 4 and l / 4 + 8 and columns 2 (l % 4) and the next.
fn check_product<T: PartialEq + std::fmt::Debug>(
    got: &[u32],
    depth: usize,
    number: impl Fn(u32) -> T,
    sum: impl Fn(usize, &mut dyn Iterator<Item = usize>, usize, usize) -> T,
) {
    for (lane, words) in got.chunks_exact(4).enumerate() {
        for (i, word) in words.iter().enumerate() {
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            assert_eq!(number(*word), sum(lane * 4 + i, &mut (0..depth), row, column), "lane {lane}, register {i}");
        }
    }
}

/// mma.m16n8k32 and m16n8k16 of signed bytes: register i of a holds four columns from 4 (lane % 4) on, of row lane / 4 (+ 8 if i
/// is odd), of the i / 2-th 16 columns; register i of b the same rows, of column lane / 4.
#[test]
fn products_of_bytes_are_laid_out_as_the_manual_says() {
    for (probe, depth, [a, b]) in [(Probe::MmaInt8K32, 32, [4, 2]), (Probe::MmaInt8K16, 16, [2, 1])] {
        let mut numbers = Numbers::new(depth as u64);
        let (input, got) = run(probe, |_| numbers.bits() ^ numbers.bits() << 7);
        let each = a + b + 4;
        let byte = |lane: usize, register: usize, k: usize| {
            i32::from(input[lane * each + register].to_le_bytes()[k % 4] as i8)
        };
        check_product(
            &got,
            depth,
            |word| word as i32,
            |c, columns, row, column| {
                let start = input[c / 4 * each + a + b + c % 4] as i32;
                columns.fold(start, |sum, k| {
                    let left = byte(row % 8 * 4 + k % 16 / 4, row / 8 + k / 16 * 2, k);
                    sum.wrapping_add(left * byte(column * 4 + k % 16 / 4, a + k / 16, k))
                })
            },
        );
    }
}

/// mma.m16n8k16 of 16-bit floats: register i of a holds columns 2 (lane % 4) and the next, of row lane / 4 (+ 8 if i is odd), of
/// the i / 2-th 8 columns; register i of b the same rows, of column lane / 4.
#[test]
fn products_of_halves_are_laid_out_as_the_manual_says() {
    let f16s: [fn(f32) -> u16; 2] = [|x| f16::from_f32(x).to_bits(), |x| bf16::from_f32(x).to_bits()];
    let floats: [fn(u16) -> f32; 2] = [|x| f16::from_bits(x).to_f32(), |x| bf16::from_bits(x).to_f32()];
    for (probe, to_bits, to_float) in [(Probe::MmaF16, f16s[0], floats[0]), (Probe::MmaBf16, f16s[1], floats[1])] {
        let mut numbers = Numbers::new(3);
        let (input, got) = run(probe, |i| match i % 10 {
            0..6 => u32::from(to_bits(whole(&mut numbers))) | u32::from(to_bits(whole(&mut numbers))) << 16,
            _ => whole(&mut numbers).to_bits(),
        });
        let value = |lane: usize, register: usize, k: usize| to_float(halves(input[lane * 10 + register])[k % 2]);
        check_product(&got, 16, f32::from_bits, |c, columns, row, column| {
            let start = f32::from_bits(input[c / 4 * 10 + 6 + c % 4]);
            columns.fold(start, |sum, k| {
                let left = value(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k);
                sum + left * value(column * 4 + k % 8 / 2, 4 + k / 8, k)
            })
        });
    }
}

/// wgmma.m64n128k16: a as of mma.m16n8k16, 16 rows of each warp, and c likewise for every 8 columns; b is rows of 128 bytes, of
/// which 8 are 1024 bytes, with the 128-byte swizzle: 16-byte piece p of row r is at place p ^ r % 8.
#[test]
fn products_of_a_warpgroup_are_laid_out_as_the_manual_says() {
    let (hopper, device) = {
        let standin = standin();
        let (device, ..) = open(&standin);
        (device.info().capability == (9, 0), device.info().name.clone())
    };
    if !hopper {
        return println!("{device} has no wgmma");
    }
    for (probe, first) in [(Probe::WgmmaFirst, 0), (Probe::WgmmaLast, 48)] {
        let mut numbers = Numbers::new(5);
        let (input, got) = run(probe, |i| {
            let mut half = || u32::from(f16::from_f32(whole(&mut numbers)).to_bits());
            let pair = half() | half() << 16;
            if i < TILE_WORDS || (i - TILE_WORDS) % 68 < 4 { pair } else { f32::from(halves(pair)[0] as i8).to_bits() }
        });
        let (tile, threads) = input.split_at(TILE_WORDS);
        let float = |bits: u16| f16::from_bits(bits).to_f32();
        let right = |n: usize, column: usize| {
            let byte = n * 128 + ((column / 8) ^ (n % 8)) * 16 + column % 8 * 2;
            float(halves(tile[byte / 4])[byte / 2 % 2])
        };
        let left = |row: usize, k: usize| {
            let thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
            float(halves(threads[thread * 68 + row % 16 / 8 + k / 8 * 2])[k % 2])
        };
        for (i, word) in got.iter().enumerate() {
            let (thread, i) = (i / 64, i % 64);
            let row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            let start = f32::from_bits(threads[thread * 68 + 4 + i]);
            let expected = (0..16).fold(start, |sum, k| sum + left(row, k) * right(column, first + k));
            assert_eq!(f32::from_bits(*word), expected, "thread {thread}, register {i}, columns from {first}");
        }
    }
}

/// cp.async.bulk.tensor.2d with the 128-byte swizzle: row r of a tile is at 128 r, its 16-byte piece p at place p ^ r % 8, and
/// what is outside the matrix is zero. It is awaited by its bytes, of which those outside count.
#[test]
fn tiles_come_to_where_the_manual_says() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    if device.info().capability != (9, 0) {
        return println!("{} has no tensor memory accelerator, or none that is used", device.info().name);
    }
    let (rows, width) = (130, 96);
    // Every element is its own number, and none is zero.
    let values: Vec<u16> = (1..=rows * width).map(|value| value as u16).collect();
    // A tile that is inside in part: all of its rows and half of its columns, two rows, both, and neither at the start of a tile.
    for [column, row] in [[0, 0], [64, 0], [0, 128], [64, 128], [32, 77], [96, 0], [0, 130]] {
        standin.in_every_order(|order| {
            let got = kernels.probe_tile(&stream, &values, width, [column, row]).unwrap();
            assert_eq!(got.len(), TILE_WORDS);
            for at in 0..2 * TILE_WORDS {
                let (r, place, within) = (at / 64, at % 64 / 8, at % 8);
                let c = (place ^ (r % 8)) * 8 + within;
                let inside = row + r < rows && column + c < width;
                let expected = if inside { values[(row + r) * width + column + c] } else { 0 };
                let got = halves(got[at / 2])[at % 2];
                assert_eq!(got, expected, "row {r}, column {c} of the tile at {row}, {column}, order {order}");
            }
        });
    }
    let error = kernels.probe_tile(&stream, &values, 4, [0, 0]).unwrap_err();
    assert!(matches!(error, DeviceError::Invalid(_)), "{error}");
}

/// To nearest, ties to even, in one rounding.
fn to_f16(value: f64) -> u16 {
    let exponent = ((value.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(-14);
    let last_place = 2f64.powi(exponent - 10);
    f16::from_f64((value / last_place).round_ties_even() * last_place).to_bits()
}

/// dp4a, prmt, conversions and arithmetic on pairs of f16: the order of halves and the rounding.
#[test]
fn words_are_computed_as_the_manual_says() {
    let mut numbers = Numbers::new(9);
    // Words that are f16 pairs and f32 of ordinary size alike.
    let (input, got) = run(Probe::Words, |_| {
        let mut half = || f16::from_f32(numbers.value() * 6.0).to_bits();
        u32::from(half()) | u32::from(half()) << 16
    });
    for (words, got) in input.chunks_exact(3).zip(got.chunks_exact(10)) {
        let &[x, y, z] = words else { unreachable!("chunks of three") };
        let (first, second) = (f32::from_bits(x), f32::from_bits(y));
        let bytes = |word: u32| word.to_le_bytes();
        let dot = bytes(x)
            .iter()
            .zip(bytes(y))
            .fold(z as i32, |sum, (a, b)| sum.wrapping_add(i32::from(*a as i8) * i32::from(b as i8)));
        let pair = [bytes(x), bytes(y)].concat();
        let permuted = u32::from_le_bytes([0, 4, 8, 12].map(|shift| pair[(z >> shift & 7) as usize]));
        let packed = |to_bits: fn(f32) -> u16| u32::from(to_bits(first)) | u32::from(to_bits(second)) << 16;
        let of_pairs = |operation: &dyn Fn(f64, f64, f64) -> f64| {
            let value = |word: u32, i: usize| f16::from_bits(halves(word)[i]).to_f64();
            let one = |i| u32::from(to_f16(operation(value(x, i), value(y, i), value(z, i))));
            one(0) | one(1) << 16
        };
        let expected = [
            dot as u32,
            permuted,
            packed(|x| to_f16(f64::from(x))),
            packed(|x| bf16::from_f32(x).to_bits()),
            of_pairs(&|x, y, _| x - y),
            of_pairs(&|x, y, _| x * y),
            of_pairs(&|x, y, z| x.mul_add(y, z)),
            f16::from_bits(halves(x)[0]).to_f32().to_bits(),
            u32::from(to_f16(f64::from(first))),
            second.round_ties_even() as i32 as u32,
        ];
        assert_eq!(got, expected, "{x:08x} {y:08x} {z:08x}");
    }
}

#[test]
fn a_probe_takes_as_many_words_as_it_says() {
    let standin = standin();
    let (_device, kernels, stream) = open(&standin);
    let error = kernels.probe(&stream, Probe::MmaF16, &[0; 319]).unwrap_err();
    assert!(matches!(error, DeviceError::Invalid(_)), "{error}");
}
