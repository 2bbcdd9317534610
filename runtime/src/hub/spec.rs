//! How users name a model.

use super::HubError;
use std::{path::PathBuf, str::FromStr};

/// A model as users name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelSpec {
    /// Nothing was named: [`DEFAULT_MODEL`](super::DEFAULT_MODEL).
    #[default]
    Default,
    /// A file.
    Path(PathBuf),
    /// `hf:owner/repo/file` or `hf:owner/repo@revision/file`: a file of a Hugging Face repository.
    HuggingFace {
        /// `owner/repo`.
        repo: String,
        /// Branch, tag or commit, if not the main branch.
        revision: Option<String>,
        /// Path of the file inside the repository.
        file: String,
    },
}

impl FromStr for ModelSpec {
    type Err = HubError;

    /// `default`, `hf:owner/repo[@revision]/file` or a path. A file called `default` is `./default`.
    fn from_str(text: &str) -> Result<Self, HubError> {
        match (text, text.strip_prefix("hf:")) {
            ("default", _) => Ok(Self::Default),
            // An empty name is a variable that was not set, and not a wish for the default model.
            ("", _) => Err(HubError::BadHuggingFaceSpec { spec: String::new() }),
            (_, Some(rest)) => hugging_face(rest).ok_or_else(|| HubError::BadHuggingFaceSpec { spec: text.to_owned() }),
            _ => Ok(Self::Path(text.into())),
        }
    }
}

fn hugging_face(rest: &str) -> Option<ModelSpec> {
    let (owner, rest) = rest.split_once('/')?;
    let (repo, file) = rest.split_once('/')?;
    let (repo, revision) = match repo.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (repo, None),
    };
    // The parts become folders of the cache and pieces of an address, so nothing else is let through.
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
    };
    let all_plain = plain(owner) && plain(repo) && revision.is_none_or(plain) && file.split('/').all(plain);
    all_plain.then(|| ModelSpec::HuggingFace {
        repo: format!("{owner}/{repo}"),
        revision: revision.map(str::to_owned),
        file: file.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!("default".parse::<ModelSpec>().unwrap(), ModelSpec::Default);
        assert_eq!("a/b.gguf".parse::<ModelSpec>().unwrap(), ModelSpec::Path("a/b.gguf".into()));
        let hf = |repo: &str, revision: Option<&str>, file: &str| ModelSpec::HuggingFace {
            repo: repo.into(),
            revision: revision.map(Into::into),
            file: file.into(),
        };
        assert_eq!("hf:o/r/f.gguf".parse::<ModelSpec>().unwrap(), hf("o/r", None, "f.gguf"));
        assert_eq!("hf:o/r@v1/d/f.gguf".parse::<ModelSpec>().unwrap(), hf("o/r", Some("v1"), "d/f.gguf"));
    }

    #[test]
    fn what_names_nothing_or_would_leave_the_cache_or_the_address_is_refused() {
        for spec in
            ["", "hf:", "hf:o/r", "hf:o/r/", "hf:o//f", "hf:../r/f", "hf:o/r/../../f", "hf:o/r/a?b", "hf:o/r@/f"]
        {
            assert!(matches!(spec.parse::<ModelSpec>(), Err(HubError::BadHuggingFaceSpec { .. })), "{spec}");
        }
    }
}
