// Products of Q5_K weights.
#include "matmul.cuh"

ANDON_MATMUL(q5_k, Q5K)
