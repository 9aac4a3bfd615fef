// Keys and values of positions, as kernels/src/op/attention.rs lays them out, and where columns are.
//
// The cache is pages of 64 positions of one KV head: keys, then values; in 8 bits each of them levels and then their f16
// scales. A sequence has pages by numbers; page `p` of the cache has the page of every KV head, one after the other.
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

// Index in a page of 8-bit keys.
__device__ __forceinline__ int key_level_index(int position, int dim, int head_dim) {
    return position / KEY_TILE * KEY_TILE * head_dim + dim / 4 * (4 * KEY_TILE) + position % KEY_TILE * 4 + dim % 4;
}

// Index among the scales of a page of 8-bit keys.
__device__ __forceinline__ int key_scale_index(int position, int group, int head_dim) {
    return position / KEY_TILE * KEY_TILE * (head_dim / GROUP) + group * KEY_TILE + position % KEY_TILE;
}

// Bytes of a page's keys, and of its values.
template <bool Q8> __host__ __device__ constexpr int key_bytes(int head_dim) {
    return Q8 ? PAGE * head_dim + PAGE * (head_dim / GROUP) * 2 : PAGE * head_dim * 2;
}
template <bool Q8> __host__ __device__ constexpr int value_bytes(int head_dim) {
    return Q8 ? PAGE * head_dim + PAGE * 2 : PAGE * head_dim * 2;
}

// The keys of a head in page number `page`; its values follow.
template <bool Q8, class T>
__device__ __forceinline__ T *page_of(T *cache, int page, int kv_heads, int head, int head_dim) {
    static_assert(sizeof(T) == 1, "bytes");
    const size_t index = static_cast<size_t>(page) * kv_heads + head;
    return cache + index * (key_bytes<Q8>(head_dim) + value_bytes<Q8>(head_dim));
}

// Consecutive columns of one sequence.
struct Run {
    int first, columns;
    int position; // of the first
    int table;    // where the sequence's pages begin among all
};

// Where columns are, as the host writes it before each pass: {number of runs, 0, 0, 0}, runs, {position, table} of each
// column, page numbers. A column that is not there has position -1.
struct Places {
    const int *data;
    int columns_max;

    __device__ __forceinline__ int runs() const { return data[0]; }
    __device__ __forceinline__ Run run(int index) const {
        const int *from = data + 4 + 4 * index;
        return {from[0], from[1], from[2], from[3]};
    }
    __device__ __forceinline__ int position(int column) const { return data[4 + 4 * columns_max + 2 * column]; }
    __device__ __forceinline__ int table(int column) const { return data[5 + 4 * columns_max + 2 * column]; }
    __device__ __forceinline__ int page(int table, int number) const { return data[4 + 6 * columns_max + table + number]; }
};

} // namespace andon
