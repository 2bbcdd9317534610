//! Rotation frequencies from metadata: plain, with frequency factors, linearly interpolated, or by YaRN.

use super::{LoadError, reader::Reader};
use crate::graph::{Rope, RopeStyle, read_floats};
use std::{f64::consts::TAU, sync::Arc};

/// Tensor of divisors of the frequencies (Llama 3.1's scaling, worked out when the file was made).
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// Reads the rotation of heads of `head_dim` values; `context` is the model's longest sequence.
pub(super) fn read(
    reader: &Reader<'_>,
    style: RopeStyle,
    head_dim: usize,
    context: usize,
) -> Result<Arc<Rope>, LoadError> {
    const ROTATED: &str = "rope.dimension_count";
    let rotated = reader.positive_or(ROTATED, head_dim)?;
    if rotated > head_dim || !rotated.is_multiple_of(2) {
        return Err(reader.invalid(
            ROTATED,
            rotated,
            format!("it should be even and at most the {head_dim} of a head"),
        ));
    }
    let base = f64::from(positive(reader, "rope.freq_base", 10_000.0)?);
    let factors = factors(reader, rotated / 2)?;
    let plain = |pair: usize| base.powf(-2.0 * pair as f64 / rotated as f64) / f64::from(factors[pair]);
    let (scale, ramp, magnitude) = match scaling(reader, context)? {
        Scaling::Linear { factor } => (1.0 / factor, None, 1.0),
        Scaling::Yarn(yarn) => (1.0 / yarn.factor, Some(yarn.ramp(rotated, base)), yarn.magnitude),
    };
    let frequency = |pair| {
        // 1 keeps the frequency, 0 stretches it by the whole factor (YaRN, section 3.2).
        let kept = ramp.as_ref().map_or(0.0, |ramp| ramp(pair));
        (plain(pair) * (scale * (1.0 - kept) + kept)) as f32
    };
    Ok(Arc::new(Rope { style, inv_freq: (0..rotated / 2).map(frequency).collect(), magnitude: magnitude as f32 }))
}

enum Scaling {
    /// Positions are divided by a factor (Chen et al., 2023, arXiv 2306.15595).
    Linear { factor: f64 },
    /// High frequencies are kept, low ones interpolated (Peng et al., 2023, arXiv 2309.00071).
    Yarn(Yarn),
}

struct Yarn {
    factor: f64,
    /// Share of the kept frequencies that is applied, usually 1.
    extrapolation: f64,
    /// Context of the training before the extension.
    original_context: f64,
    /// Turns within the original context above which a frequency is kept, and below which it is interpolated.
    beta_fast: f64,
    beta_slow: f64,
    /// Factor on rotated values.
    magnitude: f64,
}

impl Yarn {
    /// How much of its own frequency each pair keeps.
    fn ramp(&self, rotated: usize, base: f64) -> impl Fn(usize) -> f64 + use<> {
        // The dimension whose frequency makes `turns` turns in the original context.
        let dimension = |turns: f64| rotated as f64 * (self.original_context / (turns * TAU)).ln() / (2.0 * base.ln());
        let low = dimension(self.beta_fast).floor().max(0.0);
        let high = dimension(self.beta_slow).ceil().min(rotated as f64 - 1.0);
        let extrapolation = self.extrapolation;
        move |pair| extrapolation * (1.0 - ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0))
    }
}

fn scaling(reader: &Reader<'_>, context: usize) -> Result<Scaling, LoadError> {
    const TYPE: &str = "rope.scaling.type";
    let key = reader.key(TYPE);
    // A factor without a type, and the key of old files, mean linear scaling.
    let kind = reader.file.str(&key)?.unwrap_or("linear");
    let factor_key =
        if reader.real("rope.scaling.factor")?.is_some() { "rope.scaling.factor" } else { "rope.scale_linear" };
    // Files write 0 for "not scaled".
    let factor = match reader.real(factor_key)? {
        None | Some(0.0) => 1.0,
        Some(_) => f64::from(positive(reader, factor_key, 1.0)?),
    };
    match kind {
        "none" => Ok(Scaling::Linear { factor: 1.0 }),
        "linear" => Ok(Scaling::Linear { factor }),
        "yarn" => {
            let original = reader.size("rope.scaling.original_context_length")?.filter(|len| *len > 0);
            let extrapolation =
                reader.real("rope.scaling.yarn_ext_factor")?.filter(|value| *value >= 0.0).unwrap_or(1.0);
            let attention = positive(reader, "rope.scaling.attn_factor", 1.0)?;
            for (key, neutral) in [("rope.scaling.yarn_log_multiplier", 0.0), ("rope.scaling.yarn_attn_factor", 1.0)] {
                if let Some(value) = reader.real(key)?.filter(|value| *value != neutral) {
                    return Err(reader.unsupported(key, value, "this variant of YaRN's attention factor is"));
                }
            }
            // Equation 22 of the paper: attention is sharpened by 0.1 ln(factor) + 1 on queries and on keys.
            let sharpened = if extrapolation != 0.0 && factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            Ok(Scaling::Yarn(Yarn {
                factor,
                extrapolation: f64::from(extrapolation),
                original_context: original.unwrap_or(context) as f64,
                beta_fast: f64::from(positive(reader, "rope.scaling.yarn_beta_fast", 32.0)?),
                beta_slow: f64::from(positive(reader, "rope.scaling.yarn_beta_slow", 1.0)?),
                magnitude: f64::from(attention) * sharpened,
            }))
        }
        other => {
            Err(reader.unsupported(TYPE, format!("{other:?}"), "RoPE scaling other than none, linear and yarn is"))
        }
    }
}

fn positive(reader: &Reader<'_>, key: &str, absent: f32) -> Result<f32, LoadError> {
    match reader.real(key)? {
        Some(value) if value <= 0.0 => Err(reader.invalid(key, value, "it should be positive")),
        value => Ok(value.unwrap_or(absent)),
    }
}

/// Divisors of the frequencies, all 1 where the file has none.
fn factors(reader: &Reader<'_>, pairs: usize) -> Result<Vec<f32>, LoadError> {
    for name in ["rope_factors_long.weight", "rope_factors_short.weight"] {
        if reader.file.info(name).is_some() {
            return Err(reader.unsupported("rope.scaling.type", format!("absent, but {name} is there"), "LongRoPE is"));
        }
    }
    if reader.file.info(FACTORS).is_none() {
        return Ok(vec![1.0; pairs]);
    }
    let info = reader.info(FACTORS, &[pairs])?;
    let values = reader.file.bytes(FACTORS).and_then(|bytes| read_floats(info.dtype, &bytes, pairs));
    let values = values.filter(|values| values.iter().all(|value| *value > 0.0 && value.is_finite()));
    values.ok_or_else(|| LoadError::InvalidMetadata {
        key: FACTORS.into(),
        found: format!("a {} tensor with a value that is no divisor", info.dtype),
        expected: "it should hold positive floats".into(),
    })
}
