//! Choosing tokens on the device.

mod support;

use rustai_kernels_cuda::{
    DeviceError, Floats, Span,
    ops::{MAX_TOP_K, SampleInputs, Sampling},
};
use support::{Numbers, Standin, open, standin};

/// The tokens that are chosen for `rows` equal rows of logits, with draws from 0 on.
fn choose(standin: &Standin, logits: &[f32], rows: usize, sampling: Sampling) -> Result<Vec<u32>, DeviceError> {
    let (device, kernels, stream) = open(standin);
    let all: Vec<f32> = (0..rows).flat_map(|_| logits).copied().collect();
    let logits = Floats::with(&device, logits.len(), &all)?;
    let tokens = Span::new(&device, "test", rows * 4)?;
    let mut inputs = SampleInputs::new(&device, rows)?;
    inputs.send(&stream, &(0..rows as u32).map(|draw| Sampling { draw, ..sampling }).collect::<Vec<_>>())?;
    kernels.sample(&stream, &logits, &inputs, &tokens, rows)?;
    let mut chosen = vec![0; rows];
    tokens.download(&mut chosen)?;
    Ok(chosen)
}

/// Tokens by falling logits, the first of equal ones first.
fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    tokens.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    tokens
}

/// The tokens of the largest logits of rows of this width.
fn largest(standin: &Standin, width: usize, logits: &[f32]) -> Result<Vec<u32>, DeviceError> {
    let (device, kernels, stream) = open(standin);
    let logits = Floats::with(&device, width, logits)?;
    let tokens = Span::new(&device, "test", logits.rows() * 4)?;
    kernels.argmax(&stream, &logits, &tokens, logits.rows())?;
    let mut chosen = vec![0; logits.rows()];
    tokens.download(&mut chosen)?;
    Ok(chosen)
}

#[test]
fn the_largest_wins_and_the_first_of_equals() {
    let standin = standin();
    let mut logits = Numbers::new(1).values(3000);
    (logits[1200], logits[2900], logits[1100]) = (5.0, 5.0, f32::NAN);
    let greedy = Sampling::LARGEST;
    standin.in_every_order(|_| {
        for (logits, expected) in [
            (&logits[..], 1200),
            (&[-3.0, f32::NEG_INFINITY, -1.0], 2),
            (&[f32::NAN, f32::NEG_INFINITY], 1),
            (&[1.0, f32::INFINITY, f32::MAX], 1),
            (&[-1.0, -0.0, 0.0], 1),
            (&[f32::NAN; 3], 0),
            (&[0.5; 1500], 0),
        ] {
            assert_eq!(choose(&standin, logits, 1, greedy).unwrap(), [expected]);
            assert_eq!(largest(&standin, logits.len(), logits).unwrap(), [expected]);
        }
    });
    assert_eq!(largest(&standin, 4, &[0.0, 1.0, 2.0, 2.0, 5.0, -1.0, 0.0, 0.0]).unwrap(), [2, 0]);
    assert!(matches!(largest(&standin, 3, &[]), Err(DeviceError::Invalid(_))));
}

#[test]
fn only_candidates_are_chosen_and_as_often_as_they_are_likely() {
    let standin = standin();
    let logits: Vec<f32> = Numbers::new(2).values(1111).iter().map(|x| x * 3.0).collect();
    let ranked = ranked(&logits);
    let rows = 400;
    let sampling = Sampling { top_k: 5, temperature: 0.05, seed: 42, ..Sampling::LARGEST };
    let chosen = choose(&standin, &logits, rows, sampling).unwrap();
    let weight = |token: u32| f64::from((logits[token as usize] - logits[ranked[0] as usize]) / 0.05).exp();
    let total: f64 = ranked[..5].iter().map(|token| weight(*token)).sum();
    for token in &ranked[..5] {
        let expected = weight(*token) / total;
        let share = chosen.iter().filter(|chosen| *chosen == token).count() as f64 / rows as f64;
        // Four standard deviations.
        let ceiling = 4.0 * (expected * (1.0 - expected) / rows as f64).sqrt() + 1e-9;
        assert!((share - expected).abs() <= ceiling, "token {token}: {share} for {expected}");
    }
    assert!(chosen.iter().all(|token| ranked[..5].contains(token)));
    assert_eq!(choose(&standin, &logits, rows, sampling).unwrap(), chosen, "same seed, same tokens");
    let other = Sampling { seed: 43, ..sampling };
    assert_ne!(choose(&standin, &logits, rows, other).unwrap(), chosen);
    // With this little probability, the first alone is kept.
    let narrow = Sampling { top_p: 1e-6, ..sampling };
    assert!(choose(&standin, &logits, 8, narrow).unwrap().iter().all(|token| *token == ranked[0]));
}

#[test]
fn ties_at_the_edge_go_to_the_first_tokens() {
    let standin = standin();
    let mut logits = vec![1.0; 700];
    logits[650] = 2.0;
    let sampling = Sampling { top_k: 4, temperature: 100.0, seed: 1, ..Sampling::LARGEST };
    let mut seen = choose(&standin, &logits, 100, sampling).unwrap();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 650]);
}

#[test]
fn a_missing_barrier_is_noticed() {
    let standin = standin();
    let logits: Vec<f32> = Numbers::new(2).values(1500).iter().map(|x| x * 200.0).collect();
    // Neighbours differ enough for their order to matter.
    let sampling = Sampling { top_k: 32, top_p: 0.99, seed: 5, ..Sampling::LARGEST };
    let rows = 24;
    let expected = choose(&standin, &logits, rows, sampling).unwrap();
    standin.expect_every_sync_to_matter(7, || {
        choose(&standin, &logits, rows, sampling).is_ok_and(|chosen| chosen == expected)
    });
}

#[test]
fn a_missing_barrier_of_the_largest_is_noticed() {
    let standin = standin();
    // The largest is another warp's than the one that writes the result.
    let mut logits = Numbers::new(3).values(2048);
    logits[999] = 2.0;
    standin.expect_every_sync_to_matter(1, || largest(&standin, 2048, &logits).is_ok_and(|chosen| chosen == [999]));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let standin = standin();
    let base = Sampling { top_k: 5, ..Sampling::LARGEST };
    for wrong in [
        Sampling { top_k: 0, ..base },
        Sampling { top_k: MAX_TOP_K + 1, ..base },
        Sampling { temperature: 0.0, ..base },
        Sampling { temperature: f32::NAN, ..base },
        Sampling { top_p: 0.0, ..base },
        Sampling { top_p: f32::NAN, ..base },
        Sampling { min_p: -0.1, ..base },
        Sampling { min_p: 1.5, ..base },
    ] {
        assert!(matches!(choose(&standin, &[1.0; 8], 1, wrong), Err(DeviceError::Invalid(_))), "{wrong:?}");
    }
    // More candidates than tokens are all tokens.
    assert!(choose(&standin, &[1.0; 8], 1, Sampling { top_k: 100, ..base }).unwrap()[0] < 8);
}

/// The cuts are those of the host's chain: of probabilities at temperature 1, whatever the temperature is.
#[test]
fn cuts_are_of_probabilities_at_temperature_1() {
    let standin = standin();
    let logits: Vec<f32> = [0.1f32, 0.4, 0.3, 0.15, 0.05].iter().map(|share| share.ln() + 2.0).collect();
    let seen = |sampling: Sampling| {
        let mut seen = choose(&standin, &logits, 300, sampling).unwrap();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    let hot = Sampling { top_k: 5, temperature: 50.0, seed: 3, ..Sampling::LARGEST };
    assert_eq!(seen(hot), [0, 1, 2, 3, 4]);
    assert_eq!(seen(Sampling { top_p: 0.69, ..hot }), [1, 2]);
    assert_eq!(seen(Sampling { top_p: 0.71, ..hot }), [1, 2, 3]);
    assert_eq!(seen(Sampling { min_p: 0.3, ..hot }), [1, 2, 3]);
    assert_eq!(seen(Sampling { min_p: 0.3, top_p: 0.69, ..hot }), [1, 2]);
    assert_eq!(seen(Sampling { min_p: 1.0, ..hot }), [1]);
    assert_eq!(seen(Sampling { top_k: 3, ..hot }), [1, 2, 3]);
}

/// Rows have settings of their own.
#[test]
fn each_row_is_chosen_by_its_own_settings() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let one = Numbers::new(4).values(600);
    let rows: Vec<Sampling> = (0..6)
        .map(|row| match row % 3 {
            0 => Sampling::LARGEST,
            1 => Sampling { top_k: 300, temperature: 2.0, seed: 1 << 40 | row, draw: 7, ..Sampling::LARGEST },
            _ => Sampling { top_k: 20, top_p: 0.9, min_p: 0.1, seed: 9, draw: row as u32, ..Sampling::LARGEST },
        })
        .collect();
    let all: Vec<f32> = rows.iter().flat_map(|_| &one).copied().collect();
    let logits = Floats::with(&device, one.len(), &all).unwrap();
    let tokens = Span::new(&device, "test", rows.len() * 4).unwrap();
    let mut inputs = SampleInputs::new(&device, rows.len()).unwrap();
    let mut sample = |rows: &[Sampling]| {
        inputs.send(&stream, rows)?;
        kernels.sample(&stream, &logits, &inputs, &tokens, rows.len())?;
        let mut chosen = vec![0; rows.len()];
        tokens.download(&mut chosen)?;
        Ok::<_, DeviceError>(chosen)
    };
    let together = sample(&rows).unwrap();
    let alone: Vec<u32> = rows.iter().map(|row| sample(&[*row]).unwrap()[0]).collect();
    assert_eq!(together, alone);
    assert_eq!(together[0], ranked(&one)[0]);
    assert!(together[1] != together[4] && together[2] != together[5], "{together:?}");
    // More rows than have room, and more than were sent.
    assert!(matches!(sample(&[rows[0]; 7]), Err(DeviceError::Invalid(_))));
    inputs.send(&stream, &rows[..2]).unwrap();
    assert!(matches!(kernels.sample(&stream, &logits, &inputs, &tokens, 3), Err(DeviceError::Invalid(_))));
}

#[test]
fn what_is_no_number_is_never_drawn() {
    let standin = standin();
    let draw = Sampling { top_k: 100, temperature: 10.0, seed: 2, ..Sampling::LARGEST };
    let (nan, lowest) = (f32::NAN, f32::NEG_INFINITY);
    let all = |logits: &[f32], token: u32| {
        // With more than all of the probability, what has none is kept, too.
        for top_p in [1.0, 2.0] {
            let chosen = choose(&standin, logits, 20, Sampling { top_p, ..draw }).unwrap();
            assert!(chosen.iter().all(|chosen| *chosen == token), "{logits:?}: {chosen:?}");
        }
    };
    all(&[nan, lowest, -5.0, nan], 2);
    all(&[nan; 3], 0);
    all(&[lowest, lowest], 0);
    all(&[1.0, f32::INFINITY, 3e38], 1);
    // Two that are as large as can be are as likely.
    let mut both = choose(&standin, &[f32::INFINITY, 0.0, f32::INFINITY], 50, draw).unwrap();
    both.sort_unstable();
    both.dedup();
    assert_eq!(both, [0, 2]);
}
