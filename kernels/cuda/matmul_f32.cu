// Rows and products of F32.
#include "floats.cuh"

ANDON_FLOATS(f32, F32)
