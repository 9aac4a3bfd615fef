// Products of Q4_K weights.
#include "matmul.cuh"

ANDON_MATMUL(q4_k, Q4K)
