//! Every fuzz target over its seeds, as a plain test: the targets are compiled and hold what they say in every test
//! run. With `ANDON_FUZZ_SEEDS` the seeds are written to that folder, one folder for each target.

#![forbid(unsafe_code)]

#[path = "targets/audit.rs"]
mod audit;
#[path = "targets/calls.rs"]
mod calls;
#[path = "targets/config.rs"]
mod config;
#[path = "targets/corpus.rs"]
mod corpus;
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
#[path = "targets/packet.rs"]
mod packet;
#[path = "targets/page.rs"]
mod page;
#[path = "targets/record.rs"]
mod record;
#[path = "targets/redact.rs"]
mod redact;
#[path = "targets/small.rs"]
mod small;
#[path = "targets/spool.rs"]
mod spool;
#[path = "targets/state.rs"]
mod state;
#[path = "targets/template.rs"]
mod template;
#[path = "targets/tokenizer.rs"]
mod tokenizer;
#[path = "targets/upstream.rs"]
mod upstream;
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
use andond::spool::image;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Seeds = Vec<Vec<u8>>;

/// Name, function, seeds.
type Target = (&'static str, fn(&[u8]), fn() -> Seeds);

const TARGETS: [Target; 20] = [
    ("gguf", gguf::run, gguf_seeds),
    ("pack", pack::run, pack_seeds),
    ("tokenizer", tokenizer::run, tokenizer_seeds),
    ("template", template::run, template_seeds),
    ("grammar", grammar::run, grammar_seeds),
    ("calls", calls::run, calls_seeds),
    ("wire", wire::run, wire_seeds),
    ("manifest", manifest::run, manifest_seeds),
    ("http", http::run, http_seeds),
    ("upstream", upstream::run, upstream_seeds),
    ("mqtt", mqtt::run, mqtt_seeds),
    ("packet", packet::run, packet_seeds),
    ("config", config::run, config_seeds),
    ("spool", spool::run, spool_seeds),
    ("record", record::run, record_seeds),
    ("page", page::run, page_seeds),
    ("corpus", corpus::run, corpus_seeds),
    ("state", state::run, state_seeds),
    ("audit", audit::run, audit_seeds),
    ("redact", redact::run, redact_seeds),
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
        (
            3,
            json!({ "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8 }),
        ),
        (
            3,
            json!({ "input": [[1, 2], [3]], "model": "e", "user": "x" }),
        ),
        (
            4,
            json!({ "input_prefix": "a", "input_suffix": "b", "prompt": "c", "n_predict": -1,
            "input_extra": [{ "filename": "f", "text": "t" }] }),
        ),
    ];
    let bodies = bodies
        .iter()
        .map(|(endpoint, body)| [&[*endpoint], body.to_string().as_bytes()].concat());
    let heads = [
        "Idempotency-Key: shift-17_a.b~c\nPrefer: respond-async, wait=5",
        "idempotency-key: a?b#c%d e\nAuthorization: Bearer x\nprefer:Respond-Async",
        "Idempotency-Key: a/b\nHost: andon",
        "prefer: wait\nprefer: respond-async\nidempotency-key:",
    ];
    let heads = heads.map(|head| [&[http::HEAD], head.as_bytes()].concat());
    bodies.chain(heads).collect()
}

fn upstream_seeds() -> Seeds {
    use andon_tests::upstream::{end, event, text};
    let calls = event(&json!({"choices": [{"delta": {"tool_calls": [
        {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}}]}));
    let whole = json!({"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]});
    let failed = event(&json!({"error": {"message": "no"}}));
    let stream = [
        b": hello\n\n".to_vec(),
        text("It is "),
        text("overheated."),
        end("stop"),
    ];
    let seed = |form: u8, cut: u8, bytes: &[u8]| [&[form, cut], bytes].concat();
    vec![
        seed(0, 9, &stream.concat()),
        seed(0, 200, &[text("It"), end("length")].concat()),
        seed(0, 30, &[calls, end("tool_calls")].concat()),
        seed(0, 3, &failed),
        seed(0, 3, &text("half")),
        seed(1, 7, whole.to_string().as_bytes()),
    ]
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

/// What a broker answers to a client, and what it passes on, in both versions.
fn packet_seeds() -> Seeds {
    let packet = |kind: u8, rest: &[u8]| [&[kind, rest.len() as u8], rest].concat();
    let published = |properties: &[u8]| {
        let rest = [&[0, 3][..], b"a/b", &[0, 7], properties, b"Hi"].concat();
        [0x30, 0x32, 0x3d].map(|kind| packet(kind, &rest)).concat()
    };
    let acknowledged = [0x40, 0x50, 0x62, 0x70]
        .map(|kind| packet(kind, &[0, 1]))
        .concat();
    let v311 = [
        packet(0x20, &[1, 0]),
        packet(0x90, &[0, 1, 0, 0x80]),
        published(&[]),
        packet(0x62, &[0, 7]),
        packet(0xd0, &[]),
        packet(0xb0, &[0, 1]),
        acknowledged,
    ];
    // Assigned identifier, receive maximum, greatest quality, server keep-alive, text, a user's.
    let granted = b"\x12\0\x01x\x21\0\x05\x24\x01\x13\0\x3c\x1f\0\x02ok\x26\0\x01a\0\x01b";
    let granted = [&[0, 0, granted.len() as u8], &granted[..]].concat();
    // Format, expiry, alias, response topic, correlation, content type, subscription.
    let marked =
        b"\x01\x01\x02\0\0\0\x3c\x23\0\x01\x08\0\x01r\x09\0\x02\x01\x02\x03\0\x01t\x0b\x81\x01";
    let marked = [&[marked.len() as u8], &marked[..]].concat();
    let v5 = [
        packet(0x20, &granted),
        packet(0x90, &[0, 1, 0, 0, 0x87]),
        published(&[0]),
        published(&marked),
        packet(0x30, &[0, 0, 3, 0x23, 0, 1]),
        packet(0x62, &[0, 7, 0x92, 0]),
        packet(0x40, &[0, 1, 0x10, 5, 0x1f, 0, 2, b'n', b'o']),
        packet(0xb0, &[0, 1, 0, 0]),
        packet(0xe0, &[0x8b, 0]),
        packet(0xe0, &[]),
        packet(0xf0, &[0x18, 0]),
    ];
    let seed = |version: u8, packets: &[u8]| [&[version], packets].concat();
    let each311 = v311.iter().map(|packet| seed(packet::V311, packet));
    let each5 = v5.iter().map(|packet| seed(0, packet));
    let whole = [seed(packet::V311, &v311.concat()), seed(0, &v5.concat())];
    // The smallest packets, each with an event of hundreds of bytes.
    let pings = packet(0xd0, &[]).repeat(1000);
    let many = [packet::V311, 0].map(|version| seed(version, &pings));
    each311.chain(each5).chain(whole).chain(many).collect()
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

/// The file as it is, one byte of it changed in each way and in many places, and cut.
fn spool_seeds() -> Seeds {
    let mut seeds = Vec::new();
    for flags in [0, spool::SEALED] {
        seeds.push(vec![flags]);
        let blocks = spool::blocks(flags);
        for (seed, place) in (0..16).map(|seed| (seed, seed * blocks / 16)) {
            let place = u16::try_from(place).expect("a small file").to_le_bytes();
            let (at, how) = ((seed * 37 % 64) as u8, (seed % 4) as u8);
            seeds.push(vec![flags, place[0], place[1], at | how << 6, 0x80]);
        }
        // The first block says how the file was left, and which commit counts.
        for at in [0, 9, 12, 16, 63] {
            seeds.push(vec![flags, 0, 0, at, 1, 1, 0, at, 0xff]);
        }
        for length in [0_u16, 1, 64, 1000] {
            seeds.push([&[flags | spool::CUT], &length.to_le_bytes()[..]].concat());
        }
    }
    seeds
}

/// Headers of each schema, and what front ends keep of requests and answers.
fn record_seeds() -> Seeds {
    let fingerprint = [7; 16];
    // Door, client, id, task; since 3 how urgent it is.
    let name = [&[1, 3][..], b"plc", &[1, b'1', 1, 2], b"ex"].concat();
    // State, attempt, seed, then moments: arrived, due, answered, for 3 delivered; fault, sizes, crashes.
    let until = |crashes: &[u8]| {
        let moments = [
            3, 2, 9, 6, 0xa0, 0x1f, 5, 1, 70, 7, 0xe8, 7, 5, 1, 7, 0xd0, 0x0f, 5,
        ];
        [&name[..], &fingerprint, &moments, &[0, 9, 3], crashes].concat()
    };
    let seen = [4, 7, 0xa8, 0x46, 5];
    let moments = [
        3, 2, 9, 6, 0xa0, 0x1f, 1, 5, 1, 70, 6, 5, 0, 1, 7, 9, 0, 1, 7, 9, 1, 5,
    ];
    let fault = [1, 3, b'b', b'a', b'd'];
    let today =
        |sizes: &[u8]| [&name[..], &[2], &fingerprint, &moments, &fault, sizes, &[2]].concat();
    // The largest number there is, as it is written.
    let most = [&[0xff; 9][..], &[1]].concat();
    let headers = [
        (1, &seen[..], until(&[])),
        (2, &seen, until(&[2])),
        (3, &[0], today(&[9, 3])),
        (3, &[0], today(&[&most[..], &most].concat())),
    ];
    let mut seeds = Seeds::new();
    for (schema, seen, header) in headers {
        image::header(schema.into(), &header, &seen[1..]).expect("a sound header");
        seeds.push([&[schema - 1], seen, &header].concat());
    }
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    // Topic, payload, properties (response topic, correlation, content type, expiry, user), where the answer goes.
    let asked = |payload: &str| {
        let properties = [
            &[1][..],
            &text("r"),
            &[1, 2, 8, 9, 1],
            &text("text/plain"),
            &[1, 60, 1],
            &text("a"),
            &text("b"),
        ];
        [
            text("andon/x/request/plc"),
            text(payload),
            properties.concat(),
            text("r/1"),
        ]
        .concat()
    };
    let answered = [
        &[1][..],
        &text("{\"text\":\"Hi\"}"),
        &[1],
        &text("type"),
        &text("answer"),
    ]
    .concat();
    for payload in ["Hi", "{\"prompt\": [1, {\"a\": null}]}"] {
        let seed = [
            &[record::MQTT],
            &asked(payload)[..],
            &[record::BREAK],
            &answered,
        ];
        seeds.push(seed.concat());
    }
    // Place, id, body, groups; status, type, body.
    let asked = [
        &[0][..],
        &text("chatcmpl-1"),
        &text("{\"messages\":[]}"),
        &[2, 4, 27],
    ]
    .concat();
    let answered = [
        &[0xc8, 1][..],
        &text("application/json"),
        &text("{\"id\":1}"),
    ]
    .concat();
    let seed = [&[record::HTTP], &asked[..], &[record::BREAK], &answered];
    seeds.push(seed.concat());
    seeds
}

/// The sound headers, with lies in each number and in some tokens, and damaged content.
fn page_seeds() -> Seeds {
    let mut seeds = Seeds::new();
    for which in [0, page::SECOND] {
        let header = page::header(which);
        seeds.extend((0..4).map(|flags| [&[which | flags], &*header, &[0, 16]].concat()));
        for at in (0..80)
            .chain(page::HEADER_BYTES - 16..page::HEADER_BYTES)
            .step_by(4)
        {
            for value in [0, 1, u32::MAX] {
                let mut header = header.clone();
                header[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
                seeds.push([&[which | page::SIGN], &*header].concat());
            }
        }
        for change in [[0, 0, 1], [255, 31, 128], [0, 15, 255]] {
            for flags in [0, page::SIGN, page::CUT] {
                seeds.push([&[which | flags], &*header, &change, &[255, 255]].concat());
            }
        }
    }
    seeds
}

fn corpus_seeds() -> Seeds {
    // Of the vocabulary, of tokens, and of the label.
    let numbers = |tokens: u32, label: u32| [50, tokens, label].map(u32::to_le_bytes).concat();
    let label = [&[0, 7, 0], &b"explainplc1"[..]].concat();
    let texts = |texts: &[u32]| texts.iter().flat_map(|token| token.to_le_bytes()).collect();
    let several: Vec<u8> = texts(&[1, 2, 3, 10, 11, 12, u32::MAX, 1, 2, 3, 20, 49, u32::MAX]);
    let beyond: Vec<u8> = texts(&[1, 50, u32::MAX]);
    let long: Vec<u8> = (0..5000_u32)
        .flat_map(|at| (at % 50).to_le_bytes())
        .collect();
    let empty = Vec::new();
    [
        (13, &label, &several),
        (3, &label, &beyond),
        (5000, &label, &long),
        (0, &empty, &empty),
        (12, &label, &several),
    ]
    .iter()
    .flat_map(|(tokens, label, texts)| {
        let body = [&numbers(*tokens, label.len() as u32), *label, *texts];
        let body = body.map(Vec::as_slice).concat();
        [corpus::SIGN, 0].map(|flags| [&[flags], &*body].concat())
    })
    .collect()
}

fn state_seeds() -> Seeds {
    let names = json!({ "format": 1, "names": {
        "ours": { "target": { "kept": "new" }, "former": "configured", "probation": 1 },
        "spare": { "target": "configured", "former": null, "probation": null } } });
    let known = json!({ "numerics": 1, "prompt": [1, 2, 3], "f16": [4, 5], "q8": [4, 6] });
    let task = "instructions = \"Say what {{ code }} means.\"\nsystem = \"You help.\"\ntokens-max = 40\n\
        priority = \"alarm\"\nschema = '{\"type\": \"object\"}'\n";
    let ledger = r#"{"format":1,"seen":{"boot":7,"up_ms":9,"starts":2,"ran_ms":77},"kept":{"calendar":{"at_ms":1782020620,"ran_ms":77,"starts":2,"day":{"ahead_ms":0,"passed_at_ms":5,"was_put":false},"month":{"ahead_ms":0,"passed_at_ms":null,"was_put":true},"behind_since_ms":null},"accounts":[{"budget":"plant","client":"plc-7","day":{"spent":{"tokens":5,"micros":0},"since":{"tokens":5,"micros":0}},"month":{"spent":{"tokens":7,"micros":1},"since":{"tokens":5,"micros":0}}}]}}"#;
    let texts = [
        (state::NAMES, names.to_string()),
        (state::KNOWN, known.to_string()),
        (state::CALIBRATION, state::calibration()),
        (
            state::CALIBRATION,
            state::calibration().replace("1.01", "1e9"),
        ),
        (state::TASK, task.to_owned()),
        (state::TASK, format!("{task}model = \"other\"\n")),
        (state::TOKEN, "a-b.c_d~e+f/g=h0".to_owned()),
        (state::TOKEN, "a-b.c_d~e+f/g=h0\r\n".to_owned()),
        (state::TOKEN, "too short".to_owned()),
        (state::LEDGER, ledger.to_owned()),
        (state::LEDGER, ledger.replace("20620", "99999999999")),
    ];
    texts
        .iter()
        .map(|(kind, text)| [&[*kind], text.as_bytes()].concat())
        .collect()
}

fn redact_seeds() -> Seeds {
    let texts = [
        "Operator: Ada says SN-1234 and SN-99999 fail; SN-1234 first. Ask ada@plant.example.",
        "Part SERIAL_1 is not SN-1234, nor is [SERIAL_2] or SERIAL\\_1, S_1 or [[MAIL_10].",
        r#"{"machine": {"serial": "press seven", "line": 7}, "name": ["Ada", 4711], "note": "press seven: SN-4444"}"#,
        "é[SERIAL_1]の[S_",
        "[serial 2] SN-1234567@b.c [ S-1 ] \\u0053N-1234, \\\\u0031234567 ＳＮ－１２３４ SN\u{2011}12\u{200b}34",
        r#"{"a": 1234567, "a": "\u0053N\u002d1234", "SN-1234": [-1e30, {"in": "{\"b\": \"SN-\\u00311234\"}"}]}"#,
        r#"{"properties": {"SN-1234": {"const": "SN-1234", "maximum": 7}}, "required": ["SN-1234"], "x": ["SN-1234"]}"#,
    ];
    let seed = |(at, text): (usize, &&str)| [&[at as u8, 3 * at as u8], text.as_bytes()].concat();
    texts.iter().enumerate().map(seed).collect()
}

fn audit_seeds() -> Seeds {
    let line = "{\"v\":1,\"time\":\"2026-11-26T00:00:00Z\",\"request_id\":\"1\"}\n";
    let (whole, torn) = (line.repeat(3), line.repeat(2) + &line[..20]);
    let (long, key) = ("x".repeat(9000), "k".repeat(32));
    let torn_long = format!("{line}{long}");
    let folders: [&[(&str, &str)]; 8] = [
        &[],
        &[("audit-00000001-@.jsonl", &torn), ("key", &key)],
        &[
            ("audit-00000007-20240229.jsonl", &whole),
            ("audit-00000008-@.jsonl", &torn_long),
        ],
        &[
            ("audit-00000001-20261101.jsonl", &whole),
            ("audit-00000002-20261102.jsonl", &whole),
            ("audit-00000003-20261103.jsonl", ""),
            ("audit-00000004-@.jsonl", &long),
        ],
        &[
            ("audit-1-20261101.jsonl", &whole),
            ("audit-00000001-20260231.jsonl", "a"),
        ],
        &[
            ("audit-18446744073709551615-@.jsonl", &whole),
            ("notes", "b"),
        ],
        &[("key", "short")],
        // A number twice.
        &[
            ("audit-00000001-20261101.jsonl", &whole),
            ("audit-00000002-20261101.jsonl", &whole),
            ("audit-00000003-20261101.jsonl", &whole),
            ("audit-00000003-@.jsonl", &torn),
        ],
    ];
    // With these a file has room for one record, so that the first goes with its file where two are kept.
    let escaped = "\0".repeat(64);
    let texts = [
        ["17", "plc", "explain"],
        ["a\nb\"}\n", "é\u{2028}\0", ""],
        [&*escaped; 3],
    ];
    let mut seeds = Vec::new();
    for (index, files) in folders.iter().enumerate() {
        for (variant, texts) in texts.iter().enumerate() {
            let mut parts: Vec<&str> = files
                .iter()
                .flat_map(|(name, text)| [*name, text])
                .collect();
            parts.resize(2 * audit::FILES, "");
            parts.extend(texts);
            let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
            let settings = (index + 2 * variant) as u8;
            seeds.push([&[settings], &*parts.join(&audit::BREAK)].concat());
        }
    }
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
