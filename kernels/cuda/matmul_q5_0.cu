// Products of Q5_0 weights.
#include "matmul.cuh"

ANDON_MATMUL(q5_0, Q5_0)
