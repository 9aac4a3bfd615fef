// Products of Q4_1 weights.
#include "matmul.cuh"

ANDON_MATMUL(q4_1, Q4_1)
