// Products of Q6_K weights.
#include "matmul.cuh"

ANDON_MATMUL(q6_k, Q6K)
