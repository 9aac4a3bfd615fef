//! Hostile chat templates end with their own errors, and never hold much memory.
//!
//! A program of its own, since its allocator counts: whatever else ran beside would be counted, too.

use std::alloc::System;

use andon_engine::tokenizer::{ChatInput, ChatMessage, ChatTemplate, TemplateError};
use cap::Cap;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Most bytes that a rendering may hold: 64 for each unit of fuel, which is 128 MB, and as much as half of it again
/// while a text is copied. What is held here is a third of it.
const BYTES_MAX: usize = 192 << 20;

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [ChatMessage::new("user", "x".repeat(1000))];
    ChatTemplate::from_source(source, "<s>", "</s>")?.render(&ChatInput {
        messages: &messages,
        add_generation_prompt: true,
        ..ChatInput::default()
    })
}

/// What a template must end with.
#[derive(Debug, Clone, Copy)]
enum Ends {
    OutOfFuel,
    TooLarge,
    TooDeep,
    PromptTooLong,
    SyntaxError,
}

#[test]
fn work_and_memory_are_bounded() {
    use Ends::{OutOfFuel, PromptTooLong, SyntaxError, TooDeep, TooLarge};
    let brackets = format!("{{{{ {}1{} }}}}", "[".repeat(100_000), "]".repeat(100_000));
    let blocks = "{% if true %}".repeat(50_000);
    let sums = format!(
        "{{{{ {}1{} }}}}",
        "1+(".repeat(100_000),
        ")".repeat(100_000)
    );
    let formats = format!(
        "{{{{ {}1{} }}}}",
        "''%(".repeat(100_000),
        ")".repeat(100_000)
    );
    let mut wrong = Vec::new();
    for (source, ends) in [
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            OutOfFuel,
        ),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
            OutOfFuel,
        ),
        ("{{ 'x' * 1000000000 }}", OutOfFuel),
        ("{{ 1000000000 * 'x' }}", OutOfFuel),
        ("{{ [1] * 1000000000 }}", TooLarge),
        ("{{ 'x' * 10 ** 9 }}", OutOfFuel),
        ("{{ range(1000000000) | list }}", TooLarge),
        ("{% for a in range(1000000000) %}{% endfor %}", TooLarge),
        (
            "{% set ns = namespace(t='xxxxxxxx') %}{% for a in range(100) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t='xxxxxxxx') %}{% for a in range(100) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(100) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t | tojson }}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t | tojson(sort_keys=true) }}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t | string }}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t | join }}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t }}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ '%s' % ns.t }}",
            OutOfFuel,
        ),
        (
            "{% set t = messages[0].content %}{{ t.replace('x', t).replace('x', t) }}",
            OutOfFuel,
        ),
        (
            "{% set t = messages[0].content * 100 %}{{ t.join(t) }}",
            OutOfFuel,
        ),
        (
            "{% set t = messages[0].content * 100 %}{{ t | join(t) }}",
            OutOfFuel,
        ),
        (
            "{% set t = 'x\\n' * 100000 %}{{ t | indent(1000000) }}",
            OutOfFuel,
        ),
        ("{{ 'x' | indent(1000000000000, true) }}", OutOfFuel),
        ("{{ 'x'.center(1000000000000) }}", OutOfFuel),
        ("{{ 'x' | center(1000000000000) }}", OutOfFuel),
        ("{{ '7'.zfill(1000000000000) }}", OutOfFuel),
        ("{{ '\\t'.expandtabs(1000000000000) }}", OutOfFuel),
        ("{{ '{:>1000000000}'.format('x') }}", TooLarge),
        ("{{ '%1000000000s' % 'x' }}", TooLarge),
        ("{{ '%*s' % (1000000000, 'x') }}", TooLarge),
        ("{{ '%1000000000s' | format('x') }}", OutOfFuel),
        ("{{ [1] | tojson(indent=1000000000) }}", TooLarge),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", TooDeep),
        (
            "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            TooDeep,
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
            OutOfFuel,
        ),
        (
            "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            TooDeep,
        ),
        (
            "{% set t = messages[0].content * 1000 %}{% for a in range(20) %}{{ t }}{% endfor %}",
            PromptTooLong,
        ),
        // The same list twice, where a tag or a block of text only seems to end, and by a name that looks like a keyword.
        (
            "{% macro f(t, n) %}{{ {'a': {}} and (f(t + t, n - 1) if n else t | list | length) }}{% endmacro %}{{ f([1], 60) }}",
            OutOfFuel,
        ),
        (
            "{% raw %}endraw {# {% endraw %}{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t | list | length }}",
            OutOfFuel,
        ),
        (
            "{#} {{ ' #}{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t | list | length }}",
            OutOfFuel,
        ),
        (
            "{% set ns = namespace(t=[1]) %}{% for a in range(60) %}{% set or = ns.t %}{% set ns.t = or + or %}{% endfor %}{{ ns.t | list | length }}",
            OutOfFuel,
        ),
        (
            "{{ [1] | batch(1000000000, 'x') | list | length }}",
            OutOfFuel,
        ),
        (
            "{{ [1] | slice(1000000000, 'x') | list | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = messages[0].content * 100 %}{{ t | replace('x', t) | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = messages[0].content * 20000 %}{{ t | list | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = messages[0].content * 20000 %}{{ t.split('x') | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = messages[0].content * 20000 %}{{ t | split('x') | list | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = 'x\n' * 10000000 %}{{ t | lines | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = 'x\n' * 10000000 %}{{ t.splitlines() | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = '<' * 20000000 %}{{ t | escape | length }}",
            OutOfFuel,
        ),
        (
            "{% set t = 'x' * 20000000 %}{{ t | title | length }}{{ t | reverse | length }}{% for c in t %}{% endfor %}",
            OutOfFuel,
        ),
        (&brackets, SyntaxError),
        (&sums, SyntaxError),
        (&formats, SyntaxError),
        (&blocks, SyntaxError),
    ] {
        let error = render(source).expect_err(&format!("{source:.200}"));
        let matches = match ends {
            OutOfFuel => matches!(error, TemplateError::OutOfFuel),
            TooLarge => matches!(error, TemplateError::TooLarge { .. }),
            TooDeep => matches!(error, TemplateError::TooDeep { .. }),
            PromptTooLong => matches!(error, TemplateError::PromptTooLong { .. }),
            SyntaxError => matches!(error, TemplateError::Syntax { .. }),
        };
        if !matches {
            wrong.push(format!("{source:.200}: {error:?} for {ends:?}"));
        }
        let most = ALLOCATOR.max_allocated();
        assert!(most <= BYTES_MAX, "{source:.200}: {most} bytes");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("at most {} bytes were held", ALLOCATOR.max_allocated());
}
