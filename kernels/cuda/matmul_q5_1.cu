// Products of Q5_1 weights.
#include "matmul.cuh"

ANDON_MATMUL(q5_1, Q5_1)
