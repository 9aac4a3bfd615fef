// Products of Q3_K weights.
#include "matmul.cuh"

ANDON_MATMUL(q3_k, Q3K)
