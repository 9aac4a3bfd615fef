#!/usr/bin/env python3
"""Compare the logits of tiny models of every architecture with llama.cpp's.

    pip install llama-cpp-python==0.3.36
    ANDON_REFERENCE_DIR=FOLDER cargo test -p andon-tests --test reference every_architecture
    logits.py FOLDER

Prints for each model the largest difference of a logit and how many positions have the same most likely token, and
fails if one differs by more than rounding. Keys and values are f16 on both sides, and llama.cpp has its GELU in a
table of f16, so differences of some 1e-3 of the largest logit are rounding.

llama.cpp does not read the window of files of the llama architecture; that model is left out.
"""
import ctypes
import json
import pathlib
import sys

import llama_cpp as lc
import numpy as np

LEFT_OUT = {"llama_with_a_window"}
TOLERANCE = 3e-3


@lc.llama_log_callback
def _quiet(level, text, user_data):
    pass


def logits(path, tokens):
    model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    params = lc.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    context = lc.llama_init_from_model(model, params)
    batch = lc.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    if lc.llama_decode(context, batch):
        sys.exit(f"llama.cpp cannot run {path}")
    count = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    result = np.ctypeslib.as_array(lc.llama_get_logits(context), shape=(len(tokens), count)).copy()
    lc.llama_batch_free(batch)
    lc.llama_free(context)
    lc.llama_model_free(model)
    return result


def main(folder):
    lc.llama_log_set(_quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    failed = False
    for path in sorted(pathlib.Path(folder).glob("*.gguf")):
        if path.stem in LEFT_OUT:
            continue
        case = json.loads(path.with_suffix(".json").read_text())
        ours = np.array(case["logits"])
        theirs = logits(path, case["tokens"])
        difference, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
        same = np.mean(ours.argmax(1) == theirs.argmax(1))
        print(f"{path.stem:28} differs by {difference:.1e} of {size:.2f}, same top token {same:.0%}")
        failed |= not difference <= TOLERANCE * size
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
