//! The table of pre-tokenizers: how byte-level vocabularies want text cut into words before merging.
//!
//! The patterns are facts about the models: each is the one in the `tokenizer.json` that the model was published with (or,
//! for `default`, the one that GGUF converters fell back to), with two changes of notation that match the same texts. A closing
//! `\s+(?!\S)|\s+` is written as [`Spaces::KeepLast`], since it needs look-ahead, which a linear-time engine does not
//! have; and consecutive steps of the original pipeline are consecutive [`Stage`]s. Adding a name is adding it to a row.

/// One step: text is cut at the matches of the pattern; what lies between matches stays as it is.
pub(super) struct Stage {
    /// What a word is.
    pub(super) words: &'static str,
    /// What happens to white space that is in no word.
    pub(super) spaces: Spaces,
}

/// White space that the words of a [`Stage`] do not include.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spaces {
    /// Like any other text between matches.
    Text,
    /// A run is cut before its last character if a word follows, which then may begin with that character.
    KeepLast,
}

/// A row of the table.
pub(super) struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// The steps, in order.
    pub(super) stages: &'static [Stage],
    /// Whether a word that is a token is that token, whatever its merges say.
    pub(super) whole_words: bool,
    /// Whether a text begins with BOS if the file does not say.
    pub(super) bos: bool,
}

/// The row for a name.
pub(super) fn find(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|row| row.names.contains(&name))
}

/// All values of `tokenizer.ggml.pre` that are understood.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|row| row.names).copied()
}

const fn stage(words: &'static str) -> Stage {
    Stage { words, spaces: Spaces::Text }
}

const fn spaced(words: &'static str) -> Stage {
    Stage { words, spaces: Spaces::KeepLast }
}

const fn row(names: &'static [&'static str], stages: &'static [Stage]) -> PreTokenizer {
    PreTokenizer { names, stages, whole_words: false, bos: false }
}

/// Contractions, letters, numbers, the rest: GPT-2's own.
const GPT2: Stage = spaced(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
/// GPT-4's (cl100k): case-blind contractions, numbers of up to three digits, line ends apart.
const GPT4: Stage = spaced(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
/// The same with single digits.
const QWEN2: Stage = spaced(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
/// The same with marks counted as letters.
const QWEN35: Stage = spaced(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
/// GPT-4o's (o200k): words are cut where lower case turns to upper case, contractions stay with their word.
const GPT4O: Stage = spaced(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
/// The same without contractions, single digits.
const TEKKEN: Stage = spaced(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
/// Last step of DeepSeek-V3's.
const DEEPSEEK3: Stage = spaced(concat!(
    r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
));
/// Multilingual words, as BLOOM cut them.
const BLOOM: Stage = stage(r" ?[^(\s|.,!?…。，、।۔،)]+");
/// Every digit alone.
const DIGIT: Stage = stage(r"\p{N}");
/// Chinese, Japanese and Korean, as DeepSeek's first tokenizers cut them.
const CJK: Stage = stage("[一-龥ࠀ-一가-\u{D7FF}]+");
/// Letters with case, as DeepSeek's first tokenizer listed them.
const DEEPSEEK_LETTERS: Stage = stage(concat!(
    r"\s?[",
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷ",
    "ᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿ",
    "ⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃",
    "]+"
));

const TABLE: &[PreTokenizer] = &[
    row(&["default"], &[stage(r"[\p{P}$+<=>^~|]+"), GPT2, stage(r"\p{N}+"), stage("[0-9][0-9][0-9]")]),
    row(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "roberta-bpe",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[GPT2],
    ),
    row(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        stages: &[GPT4],
        whole_words: true,
        bos: true,
    },
    row(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[GPT4]),
    PreTokenizer { names: &["glm4", "glm5"], stages: &[GPT4], whole_words: true, bos: false },
    row(
        &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "solar-open", "grok-2", "kormo", "f2llmv2"],
        &[QWEN2],
    ),
    row(&["qwen35"], &[QWEN35]),
    PreTokenizer { names: &["tekken"], stages: &[TEKKEN], whole_words: true, bos: true },
    row(&["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"], &[GPT4O]),
    row(
        &["deepseek-llm"],
        &[
            stage(r"[\r\n]"),
            DEEPSEEK_LETTERS,
            stage(r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"),
            stage(r"\s+$"),
            CJK,
            stage(r"\p{N}+"),
        ],
    ),
    row(&["deepseek-coder"], &[stage(r"[\r\n]"), stage(r"\s?\p{L}+"), stage(r"\s?\p{P}+"), CJK, DIGIT]),
    row(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[stage(r"\p{N}{1,3}"), stage("[一-龥぀-ゟ゠-ヿ]+"), DEEPSEEK3],
    ),
    row(&["falcon"], &[stage(r"[\p{P}$+<=>^~|`]+"), GPT2, stage("[0-9][0-9][0-9]")]),
    row(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    row(&["viking"], &[BLOOM, DIGIT]),
    row(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[spaced(concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]"
        ))],
    ),
    row(
        &["seed-coder"],
        &[spaced(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
        ))],
    ),
    row(
        &["exaone-moe"],
        &[spaced(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
        ))],
    ),
];

/// How `gemma4` vocabularies are cut: line ends apart from everything else.
pub(super) const LINES: &[Stage] = &[stage(r"[^\n]+|\n+")];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_name_is_in_one_row() {
        let mut seen = HashSet::new();
        for name in names() {
            assert!(seen.insert(name), "{name} twice");
            assert!(find(name).is_some());
        }
        assert!(find("no-such-name").is_none());
    }
}
