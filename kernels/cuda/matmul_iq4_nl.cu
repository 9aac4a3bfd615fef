// Products of IQ4_NL weights.
#include "matmul.cuh"

ANDON_MATMUL(iq4_nl, IQ4NL)
