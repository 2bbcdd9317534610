//! Mixes: which type each tensor of a model becomes.
//!
//! A mix has one type for most matrices and gives others to those where errors cost most. The rules are llama.cpp's
//! (`llama-quant.cpp` of b11434), so that a file is as large and as good as one of the same name made there. This module
//! is rules and nothing else: it reads no weights and writes no file.

use crate::gguf::{GgufError, Metadata, TensorInfo};
use rustai_abi::DType;

/// A named mix.
#[expect(non_camel_case_types, reason = "the field writes these names so")]
#[expect(missing_docs, reason = "the names are the field's; the module says what they are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mix {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
    IQ4_NL,
    IQ4_XS,
    /// All matrices but the output's; llama.cpp has only the next one.
    MXFP4,
    /// Experts only; other matrices are Q8_0.
    MXFP4_MOE,
    Q3_K_L,
    Q3_K_M,
    Q3_K_S,
    Q2_K,
    Q2_K_S,
}

use Mix::*;

/// One row per mix: name, `general.file_type`, type of most matrices. Best first.
const TABLE: [(Mix, &str, u32, DType); 22] = [
    (F32, "F32", 0, DType::F32),
    (F16, "F16", 1, DType::F16),
    (BF16, "BF16", 32, DType::BF16),
    (Q8_0, "Q8_0", 7, DType::Q8_0),
    (Q6_K, "Q6_K", 18, DType::Q6_K),
    (Q5_K_M, "Q5_K_M", 17, DType::Q5_K),
    (Q5_K_S, "Q5_K_S", 16, DType::Q5_K),
    (Q5_1, "Q5_1", 9, DType::Q5_1),
    (Q5_0, "Q5_0", 8, DType::Q5_0),
    (Q4_K_M, "Q4_K_M", 15, DType::Q4_K),
    (Q4_K_S, "Q4_K_S", 14, DType::Q4_K),
    (Q4_1, "Q4_1", 3, DType::Q4_1),
    (Q4_0, "Q4_0", 2, DType::Q4_0),
    (IQ4_NL, "IQ4_NL", 25, DType::IQ4_NL),
    (IQ4_XS, "IQ4_XS", 30, DType::IQ4_XS),
    (MXFP4, "MXFP4", 38, DType::MXFP4),
    (MXFP4_MOE, "MXFP4_MOE", 38, DType::MXFP4),
    (Q3_K_L, "Q3_K_L", 13, DType::Q3_K),
    (Q3_K_M, "Q3_K_M", 12, DType::Q3_K),
    (Q3_K_S, "Q3_K_S", 11, DType::Q3_K),
    (Q2_K, "Q2_K", 10, DType::Q2_K),
    (Q2_K_S, "Q2_K_S", 21, DType::Q2_K),
];

impl Mix {
    /// All mixes, best first.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The mix of a name, in upper or lower case. `Q3_K`, `Q4_K` and `Q5_K` mean their `_M`.
    pub fn parse(name: &str) -> Option<Self> {
        let medium = ["Q3_K", "Q4_K", "Q5_K"].iter().any(|short| short.eq_ignore_ascii_case(name));
        let name = if medium { format!("{name}_M") } else { name.to_owned() };
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(&name)).map(|row| row.0)
    }

    /// The name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The number that stands in a file's `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().2
    }

    /// The type of most matrices.
    pub fn dtype(self) -> DType {
        self.row().3
    }

    /// Whether the result is poor without an importance matrix; llama-quantize refuses to make such a file.
    pub fn needs_importance(self) -> bool {
        self == Q2_K_S
    }

    fn row(self) -> &'static (Self, &'static str, u32, DType) {
        // PANIC: a unit test proves that each variant has its row.
        TABLE.iter().find(|row| row.0 == self).expect("every mix has a row")
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What the rules ask of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `general.architecture`.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Query heads for each key/value head.
    pub sharing: usize,
    /// Experts; 0 for a dense model.
    pub experts: usize,
}

impl Facts {
    /// Reads them; what is missing counts as 0, and as 1 head per key/value head.
    ///
    /// # Errors
    /// [`GgufError`] if a value is of a wrong type.
    pub fn of(metadata: &Metadata) -> Result<Self, GgufError> {
        let architecture = metadata.str("general.architecture")?.unwrap_or_default().to_owned();
        // Heads may differ from layer to layer; then they are an array, and do not share evenly.
        let count = |key: &str| -> Result<usize, GgufError> {
            let key = format!("{architecture}.{key}");
            match metadata.get(&key) {
                Some(crate::gguf::Value::Array(_)) => Ok(0),
                _ => Ok(metadata.u32(&key)?.unwrap_or(0) as usize),
            }
        };
        let (heads, kv_heads) = (count("attention.head_count")?, count("attention.head_count_kv")?);
        let sharing = heads.checked_div(kv_heads).unwrap_or(1);
        Ok(Self { layers: count("block_count")?, sharing, experts: count("expert_count")?, architecture })
    }
}

/// What the user decides beside the mix.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Every matrix gets the mix's own type.
    pub pure: bool,
    /// Type of the token embedding.
    pub token_embedding: Option<DType>,
    /// Type of the output matrix; of a tied embedding too, unless that has a wish of its own.
    pub output: Option<DType>,
}

/// What a tensor becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It stays as it is.
    Keep,
    /// It becomes another type.
    To {
        /// The type.
        dtype: DType,
        /// The type that the mix has for it, where its rows do not divide into that type's blocks.
        instead_of: Option<DType>,
    },
}

/// Decides for each tensor; the result is in the order of `tensors`.
pub fn choose(tensors: &[TensorInfo], facts: &Facts, mix: Mix, wishes: &Wishes, importance: bool) -> Vec<Choice> {
    let mut order: Vec<usize> = (0..tensors.len()).filter(|&i| may_be_quantized(&tensors[i])).collect();
    // Some rules count tensors of a kind, layer by layer.
    order.sort_by_key(|&i| (layer(&tensors[i].name), &tensors[i].name));
    let values = tensors.iter().filter(|tensor| Role::of(&tensor.name) == Role::AttentionValue).count();
    let tied = !tensors.iter().any(|tensor| Role::of(&tensor.name) == Role::Output);
    let rules = Rules { facts, mix, wishes, importance, values, tied };
    let (mut values_before, mut downs_before) = (0, 0);
    let mut choices = vec![Choice::Keep; tensors.len()];
    for i in order {
        let tensor = &tensors[i];
        let role = Role::of(&tensor.name);
        let down = match facts.experts {
            0 | 1 => downs_before,
            _ => usize::try_from(layer(&tensor.name)).unwrap_or(0),
        };
        let wanted = rules.choose(tensor, role, values_before, down);
        values_before += usize::from(role == Role::AttentionValue);
        downs_before += usize::from(role == Role::FfnDown);
        let dtype = fitting(wanted, tensor.dims[0]);
        choices[i] = Choice::To { dtype, instead_of: (dtype != wanted).then_some(wanted) };
    }
    choices
}

/// Whether a tensor is a matrix that large models spend their bytes on. Norms, biases, routers, positions and the small
/// matrices of state-space, RWKV and multimodal models stay as they are.
fn may_be_quantized(tensor: &TensorInfo) -> bool {
    const KEPT: [&str; 26] = [
        "_norm.weight",
        "ffn_gate_inp.weight",
        "ffn_gate_tid2eid.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
        "time_mix_first.weight",
        "time_mix_w0.weight",
        "time_mix_w1.weight",
        "time_mix_w2.weight",
        "time_mix_v0.weight",
        "time_mix_v1.weight",
        "time_mix_v2.weight",
        "time_mix_a0.weight",
        "time_mix_a1.weight",
        "time_mix_a2.weight",
        "time_mix_g1.weight",
        "time_mix_g2.weight",
        "time_mix_decay_w1.weight",
        "time_mix_decay_w2.weight",
        "time_mix_lerp_fused.weight",
        "attn_rel_b.weight",
    ];
    const KEPT_MULTIMODAL: [&str; 9] = [
        ".position_embd",
        "sam.pos_embd",
        "sam.neck.",
        "sam.net_",
        ".rel_pos",
        ".patch_embd",
        ".patch_merger",
        "a.rvq.codebook",
        "mm.a.code_embd",
    ];
    let name = &tensor.name;
    // Trailing dimensions of 1 do not make a vector a matrix.
    let is_matrix = tensor.dims.iter().skip(1).any(|&dim| dim > 1);
    let number = matches!(tensor.dtype, DType::F64 | DType::I8 | DType::I16 | DType::I32 | DType::I64);
    is_matrix
        && !number
        && name.ends_with("weight")
        && !matches!(name.as_str(), "position_embd.weight" | "token_types.weight")
        && !KEPT.iter().chain(&KEPT_MULTIMODAL).any(|part| name.contains(part))
}

/// What a tensor does, as far as the rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Output,
    TokenEmbedding,
    /// Values, or a matrix that holds them among others.
    AttentionValue,
    AttentionKey,
    AttentionOutput,
    FfnDown,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::TokenEmbedding,
            _ if ["attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight"].iter().any(|part| name.contains(part)) => {
                Self::AttentionValue
            }
            _ if name.contains("attn_k.weight") => Self::AttentionKey,
            _ if name.contains("attn_output.weight") => Self::AttentionOutput,
            _ if name.contains("ffn_down") => Self::FfnDown,
            _ => Self::Other,
        }
    }
}

/// The layer that a name like `blk.7.attn_q.weight` tells; -1 outside of layers.
fn layer(name: &str) -> i64 {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(-1)
}

/// The type itself, or one of about its size and smaller blocks if rows of `cols` are no whole number of its blocks.
fn fitting(dtype: DType, cols: usize) -> DType {
    if cols.is_multiple_of(dtype.block_len()) {
        return dtype;
    }
    let smaller = match dtype {
        DType::IQ4_XS => DType::IQ4_NL,
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::F16,
    };
    if cols.is_multiple_of(smaller.block_len()) { smaller } else { DType::F16 }
}

struct Rules<'a> {
    facts: &'a Facts,
    mix: Mix,
    wishes: &'a Wishes,
    /// Whether there is an importance matrix.
    importance: bool,
    /// Value matrices in the model.
    values: usize,
    /// Whether the embedding is the output too.
    tied: bool,
}

impl Rules<'_> {
    /// The type of a tensor; `value` and `down` count the value and down matrices before it.
    fn choose(&self, tensor: &TensorInfo, role: Role, value: usize, down: usize) -> DType {
        let own = self.mix.dtype();
        let wish = match role {
            Role::TokenEmbedding if self.tied => self.wishes.token_embedding.or(self.wishes.output),
            Role::TokenEmbedding => self.wishes.token_embedding,
            Role::Output => self.wishes.output,
            _ => None,
        };
        if let Some(dtype) = wish {
            return dtype;
        }
        // Floats know no mixture.
        if self.wishes.pure || matches!(own, DType::F32 | DType::F16 | DType::BF16) {
            return own;
        }
        match role {
            Role::Output => self.output(tensor),
            Role::TokenEmbedding if self.tied => self.output(tensor),
            _ if self.mix == MXFP4_MOE => match tensor.dims.get(2) {
                Some(experts) if *experts > 1 => own,
                _ => DType::Q8_0,
            },
            Role::AttentionValue => self.attention_value(value),
            Role::AttentionKey if self.facts.experts == 8 => DType::Q8_0,
            Role::AttentionOutput => self.attention_output(),
            Role::FfnDown => self.ffn_down(down),
            Role::TokenEmbedding | Role::AttentionKey | Role::Other => own,
        }
    }

    fn output(&self, tensor: &TensorInfo) -> DType {
        let own = self.mix.dtype();
        let fits = tensor.dims[0].is_multiple_of(own.block_len());
        if own == DType::Q8_0 || own == DType::MXFP4 || !fits || self.is_falcon() { DType::Q8_0 } else { DType::Q6_K }
    }

    fn attention_value(&self, index: usize) -> DType {
        let shared = self.facts.sharing >= 4;
        let dtype = match self.mix {
            _ if self.facts.experts == 8 => return DType::Q8_0,
            Q2_K if shared => DType::Q4_K,
            Q2_K => DType::Q3_K,
            Q2_K_S if shared => DType::Q4_K,
            Q3_K_M if index < 2 => DType::Q5_K,
            Q3_K_M => DType::Q4_K,
            Q3_K_L => DType::Q5_K,
            IQ4_NL | IQ4_XS if shared => DType::Q5_K,
            Q4_K_M | Q5_K_M if is_sensitive(index, self.values) => DType::Q6_K,
            Q4_K_S if index < 4 => DType::Q5_K,
            mix => mix.dtype(),
        };
        // Models of 70 billion parameters have eight query heads per value head, so that more bits cost little there.
        let large = self.facts.layers == 80 && self.facts.sharing > 1;
        if large && matches!(dtype, DType::Q3_K | DType::Q4_K) { DType::Q5_K } else { dtype }
    }

    fn attention_output(&self) -> DType {
        match self.mix {
            Q3_K_L if self.is_falcon() => DType::Q4_K,
            mix if self.is_falcon() => mix.dtype(),
            Q2_K | Q3_K_S | Q3_K_M | IQ4_NL | IQ4_XS | Q4_K_S | Q4_K_M if self.facts.experts == 8 => DType::Q5_K,
            mix if self.facts.experts == 8 => mix.dtype(),
            Q2_K => DType::Q3_K,
            Q3_K_M => DType::Q4_K,
            Q3_K_L => DType::Q5_K,
            mix => mix.dtype(),
        }
    }

    fn ffn_down(&self, index: usize) -> DType {
        let (layers, falcon) = (self.facts.layers, self.is_falcon());
        let (first_16th, first_8th) = (index < layers / 16, index < layers / 8);
        let sensitive = is_sensitive(index, layers);
        match self.mix {
            Q2_K => DType::Q3_K,
            Q2_K_S if first_8th => DType::Q4_K,
            Q3_K_M if first_16th => DType::Q5_K,
            Q3_K_M if !falcon || sensitive => DType::Q4_K,
            Q3_K_L => {
                if falcon {
                    DType::Q4_K
                } else {
                    DType::Q5_K
                }
            }
            Q4_K_M if falcon && first_16th => DType::Q6_K,
            Q4_K_M if falcon && sensitive => DType::Q5_K,
            Q4_K_M if !falcon && sensitive => DType::Q6_K,
            IQ4_NL | IQ4_XS if first_8th && !self.importance => DType::Q5_K,
            Q5_K_M if sensitive => DType::Q6_K,
            Q4_K_S if first_8th && !falcon => DType::Q5_K,
            // An importance matrix can lead one scale astray in the first layers; a minimum keeps it straight.
            Q4_0 if first_8th && self.importance => DType::Q4_1,
            Q5_0 if first_8th && self.importance => DType::Q5_1,
            mix => mix.dtype(),
        }
    }

    fn is_falcon(&self) -> bool {
        self.facts.architecture == "falcon"
    }
}

/// The first and last eighth of `count` layers, and every third between them.
fn is_sensitive(index: usize, count: usize) -> bool {
    let eighth = count / 8;
    index < eighth || index >= 7 * count / 8 || (index - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dims: &[usize]) -> TensorInfo {
        TensorInfo { name: name.into(), dtype: DType::F16, dims: dims.into(), bytes: 0, offset: 0 }
    }

    /// A llama with `layers` layers, in the order in which converters write them.
    fn llama(layers: usize, width: usize, tied: bool) -> Vec<TensorInfo> {
        let mut tensors = vec![tensor("token_embd.weight", &[width, 1000])];
        for layer in 0..layers {
            for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
                tensors.push(tensor(&format!("blk.{layer}.{part}.weight"), &[width, width]));
            }
            tensors.push(tensor(&format!("blk.{layer}.attn_norm.weight"), &[width]));
        }
        tensors.push(tensor("output_norm.weight", &[width]));
        if !tied {
            tensors.push(tensor("output.weight", &[width, 1000]));
        }
        tensors
    }

    fn facts(layers: usize) -> Facts {
        Facts { architecture: "llama".into(), layers, sharing: 4, experts: 0 }
    }

    /// The types that tensors of this part get.
    fn types(tensors: &[TensorInfo], choices: &[Choice], part: &str) -> Vec<DType> {
        let chosen = tensors.iter().zip(choices).filter(|(tensor, _)| tensor.name.contains(part));
        chosen
            .map(|(tensor, choice)| match choice {
                Choice::To { dtype, .. } => *dtype,
                Choice::Keep => panic!("{} is kept", tensor.name),
            })
            .collect()
    }

    #[test]
    fn every_mix_has_its_row_and_its_name() {
        for mix in Mix::all() {
            assert_eq!(Mix::parse(&mix.name().to_lowercase()), Some(mix));
        }
        assert_eq!(Mix::parse("q4_k"), Some(Q4_K_M));
        assert_eq!(Mix::parse("Q7_K"), None);
        assert_eq!(format!("{Q4_K_M:>8}"), "  Q4_K_M");
    }

    #[test]
    fn q4_k_m_gives_more_bits_to_every_third_layer_and_both_ends() {
        let tensors = llama(16, 256, true);
        let choices = choose(&tensors, &facts(16), Q4_K_M, &Wishes::default(), false);
        for part in ["attn_v", "ffn_down"] {
            let more: Vec<usize> = types(&tensors, &choices, part)
                .iter()
                .enumerate()
                .filter(|(_, dtype)| **dtype == DType::Q6_K)
                .map(|(layer, _)| layer)
                .collect();
            assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15], "{part}");
        }
        assert!(types(&tensors, &choices, "attn_q").iter().all(|dtype| *dtype == DType::Q4_K));
        assert_eq!(types(&tensors, &choices, "token_embd"), [DType::Q6_K], "a tied embedding is the output");
        assert_eq!(choices[tensors.len() - 1], Choice::Keep, "a norm");
        let tensors = llama(16, 256, false);
        let choices = choose(&tensors, &facts(16), Q4_K_M, &Wishes::default(), false);
        assert_eq!(types(&tensors, &choices, "token_embd"), [DType::Q4_K]);
        assert_eq!(types(&tensors, &choices, "output.weight")[16], DType::Q6_K);
    }

    #[test]
    fn rows_that_do_not_fit_get_a_type_that_does() {
        let tensors = llama(2, 576, true);
        for (mix, expected) in [
            (Q2_K, DType::Q4_0),
            (Q3_K_S, DType::Q4_0),
            (Q4_K_S, DType::Q5_0),
            (Q5_K_S, DType::Q5_1),
            (Q6_K, DType::Q8_0),
            (IQ4_XS, DType::IQ4_NL),
            (IQ4_NL, DType::IQ4_NL),
        ] {
            let choices = choose(&tensors, &facts(2), mix, &Wishes::default(), false);
            assert_eq!(types(&tensors, &choices, "attn_q")[0], expected, "{mix}");
            assert_eq!(types(&tensors, &choices, "token_embd"), [DType::Q8_0], "{mix}");
        }
        let narrow = [tensor("blk.0.attn_q.weight", &[40, 40])];
        let choices = choose(&narrow, &facts(1), Q4_0, &Wishes::default(), false);
        assert_eq!(choices, [Choice::To { dtype: DType::F16, instead_of: Some(DType::Q4_0) }]);
    }

    #[test]
    fn wishes_come_first() {
        let tensors = llama(8, 256, true);
        let wishes = Wishes { pure: true, ..Wishes::default() };
        let choices = choose(&tensors, &facts(8), Q2_K, &wishes, false);
        for part in ["attn_v", "attn_output", "ffn_down", "token_embd"] {
            assert!(types(&tensors, &choices, part).iter().all(|dtype| *dtype == DType::Q2_K), "{part}");
        }
        let wishes = Wishes { output: Some(DType::Q8_0), ..Wishes::default() };
        let choices = choose(&tensors, &facts(8), Q4_K_M, &wishes, false);
        assert_eq!(types(&tensors, &choices, "token_embd"), [DType::Q8_0]);
        let wishes = Wishes { token_embedding: Some(DType::F16), ..wishes };
        let choices = choose(&tensors, &facts(8), Q4_K_M, &wishes, false);
        assert_eq!(types(&tensors, &choices, "token_embd"), [DType::F16]);
    }

    #[test]
    fn a_wish_for_the_output_holds_for_a_tied_embedding_in_every_mix() {
        let wishes = Wishes { output: Some(DType::Q5_1), ..Wishes::default() };
        let pure = Wishes { pure: true, ..wishes };
        for (mix, wishes) in [(Q4_0, pure), (F32, wishes), (F16, wishes), (BF16, pure), (MXFP4_MOE, wishes)] {
            let tied = llama(2, 256, true);
            let choices = choose(&tied, &facts(2), mix, &wishes, false);
            assert_eq!(types(&tied, &choices, "token_embd"), [DType::Q5_1], "{mix}");
            let embedding = Wishes { token_embedding: Some(DType::Q5_0), ..wishes };
            let choices = choose(&tied, &facts(2), mix, &embedding, false);
            assert_eq!(types(&tied, &choices, "token_embd"), [DType::Q5_0], "{mix}");
            let own = llama(2, 256, false);
            let choices = choose(&own, &facts(2), mix, &wishes, false);
            assert_ne!(types(&own, &choices, "token_embd"), [DType::Q5_1], "{mix}: it is not the output");
        }
    }

    #[test]
    fn experts_and_importance_change_some_choices() {
        let tensors = [tensor("blk.0.ffn_down_exps.weight", &[256, 256, 8]), tensor("blk.0.attn_k.weight", &[256, 64])];
        let moe = Facts { experts: 8, ..facts(8) };
        let choices = choose(&tensors, &moe, MXFP4_MOE, &Wishes::default(), false);
        assert_eq!(types(&tensors, &choices, "blk"), [DType::MXFP4, DType::Q8_0]);
        let choices = choose(&tensors, &moe, Q4_K_S, &Wishes::default(), false);
        assert_eq!(types(&tensors, &choices, "blk"), [DType::Q5_K, DType::Q8_0]);
        let tensors = llama(8, 256, true);
        for (importance, expected) in [(false, DType::Q4_0), (true, DType::Q4_1)] {
            let choices = choose(&tensors, &facts(8), Q4_0, &Wishes::default(), importance);
            assert_eq!(types(&tensors, &choices, "ffn_down")[..2], [expected, DType::Q4_0]);
        }
    }

    #[test]
    fn routers_positions_and_vectors_stay() {
        for (name, dims) in [
            ("blk.0.ffn_gate_inp.weight", &[256, 8][..]),
            ("blk.0.attn_norm.weight", &[256, 2]),
            ("blk.0.attn_q.bias", &[256, 2]),
            ("position_embd.weight", &[256, 2]),
            ("output_scale.weight", &[256, 1]),
        ] {
            assert!(!may_be_quantized(&tensor(name, dims)), "{name}");
        }
    }
}
