//! Which chat template a model gets, and what those known by name write.

mod support;

use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::{
    ChatInput, ChatMessage, ChatTemplate, NamedTemplate, TemplateChoice, TemplateError,
    TemplateOrigin, Tokenizer,
};
use serde_json::json;
use std::path::PathBuf;
use support::Writer;

/// A vocabulary of single characters and these special tokens, the first of which begin and end texts.
fn vocabulary(special: &[&str]) -> Writer {
    let texts: Vec<String> = ["<s>", "</s>"]
        .iter()
        .chain(special)
        .map(|text| (*text).to_owned())
        .chain(('!'..='~').map(String::from))
        .collect();
    let types: Vec<i32> = (0..texts.len())
        .map(|id| if id < special.len() + 2 { 3 } else { 1 })
        .collect();
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strs("tokenizer.ggml.tokens", &texts)
        .i32s("tokenizer.ggml.token_type", &types)
        .strs::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .bool("tokenizer.ggml.add_bos_token", true);
    writer
}

fn choose(
    writer: &Writer,
    choice: Option<&TemplateChoice>,
) -> Result<(ChatTemplate, TemplateOrigin), TemplateError> {
    let bytes = writer.finish();
    let gguf = Gguf::parse(&bytes).expect("a file");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
    ChatTemplate::for_model(&gguf, &tokenizer, choice)
}

fn render(template: &ChatTemplate) -> String {
    let messages = [
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", json!([{"type": "text", "text": "Hello"}])),
        ChatMessage::new("assistant", "Hi."),
        ChatMessage::new("user", "Why?"),
    ];
    let input = ChatInput {
        messages: &messages,
        add_generation_prompt: true,
        ..ChatInput::default()
    };
    template.render(&input).expect("a prompt")
}

#[test]
fn a_file_without_a_template_gets_the_one_of_its_special_tokens() {
    for (special, named, prompt) in [
        (
            &["<|im_start|>", "<|im_end|>"][..],
            NamedTemplate::ChatMl,
            "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n\
             <|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            NamedTemplate::Llama3,
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            &["<start_of_turn>", "<end_of_turn>"],
            NamedTemplate::Gemma,
            "<s><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n\
             <start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            &["[INST]", "[/INST]"],
            NamedTemplate::Mistral,
            "<s>[INST] Be brief.\n\nHello[/INST] Hi.</s>[INST] Why?[/INST]",
        ),
        (
            &["<|user|>", "<|assistant|>", "<|end|>"],
            NamedTemplate::Phi3,
            "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi.<|end|>\n\
             <|user|>\nWhy?<|end|>\n<|assistant|>\n",
        ),
        (
            &[],
            NamedTemplate::Plain,
            "<s>Be brief.\n\nUser: Hello\nAssistant: Hi.\nUser: Why?\nAssistant:",
        ),
    ] {
        let (template, origin) = choose(&vocabulary(special), None).expect("a template");
        assert_eq!(origin, TemplateOrigin::Default(named));
        assert_eq!(render(&template), prompt, "{}", named.name());
        assert_eq!(NamedTemplate::from_name(named.name()), Some(named));
        assert!(!template.uses_tools());
    }
}

#[test]
fn what_the_system_says_is_never_lost() {
    let conversations = [
        &["system"][..],
        &["developer"],
        &["system", "assistant"],
        &["system", "assistant", "user"],
        &["system", "system", "user"],
        &["system", "tool", "user"],
        &["system", "user", "assistant"],
    ];
    for named in NamedTemplate::ALL {
        let choice = TemplateChoice::Named(named);
        let (template, _) = choose(&vocabulary(&[]), Some(&choice)).expect("a template");
        for roles in conversations {
            let texts: Vec<String> = (0..roles.len()).map(|at| format!("Text {at}.")).collect();
            let messages: Vec<ChatMessage> = roles
                .iter()
                .zip(&texts)
                .map(|(role, text)| ChatMessage::new(*role, text.as_str()))
                .collect();
            let input = ChatInput {
                messages: &messages,
                ..ChatInput::default()
            };
            let prompt = template.render(&input).expect("a prompt");
            let mut rest = prompt.as_str();
            for text in &texts {
                let found = rest.split_once(text.as_str());
                (_, rest) = found.unwrap_or_else(|| panic!("{}: {prompt:?}", named.name()));
            }
            assert!(!texts.iter().any(|text| rest.contains(text)), "{prompt:?}");
        }
    }
}

#[test]
fn without_a_user_to_hear_it_the_system_has_a_turn_of_its_own() {
    for (named, alone, before_the_model) in [
        (
            NamedTemplate::Gemma,
            "<s><start_of_turn>user\nBe brief.<end_of_turn>\n",
            "<s><start_of_turn>user\nBe brief.<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n",
        ),
        (
            NamedTemplate::Mistral,
            "<s>[INST] Be brief.[/INST]",
            "<s>[INST] Be brief.[/INST] Hi.</s>",
        ),
    ] {
        let choice = TemplateChoice::Named(named);
        let (template, _) = choose(&vocabulary(&[]), Some(&choice)).expect("a template");
        let messages = [
            ChatMessage::new("system", "Be brief."),
            ChatMessage::new("assistant", "Hi."),
        ];
        for (messages, prompt) in [(&messages[..1], alone), (&messages, before_the_model)] {
            let input = ChatInput {
                messages,
                ..ChatInput::default()
            };
            assert_eq!(template.render(&input).expect("a prompt"), prompt);
        }
    }
}

#[test]
fn a_named_template_begins_with_no_token_that_the_model_does_not_want() {
    let special = ["<|im_start|>", "<|im_end|>"];
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strs("tokenizer.ggml.tokens", &special.map(str::to_owned))
        .i32s("tokenizer.ggml.token_type", &[3, 3])
        .strs::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .bool("tokenizer.ggml.add_bos_token", false);
    let (template, _) = choose(&writer, None).expect("a template");
    assert!(render(&template).starts_with("<|im_start|>system\n"));
}

#[test]
fn the_files_template_is_taken_before_a_default_and_the_configured_one_before_both() {
    let mut writer = vocabulary(&["<|im_start|>", "<|im_end|>"]);
    writer.str("tokenizer.chat_template", "of the file {{ eos_token }}");
    let (template, origin) = choose(&writer, None).expect("a template");
    assert_eq!(
        (render(&template).as_str(), origin),
        ("of the file </s>", TemplateOrigin::Model)
    );

    let choice = TemplateChoice::parse("plain").expect("a name");
    let (template, origin) = choose(&writer, Some(&choice)).expect("a template");
    assert!(render(&template).ends_with("Assistant:"));
    assert_eq!(origin.to_string(), "configured `plain`");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("own.jinja");
    std::fs::write(&path, "own {{ bos_token }}").expect("writable");
    let choice = TemplateChoice::parse(path.to_str().expect("a path")).expect("a path");
    let (template, origin) = choose(&writer, Some(&choice)).expect("a template");
    assert_eq!(render(&template), "own <s>");
    assert_eq!(
        origin,
        TemplateOrigin::Configured(TemplateChoice::File(path.clone()))
    );

    std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).expect("writable");
    assert!(matches!(
        choose(&writer, Some(&choice)),
        Err(TemplateError::SourceTooLong { .. })
    ));
    std::fs::write(&path, [0xff]).expect("writable");
    assert!(matches!(
        choose(&writer, Some(&choice)),
        Err(TemplateError::File { .. })
    ));
    let missing = TemplateChoice::File(PathBuf::from("nowhere.jinja"));
    assert!(matches!(
        choose(&writer, Some(&missing)),
        Err(TemplateError::File { .. })
    ));
    assert!(matches!(
        TemplateChoice::parse("nothing"),
        Err(TemplateError::UnknownName { .. })
    ));
}

#[test]
fn a_file_with_several_templates_has_one_for_tools() {
    let tools = [json!({"type": "function", "function": {"name": "status"}})];
    let with_tools = |template: &ChatTemplate| {
        let input = ChatInput {
            tools: &tools,
            ..ChatInput::default()
        };
        template.render(&input).expect("a prompt")
    };
    let mut writer = vocabulary(&[]);
    writer
        .str(
            "tokenizer.chat_template.tool_use",
            "tools {{ tools | length }}",
        )
        .str("tokenizer.chat_template.rag", "documents");
    let (alone, origin) = choose(&writer, None).expect("a template");
    assert_eq!(origin, TemplateOrigin::Model);
    assert_eq!(with_tools(&alone), "tools 1");

    writer.str("tokenizer.chat_template.default", "plain");
    let (two, _) = choose(&writer, None).expect("a template");
    assert_eq!(
        (render(&two).as_str(), with_tools(&two).as_str()),
        ("plain", "tools 1")
    );
    assert!(two.uses_tools());

    writer.str("tokenizer.chat_template", "first");
    let (three, _) = choose(&writer, None).expect("a template");
    assert_eq!(
        (render(&three).as_str(), with_tools(&three).as_str()),
        ("first", "tools 1")
    );
}
