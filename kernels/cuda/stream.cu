// What memory gives at best, for other kernels to be set against: a copy, and reading alone.
#include "device.cuh"

// Copies `count` words of 16 bytes.
extern "C" __global__ __launch_bounds__(1024) void stream_copy(const uint4 *from, uint4 *to, size_t count) {
    const size_t threads = static_cast<size_t>(gridDim.x) * blockDim.x;
    size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * threads < count; i += 4 * threads) {
        const uint4 a = from[i], b = from[i + threads], c = from[i + 2 * threads], d = from[i + 3 * threads];
        to[i] = a, to[i + threads] = b, to[i + 2 * threads] = c, to[i + 3 * threads] = d;
    }
    for (; i < count; i += threads) {
        to[i] = from[i];
    }
}

// Reads `count` words of 16 bytes; `to` gets one for each thread, the exclusive or of those that it read.
extern "C" __global__ __launch_bounds__(1024) void stream_read(const uint4 *from, uint4 *to, size_t count) {
    const size_t threads = static_cast<size_t>(gridDim.x) * blockDim.x;
    const size_t first = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    uint4 sum = make_uint4(0, 0, 0, 0);
#pragma unroll 8
    for (size_t i = first; i < count; i += threads) {
        const uint4 a = from[i];
        sum.x ^= a.x, sum.y ^= a.y, sum.z ^= a.z, sum.w ^= a.w;
    }
    to[first] = sum;
}
