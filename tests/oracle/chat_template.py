#!/usr/bin/env python3
"""Chat template cases from Jinja2, set up as Hugging Face Transformers does.

    chat_template.py CASES.jsonl [MODEL.gguf]...

Writes JSON lines. The first has the templates and the conversations by name, each of the others a case: a
template, a conversation, further variables, and the prompt, or what the template refuses them with, or that
it fails. The templates are written
here in the shapes that models in use have; those of further models can be added from their files. Needs the
package `jinja2`, and `gguf` for models.
"""

import json
import sys

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def compile(source):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


TEMPLATES = {
    "plain": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "first": """{{ bos_token }}{% for m in messages %}{% if loop.first and m['role'] != 'system' %}[S]none[/S]
{% endif %}{{ m.role | upper }}({{ loop.index0 }}/{{ loop.length }}): {{ m.content | trim }}{{ eos_token if m.role == 'assistant' }}
    {%- if not loop.last %}

    {% endif %}
{% endfor %}
{% if add_generation_prompt -%}
    ASSISTANT:
{%- endif %}""",
    "headers": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot|>' }}
    {%- elif message.role == "tool" %}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    "alternating": """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{ bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is defined %}
            {{ '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{ '[INST] ' ~ message['content'] ~ ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{ ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "thinking": """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and not(message.content.startswith('<result>') and message.content.endswith('</result>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<result>\\n' + content + '\\n</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "turns": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "macro": """{%- macro show(name, value, depth=0) -%}
{{ '  ' * depth }}{{ name }}={{ value }}
{% endmacro -%}
{%- for m in messages -%}
{%- if m.role == 'tool' %}{% continue %}{% endif -%}
{{ show(m.role, m.content | length, loop.index) }}
{%- if loop.index >= 3 %}{% break %}{% endif -%}
{%- endfor -%}
{{ messages | map(attribute='role') | join(',') }};{{ messages | selectattr('role', 'equalto', 'user') | list | length }};{{ (messages | last).role | title }};
{%- for key, value in {'a': 1, 'b': true, 'c': none, 'd': 1.5, 'e': 'x'}.items() %}{{ key }}:{{ value }} {% endfor -%}
{{ undefined_thing }}{{ undefined_thing | default('dflt') }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 5 }} {{ 'ab' in 'cab' }} {{ not true }} {{ 'x,y,,z'.split(',') | length }}
{{ range(3) | list | tojson }} {{ messages[-1].content[:3] }} {{ 'a-b-c'.replace('-', '+', 1) }} {{ ' '.join(['p', 'q']) }} {{ 'abc'.upper().find('C') }} {{ 'Xy'.lower().islower() }}""",
    "json": """{{ tools | tojson }}|{{ tools | tojson(indent=4) }}|{{ tools | tojson(separators=(',', ':')) }}|{{ tools | tojson(ensure_ascii=true, sort_keys=true) }}|{{ tools | tojson(indent=2, sort_keys=true) }}|{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}{{ "<a&'b>\\u00e9\\n\\t\\"" | tojson }}""",
    "generation": """{% for m in messages %}
{%- if m.role == 'assistant' -%}
A:{% generation %}{{ m.content }}{% endgeneration %}
{% else %}
{{ m.role }}:{{ m.content }}
{% endif %}
{% endfor %}""",
    "whitespace": """
  {% if true %}
    yes  
  {% endif %}
{# a remark #}
  {#- another -#}
x {%- if messages %} y {%+ endif %} z
{%- for m in messages +%}
 {{ m.role }}
{%- endfor %}

end
""",
}

USER = {"role": "user", "content": "Why did line 3 stop?"}
CONVERSATIONS = {
    "one": [USER],
    "system": [{"role": "system", "content": "  Answer briefly.\n"}, USER],
    "turns": [USER, {"role": "assistant", "content": "The <b>belt</b> jammed & \"stalled\"."}, {"role": "user", "content": " Größe? \U0001f999\n\n"}],
    "two users": [USER, USER],
    "thought": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nBelt."}, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "<think>a</think>b"}],
    "tools": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "status", "arguments": {"line": 3, "zeta": True, "alpha": None, "ü": "é<&>'"}}}]},
        {"role": "tool", "content": "{\"state\": \"E42\"}", "name": "status"},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "It reports E42.", "reasoning_content": "\nlook it up\n"},
    ],
    "empty": [],
}
TOOLS = [{"type": "function", "function": {"name": "status", "description": "State of a line – now", "parameters": {"type": "object", "properties": {"line": {"type": "integer"}, "depth": {"enum": [1, 2.5, "x", None, False]}}, "required": []}}}]
EXTRAS = [{}, {"tools": TOOLS}, {"enable_thinking": False, "date_string": "23 Nov 2026"}]


def cases(templates):
    for name, source in templates.items():
        template = None if "{% generation %}" in source else compile(source)
        if template is None:
            template = compile(source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}"))
        for title, messages in CONVERSATIONS.items():
            for extra in EXTRAS:
                for add in [True, False]:
                    variables = {"tools": None, "documents": None, **extra}
                    case = {"template": name, "messages": title, "extra": extra, "add_generation_prompt": add}
                    try:
                        case["prompt"] = template.render(messages=messages, add_generation_prompt=add, bos_token="<s>", eos_token="</s>", **variables)
                    except jinja2.exceptions.UndefinedError:
                        case["fails"] = True
                    except jinja2.exceptions.TemplateError as error:
                        case["refuses"] = str(error)
                    yield case


def main():
    out, *models = sys.argv[1:]
    templates = dict(TEMPLATES)
    for path in models:
        from gguf import GGUFReader

        templates[path] = GGUFReader(path).fields["tokenizer.chat_template"].contents()
    with open(out, "w", encoding="utf-8", newline="\n") as file:
        head = {"templates": templates, "conversations": CONVERSATIONS}
        for case in [head, *cases(templates)]:
            file.write(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
