// Products of Q4_0 weights.
#include "matmul.cuh"

ANDON_MATMUL(q4_0, Q4_0)
