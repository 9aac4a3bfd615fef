#!/usr/bin/env python3
"""Small vocabularies of every kind, and what llama.cpp makes of texts with them.

    vocabulary.py DIRECTORY [--count N] [--seed S] [--full NAME=PATH]... [--pre VOCABULARY.json]

Writes DIRECTORY/<name>.jsonl for each vocabulary made here. The first line has the metadata of its GGUF file; each
of the others is one case: a text, whether the text of control tokens in it counts ("parse" or "plain"), and
the ids. With --full, writes cases for whole vocabularies instead: the first line then names the file. A NAME is a
tokenizer.ggml.pre to put into the file, or "-" for what it has.

Needs the packages `llama_cpp_python`, `tokenizers`, `gguf` and `sentencepiece`; the texts are those of tokenizer.py.
The tests do not need them: they read what is checked in.
"""

import argparse
import ctypes
import io
import json
import os
import random
import sys
import tempfile
import unicodedata

import gguf
import llama_cpp
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

import tokenizer as texts_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Peer:
    """llama.cpp with the vocabulary of a file."""

    def __init__(self, path):
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            sys.exit(f"llama.cpp does not load {path}")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)

    def ids(self, text, parse, add=False):
        data = text.encode()
        room = len(data) * 4 + 16
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), tokens, room, add, parse)
        assert count >= 0, text
        return list(tokens[:count])

    def text(self, ids):
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        room = 64 * len(ids) + 64
        buffer = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_detokenize(self.vocabulary, tokens, len(ids), buffer, room, False, True)
        return buffer.raw[:count]

    def close(self):
        llama_cpp.llama_model_free(self.model)


def write_gguf(path, metadata):
    writer = gguf.GGUFWriter(path, metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def corpus():
    return texts_of.SENTENCES * 3 + texts_of.CONTRACTIONS + ["    ", "\n\n", "!!!!", "123 456 7890", "漢字 かな 日本語 中文"] * 3


def train_sentencepiece(kind, **options):
    """Pieces and scores, the kinds of the pieces, and the model's normalization."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type=kind, minloglevel=2, hard_vocab_limit=False,
        character_coverage=0.98, num_threads=1, **options)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    return pieces, proto.normalizer_spec


def sentencepiece_bpe(lines=True):
    pieces, _ = train_sentencepiece(
        "bpe", vocab_size=900, byte_fallback=True, user_defined_symbols=["<tool>", "abc"], normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_by_whitespace=True, allow_whitespace_only_pieces=True)
    # Multiples of a line end, as Gemma has them, and an unused one.
    pieces += [("\n\n", 0.0, USER_DEFINED), ("\n\n\n", 0.0, USER_DEFINED)] if lines else []
    pieces += [("<unused0>", 0.0, UNUSED), ("<|end|>", 0.0, CONTROL), ("<|endoftext|>", 0.0, CONTROL)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in pieces],
        "tokenizer.ggml.scores": [float(score) for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


# Of NFKC what a test can hold: one character to several, several to one, to a space, to nothing.
RULES = {"ﬁ": "fi", "ﷺ": "صلى الله عليه وسلم", "²": "2", "①": "1", "\u00a0": " ", "\u3000": " ", "\u2003": " ", "\t": " ", "\n": " ", "\r": " ",
         "e\u0301": "é", "か\u3099": "が", "Ⅷ": "VIII", "！": "!", "～": "~", "Ａ": "A", "…": "...", "\u200b": " ", "\x7f": "", "\ufeff": " "}


def unigram(rules=None):
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as file:
        code_points = lambda text: " ".join(f"{ord(character):X}" for character in text)
        file.writelines(f"{code_points(old)}\t{code_points(new)}\n" for old, new in RULES.items())
        file.flush()
        rules = {"normalization_rule_name": rules} if rules else {"normalization_rule_tsv": file.name}
        pieces, spec = train_sentencepiece("unigram", vocab_size=700, user_defined_symbols=["<tool>"], **rules)
    pieces.append(("<mask>", 0.0, CONTROL))
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [text for text, _, _ in pieces],
        "tokenizer.ggml.scores": [float(score) for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": spec.precompiled_charsmap,
    }


def word_piece(lowercase):
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    model.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=700, special_tokens=specials, show_progress=False))
    vocabulary = model.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    written = [token if token in specials else token[2:] if token.startswith("##") else "▁" + token for token in tokens]
    return {
        "general.architecture": "bert",
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": written,
        "tokenizer.ggml.token_type": [CONTROL if token in specials else NORMAL for token in tokens],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
        "tokenizer.ggml.normalizer.lowercase": lowercase,
    }


def rwkv():
    words = sorted({word for sentence in corpus() for word in sentence.split() if len(word) < 9})
    tokens = [bytes([byte]) for byte in range(256)] + [word.encode() for word in words if len(word.encode()) > 1]
    tokens += [b"\n\n", b"  ", b" the", b"\r\n"]

    def escaped(token):
        try:
            text = token.decode()
            if len(text) > 1 or text.isprintable():
                return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
        except UnicodeDecodeError:
            pass
        return "".join(f"\\x{byte:02x}" for byte in token)

    written = ["<s>"] + [escaped(token) for token in dict.fromkeys(tokens)]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": written,
        "tokenizer.ggml.token_type": [CONTROL] + [NORMAL] * (len(written) - 1),
        "tokenizer.ggml.eos_token_id": 0,
    }


def gemma4():
    """Byte-pair encoding of plain text."""
    model = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("[^\n]+|\n+"), "isolated")
    model.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=900, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"] + BYTES, show_progress=False))
    state = json.loads(model.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get) + ["<start_of_turn>", "<end_of_turn>", "<tool>"]
    types = [BYTE if token in BYTES else NORMAL for token in tokens]
    for token in ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]:
        types[tokens.index(token)] = CONTROL
    types[tokens.index("<tool>")] = USER_DEFINED
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["merges"]],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }


KINDS = {
    "llama": sentencepiece_bpe,
    "llama-no-prefix": lambda: sentencepiece_bpe() | {"tokenizer.ggml.add_space_prefix": False},
    "phi-3": lambda: sentencepiece_bpe(lines=False) | {"general.name": "Phi-3 mini"},
    "bert": lambda: word_piece(True),
    "bert-cased": lambda: word_piece(False),
    "t5": unigram,
    "t5-nfkc": lambda: unigram("nmt_nfkc"),
    "rwkv": rwkv,
    "gemma4": gemma4,
}


def is_fair(text):
    """Whether llama.cpp, whose tables are those of Unicode 15, and the regular expressions of models can agree on it."""
    new = lambda c: ord(c) < 0x40000 and c not in "\u0378\ufdd0\ufffe\uffff\U0001ffff" and unicodedata.category(c) == "Cn"
    # Without case, an s is also a long one.
    return "'ſ" not in text and not any(map(new, text))


def records(peer, metadata, count, seed, lines=()):
    chance = random.Random(seed)
    special = [t for t, k in zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]) if k in (CONTROL, USER_DEFINED)]
    source = texts_of.texts(chance, special[:20] + special[-20:], list(lines))
    source = filter(is_fair, source)
    fixed = list(filter(is_fair, texts_of.fixed()))
    some = fixed if count > 2 * len(fixed) else chance.sample(fixed, count // 2)
    for number in range(count):
        text = some[number] if number < len(some) else next(source)
        special = "parse" if number % 3 else "plain"
        yield {"text": text, "special": special, "ids": peer.ids(text, special == "parse")}


def full(name, path, directory, count, seed):
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.ggml.")}
    metadata.setdefault("tokenizer.ggml.token_type", [NORMAL] * len(metadata["tokenizer.ggml.tokens"]))
    if name != "-":
        metadata["tokenizer.ggml.pre"] = name
    target = os.path.abspath(os.path.join(directory, f"{name}.gguf"))
    write_gguf(target, metadata)
    peer = Peer(target)
    texts_of.write(os.path.join(directory, f"{name}.jsonl"), {"gguf": target, "pre": name}, records(peer, metadata, count, seed))
    peer.close()


# One name of each way to cut text that files with the byte alphabet have.
PRE = """afmoe bloom chameleon chatglm-bpe deepseek-coder deepseek-llm deepseek-v3 default exaone-moe falcon glm4 gpt-2 gpt-4o
granite-embed-multi-97m jais-2 kimi-k2 laguna llama-bpe minicpm5 qwen2 qwen35 seed-coder spark2_5 starcoder superbpe tekken tiny_aya
ufakzeka viking youtu""".split()


def pre_tokenizers_of(vocabulary, directory, count, seed):
    """Cases for the small byte-level vocabulary that tokenizer.py made, with each pre-tokenizer."""
    with open(vocabulary, encoding="utf-8") as file:
        read = json.load(file)
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    metadata |= {"tokenizer.ggml.tokens": read["tokens"], "tokenizer.ggml.token_type": read["types"], "tokenizer.ggml.merges": read["merges"]}
    missing = lambda text: any(byte in (4, 6, 0xC0) or byte > 0xF4 for byte in text.encode()) or "[PAD]" in text
    for number, name in enumerate(PRE):
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            write_gguf(file.name, metadata | {"tokenizer.ggml.pre": name})
            peer = Peer(file.name)
            # Bytes that the vocabulary lacks keep their neighbours apart in llama.cpp.
            some = [case for case in records(peer, metadata, count * 2, seed + number) if not missing(case["text"])][:count]
            texts_of.write(os.path.join(directory, f"{name}.jsonl"), {"pre": name}, some)
            peer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="of the vocabularies made here")
    parser.add_argument("--full", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--pre", metavar="VOCABULARY.json", help="write cases for each pre-tokenizer")
    options = parser.parse_args()
    log = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(log, None)
    for name, _, path in (full.partition("=") for full in options.full):
        full(name, path, options.directory, options.count, options.seed)
    if options.pre:
        pre_tokenizers_of(options.pre, options.directory, options.count, options.seed)
    for name, make in KINDS.items():
        if options.full or options.pre or options.only and name not in options.only:
            continue
        metadata = make()
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            write_gguf(file.name, metadata)
            peer = Peer(file.name)
            charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
            if charsmap is not None:
                metadata["tokenizer.ggml.precompiled_charsmap"] = charsmap.hex()
            texts_of.write(os.path.join(options.directory, f"{name}.jsonl"), {"metadata": metadata}, records(peer, metadata, options.count, options.seed))
            peer.close()


if __name__ == "__main__":
    main()
