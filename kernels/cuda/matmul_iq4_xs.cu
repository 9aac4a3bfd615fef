// Products of IQ4_XS weights.
#include "matmul.cuh"

ANDON_MATMUL(iq4_xs, IQ4XS)
