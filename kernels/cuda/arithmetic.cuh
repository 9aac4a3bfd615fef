// Functions and sums of kernels/src/op, operation for operation.
#pragma once

#include "device.cuh"

namespace andon {

// kernels/src/op/exp.rs
__device__ __forceinline__ float exponential(float x) {
    constexpr float ROUND = 12582912.0f;
    float clamped = x > 88.0f ? 88.0f : x;
    clamped = clamped < -87.0f ? -87.0f : clamped;
    const float shifted = clamped * 1.44269504f + ROUND;
    const float n = shifted - ROUND;
    const float r = (clamped - n * 0.693359375f) - n * -2.1219444e-4f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int exponent = __float_as_int(shifted) - __float_as_int(ROUND);
    const float scale = __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
    return x < -87.0f ? 0.0f : p * scale;
}

// kernels/src/op/tanh.rs
__device__ __forceinline__ float hyperbolic_tangent(float x) {
    const uint32_t bits = __float_as_uint(x);
    const float t = exponential(-2.0f * __uint_as_float(bits & 0x7fffffff));
    const float result = (1.0f - t) / (1.0f + t);
    return __uint_as_float((__float_as_uint(result) & 0x7fffffff) | (bits & 0x80000000));
}

// kernels/src/op/gelu_tanh.rs
__device__ __forceinline__ float gelu_tanh(float x) {
    return x / (1.0f + exponential(x * (-1.5957692f + -0.071354814f * (x * x))));
}

// The sum of 16 lanes as a fixed tree; every lane of a warp calls this, the first 16 with the lanes' values, and the
// first gets the sum.
__device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
    for (int half = 8; half > 0; half /= 2) {
        value = value + __shfl_down_sync(0xffffffff, value, half);
    }
    return value;
}

// The factor that makes the mean of the squares of `n` elements one: kernels/src/op/norm.rs. A whole warp calls this.
__device__ __forceinline__ float norm_factor(const float *x, int n, float epsilon, int lane) {
    float sum = 0.0f;
    if (lane < 16) {
#pragma unroll 8
        for (int i = lane; i < n; i += 16) {
            const float value = x[i];
            sum = sum + value * value;
        }
    }
    sum = sum_lanes(sum);
    const float mean = sum / static_cast<float>(n);
    return __shfl_sync(0xffffffff, 1.0f / sqrtf(mean + epsilon), 0);
}

} // namespace andon
