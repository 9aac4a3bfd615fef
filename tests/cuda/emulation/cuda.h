// CUDA C++ as far as kernels/cuda uses it, on a processor: the threads of a block are fibers that take turns.
//
// A block runs alone. Its threads run until they wait for each other; what they copy asynchronously arrives when they
// wait for it and not before; shared memory begins with rubbish. So a missing barrier or wait is likely to be seen.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x, y, z; };

inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T, class U> T bits_as(U value) {
    static_assert(sizeof(T) == sizeof(U));
    T result;
    memcpy(&result, &value, sizeof(T));
    return result;
}
inline int __float_as_int(float value) { return bits_as<int>(value); }
inline uint32_t __float_as_uint(float value) { return bits_as<uint32_t>(value); }
inline float __int_as_float(int value) { return bits_as<float>(value); }
inline float __uint_as_float(uint32_t value) { return bits_as<float>(value); }

template <class T> T __ldg(const T *from) { return *from; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int LANES = 32;

// Waits for the other lanes of the warp.
void meet_warp();
// Where the lanes of this thread's warp leave what they exchange.
void *exchange(size_t bytes_of_a_lane);
int lane();
void meet_block();
void arrive(int barrier, int threads);
void wait(int barrier, int threads);
void copy(void *to, const void *from, size_t bytes);
void commit();
void wait_copies(int pending);
uint8_t *shared();

// What `use` makes of every lane's value, once all have come.
template <class T, class F> auto together(T value, F &&use) {
    T *values = static_cast<T *>(exchange(sizeof(T)));
    values[lane()] = value;
    meet_warp();
    auto result = use(values);
    meet_warp();
    return result;
}

// Runs a kernel's function in every thread of every block.
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(void **), void **arguments);

} // namespace emulation

// Bytes of `a` and `b` that the low three bits of each half of the selector's bytes name; the fourth is not set here.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        result |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    }
    return result;
}

inline void __syncthreads() { emulation::meet_block(); }
inline void __syncwarp(unsigned = ~0u) { emulation::meet_warp(); }
inline uint32_t __reduce_max_sync(unsigned, uint32_t value) {
    return emulation::together(value, [](uint32_t *values) {
        uint32_t result = 0;
        for (int i = 0; i < 32; i++) result = values[i] > result ? values[i] : result;
        return result;
    });
}
inline int __reduce_add_sync(unsigned, int value) {
    return emulation::together(value, [](int *values) {
        int result = 0;
        for (int i = 0; i < 32; i++) result += values[i];
        return result;
    });
}
template <class T> T __shfl_sync(unsigned, T value, int from) {
    return emulation::together(value, [=](T *values) { return values[from & 31]; });
}
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulation::together(value, [=](T *values) { return values[(emulation::lane() ^ mask) & 31]; });
}
template <class T> T __shfl_down_sync(unsigned, T value, int by) {
    return emulation::together(value, [=](T *values) {
        int from = emulation::lane() + by;
        return values[from < 32 ? from : emulation::lane()];
    });
}
inline unsigned __ballot_sync(unsigned, bool value) {
    return emulation::together(value, [](bool *values) {
        unsigned result = 0;
        for (int i = 0; i < 32; i++) result |= static_cast<unsigned>(values[i]) << i;
        return result;
    });
}
