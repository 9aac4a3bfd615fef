// Products of Q8_0 weights.
#include "matmul.cuh"

ANDON_MATMUL(q8_0, Q8_0)
