#!/usr/bin/env python3
"""Tensor blocks and their values from the `gguf` package, and the errors of other encoders.

    formats.py cases CASES.txt [--small] [--model MODEL.gguf] [--ggml LIBRARY]
    formats.py errors LIBRARY

`cases` writes a line for each block, `decode FORMAT BYTES VALUES`: both in hexadecimal, a value as the bits of its f32.
Blocks are random, or have extreme scales; `--small` writes the few that are kept in the tree. With a model, rows of its
tensors follow, `encode FORMAT VALUES PLAIN WEIGHTED`: what the package's encoder loses, or ggml's with its library
(`libggml-base.so`), as root mean squares. `errors` prints the same of ggml for data that the test in
`kernels/tests/formats.rs` draws too.
"""

import ctypes
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

FLOATS = {Type.F32: 4, Type.F16: 2, Type.BF16: 2}
# Where the f16 fields of a block are.
HALVES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82], Type.Q3_K: [108],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ4_NL: [0], Type.IQ4_XS: [0], Type.MXFP4: [],
}
# Zeros, the smallest, a subnormal, the largest, infinities, quiet and signalling NaN.
HALF_BITS = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFD01]
SPECIAL_FLOATS = {
    Type.F32: [0, 0x80000000, 1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFA00001],
    Type.F16: HALF_BITS,
    Type.BF16: [0, 0x8000, 1, 0x807F, 0x0080, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFA1],
}
ENCODED = [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K]


def values(blocks, kind):
    """Decoded, as bits."""
    with np.errstate(all="ignore"):
        if kind == Type.F32:
            return blocks.view("<u4").reshape(-1)
        return np.ascontiguousarray(quants.dequantize(blocks, kind), np.float32).view("<u4").reshape(-1)


def blocks(kind, random, small):
    if kind in FLOATS:
        special = np.array(SPECIAL_FLOATS[kind], f"<u{FLOATS[kind]}").view(np.uint8)
        return [special, random.integers(0, 256, FLOATS[kind] * (16 if small else 4096), np.uint8)]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    sane = lambda: random.integers(0, 256, size, np.uint8)
    result = []
    for _ in range(1 if small else 64):
        block = sane()
        for at in HALVES[kind]:
            # Scales of weights: neither tiny nor huge.
            block[at : at + 2] = np.array([random.uniform(-0.1, 0.1)], "<f2").view(np.uint8)
        if kind == Type.MXFP4:
            block[0] = random.integers(110, 140)
        result.append(block)
    if small:
        return result
    result += [np.zeros(size, np.uint8), np.full(size, 255, np.uint8)]
    result += [sane() for _ in range(64)]
    for at in HALVES[kind]:
        for bits in HALF_BITS:
            block = sane()
            block[at : at + 2] = np.array([bits], "<u2").view(np.uint8)
            result.append(block)
    if kind == Type.MXFP4:
        for exponent in [0, 1, 2, 3, 127, 252, 253, 254, 255]:
            block = sane()
            block[0] = exponent
            result.append(block)
    return result


def hexadecimal(bits):
    return "".join(f"{value:08x}" for value in bits)


class Ggml:
    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.encode = self.library.ggml_quantize_chunk
        self.encode.restype = ctypes.c_size_t
        self.encode.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(self, x, kind):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros(x.size // elements * size, np.uint8)
        assert self.encode(int(kind), x.ctypes.data, out.ctypes.data, 0, 1, x.size, None) == out.size
        return out


def losses(x, encoded, kind):
    """Root mean square of what is lost: plain, and weighted as ggml's encoder of the format weighs."""
    decoded = quants.dequantize(encoded, kind).reshape(-1).astype(np.float64)
    x = x.astype(np.float64)
    squares = (x - decoded) ** 2
    if kind in (Type.Q4_K, Type.Q5_K):
        groups = x.reshape(-1, 32)
        weights = (np.sqrt((groups**2).mean(1, keepdims=True)) + abs(groups)).reshape(-1)
    elif kind == Type.Q6_K:
        weights = x * x
    else:
        weights = np.ones_like(x)
    total = weights.sum()
    return np.sqrt(squares.mean()), np.sqrt((weights * squares).sum() / total) if total > 0 else 0.0


class Draw:
    """The same numbers as `Draw` in the test: a counter through a 64-bit mixing function, and exact sums."""

    def __init__(self, seed):
        self.state = seed

    def uniform(self):
        self.state = self.state + 0x9E3779B97F4A7C15 & (1 << 64) - 1
        mixed = self.state
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
        mixed ^= mixed >> 31
        return (mixed >> 40) / 2**24

    def normal(self):
        return sum(self.uniform() for _ in range(12)) - 6.0


COUNT = 32 * 256


def data():
    normal, uniform, heavy = Draw(1), Draw(2), Draw(3)
    gaussian = [normal.normal() for _ in range(COUNT)]
    sets = {
        "gaussian": [x / 16 for x in gaussian],
        "uniform": [uniform.uniform() - 0.5 for _ in range(COUNT)],
        "heavy tail": [heavy.normal() / (heavy.uniform() + 0.0625) for _ in range(COUNT)],
        "one sign": [-1.0 - abs(x) for x in gaussian],
        "constant": [0.3] * COUNT,
        "tiny": [x / 2**20 for x in gaussian],
        "huge": [x * 2**13 for x in gaussian],
        "zeros": [0.0] * COUNT,
        "one outlier": [1.0 if index % 256 == 77 else x / 128 for index, x in enumerate(gaussian)],
    }
    return {name: np.array(x, np.float32) for name, x in sets.items()}


def errors(library):
    ggml = Ggml(library)
    for name, x in data().items():
        for kind in ENCODED:
            plain, weighted = losses(x, ggml.quantize(x, kind), kind)
            print(f'    ("{name}", Format::{kind.name.replace("_K", "K")}, {plain:.6e}, {weighted:.6e}),')


def encode_lines(model, ggml):
    tensors = [t for t in gguf.GGUFReader(model).tensors if t.name.endswith(("attn_q.weight", "ffn_down.weight", "token_embd.weight"))]
    for tensor in tensors[:: max(1, len(tensors) // 5)]:
        decoded = quants.dequantize(tensor.data[:8], tensor.tensor_type).reshape(-1).astype(np.float32)
        x = decoded[: decoded.size // 256 * 256]
        for kind in ENCODED:
            if ggml:
                encoded = ggml.quantize(x, kind)
            elif "_K" not in kind.name:
                encoded = quants.quantize(x, kind)
            else:
                continue
            plain, weighted = losses(x, encoded, kind)
            yield f"encode {kind.name} {hexadecimal(x.view('<u4'))} {float(plain)!r} {float(weighted)!r}"


def main():
    mode, path, *options = sys.argv[1:]
    if mode == "errors":
        errors(path)
        return
    small = "--small" in options
    option = lambda name: options[options.index(name) + 1] if name in options else None
    random = np.random.default_rng(2026)
    with open(path, "w", encoding="ascii", newline="\n") as file:
        for kind in [*FLOATS, *HALVES]:
            for block in blocks(kind, random, small):
                print("decode", kind.name, block.tobytes().hex(), hexadecimal(values(block, kind)), file=file)
        if option("--model"):
            ggml = Ggml(option("--ggml")) if option("--ggml") else None
            for line in encode_lines(option("--model"), ggml):
                print(line, file=file)


if __name__ == "__main__":
    main()
