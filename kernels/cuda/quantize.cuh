// Activations to 8 bits in the layout of matmul.cuh; kernels/src/op/quantize.rs states the result.
#pragma once

#include "device.cuh"

namespace andon {

// Quantizes one group: lane `lane` of a warp has its element `lane`, `value`. Writes levels and {scale, scale times the
// sum of the levels} of column `column`.
__device__ __forceinline__ void quantize_group(float value, int lane, int column, int group, int groups,
                                               uint8_t *levels, float2 *scales) {
    const uint32_t bits = __float_as_uint(value) & 0x7fffffff;
    // Magnitudes are ordered as their bits are; those of what is not finite are the largest.
    const uint32_t largest = __reduce_max_sync(0xffffffff, bits);
    const float maximum = __uint_as_float(largest);
    int level = 0;
    float scale = 0.0f;
    if (largest >= 0x7f800000) {
        scale = __int_as_float(0x7fc00000);
    } else if (maximum >= 1e-30f) {
        constexpr float ROUND = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer, ties to even
        scale = maximum / 127.0f;
        const float inverse = 1.0f / scale;
        level = __float_as_int(value * inverse + ROUND) - __float_as_int(ROUND);
    }
    const int sum = __reduce_add_sync(0xffffffff, level);
    const size_t unit = static_cast<size_t>(column / BLOCK_COLUMNS) * groups + group;
    const int in_block = column % BLOCK_COLUMNS;
    levels[unit * 256 + in_block * 32 + lane % 16 / 4 * 8 + lane / 16 * 4 + lane % 4] = static_cast<uint8_t>(level);
    if (lane == 0) {
        scales[unit * BLOCK_COLUMNS + in_block] = make_float2(scale, scale * static_cast<float>(sum));
    }
}

} // namespace andon
