//! Whether two names are of one model, as files, servers and people write them.
//!
//! A name is taken apart at everything that is no letter or digit. Capitals, the publisher before a slash, the ending `.gguf`, the
//! number of a part, and how the weights are kept (`Q4_K_M`, `bf16`) do not count: a model answers the same questions about as well in
//! each. What it was trained on and for does (`270m`, `it`).

/// Words that say how weights are kept.
const FORMATS: &[&str] = &[
    "q1", "q2", "q3", "q4", "q5", "q6", "q8", "iq1", "iq2", "iq3", "iq4", "tq1", "tq2", "f16",
    "f32", "bf16", "fp8", "fp16", "fp32", "int4", "int8", "mxfp4", "nvfp4", "awq", "gptq", "ud",
    "imatrix", "gguf",
];
/// Words that say the same behind one of those.
const GRADES: &[&str] = &["0", "1", "k", "xxs", "xs", "s", "m", "l", "xl", "nl"];
/// Ending of the file of one part of several; each digit stands for any.
const PART: &[u8] = b"-00000-of-00000";

/// Whether two names are of one model. A name that only says how weights are kept is no model's.
#[must_use]
pub fn is_same_model(one: &str, other: &str) -> bool {
    let mut ones = words(of_model(one));
    let mut others = words(of_model(other));
    let mut any = false;
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return any,
            (Some(one), Some(other)) if one.eq_ignore_ascii_case(other) => any = true,
            _ => return false,
        }
    }
}

fn is_apart(letter: char) -> bool {
    !letter.is_alphanumeric()
}

fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(is_apart).filter(|word| !word.is_empty())
}

/// What of a name says which model it is.
fn of_model(name: &str) -> &str {
    let name = name.rsplit('/').next().unwrap_or_default();
    let name = without_part(without_gguf(name));
    let is_one_of = |words: &[&str], word: &str| {
        let mut words = words.iter();
        words.any(|known| known.eq_ignore_ascii_case(word))
    };
    let (mut end, mut at) = (name.len(), name.len());
    for word in name.rsplit(is_apart) {
        let start = at - word.len();
        if is_one_of(FORMATS, word) {
            end = start;
        } else if !word.is_empty() && !is_one_of(GRADES, word) {
            break;
        }
        let before = name[..start].char_indices().next_back();
        at = before.map_or(0, |(index, _)| index);
    }
    &name[..end]
}

fn without_gguf(name: &str) -> &str {
    const ENDING: &str = ".gguf";
    let at = name.len().saturating_sub(ENDING.len());
    match name.split_at_checked(at) {
        Some((stem, ending)) if ending.eq_ignore_ascii_case(ENDING) => stem,
        _ => name,
    }
}

fn without_part(name: &str) -> &str {
    let at = name.len().saturating_sub(PART.len());
    let Some((stem, ending)) = name.split_at_checked(at) else {
        return name;
    };
    let fits = |(found, wanted): (u8, &u8)| match wanted {
        b'0' => found.is_ascii_digit(),
        _ => found == *wanted,
    };
    if ending.len() == PART.len() && ending.bytes().zip(PART).all(fits) {
        stem
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_however_it_is_written() {
        for name in [
            "smollm2-135m-instruct",
            "SmolLM2-135M-Instruct",
            "SmolLM2-135M-Instruct.Q4_1",
            "SmolLM2-135M-Instruct-Q4_K_M.gguf",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "smollm2_135m_instruct_bf16",
            "SmolLM2 135M Instruct",
            "smollm2-135m-instruct-ud-iq4_xs-00001-of-00003.GGUF",
            "smollm2:135m-instruct-q8_0",
        ] {
            assert!(is_same_model("smollm2-135m-instruct", name), "{name}");
            assert!(is_same_model(name, "smollm2-135m-instruct"), "{name}");
        }
        assert!(is_same_model("Qwen2.5-0.5B", "qwen2.5-0.5b-q4_0"));
    }

    #[test]
    fn another_size_purpose_or_release_is_another_model() {
        for (one, other) in [
            ("gemma-3-270m", "gemma-3-270m-it"),
            ("gemma-3-270m", "gemma-3-1b"),
            ("gemma-3-270m", "gemma-2-270m"),
            ("qwen2.5-0.5b", "qwen2.5-5b"),
            ("model-m", "model"),
            ("phi-1", "phi"),
            ("q4_k_m", "q4_k_m"),
            ("", ""),
            ("--", ".gguf"),
            ("é", "e"),
        ] {
            assert!(!is_same_model(one, other), "{one:?} {other:?}");
        }
    }
}
