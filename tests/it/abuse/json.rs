//! Bodies that look like requests.

use andon_tests::mutate::Draw;

/// Names that requests have, and some that they have not.
const NAMES: [&str; 40] = [
    "messages",
    "prompt",
    "max_tokens",
    "tokens_max",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "model",
    "n",
    "best_of",
    "echo",
    "suffix",
    "logprobs",
    "logit_bias",
    "tools",
    "tool_choice",
    "response_format",
    "priority",
    "deadline_ms",
    "id",
    "input",
    "schema",
    "regex",
    "egress",
    "stream_options",
    "presence_penalty",
    "prediction",
    "user",
    "instructions",
    "chat_template_kwargs",
    "encoding_format",
    "dimensions",
    "previous_response_id",
    "__proto__",
    "",
    "\\u0000",
];

/// Values of all types, most of them wrong wherever they stand.
const VALUES: [&str; 40] = [
    "null",
    "true",
    "0",
    "-1",
    "1e309",
    "-0.0",
    "18446744073709551616",
    "9007199254740993",
    "1e-400",
    "NaN",
    "\"\"",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "[]",
    "{}",
    "[null]",
    "[[]]",
    "[{}]",
    "{\"a\":1,\"a\":2}",
    "\"alarm\"",
    "\"batch\"",
    "[\"\"]",
    "[\"a\",\"b\"]",
    "{\"role\":\"user\"}",
    "[{\"role\":\"user\",\"content\":null}]",
    "[{\"role\":\"root\",\"content\":\"x\"}]",
    "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]",
    "[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":\"y\"}]",
    "{\"type\":\"json_schema\"}",
    "{\"type\":\"regex\",\"regex\":\"(((a+)+)+)+$\"}",
    "{\"type\":\"gbnf\",\"grammar\":\"root ::= root\"}",
    "{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"$ref\":\"#\"}}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#/properties/a\"}}}",
    "\"(a{1000}){1000}\"",
    "{\"type\":\"string\",\"pattern\":\"^(\\\\d{500}){500}$\"}",
    "{\"minItems\":4294967295,\"type\":\"array\"}",
    "[{\"type\":\"function\",\"function\":{\"name\":\"\"}}]",
    "{\"include_usage\":\"maybe\"}",
    "{\"99999999\":100}",
    "[1,2,3,99999999]",
];

/// A small request that is right, over HTTP.
pub(super) fn chat(draw: &mut Draw) -> String {
    let word = draw.number() % 1000;
    let stream = draw.below(2) == 0;
    format!(
        r#"{{"messages":[{{"role":"user","content":"note {word}"}}],"max_tokens":{},"stream":{stream}}}"#,
        1 + draw.below(4)
    )
}

/// A body that is wrong somewhere: cut off, nested without end, of wrong types, of bytes that are no text.
pub(super) fn wrong(draw: &mut Draw, sound: &str) -> Vec<u8> {
    let end = sound.len() - 1;
    match draw.below(10) {
        0 => sound.as_bytes()[..draw.below(sound.len())].to_vec(),
        1 => {
            let mut bytes = sound.as_bytes().to_vec();
            for _ in 0..=draw.below(4) {
                let at = draw.below(bytes.len());
                bytes[at] = draw.number().to_le_bytes()[0];
            }
            bytes
        }
        2 => {
            let depth = 1 + draw.below(60_000);
            let (open, close) = [("[", "]"), ("{\"a\":", "}")][draw.below(2)];
            let tail = if draw.below(2) == 0 {
                close.repeat(depth)
            } else {
                String::new()
            };
            format!("{{\"messages\":{}1{tail}}}", open.repeat(depth)).into_bytes()
        }
        3 => {
            let mut bytes = br#"{"prompt":""#.to_vec();
            bytes.extend((0..1 + draw.below(40)).map(|_| 0x80 | draw.number().to_le_bytes()[0]));
            bytes.extend(b"\"}");
            bytes
        }
        4 => format!(
            "{},\"stop\":[{}]}}",
            &sound[..end],
            "\"x\",".repeat(draw.below(3000))
        )
        .into_bytes(),
        5 => {
            let message = r#"{"role":"user","content":"x"},"#;
            let all = message.repeat(draw.below(3000));
            format!("{{\"messages\":[{}]}}", all.trim_end_matches(',')).into_bytes()
        }
        6 => format!("{{\"prompt\":\"{}\"}}", "word ".repeat(draw.below(20_000))).into_bytes(),
        // Some of these are right by chance; they ask for little.
        _ => {
            let fields = (0..=draw.below(3)).map(|_| {
                let name = NAMES[draw.below(NAMES.len())];
                format!(",\"{name}\":{}", VALUES[draw.below(VALUES.len())])
            });
            let fields: String = fields.collect();
            format!("{}{fields}}}", &sound[..end]).into_bytes()
        }
    }
}
