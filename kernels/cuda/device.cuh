// What all device code shares: shapes of fragments, tensor-core products of 8-bit levels, asynchronous copies.
//
// Invariant: nothing here rounds otherwise than the operation of the same name in kernels/src/op. Code is compiled with
// -fmad=false, so a multiply and an add stay two roundings unless fmaf is written.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

namespace andon {

// Rows of a tile of packed weights: those of a tensor-core product.
constexpr int TILE_ROWS = 16;
// Columns of a block of activations: those of a tensor-core product.
constexpr int BLOCK_COLUMNS = 8;
// Elements that share a scale of the activations.
constexpr int GROUP = 32;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

#ifdef ANDON_EMULATION
// The same on a processor, one thread after the other: tests/cuda/emulation.
#include "instructions.h"
#else

// Integer products of a 16 x 32 tile with 8 columns. Lane 4 g + t holds, of `a`, rows g and g + 8 at elements 4 t (a[0],
// a[1]) and 16 + 4 t (a[2], a[3]), of `b`, column g at the same elements, and of the result rows g (d[0], d[1]) and g + 8
// (d[2], d[3]) at columns 2 t and 2 t + 1. Every sum starts at `c`.
__device__ __forceinline__ void multiply_32(int (&d)[4], const uint32_t (&a)[4], uint2 b, int c) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c));
}

// The same over 16 elements.
__device__ __forceinline__ void multiply_16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, int c) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(c));
}

// The sum of four products of 8-bit levels, and `c`.
__device__ __forceinline__ int multiply_4(uint32_t a, uint32_t b, int c) {
    return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}

// 16 bytes from device to shared memory, past the first-level cache: weights are read once.
__device__ __forceinline__ void copy_16(void *shared, const void *global) {
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
}

// The same, of what lies AT bytes behind both: one address serves several copies.
template <int AT> __device__ __forceinline__ void copy_16_behind(void *shared, const void *global) {
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0+%2], [%1+%2], 16;" ::"r"(at), "l"(global), "n"(AT) : "memory");
}

// As copy_16, through the first-level cache.
__device__ __forceinline__ void copy_16_cached(void *shared, const void *global) {
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `PENDING` groups of copies are under way.
template <int PENDING> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Barrier `id` of two warps: one arrives and goes on, the other waits for it and sees what it wrote (README.md, "The handing
// over"). With ANDON_HAND_OVER_SYNC the first waits too, which is slower: for tools that take no other order for one.
__device__ __forceinline__ void barrier_arrive(int id) {
#ifdef ANDON_HAND_OVER_SYNC
    asm volatile("bar.sync %0, 64;" ::"r"(id) : "memory");
#else
    asm volatile("bar.arrive %0, 64;" ::"r"(id) : "memory");
#endif
}
__device__ __forceinline__ void barrier_wait(int id) { asm volatile("bar.sync %0, 64;" ::"r"(id) : "memory"); }

// Lets the next kernel of the stream start, where it was launched so that it may; what it needs of this one it waits for.
__device__ __forceinline__ void launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernel before has ended and all that it wrote is to be seen; where kernels do not overlap, it has.
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A place in shared memory that is the same for all of a warp, in a register: its address is else worked out anew wherever
// it is used.
template <class T> __device__ __forceinline__ T *kept_place(T *place) {
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(place));
    return static_cast<T *>(__cvta_shared_to_generic(__shfl_sync(0xffffffff, at, 0)));
}

// The shared memory that a kernel was launched with.
__device__ __forceinline__ uint8_t *shared_memory() {
    extern __shared__ uint4 words[];
    return reinterpret_cast<uint8_t *>(words);
}

#endif

// How the host launches a kernel: threads and shared memory of a block, the rows and columns that it computes at a time.
struct Launch {
    int threads, shared_bytes, rows, columns;
};

// A pair of f16 as f32.
__device__ __forceinline__ float2 halves(uint32_t word) {
    __half2 pair;
    memcpy(&pair, &word, sizeof pair);
    return __half22float2(pair);
}

} // namespace andon
