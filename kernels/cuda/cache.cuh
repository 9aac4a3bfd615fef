// Keys and values of positions, as kernels/src/op/attention.rs lays them out.
//
// The cache is pages of 64 positions of one KV head: keys, then values. A sequence has a table of pages; page `table[p]`
// has its positions from 64 p on, of every KV head one after the other.
#pragma once

#include "device.cuh"

namespace andon {

constexpr int PAGE = 64;
constexpr int KEY_TILE = 16;
constexpr int CHUNK = 256;

// Index in a page of f16 keys.
__device__ __forceinline__ int key_index(int position, int dim, int head_dim) {
    return position / KEY_TILE * KEY_TILE * head_dim + dim * KEY_TILE + position % KEY_TILE;
}

// Where the page of f16 keys with `position` is, and 64 * head_dim further its values.
template <class T> __device__ __forceinline__ T *page_of(T *cache, const int *table, int position, int kv_heads,
                                                         int head, int head_dim) {
    const size_t page = static_cast<size_t>(table[position / PAGE]) * kv_heads + head;
    return cache + page * (2 * PAGE * head_dim);
}

} // namespace andon
