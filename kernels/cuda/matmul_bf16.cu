// Rows and products of BF16.
#include "floats.cuh"

ANDON_FLOATS(bf16, BF16)
