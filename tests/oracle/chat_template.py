#!/usr/bin/env python3
"""Chat template cases from Jinja2, set up as Hugging Face Transformers does.

    chat_template.py CASES.jsonl [--dates] [MODEL.gguf | TEMPLATE.jinja]...

Writes JSON lines. The first has the templates and the conversations by name, each of the others a case: a
template, a conversation, further variables, and the prompt, or what the template refuses them with, or that
it fails. The templates are written
here in the shapes that models in use have; those of further models can be added from their files, or as files of
their own. Templates that ask for the date are left out, as their prompts hold for a day, unless `--dates` is given.
Needs the package `jinja2`, and `gguf` for models.
"""

import datetime
import json
import re
import sys

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def compile(source):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    for mark, condition in {"generation": "if true", "endgeneration": "endif"}.items():
        source = re.sub(r"{%(-?) " + mark + r" (-?)%}", r"{%\1 " + condition + r" \2%}", source)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now(datetime.timezone.utc).strftime(form)
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

# What templates take for granted from Python and Jinja2, a piece at a time; `l`, `d`, `t` and others are in VARIABLES.
PIECES = r"""
{{ '  a b '.strip() }}|{{ '  a b '.lstrip() }}|{{ '  a b '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xyaxy'.rstrip('yx') }}|{{ 'ab\n\n'.rstrip('\n') }}|{{ ''.strip() }}
{{ 'a,b,,c'.split(',') }}|{{ 'a b  c '.split() }}|{{ 'a,b,c'.split(',', 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ 'abc'.split('x') }}|{{ ''.split(',') }}|{{ ''.split() }}
{{ 'a,b,c'.split(',')[-1] }}|{{ 'a</think>b'.split('</think>')[0].split('<think>')[-1] }}|{{ 'k=v=w'.partition('=') }}|{{ 'k=v=w'.rpartition('=') }}|{{ 'kv'.partition('=') }}
{{ 'a\nb\r\nc'.splitlines() }}|{{ 'a\nb\n'.splitlines(true) }}|{{ 'a\nb\n'.splitlines(keepends=true) }}
{{ 'aXbX'.replace('X', '-') }}|{{ 'aXbX'.replace('X', '-', 1) }}|{{ 'ab'.replace('', '.') }}|{{ 'aXbX' | replace('X', '-') }}|{{ 'aXbX' | replace('X', '-', 1) }}
{{ 'abc'.startswith('ab') }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith('bc') }}|{{ 'abc'.endswith(('bc', 'z')) }}|{{ 'abc'.startswith('b', 1) }}
{{ 'pre-x'.removeprefix('pre-') }}|{{ 'x.txt'.removesuffix('.txt') }}|{{ 'x'.removeprefix('y') }}
{{ 'hello wOrld'.title() }}|{{ 'hello wOrld'.capitalize() }}|{{ 'hello wOrld'.upper() }}|{{ 'Hello'.lower() }}|{{ "they're 3rd-rate" | title }}|{{ "they're 3rd-rate".title() }}|{{ 'aBc'.swapcase() }}|{{ 'ß'.casefold() }}
{{ 'abcabc'.find('c') }}|{{ 'abcabc'.rfind('c') }}|{{ 'abc'.find('x') }}|{{ 'abcabc'.index('b') }}|{{ 'abcabc'.count('bc') }}|{{ 'üxüx'.find('x', 2) }}
{{ '{} and {}'.format('a', 1) }}|{{ '{0}{1}{0}'.format('a', 'b') }}|{{ '{name}: {v:>5}'.format(name='n', v=3) }}|{{ '{:.2f}'.format(1.005) }}|{{ '{{}}'.format() }}|{{ '{:05d}'.format(42) }}
{{ '%s is %d' % ('a', 3) }}|{{ '%s' % 'b' }}|{{ '%.2f' % 2.5 }}|{{ '%5s|%-5s|' % ('a', 'b') }}|{{ '%d%%' % 5 }}|{{ '%s' % none }}|{{ '%(k)s' % {'k': 'v'} }}|{{ '%03d' % 7 }}|{{ '%x' % 255 }}
{{ '%s-%s' | format('a', 'b') }}|{{ '%s' | format([1, 'x']) }}
{{ ', '.join(['a', 'b']) }}|{{ ''.join([]) }}|{{ '-'.join('abc') }}|{{ ','.join(d) }}|{{ ','.join(d.keys()) }}|{{ l | join('/') }}|{{ people | join(', ', attribute='name') }}|{{ [1, none, true, 'x', 1.5] | join(' ') }}
{{ 'abc'.isalpha() }}|{{ '12'.isdigit() }}|{{ 'a1'.isalnum() }}|{{ 'A'.isupper() }}|{{ 'a'.islower() }}|{{ ' '.isspace() }}|{{ ''.isspace() }}|{{ '½'.isdigit() }}|{{ '½'.isnumeric() }}|{{ '٣'.isdecimal() }}|{{ 'Ab'.istitle() }}|{{ 'é'.isascii() }}|{{ 'a_1'.isidentifier() }}
{{ 'a'.center(5, '*') }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}|{{ '7'.zfill(3) }}|{{ '-7'.zfill(4) }}|{{ 'a\tb'.expandtabs(4) }}
{{ 'abc'[0] }}|{{ 'abc'[-1] }}|{{ 'abc'[1:] }}|{{ 'abc'[:-1] }}|{{ 'abc'[::-1] }}|{{ 'abcdef'[1:5:2] }}|{{ 'äöü'[1] }}|{{ 'abcdef'[-2::-2] }}|{{ 'abc'[5:] }}|{{ 'abc'[9] }}|
{{ l[::-1] }}|{{ l[1:] }}|{{ l[:-1] }}|{{ l[-2:] }}|{{ l[::2] }}|{{ l[-1] }}|{{ l[4:1:-1] }}|{{ l[99:] }}|{{ l[:-99:-1] }}|{{ t[1:] }}|{{ (1, 2, 3)[::-1] }}
{{ l + [9] }}|{{ [] + [] }}|{{ [1] * 3 }}|{{ 'ab' * 2 }}|{{ 2 * 'ab' }}|{{ 0 * 'ab' }}|{{ (1,) + (2,) }}|{{ l | length }}|{{ l | count }}|{{ 'äöü' | length }}|{{ d | length }}
{{ 3 in l }}|{{ 9 not in l }}|{{ 'a' in d }}|{{ 'z' in d }}|{{ 'bc' in 'abcd' }}|{{ '' in 'a' }}|{{ 'a' in ['a'] }}|{{ 1 in (1, 2) }}|{{ 'A' in d.values() }}|{{ true in [1] }}|{{ 'a' in d.keys() }}
{{ d }}|{{ d.a }}|{{ d['a'] }}|{{ d.get('a') }}|{{ d.get('q') }}|{{ d.get('q', 'dflt') }}|{{ d.q is defined }}|{{ d['q'] is defined }}|{{ d.q }}|
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}|{% for k in d %}{{ k }};{% endfor %}|{% for k in d.keys() %}{{ k }};{% endfor %}|{% for v in d.values() %}{{ v }};{% endfor %}|{% for k, v in d | items %}{{ k }}={{ v }};{% endfor %}|{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}
{{ d | dictsort }}|{{ {'b': 1, 'A': 2} | dictsort }}|{{ {'b': 1, 'A': 2} | dictsort(by='value') }}|{{ {'b': 1, 'A': 2} | dictsort(reverse=true) }}
{{ d.items() | list }}|{{ d.keys() | list }}|{{ d.values() | list }}|{{ d | list }}|{{ d.items() | length }}|{{ dict(a=1, b='x') }}|{{ dict({'k': 1}, z=2) }}|{{ {} }}|{{ {'x': {'y': [1]}} }}|{{ {1: 2, none: 3, true: 4} }}
{{ {'a': 1}.update({'b': 2}) }}|{{ d.copy() }}|{{ [1].append(2) }}
{{ l | first }}|{{ l | last }}|{{ l | sum }}|{{ l | min }}|{{ l | max }}|{{ l | reverse | list }}|{{ 'abc' | reverse }}|{{ [3, 1, 2] | sort }}|{{ [3, 1, 2] | sort(reverse=true) }}|{{ ['b', 'A', 'c'] | sort }}|{{ ['b', 'A', 'c'] | sort(case_sensitive=true) }}|{{ people | sort(attribute='age') | map(attribute='name') | list }}
{{ [1, 1, 2] | unique | list }}|{{ ['a', 'A'] | unique | list }}|{{ l | batch(2) | list }}|{{ l | batch(3, 'x') | list }}|{{ l | slice(2) | list }}|{{ [] | first }}|{{ [] | last }}|
{{ people | map(attribute='name') | list }}|{{ people | map(attribute='q', default='-') | list }}|{{ ['a', 'b'] | map('upper') | list }}|{{ ['a', 'b'] | map('replace', 'a', 'z') | join }}|{{ people | map(attribute='nested.k') | list }}
{{ people | selectattr('age') | map(attribute='name') | list }}|{{ people | selectattr('age', 'gt', 30) | map(attribute='name') | list }}|{{ people | selectattr('name', 'equalto', 'Bo') | list | length }}|{{ people | selectattr('name', '==', 'Bo') | list | length }}|{{ people | rejectattr('age', 'none') | list | length }}|{{ people | selectattr('name', 'in', ['Bo', 'Al']) | list | length }}|{{ people | selectattr('q', 'defined') | list | length }}|{{ people | rejectattr('q') | list | length }}
{{ l | select('odd') | list }}|{{ l | reject('odd') | list }}|{{ l | select('gt', 2) | list }}|{{ l | select | list }}|{{ [0, 1, '', 'a', none] | select | list }}|{{ ['', 'a'] | reject('equalto', '') | list }}|{{ l | select('divisibleby', 3) | list }}|{{ [1, 'a'] | select('string') | list }}
{% for g in people | groupby('team') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join(',') }};{% endfor %}|{% for k, v in people | groupby('team') %}{{ k }}={{ v | length }};{% endfor %}
{{ 1 is number }}{{ 1.5 is float }}{{ 1 is integer }}{{ true is boolean }}{{ true is number }}{{ true is integer }}{{ 'x' is string }}{{ d is mapping }}{{ l is sequence }}{{ d is sequence }}{{ 'x' is sequence }}{{ 'x' is iterable }}{{ d is iterable }}{{ 1 is iterable }}{{ none is none }}{{ nope is defined }}{{ nope is undefined }}{{ nope is none }}{{ l is mapping }}{{ none is iterable }}
{{ true is true }}{{ 1 is true }}{{ false is false }}{{ 0 is false }}{{ 3 is odd }}{{ 4 is even }}{{ 4 is divisibleby 2 }}{{ 'a' is eq 'a' }}{{ 1 is lt 2 }}{{ 'a' is in ['a'] }}{{ 'A' is upper }}{{ 'a' is lower }}{{ raise_exception is callable }}{{ d.a is sameas d.a }}{{ 'upper' is filter }}{{ 'odd' is test }}{{ 3 is not none }}{{ 2 is ge(2) }}{{ 1 is ne 2 }}{{ 'abc' is in 'xabcx' }}
{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 7 / 2 }}|{{ 6 / 2 }}|{{ 2 ** 10 }}|{{ 2 ** -1 }}|{{ 7.0 // 2 }}|{{ 7.5 % 2 }}|{{ -7.5 // 2 }}|{{ 1 + 2.0 }}|{{ 10 - 3 - 2 }}|{{ 2 + 3 * 4 ** 2 / 8 }}|{{ -2 ** 2 }}|{{ 7 % -3 }}|{{ 7 // -2 }}
{{ 1.0 }}|{{ 0.1 + 0.2 }}|{{ 1e16 }}|{{ 1e15 }}|{{ 1e-5 }}|{{ 0.0001 }}|{{ 1.5e300 }}|{{ 123456789.123 }}|{{ -0.0 }}|{{ 1e22 }}|{{ 1e100 }}|{{ [1.0, 1e-7, 1e21] }}|{{ 3.0 | string }}|{{ 1.0 ~ 'x' }}|{{ big }}|{{ 9007199254740993 }}
{{ true }}|{{ false }}|{{ none }}|{{ True }}|{{ False }}|{{ None }}|{{ [true, none, 'x', 1.0, "it's", 'q"q', "b\"o'th", '\n\t\\é\x00'] }}|{{ true ~ none }}|{{ 'x' ~ [1, 'a'] ~ {'k': none} }}|{{ none | string }}|{{ true | string }}|{{ (1, 'a') }}|{{ (1,) }}|{{ () }}|{{ [(1, 2), []] }}
{{ 'é\u00a0\u200b\u2028🦙' }}|{{ ['é\u00a0\u200b\u2028🦙\x7f\x85'] }}|{{ ['\r'] }}
{{ 1 == 1.0 }}|{{ 'a' < 'b' }}|{{ [1, 2] < [1, 3] }}|{{ [1] == [1] }}|{{ {'a': 1} == {'a': 1.0} }}|{{ true == 1 }}|{{ none == false }}|{{ 1 < 2 < 3 }}|{{ 1 != 1 }}|{{ '1' == 1 }}|{{ (1, 2) == [1, 2] }}
{{ 'x' and 'y' }}|{{ '' or 'z' }}|{{ 0 or none }}|{{ not [] }}|{{ 'x' if true else 'y' }}|{{ 'x' if false }}|{{ ('a' if false) is defined }}|{{ nope or 'dflt' }}|{{ (nope or {}).k }}|{{ [] and 1 }}|{{ not nope }}
{{ nope | default('d') }}|{{ '' | default('d') }}|{{ '' | default('d', true) }}|{{ none | default('d') }}|{{ none | default('d', boolean=true) }}|{{ nope | d('e') }}|{{ d.q | default('f') }}|{{ nope }}|{{ nope | length }}|{% for x in nope %}{% else %}E{% endfor %}
{{ nope.x }}
{{ d.q.r }}
{{ none.x }}
{{ 'a' + 1 }}
{{ 'a' + none }}
{{ 1 + none }}
{{ [] + 'a' }}
{{ l.nothing() }}
{{ 1 // 0 }}
{{ 'abc'.index('z') }}
{{ {} < {} }}
{{ none | join }}
{{ none | length }}
{% for a, b in [[1, 2], (3, 4)] %}{{ a }}{{ b }},{% endfor %}|{% for x in l if x is odd %}{{ loop.index }}{{ x }}{{ loop.last }},{% endfor %}|{% for x in [] %}{% else %}none{% endfor %}|{% for x in 'abc' %}{{ x }}.{% endfor %}|{% for x in l recursive %}{{ x }}{% endfor %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.changed(x // 2) }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}
{% for x in l %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}|{% for x in l %}{% for y in l %}{% if y > x %}{% break %}{% endif %}{{ y }}{% endfor %};{% endfor %}
{% for n in tree recursive %}{{ n.v }}{% if n.c %}({{ loop(n.c) }}){% endif %}{% endfor %}
{% set ns = namespace(n=0, s='') %}{% for x in l %}{% set ns.n = ns.n + x %}{% set ns.s = ns.s ~ x %}{% endfor %}{{ ns.n }}{{ ns.s }}|{% set ns = namespace({'k': 1}) %}{{ ns.k }}|{% set ns = namespace() %}{% set ns.v = [] %}{% set ns.v = ns.v + [1] %}{{ ns.v }}{{ ns.q is defined }}
{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}|{% if true %}{% set y = 2 %}{% endif %}{{ y }}|{% set a, b = 1, 2 %}{{ a }}{{ b }}|{% set (c, e) = (3, 4) %}{{ c }}{{ e }}|{% set v %}block {{ 1 + 1 }}
{% endset %}{{ v }}|{%- set w | upper -%} x {% endset %}{{ w }}|{{ v is string }}
{% macro m(a, b='d', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=2) }}{{ m(1, 2, 3) }}{{ m(a='x', b='z') }}{{ m() }}
{% macro m(a) %}{{ a }}{% if a > 0 %}{{ m(a - 1) }}{% endif %}{% endmacro %}{{ m(3) }}|{% set r = m(1) %}{{ r ~ '!' }}|{{ m(2) | trim | length }}|{{ m.name }}
{% macro w(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call w('b') %}in{% endcall %}|{% macro e(x) %}{% for i in x %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) e([1, 2]) %}{{ i }},{% endcall %}
{% filter upper %}abc{{ 1 }}{% endfilter %}|{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}|{% raw %}{{ x }}{% endraw %}|{# c #}|{%- if true -%} a {%- endif -%}|{% autoescape true %}{{ '<b>' }}{% endautoescape %}
{{ 'a\nb' | indent }}|{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb' | indent(width=3, first=True) }}|{{ 'a\nb' | indent('> ') }}
{{ ' x ' | trim }}|{{ 'xax' | trim('x') }}|{{ 'ab' | upper }}|{{ 'AB' | lower }}|{{ 'ab cd' | capitalize }}|{{ 'ab cd' | title }}|{{ 'a b' | wordcount }}|{{ 'abcdefghij' | truncate(5, true, '') }}|{{ '3' | int + 1 }}|{{ 'x' | int(7) }}|{{ '1.5' | float }}|{{ 3.7 | int }}|{{ -3 | abs }}|{{ 2.567 | round(1) }}|{{ 2.5 | round }}|{{ 2.1 | round(method='ceil') | int }}|{{ 5 | string }}|{{ 'abc' | list }}|{{ '<a>&"' | escape }}|{{ '<a>' | e }}|{{ '<a>' | safe }}
{{ 'abc' | center(7) }}
{{ d | tojson }}|{{ l | tojson }}|{{ 'é<&>\'"\u2028' | tojson }}|{{ 1.0 | tojson }}|{{ 1e16 | tojson }}|{{ 1e-7 | tojson }}|{{ none | tojson }}|{{ true | tojson }}|{{ t | tojson }}|{{ {'b': 1, 'a': {'d': [], 'c': {}}} | tojson(indent=2) }}|{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}|{{ {1: 2} | tojson }}|{{ [1, [2, 3]] | tojson(separators=(',', ':')) }}|{{ 'é' | tojson(ensure_ascii=True) }}|{{ d | tojson(indent=4, separators=(',', ': ')) }}|{{ {true: 2} | tojson }}
{{ d.items() | list | tojson }}|{{ people | tojson(indent=none) }}|{{ big | tojson }}|{{ [1.5, 1e100, -0.0] | tojson }}|{{ '\x00\x1f\x7f' | tojson }}|{{ '🦙' | tojson(ensure_ascii=true) }}|{{ l | tojson(2) }}|{{ d | tojson(false, 1) }}
{{ nope | tojson }}
{{ range(3) | list }}|{{ range(1, 4) | list }}|{{ range(5, 0, -2) | list }}|{{ range(0) | list }}|{{ range(3)[1] }}|{{ range(3) | length }}|{% for i in range(2, 4) %}{{ i }}{% endfor %}
{{ cycler('a', 'b').next() }}|{% set j = joiner(',') %}{{ j() }}a{{ j() }}b
{{ 'x' 'y' }}|{{ 'a\'b' }}|{{ "a\"b\\n" }}|{{ 'tab\tend' }}|{{ '\x41\u00e9' }}|{{ 1_000 }}|{{ 0x1f }}|{{ 0b11 }}|{{ 0o17 }}|{{ 'multi
line' }}
{% set items = {'items': 1, 'keys': 2, 'get': 3, 'values': 4, 'pop': 5} %}{{ items.items() | list }}|{{ items['items'] }}|{{ items.get('get') }}
{{ d.pop('a') }}
{{ d.__class__ }}
{{ ''.__class__.__mro__ }}
{{ l.append(1) }}
{{ l.index(3) }}|{{ l.count(3) }}|{{ t.index(2) }}|{{ t.count(1) }}
{{ [1, 2] | string }}|{{ [1, 2] | string | length }}|{{ d | string }}|{{ (1, none) | string }}|{{ 'a' | string }}|{{ 1e3 | int }}|{{ '12abc' | int }}|{{ '0x1f' | int(0, 16) }}|{{ true | int }}|{{ none | int }}|{{ ' 12 ' | int }}|{{ '1e3' | float }}
{% if d.a is defined and d.a is not none and (d.a | length) > 0 %}y{% endif %}|{% if l is iterable and l is not mapping and l is not string %}z{% endif %}|{% if not d.q %}n{% endif %}|{% if x is not defined %}u{% endif %}|{% if 'a' in d and d['a'] == 'A' %}e{% elif true %}f{% else %}g{% endif %}
{{ people[0].name }}|{{ people[-1]['name'] }}|{{ people[0].nested.k }}|{{ people[0]['nested']['k'] }}|{{ (people | first).name }}|{{ people | length > 1 }}|{{ people.0.name }}
{{ messages | length }}|{{ messages[0]['role'] }}|{{ messages[-1].content }}|{{ messages[1:] | length }}|{{ messages | map(attribute='role') | unique | list }}|{{ messages | selectattr('role', 'equalto', 'tool') | list | length }}|{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}|{{ messages[1].tool_calls[0].function.arguments }}|{{ messages[1].tool_calls[0] | tojson }}
{% for m in messages %}{% if loop.previtem is defined and loop.previtem.role != m.role %}!{% endif %}{{ m.role }}{% if loop.nextitem is defined %}>{{ loop.nextitem.role }}{% endif %};{% endfor %}|{% for m in messages[::-1] %}{{ m.role }}{{ loop.index0 }};{% endfor %}|{% for m in messages | reverse %}{{ m.role }};{% endfor %}
{% for m in messages -%}
  {%- if m.content is string -%} s {%- elif m.content is none -%} n {%- else -%} o {%- endif -%}
{%- endfor %}
{% set text = 'a' %}{% set text = text + 'b' if true else text %}{{ text }}|{% set l2 = l + [l | length] %}{{ l2 }}|{% set d2 = dict(d, **{'z': 1}) %}{{ d2 }}|{{ dict(d.items() | list) }}|{% set _ = d.get('a') %}
{% set x = [] -%}{%- for i in l -%}{%- set x = x + [i] -%}{%- endfor -%}{{ x }}|{% set _ = 1 %}{{ _ }}
{{ '\n' -}} a {{- 'x' }}
    {% if true %}
  b
    {% endif %}
    {%+ if true +%}
c
{%- endif %}
"""


# A piece begins with a line that begins with a tag without a dash that ends no block.
PIECES = re.split(r"\n(?={{ |{% (?!end))", PIECES.strip("\n"))

VARIABLES = {
    "l": [1, 2, 3, 4, 5],
    "d": {"a": "A", "c": None, "b": [1, 2.5, "x"], "é": True},
    "t": [1, 2],
    "big": 12345678901234567890,
    "people": [
        {"name": "Al", "age": 31, "team": "x", "nested": {"k": 1}},
        {"name": "Bo", "age": 30, "team": "y", "nested": {"k": 2}},
        {"name": "Cy", "age": 35, "team": "x", "nested": {"k": 3}},
    ],
    "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}],
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
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Answer briefly."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "this?\n"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A belt."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ],
    "calls": [
        {"role": "system", "content": "You watch a line."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call00001", "type": "function", "function": {"name": "status", "arguments": {"line": 3, "deep": {"a": [1, 2.5, None], "b": "x\ny"}, "ok": False}}},
            {"id": "call00002", "type": "function", "function": {"name": "log", "arguments": {"text": "it's \"so\" <b>&amp;</b>", "n": -7, "big": 1e22, "small": 1e-7}}},
        ]},
        {"role": "tool", "tool_call_id": "call00001", "name": "status", "content": "{\"state\": \"E42\"}"},
        {"role": "tool", "tool_call_id": "call00002", "name": "log", "content": "done"},
        {"role": "assistant", "content": "It reports E42."},
        {"role": "user", "content": "Thanks."},
    ],
    "calls as text": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call00003", "type": "function", "function": {"name": "status", "arguments": "{\"line\": 3}"}}]},
        {"role": "tool", "tool_call_id": "call00003", "name": "status", "content": [{"type": "text", "text": "running"}]},
    ],
    "reasoned": [
        USER,
        {"role": "assistant", "content": "Belt.", "reasoning_content": "Look.\n", "thinking": "Look again.", "reasoning": "Look there."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": None, "reasoning_content": "Ask.", "tool_calls": [{"id": "call00004", "type": "function", "function": {"name": "status", "arguments": {}}}]},
        {"role": "tool", "tool_call_id": "call00004", "name": "status", "content": "x"},
    ],
    "developer": [{"role": "developer", "content": "Be exact."}, {"role": "system", "content": "Second."}, USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
}
TOOLS = [{"type": "function", "function": {"name": "status", "description": "State of a line – now", "parameters": {"type": "object", "properties": {"line": {"type": "integer"}, "depth": {"enum": [1, 2.5, "x", None, False]}}, "required": []}}}]
MORE_TOOLS = TOOLS + [
    {"type": "function", "function": {"name": "log", "description": "Writes\na line.", "parameters": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What. Quote it: \"é\".", "default": "x", "maxLength": 80},
            "n": {"type": ["integer", "null"], "description": "How often", "minimum": 0},
            "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "number"}}}, "description": "Some"},
            "how": {"type": "string", "enum": ["a", "b"]},
            "either": {"anyOf": [{"type": "string"}, {"type": "boolean"}]},
        },
        "required": ["text"],
    }, "return": {"type": "string", "description": "ok"}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
DOCUMENTS = [{"title": "Manual", "text": "Belts jam."}, {"title": "Log", "text": "E42\n", "doc_id": 7}]
EXTRAS = {
    "none": {},
    "tools": {"tools": TOOLS},
    "no thinking": {"enable_thinking": False, "date_string": "23 Nov 2026"},
    "thinking": {"tools": MORE_TOOLS, "enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    "documents": {"documents": DOCUMENTS, "custom": {"b": 1, "a": [True, None]}},
    "pieces": VARIABLES,
}


FAILURES = (jinja2.exceptions.UndefinedError, jinja2.exceptions.TemplateRuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


def run(name, template, title, extra, add):
    case = {"template": name, "messages": title, "extra": extra, "add_generation_prompt": add}
    variables = {"tools": None, "documents": None, **EXTRAS[extra]}
    try:
        case["prompt"] = template.render(messages=CONVERSATIONS[title], add_generation_prompt=add, bos_token="<s>", eos_token="</s>", **variables)
    except FAILURES:
        case["fails"] = True
    except jinja2.exceptions.TemplateError as error:
        case["refuses"] = str(error)
    return case


def cases(templates):
    for name, source in templates.items():
        template = compile(source)
        for title in CONVERSATIONS:
            for extra in list(EXTRAS)[:-1]:
                for add in [True, False]:
                    yield run(name, template, title, extra, add)
    for source in PIECES:
        yield run(source, compile(source), "calls", "pieces", True)


def main():
    out, *paths = sys.argv[1:]
    templates = dict(TEMPLATES)
    for path in paths:
        if path == "--dates":
            continue
        if path.endswith(".gguf"):
            from gguf import GGUFReader

            field = GGUFReader(path).fields.get("tokenizer.chat_template")
            if field is None:
                continue
            source = field.contents()
        else:
            with open(path, encoding="utf-8") as file:
                source = file.read()
        if "strftime_now" not in source or "--dates" in paths:
            templates[path] = source
    with open(out, "w", encoding="utf-8", newline="\n") as file:
        # The name of a piece is its source.
        head = {"templates": {**templates, **{piece: piece for piece in PIECES}}, "conversations": CONVERSATIONS, "extras": EXTRAS}
        for case in [head, *cases(templates)]:
            file.write(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
