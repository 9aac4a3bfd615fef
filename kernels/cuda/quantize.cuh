// To 8 bits: activations in the layout of matmul.cuh, as kernels/src/op/quantize.rs states the result, and what keys,
// values and queries share a scale of, as kernels/src/op/quantize_heads.rs does.
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

// The f16 scale of heads' elements, and what they are multiplied by; `largest` is the bits of the largest magnitude.
struct HeadScale {
    uint16_t bits;
    float scale, inverse;

    __device__ __forceinline__ explicit HeadScale(uint32_t largest) {
        const __half half = __float2half_rn(__uint_as_float(largest) / 127.0f);
        scale = __half2float(half);
        bits = __half_as_ushort(half);
        inverse = 1.0f / scale;
        if (largest >= 0x7f800000 || bits == 0x7c00) {
            // The fault reaches the result.
            bits = 0x7e00;
            scale = __int_as_float(0x7fc00000);
            inverse = 0.0f;
        } else if (bits == 0) {
            inverse = 0.0f;
        }
    }

    __device__ __forceinline__ int level(float value) const {
        constexpr float ROUND = 12582912.0f; // 1.5 * 2^23
        float scaled = value * inverse;
        scaled = scaled > 127.0f ? 127.0f : scaled;
        scaled = scaled < -127.0f ? -127.0f : scaled;
        return inverse == 0.0f ? 0 : __float_as_int(scaled + ROUND) - __float_as_int(ROUND);
    }
};

__device__ __forceinline__ uint32_t magnitude_bits(float value) { return __float_as_uint(value) & 0x7fffffff; }

} // namespace andon
