//! What the names of pre-tokenizers in files mean, as llama.cpp reads them.

use super::passes::{self, Pass};
use super::{RULES, Rules, gpt2, words};

const GPT2_PASS: Pass = Pass::Cover(gpt2::piece_bytes);

static DEFAULT: Rules = Rules {
    passes: &[
        Pass::Find(passes::signs_but_backtick),
        GPT2_PASS,
        Pass::Find(passes::numbers),
        Pass::Find(passes::three_digits),
    ],
    ..RULES
};
static GPT2: Rules = Rules {
    passes: &[GPT2_PASS],
    ..RULES
};
static STARCODER: Rules = Rules {
    passes: &[Pass::Find(passes::digit), GPT2_PASS],
    ..RULES
};
static FALCON: Rules = Rules {
    passes: &[
        Pass::Find(passes::signs),
        GPT2_PASS,
        Pass::Find(passes::three_digits),
    ],
    ..RULES
};
static CHAMELEON: Rules = Rules {
    passes: &[
        Pass::Find(passes::sentinel),
        Pass::Find(passes::image),
        Pass::Find(passes::indentation),
        Pass::Find(passes::digit),
        Pass::Find(passes::sign),
        GPT2_PASS,
    ],
    adds_bos: true,
    ..RULES
};
/// [`LLAMA3`] without what goes with it.
static WORDS3: Rules = Rules {
    passes: &[Pass::Words(&words::LLAMA3)],
    ..RULES
};
static LLAMA3: Rules = Rules {
    ignores_merges: true,
    adds_bos: true,
    passes: WORDS3.passes,
    ..RULES
};
static GLM4: Rules = Rules {
    ignores_merges: true,
    passes: WORDS3.passes,
    ..RULES
};
static JAIS2: Rules = Rules {
    passes: &[
        Pass::Words(&words::LLAMA3),
        Pass::Cover(passes::space_cascade),
    ],
    ..RULES
};
static MINICPM5: Rules = Rules {
    passes: &[
        Pass::Find(passes::three_numbers),
        Pass::Words(&words::MINICPM5),
    ],
    ignores_merges: true,
    ..RULES
};
static QWEN2: Rules = Rules {
    passes: &[Pass::Words(&words::QWEN2)],
    ..RULES
};
static QWEN35: Rules = Rules {
    passes: &[Pass::Words(&words::QWEN35)],
    ..RULES
};
static LAGUNA: Rules = Rules {
    passes: &[Pass::Cover(passes::lines), Pass::Words(&words::QWEN2)],
    ..RULES
};
static UFAKZEKA: Rules = Rules {
    passes: &[Pass::Words(&words::UFAKZEKA)],
    ..RULES
};
static SEED_CODER: Rules = Rules {
    passes: &[Pass::Words(&words::SEED_CODER)],
    ..RULES
};
static EXAONE_MOE: Rules = Rules {
    passes: &[Pass::Words(&words::EXAONE_MOE)],
    ..RULES
};
static TEKKEN: Rules = Rules {
    passes: &[Pass::Words(&words::TEKKEN)],
    ignores_merges: true,
    adds_bos: true,
    ..RULES
};
static GPT4O: Rules = Rules {
    passes: &[Pass::Words(&words::GPT4O)],
    ..RULES
};
static GRANITE_EMBED: Rules = Rules {
    passes: &[Pass::Words(&words::GRANITE_EMBED)],
    ignores_merges: true,
    ..RULES
};
static TINY_AYA: Rules = Rules {
    passes: &[Pass::Cut(passes::thousands), Pass::Words(&words::TINY_AYA)],
    ..RULES
};
static KIMI_K2: Rules = Rules {
    passes: &[Pass::Cover(passes::kimi_k2)],
    ..RULES
};
static DEEPSEEK_LLM: Rules = Rules {
    passes: &[
        Pass::Find(passes::line_end),
        Pass::Find(passes::spaced_cased),
        Pass::Find(passes::spaced_deepseek_signs),
        Pass::Cover(passes::trailing_space),
        Pass::Find(passes::deepseek_scripts),
        Pass::Find(passes::numbers),
    ],
    ..RULES
};
static DEEPSEEK_CODER: Rules = Rules {
    passes: &[
        Pass::Find(passes::line_end),
        Pass::Find(passes::spaced_letters),
        Pass::Find(passes::spaced_punctuation),
        Pass::Find(passes::deepseek_scripts),
        Pass::Find(passes::digit),
    ],
    ..RULES
};
static DEEPSEEK_V3: Rules = Rules {
    passes: &[
        Pass::Find(passes::three_numbers),
        Pass::Find(passes::chinese_or_kana),
        Pass::Words(&words::DEEPSEEK_V3),
    ],
    ..RULES
};
static SPARK: Rules = Rules {
    passes: &[
        Pass::Find(passes::three_numbers),
        Pass::Find(passes::chinese_or_kana),
        Pass::Words(&words::SPARK),
        Pass::Find(passes::digit),
    ],
    ..RULES
};
static AFMOE: Rules = Rules {
    passes: &[
        Pass::Cut(passes::thousands),
        Pass::Find(passes::unspaced_scripts),
        Pass::Words(&words::DEEPSEEK_V3),
    ],
    ..RULES
};
static YOUTU: Rules = Rules {
    passes: &[
        Pass::Find(passes::youtu_scripts),
        Pass::Words(&words::YOUTU),
    ],
    ignores_merges: true,
    ..RULES
};
static BLOOM: Rules = Rules {
    passes: &[Pass::Find(passes::bloom)],
    ..RULES
};
static VIKING: Rules = Rules {
    passes: &[Pass::Find(passes::bloom), Pass::Find(passes::digit)],
    ..RULES
};
static SUPERBPE: Rules = Rules {
    passes: &[
        Pass::Find(passes::numbers),
        Pass::Cut(passes::places_of_thousands),
    ],
    ..RULES
};
static SARVAM: Rules = Rules {
    passes: &[Pass::Cover(passes::lines)],
    plain: true,
    ..RULES
};
static GEMMA4: Rules = Rules {
    needs_bos: true,
    whole_lines: true,
    passes: SARVAM.passes,
    plain: true,
    ..RULES
};

/// Sorted by name.
pub(super) static NAMES: [(&str, &Rules); 90] = [
    ("a.x-4.0", &GPT2),
    ("afmoe", &AFMOE),
    ("bailingmoe", &QWEN2),
    ("bailingmoe2", &QWEN2),
    ("bloom", &BLOOM),
    ("chameleon", &CHAMELEON),
    ("chatglm-bpe", &WORDS3),
    ("codeshell", &STARCODER),
    ("cohere2moe", &TINY_AYA),
    ("command-r", &STARCODER),
    ("dbrx", &WORDS3),
    ("deepseek-coder", &DEEPSEEK_CODER),
    ("deepseek-llm", &DEEPSEEK_LLM),
    ("deepseek-r1-qwen", &QWEN2),
    ("deepseek-v3", &DEEPSEEK_V3),
    ("default", &DEFAULT),
    ("exaone", &STARCODER),
    ("exaone-moe", &EXAONE_MOE),
    ("exaone4", &GPT2),
    ("f2llmv2", &QWEN2),
    ("falcon", &FALCON),
    ("falcon-h1", &LLAMA3),
    ("falcon3", &LLAMA3),
    ("gemma4", &GEMMA4),
    ("gigachat", &GPT2),
    ("glm4", &GLM4),
    ("glm5", &GLM4),
    ("gpt-2", &GPT2),
    ("gpt-4o", &GPT4O),
    ("gpt3-finnish", &BLOOM),
    ("granite-docling", &GPT2),
    ("granite-embed-multi-311m", &GEMMA4),
    ("granite-embed-multi-97m", &GRANITE_EMBED),
    ("grok-2", &QWEN2),
    ("hunyuan", &QWEN2),
    ("hunyuan-dense", &DEEPSEEK_V3),
    ("hy_v4", &DEEPSEEK_V3),
    ("jais", &GPT2),
    ("jais-2", &JAIS2),
    ("jina-de", &GPT2),
    ("jina-es", &GPT2),
    ("jina-v1-en", &GPT2),
    ("jina-v2-code", &GPT2),
    ("jina-v2-de", &GPT2),
    ("jina-v2-es", &GPT2),
    ("jina-v5-nano", &LLAMA3),
    ("joyai-llm", &DEEPSEEK_V3),
    ("kanana2", &GPT4O),
    ("kimi-k2", &KIMI_K2),
    ("kormo", &QWEN2),
    ("laguna", &LAGUNA),
    ("lfm2", &LLAMA3),
    ("llada-moe", &QWEN2),
    ("llama-bpe", &LLAMA3),
    ("llama-v3", &LLAMA3),
    ("llama3", &LLAMA3),
    ("llama4", &GPT4O),
    ("megrez", &QWEN2),
    ("mellum", &GPT2),
    ("mellum2", &STARCODER),
    ("midm-2.0", &LLAMA3),
    ("minerva-7b", &STARCODER),
    ("minicpm5", &MINICPM5),
    ("minimax-m2", &GPT4O),
    ("modern-bert", &GPT2),
    ("mpt", &GPT2),
    ("olmo", &GPT2),
    ("phi-2", &GPT2),
    ("pixtral", &LLAMA3),
    ("poro-chat", &BLOOM),
    ("qwen2", &QWEN2),
    ("qwen35", &QWEN35),
    ("refact", &STARCODER),
    ("roberta-bpe", &GPT2),
    ("sarvam-moe", &SARVAM),
    ("seed-coder", &SEED_CODER),
    ("smaug-bpe", &WORDS3),
    ("smollm", &STARCODER),
    ("solar-open", &QWEN2),
    ("spark2_5", &SPARK),
    ("stablelm2", &QWEN2),
    ("starcoder", &STARCODER),
    ("superbpe", &SUPERBPE),
    ("talkie", &GPT4O),
    ("tekken", &TEKKEN),
    ("tiny_aya", &TINY_AYA),
    ("trillion", &GPT2),
    ("ufakzeka", &UFAKZEKA),
    ("viking", &VIKING),
    ("youtu", &YOUTU),
];
