#!/usr/bin/env python3
"""Tokenizer cases from Hugging Face `tokenizers`, built from the metadata of a GGUF file.

    tokenizer.py VOCABULARY.gguf CASES.jsonl [--count N] [--seed S] [--text FILE]...

Writes JSON lines. The first says where the vocabulary is; each of the others is one case: a text, whether
the text of control tokens in it counts ("parse" or "plain"), and the expected ids. Needs the packages
`tokenizers` and `gguf`.

    tokenizer.py --tiny DIRECTORY

writes what the tests keep in the tree: a vocabulary of some hundred tokens, trained here, and cases for it
with each pre-tokenizer.
"""

import argparse
import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CONTROL, USER_DEFINED = 3, 4


def pre_tokenizer(name):
    """The pre-tokenizer of tokenizer.json for a tokenizer.ggml.pre, and whether merges are ignored."""
    byte_level = lambda use_regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
    if name == "gpt-2":
        return byte_level(True), False
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]), False
    if name == "llama-bpe":
        return pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]), True
    if name == "qwen2":
        return pre_tokenizers.Sequence([split(QWEN2), byte_level(False)]), False
    sys.exit(f"no oracle for tokenizer.ggml.pre {name!r}")


def build(tokens, types, merges, pre):
    """A `tokenizers.Tokenizer` of this vocabulary."""
    pre, ignore_merges = pre_tokenizer(pre)
    vocabulary = {text: id for id, text in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == CONTROL]
    user = [AddedToken(t, special=False, normalized=False) for t, k in zip(tokens, types) if k == USER_DEFINED]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(user)
    return tokenizer


def read_gguf(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens = get("tokens")
    types = get("token_type") if "tokenizer.ggml.token_type" in fields else [1] * len(tokens)
    return tokens, types, get("merges"), get("pre")


# Code points that have to do with how text is cut: spaces, line ends, marks, joiners, digits, letters without
# case, letters that fold to ASCII, private use, unassigned, the last of each plane.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
NEAR_SPACES = "\u180e\u200b\u200c\u200d\u2060\ufeff\x1c\x1d\x1e\x1f\x00\x7f\xad"
MARKS = "\u0300\u0301\u0308\u0323\u0489\u05b0\u064b\u093c\u0940\u0e31\u20dd\ufe0f\U000e0100"
DIGITS = "0123456789٠٣٩०५९০௧๒៣０９²³¹¼½Ⅷↈ①⑳㊿㉈一二𝟎𝟗𐄇\U00010d40\U0001ccf0\U00011de0\U00016ff4"
LETTERS = "abzABZéßſKÅıİǅʰªºñΩωЖжאبहกកあアー漢字한글𐐀𝒜ꟊ\U0001df00\U00010d50\U000105c0\U0002ebf0"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡«»¿‘’“”…—–€£₿©®™°±×÷√∞、。「」！？～"
EMOJI = ["😀", "🦙", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️", "😶‍🌫️", "#️⃣", "🪿", "\U0001fae9"]
ODD = "\ue000\uf8ff\ufdd0\ufffe\uffff\U0001ffff\U000e0001\U000f0000\U0010ffff\u0378\u1c8a\U000323b0\ufffd"
CONTRACTIONS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'rE", "'ve", "'Ve", "'m", "'M", "'ll", "'LL", "'lL", "'d", "'D",
                "'ſ", "'l", "'r", "'v", "''s", "’s", "'st", "'sd", "'x", "'"]
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.", "Je suis allé à l'école; c'était déjà fermé!",
    "Größenänderung der Straßenbahnhaltestelle", "нещо на Български", "Ελληνικά γράμματα", "שלום עולם",
    "مرحبا بالعالم ١٢٣", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก", "កាន់តែពិសេសអាចខលចេញ", "こんにちは世界、テスト123",
    "我想在apple工作1314151天～", "안녕하세요 세계", "Cửa Việt", "Việt Nam vie\u0302\u0323t", "i̇stanbul İSTANBUL",
    "fn main() {\n    println!(\"{}\", x[0]);\n}\n", "SELECT * FROM t WHERE a<>'b' AND c>=1e-9;", "https://example.com/a?b=c&d=%20e",
    "E42: spindle over-temperature (87.5 °C) @ 14:03:59Z", "{\"id\":\"17\",\"input\":{\"code\":\"E42\"}}", "\t\tif (x) {\r\n\t\t\treturn;\r\n",
    "I'M DON'T you'LL we've THEY'RE he'd", "1,234,567.89 3.14159 0x1F 1e10 2^10", "a\u00a0b\u2003c\u200bd\u0085e",
]


def texts(random, specials, lines):
    """Endless texts of many kinds."""

    def any_character():
        while True:
            plane = random.choice([0, 0, 0, 0, 1, 1, 2, 3, 14, 15, 16, random.randrange(17)])
            code = plane << 16 | random.randrange(0x10000)
            if not 0xD800 <= code < 0xE000:
                return chr(code)

    def atom():
        return random.choice([
            lambda: random.choice(SPACES), lambda: " " * random.randrange(1, 6), lambda: random.choice("\n\r\t ") * random.randrange(1, 5),
            lambda: random.choice(["\r\n", "\n\n", " \n", "\n ", "\r\n\r\n", "\t \n"]), lambda: random.choice(NEAR_SPACES),
            lambda: random.choice(MARKS), lambda: "".join(random.choices(MARKS, k=random.randrange(1, 5))),
            lambda: random.choice(DIGITS), lambda: str(random.randrange(10 ** random.randrange(1, 15))),
            lambda: "".join(random.choices(DIGITS, k=random.randrange(1, 6))), lambda: random.choice(LETTERS),
            lambda: "".join(random.choices(LETTERS, k=random.randrange(1, 6))), lambda: random.choice(PUNCTUATION),
            lambda: random.choice(PUNCTUATION) * random.randrange(1, 9), lambda: random.choice(EMOJI), lambda: random.choice(ODD),
            lambda: random.choice(CONTRACTIONS), lambda: random.choice("aAi tsweIT") + random.choice(CONTRACTIONS) + random.choice(["", "x", " ", "1", "ll"]),
            lambda: random.choice(random.choice(SENTENCES).split()), lambda: random.choice(SENTENCES), any_character,
            lambda: "".join(any_character() for _ in range(random.randrange(1, 6))),
            lambda: chr(random.randrange(0x20)), lambda: chr(random.randrange(0x80, 0x250)),
        ])()

    def slice_of(text):
        start = random.randrange(len(text) + 1)
        return text[start:start + random.randrange(1, 300)]

    def special():
        text = random.choice(specials) if specials else "<|none|>"
        return random.choice([text, text, text, text[:-1], text[1:], text + text, text.upper(), text.replace("|", " ")])

    def case():
        kind = random.randrange(10)
        if kind < 4:
            return "".join(atom() for _ in range(random.randrange(1, 12)))
        if kind < 5:
            return "".join(atom() for _ in range(random.randrange(20, 60)))
        if kind < 7 and lines:
            return slice_of(random.choice(lines))
        if kind < 8:
            line = random.choice(lines) if lines else random.choice(SENTENCES)
            text = list(slice_of(line))
            for _ in range(random.randrange(1, 6)):
                text.insert(random.randrange(len(text) + 1), atom())
            return "".join(text)
        if kind < 9:
            return "".join(random.choice([atom, special])() for _ in range(random.randrange(1, 8)))
        # Long runs, where an implementation changes its way of merging.
        return atom()[:8] * random.randrange(1, 80) + random.choice(["", "x", " x", "\n"])

    while True:
        yield case()


def fixed():
    """Texts that any set of cases has."""
    yield from [""] + SENTENCES + CONTRACTIONS + EMOJI
    for character in SPACES + NEAR_SPACES + MARKS + DIGITS + LETTERS + PUNCTUATION + ODD:
        yield character
        yield f"a{character}b"
        yield f" {character} {character}{character}1"


def cases(tokenizer, tokens, types, count, seed, lines):
    specials = [t for t, k in zip(tokens, types) if k in (CONTROL, USER_DEFINED)]
    chance = random.Random(seed)
    some = specials[:20] + specials[-20:]
    source = texts(chance, some, lines)
    seen = set()

    def all_texts():
        yield from fixed()
        while True:
            yield next(source)

    for text in all_texts():
        if len(seen) >= count:
            return
        if text in seen:
            continue
        seen.add(text)
        special = "parse" if len(seen) % 2 else "plain"
        # Plain: the text of control tokens is text. User-defined tokens are found all the same.
        tokenizer.encode_special_tokens = special == "plain"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        yield {"text": text, "special": special, "ids": ids}


def read_lines(paths):
    lines = []
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            for line in file:
                if path.endswith(".jsonl"):
                    strings = [value for value in json.loads(line).values() if isinstance(value, str) and value]
                    lines.extend(strings)
                else:
                    lines.append(line)
    # Records may hold halves of surrogate pairs, which are no text.
    return [line for line in lines if line.isprintable() or line.encode("utf-8", "ignore").decode() == line]


def write(path, head, records):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for record in [head, *records]:
            file.write(json.dumps(record, ensure_ascii=True, separators=(",", ":")) + "\n")


def tiny(directory):
    """A small vocabulary that lacks a few bytes, with special tokens, and cases for each pre-tokenizer."""
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizer("llama-bpe")[0]
    model.train_from_iterator(SENTENCES * 3 + CONTRACTIONS + ["    ", "\n\n", "!!!!", "....", "123 456 7890"] * 3, trainer)
    state = json.loads(model.to_str())["model"]
    merges = [" ".join(merge) for merge in state["merges"]]
    spelled = sorted(state["vocab"], key=state["vocab"].get)
    # As in SmolLM2, bytes that no text of the training had: U+0004, U+0006, 0xC0, 0xF5 to 0xFF.
    missing = set("ĄĆÀõö÷øùúûüýþÿ")
    specials = [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<|im|>", 3), ("<｜tool▁sep｜>", 3), ("[PAD]", 4), ("    x", 4), ("ab", 4)]
    tokens = [text for text, _ in specials[:5]] + [text for text in spelled if text not in missing and text != "ab"] + [text for text, _ in specials[5:]]
    types = [dict(specials).get(text, 1) for text in tokens]
    merges = [merge for merge in merges if all(part not in missing for part in merge.split()) and merge != "a b"]
    merges = [merge for merge in merges if merge.replace(" ", "") in tokens and all(part in tokens for part in merge.split())]
    # Some tokens that no merge makes, which only a vocabulary that ignores merges for them can use.
    parts = {part for merge in merges for part in merge.split()}
    leaves = [merge for merge in merges if merge.replace(" ", "") not in parts]
    merges = [merge for merge in merges if merge not in leaves[::3]]
    write(os.path.join(directory, "vocabulary.json"), {"tokens": tokens, "types": types, "merges": merges}, [])
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"]:
        tokenizer = build(tokens, types, merges, pre)
        records = cases(tokenizer, tokens, types, 1200, 7, [])
        write(os.path.join(directory, f"{pre}.jsonl"), {"pre": pre}, records)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", action="append", default=[], help="a file of lines, or JSON lines, to take text from")
    parser.add_argument("--tiny", metavar="DIRECTORY")
    options = parser.parse_args()
    if options.tiny:
        return tiny(options.tiny)
    if not options.gguf or not options.out:
        parser.error("a vocabulary and an output file are needed")
    tokens, types, merges, pre = read_gguf(options.gguf)
    tokenizer = build(tokens, types, merges, pre)
    records = cases(tokenizer, tokens, types, options.count, options.seed, read_lines(options.text))
    write(options.out, {"gguf": os.path.abspath(options.gguf), "pre": pre}, records)


if __name__ == "__main__":
    main()
