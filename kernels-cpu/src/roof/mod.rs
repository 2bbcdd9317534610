//! The limits of this machine, measured: how fast it reads, and how fast it multiplies and adds.
//!
//! A kernel that does `i` multiply-adds per byte of weights cannot do more than `min(bandwidth * i, peak)` of them per
//! second (the roofline model: Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785). What is measured here
//! are the two roofs. The loops touch nothing but what they measure; the best of several rounds counts, since other
//! programs can only slow a round down.
//!
//! | instruction set | integer peak | float peak |
//! |---|---|---|
//! | AVX-512 VNNI | `vpdpbusd` on 512 bits: 64 multiply-adds each | `vfmadd` on 512 bits |
//! | AVX-512 | `vpmaddubsw`, `vpaddw` on 512 bits: 64 multiply-adds per two | as AVX-512 VNNI |
//! | AVX-VNNI | `vpdpbusd` on 256 bits: 32 multiply-adds each | as AVX2 |
//! | AVX2 | `vpmaddubsw`, `vpaddw` on 256 bits: 32 multiply-adds per two | `vfmadd` on 256 bits |
//! | NEON | `smull`, `smlal2`, `sadalp`: 16 multiply-adds per three | `fmla` on 128 bits |
//! | NEON with dot products | `sdot`: 16 multiply-adds each | as NEON |
//! | NEON with matrix products | `smmla`: 32 multiply-adds each | as NEON |
//!
//! A kernel may pass the integer peak of plain NEON where its quants are so small that it can add 16-bit sums before it widens
//! them; those of AVX2 and of AVX-512 without VNNI count such sums already. The reference has a bandwidth only.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64::loops;
#[cfg(target_arch = "x86_64")]
use x86_64::loops;

use crate::{
    ExecutorError, Isa,
    memory::Region,
    team::{Poisoned, Team},
};
use rayon::prelude::*;
use std::{
    hint::black_box,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bytes that the read loops take in one step; buffers are rounded down to it.
const STEP: usize = 512;
/// How long a round shall take: no longer than systems let a thread run at a stretch, so that on a busy machine, too, some
/// rounds are undisturbed.
const ROUND: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 4 });
/// Rounds of which the best counts.
const ROUNDS: usize = if cfg!(test) { 2 } else { 32 };

/// The fastest that arithmetic of one kind can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// The instructions that were measured, such as `vpdpbusd zmm`.
    pub instruction: &'static str,
    /// Multiply-adds per second of all threads together.
    pub macs_per_second: f64,
}

/// Bytes per second that `threads` threads read together, each its own share of a buffer of `bytes` bytes, again and again.
///
/// A buffer larger than the last cache gives the bandwidth of memory, a smaller one that of the cache it fits.
///
/// # Errors
/// [`ExecutorError`] if this processor lacks `isa`, or memory or threads are refused.
pub fn read(isa: Isa, threads: usize, bytes: usize) -> Result<f64, ExecutorError> {
    if let Some(missing) = isa.missing_feature() {
        return Err(ExecutorError::Isa { isa: isa.name(), missing });
    }
    let share = (bytes / threads.max(1) / STEP).max(1) * STEP;
    let mut buffer = Region::new("the buffer that bandwidth is measured with", share * threads.max(1))?;
    // Pages that were never written share one page of zeros, which would stay in the first-level cache.
    buffer.as_mut_slice().par_chunks_mut(1 << 20).for_each(|chunk| chunk.fill(1));
    let shares: Vec<&[u8]> = buffer.as_mut_slice().chunks_exact(share).collect();
    let mut best: f64 = 0.0;
    // Some processors fetch ahead well enough by themselves, others need to be told.
    for ahead in [false, true] {
        let rate = best_rate(threads, (share * threads.max(1)) as f64, &|thread| {
            black_box(read_once(isa, ahead, black_box(shares[thread])));
        })?;
        best = best.max(rate);
    }
    Ok(best)
}

/// Most multiply-adds of 8-bit numbers; `None` if the instruction set has no measured peak, or this processor lacks it.
///
/// # Errors
/// [`ExecutorError`] if threads are refused.
pub fn integer(isa: Isa, threads: usize) -> Result<Option<Peak>, ExecutorError> {
    peak(isa, threads, |loops| loops.integer)
}

/// Most fused multiply-adds of `f32`; `None` if the instruction set has no measured peak, or this processor lacks it.
///
/// # Errors
/// [`ExecutorError`] if threads are refused.
pub fn float(isa: Isa, threads: usize) -> Result<Option<Peak>, ExecutorError> {
    peak(isa, threads, |loops| loops.float)
}

/// A loop that does nothing but multiply and add.
#[derive(Clone, Copy)]
struct Loop {
    instruction: &'static str,
    /// Multiply-adds of one turn.
    macs: usize,
    /// Runs so many turns; the result depends on all of them. The processor must have the instruction.
    run: unsafe fn(u64) -> f64,
}

/// The loops of an instruction set.
#[derive(Clone, Copy)]
struct Loops {
    integer: Loop,
    float: Loop,
}

/// No loops are written for this architecture.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn loops(_: Isa) -> Option<Loops> {
    None
}

/// Turns in one call: far more than entering and leaving the loop costs.
const TURNS: u64 = 20_000;

fn peak(isa: Isa, threads: usize, which: fn(Loops) -> Loop) -> Result<Option<Peak>, ExecutorError> {
    let Some(work) = loops(isa).filter(|_| isa.missing_feature().is_none()).map(which) else { return Ok(None) };
    let macs = work.macs as f64 * TURNS as f64 * threads.max(1) as f64;
    let macs_per_second = best_rate(threads, macs, &|_| {
        // SAFETY: the processor has all features of `isa`, as was just seen.
        black_box(unsafe { (work.run)(black_box(TURNS)) });
    })?;
    Ok(Some(Peak { instruction: work.instruction, macs_per_second }))
}

/// Reads all of `data`, which is a whole number of steps, and mixes it into one value.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "plain code does not fetch ahead"))]
fn read_once(isa: Isa, ahead: bool, data: &[u8]) -> u64 {
    match isa {
        // SAFETY: `read`, the only caller, has found the processor to have the features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => unsafe { x86_64::read_avx2(data, ahead) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bw | Isa::Avx512 => unsafe { x86_64::read_avx512(data, ahead) },
        _ => {
            let mut mixed = [0u64; STEP / 8];
            for step in data.as_chunks::<STEP>().0 {
                for (mixed, word) in mixed.iter_mut().zip(step.as_chunks::<8>().0) {
                    *mixed |= u64::from_ne_bytes(*word);
                }
            }
            mixed.iter().fold(0, |all, word| all | word)
        }
    }
}

/// Units per second of all threads together, if each call of `body` on all of them does `work` units: the best of
/// several rounds.
fn best_rate(threads: usize, work: f64, body: &(dyn Fn(usize) + Sync)) -> Result<f64, ExecutorError> {
    let threads = threads.max(1);
    let mut team = Team::new(threads).map_err(|error| ExecutorError::Threads { threads, reason: error.to_string() })?;
    let mut round = |calls: u32| -> Result<Duration, ExecutorError> {
        let spans = Mutex::new(Vec::with_capacity(threads));
        team.run(&|thread, lockstep| {
            lockstep.barrier();
            let started = Instant::now();
            for _ in 0..calls {
                body(thread);
            }
            let span = (started, Instant::now());
            spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        })
        .map_err(|Poisoned| ExecutorError::Panicked)?;
        let spans = spans.into_inner().unwrap_or_else(PoisonError::into_inner);
        let first = spans.iter().map(|span| span.0).min();
        let last = spans.iter().map(|span| span.1).max();
        Ok(first.zip(last).map_or(Duration::MAX, |(first, last)| last - first).max(Duration::from_nanos(1)))
    };
    let mut calls = 1;
    let mut shortest = round(calls)?;
    while shortest < ROUND && calls < 1 << 24 {
        calls = (calls * 2).max((f64::from(calls) * ROUND.as_secs_f64() / shortest.as_secs_f64()) as u32);
        shortest = round(calls)?;
    }
    for _ in 0..ROUNDS {
        shortest = shortest.min(round(calls)?);
    }
    Ok(work * f64::from(calls) / shortest.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_reads_every_byte() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.missing_feature().is_none()) {
            for ahead in [false, true] {
                let mut data = vec![0u8; 3 * STEP];
                assert_eq!(read_once(isa, ahead, &data), 0);
                for at in [0, 1, 63, 64, STEP - 1, STEP, 3 * STEP - 1] {
                    data[at] = 0x40;
                    assert_ne!(read_once(isa, ahead, &data), 0, "{} misses byte {at}", isa.name());
                    data[at] = 0;
                }
            }
        }
    }

    #[test]
    fn peaks_count_the_work_that_is_done() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.missing_feature().is_none()) {
            let Some(Loops { integer, float }) = loops(isa) else {
                assert!(isa == Isa::Reference, "{} has no loops", isa.name());
                continue;
            };
            for (work, product) in [(integer, 6.0), (float, 0.25)] {
                // SAFETY: the processor has the features.
                let (none, some) = unsafe { ((work.run)(0), (work.run)(1000)) };
                assert_eq!(some - none, product * work.macs as f64 * 1000.0, "{}", work.instruction);
            }
        }
    }

    #[test]
    fn what_cannot_be_measured_is_none_and_the_rest_is_positive() {
        assert_eq!(integer(Isa::Reference, 1).unwrap(), None);
        assert_eq!(float(Isa::Reference, 1).unwrap(), None);
        assert!(read(Isa::Reference, 2, 1 << 16).unwrap() > 0.0);
        let best = Isa::best();
        if best != Isa::Reference {
            assert!(integer(best, 2).unwrap().unwrap().macs_per_second > 0.0);
        }
    }
}
