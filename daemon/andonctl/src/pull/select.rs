//! Which files of a repository make up the model that was asked for.
//!
//! Files are chosen by name, as users of other programs for GGUF files expect: the way the weights are
//! stored stands in the name (`model-Q4_K_M.gguf`), a large model is split into
//! `model-00001-of-00003.gguf` and so on, and files for other purposes (`mmproj`, `imatrix`) lie beside it.
//!
//! Invariant: what is chosen is one whole model, all its parts in order, or nothing.

use std::collections::BTreeMap;

use andon_wire::limits::MEMBERS_MAX;
use andon_wire::manifest::part_of;

use super::reference::{Choice, is_gguf};

/// Tried in this order when nothing was asked for: what most users want first, then what comes next to it.
const USUAL: [&str; 12] = [
    "Q4_K_M", "Q4_0", "Q4_K_S", "Q4_1", "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q8_0", "Q6_K", "Q3_K_M",
    "F16", "BF16",
];

/// Files beside a model that are no models.
const OTHER_PURPOSES: [&str; 2] = ["mmproj", "imatrix"];

/// A file that a repository has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// Its size, if the listing has it.
    pub(crate) bytes: Option<u64>,
    /// Its SHA-256 digest in lower-case hexadecimal, if the listing has it.
    pub(crate) sha256: Option<String>,
}

/// One model of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// How its weights are stored, as its name says; empty if it does not.
    pub(crate) quantization: String,
    /// Its files in order.
    pub(crate) files: Vec<Entry>,
    /// How many files there should be.
    pub(crate) parts: usize,
}

impl Model {
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.files
            .iter()
            .try_fold(0u64, |sum, file| sum.checked_add(file.bytes?))
    }

    fn path(&self) -> &str {
        self.files.first().map_or("", |file| file.path.as_str())
    }
}

/// The models among the files of a repository, in the order of their names.
pub(crate) fn models(files: &[Entry]) -> Vec<Model> {
    let mut models = BTreeMap::<String, Model>::new();
    for file in files {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let lower = name.to_ascii_lowercase();
        if !is_gguf(name) || OTHER_PURPOSES.iter().any(|word| lower.contains(word)) {
            continue;
        }
        let (stem, parts) = match part_of(&file.path) {
            Some((stem, (_, parts))) => (stem.to_owned(), parts),
            None => (
                file.path
                    .get(..file.path.len() - ".gguf".len())
                    .unwrap_or_default()
                    .to_owned(),
                1,
            ),
        };
        models
            .entry(format!("{stem}/{parts}"))
            .or_insert_with(|| Model {
                quantization: quantization(&stem),
                files: Vec::new(),
                parts,
            })
            .files
            .push(file.clone());
    }
    let mut models: Vec<Model> = models.into_values().collect();
    for model in &mut models {
        model.files.sort_by(|a, b| a.path.cmp(&b.path));
    }
    models
}

/// The model that was asked for.
///
/// # Errors
/// A sentence that says which there are.
pub(crate) fn choose(files: &[Entry], choice: &Choice) -> Result<Model, String> {
    let models = models(files);
    if models.is_empty() {
        return Err("the repository has no GGUF files".to_owned());
    }
    let found: Vec<&Model> = match choice {
        Choice::File(path) => models
            .iter()
            .filter(|model| model.files.iter().any(|file| file.path == *path))
            .collect(),
        Choice::Quantization(word) => stored_as(&models, word),
        Choice::Usual if models.len() == 1 => models.iter().collect(),
        Choice::Usual => USUAL
            .iter()
            .map(|word| stored_as(&models, word))
            .find(|found| !found.is_empty())
            .unwrap_or_else(|| models.iter().collect()),
    };
    match found.as_slice() {
        [] => {
            let wanted = match choice {
                Choice::File(path) => path,
                Choice::Quantization(word) => word,
                Choice::Usual => "it",
            };
            Err(format!(
                "the repository does not have {wanted}; it has {}",
                names(models.iter())
            ))
        }
        [model] => whole(model),
        several => Err(format!(
            "several models fit; name the file as owner/name/file.gguf: {}",
            several
                .iter()
                .map(|model| model.path())
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}

fn whole(model: &Model) -> Result<Model, String> {
    if model.parts > MEMBERS_MAX {
        return Err(format!(
            "{} is one of {} parts, at most {MEMBERS_MAX} are taken",
            model.path(),
            model.parts
        ));
    }
    let all = model.parts == 1
        || model.files.iter().enumerate().all(|(index, file)| {
            part_of(&file.path).is_some_and(|part| part.1 == (index + 1, model.parts))
        });
    if !all || model.files.len() != model.parts {
        return Err(format!(
            "the repository has {} of the {} parts that {} belongs to",
            model.files.len(),
            model.parts,
            model.path()
        ));
    }
    Ok(model.clone())
}

/// The models stored as `word`: those that say exactly this, else those that say it with a prefix.
fn stored_as<'a>(models: &'a [Model], word: &str) -> Vec<&'a Model> {
    let exactly: Vec<&Model> = models
        .iter()
        .filter(|model| model.quantization.eq_ignore_ascii_case(word))
        .collect();
    if !exactly.is_empty() {
        return exactly;
    }
    let suffix = format!("-{}", word.to_ascii_uppercase());
    models
        .iter()
        .filter(|model| model.quantization.ends_with(&suffix))
        .collect()
}

/// The quantizations there are, or the files where names do not say.
fn names<'a>(models: impl Iterator<Item = &'a Model>) -> String {
    let mut names: Vec<&str> = models
        .map(|model| {
            if model.quantization.is_empty() {
                model.path()
            } else {
                model.quantization.as_str()
            }
        })
        .collect();
    names.dedup();
    names.join(", ")
}

/// How weights are stored, from the end of a file's name.
fn quantization(stem: &str) -> String {
    let name = stem
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_uppercase();
    let words: Vec<&str> = name.split(['-', '.']).collect();
    for (index, word) in words.iter().enumerate().rev() {
        // `model_q4_k_m` is joined by the character that the word itself is joined by.
        let tail = word
            .char_indices()
            .filter(|(_, c)| *c == '_')
            .filter_map(|(at, _)| word.get(at + 1..))
            .find(|tail| is_quantization(tail));
        let found = if is_quantization(word) {
            Some(*word)
        } else {
            tail
        };
        if let Some(found) = found {
            let before = index.checked_sub(1).and_then(|before| words.get(before));
            return match before {
                Some(&"UD") => format!("UD-{found}"),
                _ => found.to_owned(),
            };
        }
    }
    String::new()
}

fn is_quantization(word: &str) -> bool {
    if matches!(word, "F16" | "F32" | "BF16" | "FP16" | "FP32")
        || word.starts_with("MXFP4")
        || word.starts_with("NVFP4")
    {
        return true;
    }
    let Some(rest) = word
        .strip_prefix("IQ")
        .or_else(|| word.strip_prefix("TQ"))
        .or_else(|| word.strip_prefix('Q'))
    else {
        return false;
    };
    let mut parts = rest.split('_');
    let bits = parts.next().unwrap_or_default();
    let known = [
        "0", "1", "4", "8", "K", "S", "M", "L", "XL", "XS", "XXS", "NL",
    ];
    bits.len() == 1
        && bits.bytes().all(|byte| (b'1'..=b'8').contains(&byte))
        && rest.len() > 1
        && parts.all(|part| known.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::{Choice, Entry, choose, models, quantization};

    fn files(paths: &[&str]) -> Vec<Entry> {
        paths
            .iter()
            .map(|path| Entry {
                path: (*path).to_owned(),
                bytes: Some(10),
                sha256: None,
            })
            .collect()
    }

    fn chosen(paths: &[&str], choice: &Choice) -> Result<Vec<String>, String> {
        choose(&files(paths), choice)
            .map(|model| model.files.into_iter().map(|file| file.path).collect())
    }

    fn stored(word: &str) -> Choice {
        Choice::Quantization(word.to_owned())
    }

    #[test]
    fn names_say_how_weights_are_stored() {
        for (stem, expected) in [
            ("SmolLM2-135M-Instruct-Q4_K_M", "Q4_K_M"),
            ("smollm2-135m-instruct.q4_1", "Q4_1"),
            ("ggml-model-f16", "F16"),
            ("model_q8_0", "Q8_0"),
            ("gemma-3-270m-it-UD-Q4_K_XL", "UD-Q4_K_XL"),
            ("Q8_0/Model-IQ4_XS", "IQ4_XS"),
            ("gpt-oss-20b-mxfp4", "MXFP4"),
            ("gpt-oss-20b-MXFP4_MOE", "MXFP4_MOE"),
            ("Model-Q4_K_M-imat", "Q4_K_M"),
            ("Qwen3-4B", ""),
            ("Q-Align", ""),
        ] {
            assert_eq!(quantization(stem), expected, "{stem}");
        }
    }

    #[test]
    fn the_usual_one_is_taken_where_nothing_is_asked() {
        let all = ["m-Q2_K.gguf", "m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"];
        assert_eq!(chosen(&all, &Choice::Usual), Ok(vec![all[2].to_owned()]));
        assert_eq!(
            chosen(&all[..2], &Choice::Usual),
            Ok(vec![all[1].to_owned()])
        );
        let one = ["mmproj-m-f16.gguf", "m.gguf", "README.md"];
        assert_eq!(chosen(&one, &Choice::Usual), Ok(vec!["m.gguf".to_owned()]));
    }

    #[test]
    fn case_does_not_matter_and_prefixes_are_second() {
        let all = ["m-UD-Q4_K_M.gguf", "m-q4_k_m.gguf", "m-UD-Q2_K_XL.gguf"];
        assert_eq!(chosen(&all, &stored("q4_K_m")), Ok(vec![all[1].to_owned()]));
        assert_eq!(
            chosen(&all, &stored("Q2_K_XL")),
            Ok(vec![all[2].to_owned()])
        );
        // IQ4_XS is not Q4_XS.
        assert!(chosen(&["m-IQ4_XS.gguf"], &stored("Q4_XS")).is_err());
    }

    #[test]
    fn parts_come_together_and_whole() {
        let all = [
            "Q8_0/m-Q8_0-00002-of-00002.gguf",
            "Q8_0/m-Q8_0-00001-of-00002.gguf",
            "m-Q4_0.gguf",
        ];
        let expected = vec![all[1].to_owned(), all[0].to_owned()];
        assert_eq!(chosen(&all, &stored("Q8_0")), Ok(expected.clone()));
        assert_eq!(chosen(&all, &Choice::File(all[0].to_owned())), Ok(expected));
        let error = chosen(&all[..1], &stored("Q8_0")).unwrap_err();
        assert!(error.contains("1 of the 2 parts"), "{error}");
        assert_eq!(models(&files(&all)).len(), 2);
    }

    #[test]
    fn errors_say_what_there_is() {
        let all = ["m-Q4_0.gguf", "m-Q8_0.gguf"];
        let error = chosen(&all, &stored("Q5_K_M")).unwrap_err();
        assert!(error.contains("Q4_0, Q8_0"), "{error}");
        let error = chosen(&["a/m-Q4_0.gguf", "b/m-Q4_0.gguf"], &stored("Q4_0")).unwrap_err();
        assert!(error.contains("a/m-Q4_0.gguf, b/m-Q4_0.gguf"), "{error}");
        let error = chosen(&["a.gguf", "b.gguf"], &Choice::Usual).unwrap_err();
        assert!(error.contains("a.gguf, b.gguf"), "{error}");
        assert!(chosen(&["README.md"], &Choice::Usual).is_err());
    }
}
