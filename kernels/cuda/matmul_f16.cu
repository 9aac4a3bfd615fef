// Rows and products of F16.
#include "floats.cuh"

ANDON_FLOATS(f16, F16)
