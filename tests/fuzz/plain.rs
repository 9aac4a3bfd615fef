//! Every fuzz target over its seeds, as a plain test: the targets are compiled and hold what they say in every test
//! run. With `ANDON_FUZZ_SEEDS` the seeds are written to that folder, one folder for each target.

#![forbid(unsafe_code)]

#[path = "targets/calls.rs"]
mod calls;
#[path = "targets/config.rs"]
mod config;
#[path = "targets/draft.rs"]
mod draft;
#[path = "targets/gguf.rs"]
mod gguf;
#[path = "targets/grammar.rs"]
mod grammar;
#[path = "targets/http.rs"]
mod http;
#[path = "targets/manifest.rs"]
mod manifest;
#[path = "targets/mqtt.rs"]
mod mqtt;
#[path = "targets/pack.rs"]
mod pack;
#[path = "targets/template.rs"]
mod template;
#[path = "targets/tokenizer.rs"]
mod tokenizer;
#[path = "targets/vocabulary.rs"]
mod vocabulary;
#[path = "targets/wire.rs"]
mod wire;

use std::path::Path;

use andon_os::heap::Counting;
use andon_tests::mutate::{Draw, Sound};
use andon_tests::source::repository_root;
use andon_tests::tiny_encoder::{Family, TinyEncoder};
use andon_tests::tiny_model::{Architecture, TensorType, TinyModel};
use andon_wire::{Ask, ClientFrame, Input, RequestId};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Seeds = Vec<Vec<u8>>;

/// Name, function, seeds.
type Target = (&'static str, fn(&[u8]), fn() -> Seeds);

const TARGETS: [Target; 11] = [
    ("gguf", gguf::run, gguf_seeds),
    ("pack", pack::run, pack_seeds),
    ("tokenizer", tokenizer::run, tokenizer_seeds),
    ("template", template::run, template_seeds),
    ("grammar", grammar::run, grammar_seeds),
    ("calls", calls::run, calls_seeds),
    ("wire", wire::run, wire_seeds),
    ("manifest", manifest::run, manifest_seeds),
    ("http", http::run, http_seeds),
    ("mqtt", mqtt::run, mqtt_seeds),
    ("config", config::run, config_seeds),
];

fn gguf_seeds() -> Seeds {
    let mut files: Vec<Sound> = Vec::new();
    for architecture in Architecture::ALL {
        let model = TinyModel {
            architecture,
            layer_count: 1,
            embedding: 32,
            feed_forward: 32,
            head_count: 2,
            head_count_kv: 1,
            weights: if files.len().is_multiple_of(2) {
                TensorType::Q8_0
            } else {
                TensorType::Q4_0
            },
            ..TinyModel::default()
        };
        files.push(Sound::new(model.bytes()));
    }
    for family in Family::ALL {
        let encoder = TinyEncoder {
            family,
            layer_count: 1,
            embedding: 32,
            feed_forward: 32,
            head_count: 2,
            weights: TensorType::Q8_0,
            ..TinyEncoder::default()
        };
        files.push(Sound::new(encoder.bytes()));
    }
    let changed: Vec<Vec<u8>> = (0..64)
        .map(|seed| {
            let mut draw = Draw::new(seed);
            let (file, other) = (draw.below(files.len()), draw.below(files.len()));
            files[file].changed(&files[other], &mut draw)
        })
        .collect();
    files
        .iter()
        .map(|file| file.bytes().to_vec())
        .chain(changed)
        .collect()
}

/// The sound header in every way that the target takes it, one that lies in each number in turn, damaged data.
fn pack_seeds() -> Seeds {
    let header = pack::header();
    let mut seeds: Seeds = (0..4)
        .map(|flags| [&[flags], &*header, &[0, 16]].concat())
        .collect();
    for at in (0..header.len()).step_by(4) {
        for value in [0, 1, u32::MAX] {
            let mut header = header.clone();
            header[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            seeds.push([&[pack::SIGN], &*header].concat());
        }
    }
    for change in [[0, 0, 1], [255, 15, 128], [0, 128, 255]] {
        for flags in [0, pack::SIGN, pack::CUT] {
            seeds.push([&[flags], &*header, &change, &[255, 255]].concat());
        }
    }
    seeds
}

fn tokenizer_seeds() -> Seeds {
    let mut seeds = Vec::new();
    for kind in 0..6_u8 {
        for flags in [0_u8, 1, 3, 5, 0x21, 0x41, 0x63, 0x81, 0xa3, 0xc1] {
            let mut seed = vec![kind, flags];
            let tokens = [
                "<s>", "</s>", "<unk>", "a", "b", "ab", "▁a", "Ġa", "aĠa", "1", "23", "##b", "é",
            ];
            seed.extend(
                tokens
                    .join("\u{1}")
                    .bytes()
                    .map(|byte| if byte == 1 { 0xfe } else { byte }),
            );
            seed.push(0xff);
            seed.extend(b"a b\xfe\xc4\xa0 a");
            seed.push(0xff);
            seed.extend("ab a a<s> 123\n\n  don't é\u{1F600}</s>\u{301}".bytes());
            seeds.push(seed);
        }
    }
    // A file of a kind that puts no space before a text, which says that one is put there.
    seeds.push(b"\x00\x05a\xff\xff a".to_vec());
    // An unknown token whose text has a letter of the byte alphabet that stands for another byte.
    seeds.push(b"\x00\x63<s>\xfe</s>\xfe\xc4\xbd<unk>\xff\xff\xc4\xbd<unk>".to_vec());
    seeds
}

fn template_seeds() -> Seeds {
    let templates = [
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']}}{% endfor %}",
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}",
        "{%- macro m(x) %}{{ x | upper }}{% endmacro %}{{ m(messages | length) }}{{ raise_exception('no') }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% for i in range(1000) %}{% for j in range(1000) %}{{ i * j }}{% endfor %}{% endfor %}",
        "{{ strftime_now('%d %b %Y') }}{{ messages | tojson }}{{ messages[::-1][0].content.split('a')[-1] }}",
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}",
    ];
    templates
        .iter()
        .map(|source| format!("{source}\0user\0Hello\0assistant\0Hi\0user\0Bye").into_bytes())
        .collect()
}

fn grammar_seeds() -> Seeds {
    let schemas = [
        json!({ "type": "object", "properties": { "severity": { "enum": ["low", "high"] }, "reason": { "type": "string" },
            "count": { "type": "integer", "minimum": -5, "maximum": 500 } }, "required": ["severity", "count"],
            "additionalProperties": false }),
        json!({ "$defs": { "n": { "type": "object", "properties": { "next": { "anyOf": [{ "$ref": "#/$defs/n" },
            { "type": "null" }] } }, "required": ["next"] } }, "$ref": "#/$defs/n" }),
        json!({ "type": "array", "items": { "type": "string", "pattern": "^[a-c]{2,4}-\\d+$", "maxLength": 9 },
            "minItems": 2 }),
        json!({ "type": ["number", "null"], "multipleOf": 0.25, "exclusiveMaximum": 17.5 }),
        json!({ "type": "object", "patternProperties": { "^[ab]$": true }, "additionalProperties": { "type": "string",
            "format": "date-time" } }),
        json!({ "allOf": [{ "type": "string", "minLength": 2 }, { "pattern": "x" }], "oneOf": [{ "const": "ax" }] }),
        json!({ "type": "array", "prefixItems": [{ "type": "boolean" }, { "const": [1, { "a": null }] }], "items": {} }),
    ]
    .map(|schema| schema.to_string());
    let sources = [
        (1, ""),
        (2, r"[a-z]+ ?(yes|no){1,3}\d*"),
        (2, r"\p{L}+(?i:abc)[^\x00-\x1f\u{1F600}]?|(a|b)*?c{2,}"),
        (
            3,
            "start: word (\",\" word)*\nword: /[a-z]{1,8}/ | NUMBER\nNUMBER: \"-\"? /[0-9]+/\n",
        ),
        (
            3,
            "start: \"a\" b? | \"(\" start \")\"\nb: \"x\"~2..3 | text\ntext[lazy]: /(.|\\n)*;/\n%ignore /[ ]+/\n",
        ),
        (3, "start: A\nA: /[a-c]+/ & ~(/.*ab.*/)\n"),
        (
            4,
            "root ::= item (\",\" ws item){0,3}\nitem ::= [a-z]+ | \"\\x41\" digit{2}\ndigit ::= [0-9]\nws ::= [ \\t]*\n",
        ),
        (4, "root ::= \"(\" root? \")\" | [^\\]\\\\-] # a comment\n"),
    ];
    let schemas = schemas.iter().map(|schema| (0, schema.as_str()));
    let answers: [&[u8]; 3] = [
        &[],
        &[7; 40],
        &[0xfe, 1, 90, 33, 3, 200, 12, 66, 5, 17, 140],
    ];
    let mut seeds = Vec::new();
    for (kind, source) in schemas.chain(sources) {
        for (limit, answer) in [4, 40, 255].into_iter().zip(answers) {
            seeds.push([&[kind, limit], source.as_bytes(), &[0xff], answer].concat());
        }
    }
    seeds
}

/// Templates that write calls in several ways, tools, texts of calls, and answers.
fn calls_seeds() -> Seeds {
    const TURNS: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}\
        {% for c in m.tool_calls or [] %}CALL{% endfor %}<|end|>{% endfor %}";
    let object =
        "{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}";
    let templates = [
        String::new(),
        TURNS.replace("CALL", &format!("<tool_call>\n{object}\n</tool_call>")),
        TURNS.replace("CALL", &format!("{object};")),
        TURNS.replace(
            "CALL",
            "<|invoke|>{{ c.function.name }}<|name|>{{ c.function.arguments | tojson }}<|/call|>",
        ),
        TURNS.replace(
            "CALL",
            "[CALL]{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}",
        ),
        "{{ messages[0].content }}".to_owned(),
    ];
    let texts = [
        "I look. <tool_call>\n{\"name\": \"get\", \"arguments\": {\"line\": 3}}\n</tool_call>\n<tool_call>\n{\"name\": \"a",
        "{\"name\": \"stop\", \"arguments\": {\"}\": [\"\\\"\"]}};{\"name\": \"é",
        "<|invoke|>get<|name|>{}<|/call|><|invoke|>stop<|name|>{\"a\": {",
    ];
    let tools = [
        json!([{ "name": "get", "parameters": { "type": "object", "properties": { "line": { "type": "integer" },
            "why": { "enum": ["jam", "wear"] } }, "required": ["line"] } }, { "name": "stop" }]),
        json!([{ "name": "any", "parameters": { "type": "object", "additionalProperties": true } }]),
        json!([{ "name": "plan", "parameters": { "$defs": { "s": { "properties": { "a": { "anyOf": [{ "$ref": "#/$defs/s" },
            { "type": "null" }] } }, "type": "object" } }, "$ref": "#/$defs/s" } }]),
    ]
    .map(|tools| tools.to_string());
    let answers: [&[u8]; 4] = [
        &[250; 8],
        &[40, 250, 7, 7, 7, 7, 250, 7, 7, 7, 7, 7, 7, 7],
        &[1, 90, 33, 3, 200, 12, 66, 250, 17, 140, 1, 1, 1, 1, 1],
        &[],
    ];
    let mut seeds = Vec::new();
    for (index, template) in templates.iter().enumerate() {
        for (answer, limit) in answers.iter().zip([60, 20, 100, 1]) {
            let at = seeds.len();
            let (tools, text) = (&tools[at % 3], texts[(at + index) % 3]);
            let flags = (at % 8) as u8;
            let parts = [template.as_bytes(), tools.as_bytes(), text.as_bytes()];
            seeds.push([&[flags, limit], &*parts.join(&0xff), &[0xff], answer].concat());
        }
    }
    seeds
}

fn wire_seeds() -> Seeds {
    let mut seeds = Vec::new();
    let id = RequestId::new("17").expect("an id");
    for input in [Input::Prompt("Hello"), Input::Prompt("")] {
        let ask = ClientFrame::Ask(Ask::new(id.clone(), input));
        let mut buffer = vec![0; 4096];
        let frame = ask.encode(&mut buffer).expect("small").to_vec();
        for piece in [1, 7, 255] {
            seeds.push([&[piece], &frame[..], &frame[..]].concat());
        }
        // The value alone: the target adds a checksum.
        seeds.push([&[1], &frame[4..frame.len() - 4]].concat());
    }
    seeds
}

fn manifest_seeds() -> Seeds {
    let digest = "0".repeat(64);
    let weights = json!({ "path": "m.gguf", "role": "weights", "bytes": 7, "sha256": digest, "verity": digest });
    let part = |number: usize| json!({ "path": format!("m-{number:05}-of-00002.gguf"), "role": "weights", "bytes": 9, "sha256": digest });
    let other = |path: &str, role: &str| json!({ "path": path, "role": role, "bytes": 5, "sha256": digest });
    let whole = |format: u16, members: &[serde_json::Value]| {
        json!({ "format": format, "name": "m", "architecture": "llama", "quantization": "Q4_0", "created-s": 1, "license": "mit",
            "source": { "repository": "a/b", "revision": "main" }, "pre-tokenizer": "smollm", "members": members })
        .to_string()
    };
    let line = |file: usize, bytes: u64, name: &str| format!("{digest} {file} {bytes} {name}\n");
    let manifests = [
        (
            whole(2, std::slice::from_ref(&weights)),
            line(0, 3, "(head)") + &line(0, 4, "a.weight"),
        ),
        (
            whole(
                2,
                &[part(1), part(2), other("tensors.sha256", "tensor-digests")],
            ),
            line(0, 9, "a") + &line(1, 2, "b") + &line(1, 7, "c d"),
        ),
        (
            whole(
                2,
                &[
                    weights,
                    other("tasks/a.toml", "task"),
                    other("LICENSE", "license"),
                ],
            ),
            line(0, 8, "a"),
        ),
        (whole(1, &[other("m.gguf", "weights")]), String::new()),
    ];
    let signature = format!("ed25519 {} {}\n", "0".repeat(16), "0".repeat(128));
    let signatures = format!("andon-signatures-v1\n{}", signature.repeat(2));
    let seed = |(manifest, pieces): &(String, String)| {
        let pieces = format!("andon-tensors-v1\n{pieces}");
        [
            manifest.as_bytes(),
            signatures.as_bytes(),
            pieces.as_bytes(),
        ]
        .join(&0xff)
    };
    manifests.iter().map(seed).collect()
}

fn http_seeds() -> Seeds {
    let message = json!([{ "role": "user", "content": "Hi" }]);
    let parts = json!([{ "role": "user", "content": [{ "type": "text", "text": "Hi" }] }]);
    let bodies = [
        (
            0,
            json!({ "messages": message, "max_tokens": 4, "temperature": 0.5, "seed": 7, "stop": ["a", "b"] }),
        ),
        (
            0,
            json!({ "messages": parts, "n": 2, "logprobs": true, "top_logprobs": 3, "stream": true,
            "stream_options": { "include_usage": true }, "logit_bias": { "5": -100 } }),
        ),
        (
            0,
            json!({ "messages": message, "response_format": { "type": "text" }, "top_p": 0.9, "top_k": 40,
            "chat_template_kwargs": { "a": [1, { "b": null }] }, "user": "x", "metadata": {} }),
        ),
        (
            1,
            json!({ "prompt": "Hi", "max_tokens": 4, "echo": true, "logprobs": 2 }),
        ),
        (
            1,
            json!({ "prompt": ["a", "b"], "best_of": 1, "presence_penalty": 1, "frequency_penalty": -1 }),
        ),
        (1, json!({ "prompt": [[1, 2], [3]], "suffix": "" })),
        (
            2,
            json!({ "input": "Hi", "instructions": "Be short", "max_output_tokens": 5, "store": false }),
        ),
        (
            2,
            json!({ "input": parts, "previous_response_id": "resp_1", "metadata": { "a": "b" } }),
        ),
    ];
    bodies
        .iter()
        .map(|(endpoint, body)| [&[*endpoint], body.to_string().as_bytes()].concat())
        .collect()
}

fn mqtt_seeds() -> Seeds {
    let payloads = [
        json!({ "id": "17", "prompt": "Hi", "tokens_max": 5 }).to_string(),
        json!({ "messages": [{ "role": "user", "content": "Hi" }], "stream": true, "priority": "alarm" }).to_string(),
        json!({ "id": 17, "input": { "code": "E42" }, "deadline_ms": 100 }).to_string(),
        "Hi".to_owned(),
    ];
    let mut seeds = Vec::new();
    for payload in &payloads {
        for head in [
            "andon/test/request/plc\0\0\0\0\0\0",
            "andon/test/request/plc/task\0application/json\0andon/test/response/plc/1\0abc\x0060\0priority=batch\u{1}model=x\0",
            "andon/test/request/plc\0text/plain\0\0\0\0egress=local\0",
            "andon/test/cancel/plc\0\0\0\0\0\0",
        ] {
            seeds.push([head.as_bytes(), payload.as_bytes()].concat());
        }
    }
    seeds
}

fn config_seeds() -> Seeds {
    let path = repository_root().join("systemd/andond.toml");
    let whole = std::fs::read_to_string(path).expect("the annotated configuration");
    // As it is, and with every example in force.
    let bare: String = whole
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest,
            _ => line,
        })
        .filter(|line| !line.starts_with('#'))
        .fold(String::new(), |text, line| text + line + "\n");
    let mut seeds = vec![whole.into_bytes(), bare.clone().into_bytes()];
    let sections = bare.split("\n[").skip(1);
    seeds.extend(sections.map(|section| format!("[{section}").into_bytes()));
    seeds
}

#[test]
fn every_target_holds_on_its_seeds() {
    for (name, run, seeds) in TARGETS {
        let seeds = seeds();
        assert!(!seeds.is_empty(), "{name}");
        for seed in &seeds {
            run(seed);
            // Cut anywhere, it is as good a case.
            run(&seed[..seed.len() / 2]);
        }
        run(b"");
    }
}

#[test]
fn seeds_are_written() {
    let Some(folder) = std::env::var_os("ANDON_FUZZ_SEEDS") else {
        return;
    };
    for (name, _, seeds) in TARGETS {
        let folder = Path::new(&folder).join(name);
        std::fs::create_dir_all(&folder).expect("a folder for the seeds");
        for (index, seed) in seeds().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index:03}")), seed).expect("written");
        }
    }
}

#[test]
fn every_target_has_its_program() {
    let folder = repository_root().join("tests/fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("the manifest");
    for (name, _, _) in TARGETS {
        assert!(
            folder.join(format!("fuzz_targets/{name}.rs")).is_file(),
            "{name}"
        );
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
