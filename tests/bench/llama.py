#!/usr/bin/env python3
"""Speed of llama.cpp on a GGUF file, through llama-cpp-python: the counterpart of `andon-lab bench`.

Reads a prompt into an empty context, then decodes, from an empty context or after --depth tokens, each step with its
logits; with --columns also passes over 1 to 8 tokens that all have logits. The tokens are those of `andon-lab bench`. The
first run warms up. Prints seconds of every other run as one line of JSON.
"""
import argparse
import ctypes
import json
import sys
import time

import llama_cpp as llama


@llama.llama_log_callback
def silence(level, text, data):
    """llama.cpp tells a lot about every file."""


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    for name, default in {
        "threads": 2, "prompt": 512, "gen": 128, "depth": 0, "runs": 3, "repack": 1, "flash-attention": 0, "columns": 0,
    }.items():
        parser.add_argument("--" + name, type=int, default=default)
    return parser.parse_args()


def random_tokens(vocabulary, count):
    """The constants of Numerical Recipes, as in `andon-lab bench`."""
    state, tokens = 1, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        tokens.append(state * vocabulary >> 32)
    return tokens


class Context:
    def __init__(self, options):
        llama.llama_log_set(silence, ctypes.c_void_p(0))
        llama.llama_backend_init()
        model_options = llama.llama_model_default_params()
        model_options.use_extra_bufts = bool(options.repack)
        self.model = llama.llama_model_load_from_file(options.model.encode(), model_options)
        if not self.model:
            sys.exit("llama.cpp cannot load the file")
        settings = llama.llama_context_default_params()
        settings.n_ctx = max(options.prompt, options.depth + max(options.gen, 8)) + 64
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = options.threads
        settings.flash_attn_type = options.flash_attention
        self.context = llama.llama_init_from_model(self.model, settings)
        if not self.context:
            sys.exit("llama.cpp makes no context of these settings")
        vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.tokens = random_tokens(vocabulary, options.prompt)

    def take(self, count):
        """The first tokens of the endless prompt."""
        repeated = self.tokens * (count // len(self.tokens) + 1)
        return repeated[:count]

    def keep(self, count):
        """Forgets all but the first tokens of the context."""
        memory = llama.llama_get_memory(self.context)
        if count == 0 or not llama.llama_memory_seq_rm(memory, 0, count, -1):
            llama.llama_memory_clear(memory, True)
            self.append(self.take(count))

    def append(self, tokens, every=False):
        for start in range(0, len(tokens), 512):
            piece = tokens[start : start + 512]
            if every:
                self.decode_every(piece)
                continue
            array = (llama.llama_token * len(piece))(*piece)
            self.check(llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(piece))))
        if tokens:
            llama.llama_get_logits_ith(self.context, -1)

    def decode_every(self, tokens):
        memory = llama.llama_get_memory(self.context)
        first = llama.llama_memory_seq_pos_max(memory, 0) + 1
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, first + index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        status = llama.llama_decode(self.context, batch)
        llama.llama_batch_free(batch)
        self.check(status)

    @staticmethod
    def check(status):
        if status:
            sys.exit(f"llama_decode returned {status}")


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    options = parse()
    context = Context(options)
    seconds = {"prefill": [], "decode": [], "columns": []}
    for run in range(options.runs + 1):
        context.keep(0)
        prefill = timed(lambda: context.append(context.take(options.prompt)))
        context.keep(0)
        context.append(context.take(options.depth))
        steps = context.take(options.gen)
        decode = timed(lambda: [context.append([token]) for token in steps])
        columns = []
        for count in range(1, 9) if options.columns else ():
            context.keep(options.depth)
            columns.append(timed(lambda: context.append(context.take(count), every=True)))
        if run > 0:
            seconds["prefill"].append(prefill)
            seconds["decode"].append(decode)
            seconds["columns"].append(columns)
    print(json.dumps(seconds))


main()
