// Matrices of floats: rows as files have them, each padded with zeros to whole pairs of groups. kernels/src/op/matmul.rs states
// what products are: element i of a row goes to accumulator i modulo 16, in ascending order, and these are added as a tree.
#pragma once

#include "device.cuh"

namespace andon {

// What 16 bytes of a row hold.

struct F16 {
    static constexpr int SIZE = 2;
    __device__ static void unpack(float (&to)[8], uint4 bytes) {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 two = halves(words[i]);
            to[2 * i] = two.x;
            to[2 * i + 1] = two.y;
        }
    }
};

struct BF16 {
    static constexpr int SIZE = 2;
    __device__ static void unpack(float (&to)[8], uint4 bytes) {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[2 * i] = __uint_as_float(words[i] << 16);
            to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000);
        }
    }
};

struct F32 {
    static constexpr int SIZE = 4;
    __device__ static void unpack(float (&to)[4], uint4 bytes) {
        to[0] = __uint_as_float(bytes.x);
        to[1] = __uint_as_float(bytes.y);
        to[2] = __uint_as_float(bytes.z);
        to[3] = __uint_as_float(bytes.w);
    }
};

template <class F> struct Floats {
    // Elements that a thread takes at a time, and threads that share a row: 16 elements together.
    static constexpr int COUNT = 16 / F::SIZE, ROW_THREADS = 16 / COUNT;
    static constexpr int WARP_ROWS = 32 / ROW_THREADS, BLOCK_ROWS = 4 * WARP_ROWS;

    // 16 bytes from one row to the next.
    __device__ __forceinline__ static int stride(int k) { return ceil_div(k, 2 * GROUP) * (2 * GROUP) / COUNT; }

    // The rows of `tiles` tiles from `first` on, one thread for each 16 bytes.
    __device__ static void pack(const uint4 *rows_in, int first, int tiles, int rows, int k, uint4 *out) {
        const int row_units = k / COUNT, out_units = stride(k);
        const size_t count = static_cast<size_t>(tiles) * TILE_ROWS * out_units;
        for (size_t index = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < count;
             index += static_cast<size_t>(gridDim.x) * blockDim.x) {
            const int unit = index % out_units;
            const size_t row = index / out_units, all = static_cast<size_t>(first) * TILE_ROWS;
            const bool there = all + row < static_cast<size_t>(rows) && unit < row_units;
            out[all * out_units + index] = there ? rows_in[row * row_units + unit] : make_uint4(0, 0, 0, 0);
        }
    }

    // Row `tokens[c]` times `scale` to column `c`; a warp for each group, groups in x and columns in y. A token that has no
    // row gets what is not a number.
    __device__ static void embed(const uint4 *weights, int rows, int k, const uint32_t *tokens, float scale, float *out) {
        const int lane = threadIdx.x % 32, group = blockIdx.x * 8 + threadIdx.x / 32, column = blockIdx.y;
        if (group >= k / GROUP) {
            return;
        }
        const int element = group * GROUP + lane;
        const uint32_t token = tokens[column];
        float value = __int_as_float(0x7fc00000);
        if (token < static_cast<uint32_t>(rows)) {
            float values[COUNT];
            F::unpack(values, weights[static_cast<size_t>(token) * stride(k) + element / COUNT]);
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                if (i == element % COUNT) {
                    value = values[i] * scale;
                }
            }
        }
        out[static_cast<size_t>(column) * k + element] = value;
    }

    // Products with columns, `stride_in` from one to the next; rows in x, COLUMNS at a time in y.
    template <int COLUMNS>
    __device__ static void product(const uint4 *weights, int rows, int k, const float *values, int stride_in, float *out,
                                   int columns, int out_stride) {
        const int lane = threadIdx.x % 32, part = lane % ROW_THREADS;
        const int row = blockIdx.x * BLOCK_ROWS + threadIdx.x / 32 * WARP_ROWS + lane / ROW_THREADS;
        const int first = blockIdx.y * COLUMNS, count = min(columns - first, COLUMNS);
        // A row that is not there is read as the last: its results go nowhere.
        weights += static_cast<size_t>(min(row, rows - 1)) * stride(k) + part;
        values += static_cast<size_t>(first) * stride_in + part * COUNT;
        float acc[COLUMNS][COUNT];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                acc[c][i] = 0.0f;
            }
        }
        // More weights are asked for ahead where registers are left for them.
        constexpr int UNROLL = COLUMNS == 1 ? 8 : 2;
#pragma unroll UNROLL
        for (int step = 0; step < k / 16; step++) {
            float weight[COUNT];
            F::unpack(weight, __ldg(weights + step * ROW_THREADS));
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                if (c < count) {
                    const float4 *from = reinterpret_cast<const float4 *>(values + c * stride_in + step * 16);
#pragma unroll
                    for (int i = 0; i < COUNT; i += 4) {
                        const float4 four = from[i / 4];
                        acc[c][i] = fmaf(weight[i], four.x, acc[c][i]);
                        acc[c][i + 1] = fmaf(weight[i + 1], four.y, acc[c][i + 1]);
                        acc[c][i + 2] = fmaf(weight[i + 2], four.z, acc[c][i + 2]);
                        acc[c][i + 3] = fmaf(weight[i + 3], four.w, acc[c][i + 3]);
                    }
                }
            }
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            // The tree of sum_lanes in arithmetic.cuh, whose upper levels are among threads.
#pragma unroll
            for (int half = 8; half > 0; half /= 2) {
#pragma unroll
                for (int i = 0; i < (half < COUNT ? half : COUNT); i++) {
                    if (half >= COUNT) {
                        acc[c][i] = acc[c][i] + __shfl_down_sync(0xffffffff, acc[c][i], half / COUNT);
                    } else {
                        acc[c][i] = acc[c][i] + acc[c][i + half];
                    }
                }
            }
            if (part == 0 && row < rows && c < count) {
                out[static_cast<size_t>(first + c) * out_stride + row] = acc[c][0];
            }
        }
    }
};

} // namespace andon

// The kernels of a format, by the names that the host asks for.
#define ANDON_FLOATS(NAME, FORMAT)                                                                                     \
    extern "C" __global__ void NAME##_pack(const uint4 *rows_in, int first, int tiles, int rows, int k, uint4 *out) {  \
        andon::Floats<andon::FORMAT>::pack(rows_in, first, tiles, rows, k, out);                                       \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(256) void NAME##_embed(const uint4 *weights, int rows, int k,              \
                                                                   const uint32_t *tokens, float scale, float *out) {  \
        andon::Floats<andon::FORMAT>::embed(weights, rows, k, tokens, scale, out);                                     \
    }                                                                                                                  \
    ANDON_FLOATS_PRODUCT(NAME##_product_1, FORMAT, 1, 8)                                                               \
    ANDON_FLOATS_PRODUCT(NAME##_product_8, FORMAT, 8, 2)

#define ANDON_FLOATS_PRODUCT(NAME, FORMAT, COLUMNS, BLOCKS_MIN)                                                        \
    extern "C" __global__ __launch_bounds__(128, BLOCKS_MIN) void NAME(                                                \
        const uint4 *weights, int rows, int k, const float *values, int stride_in, float *out, int columns,            \
        int out_stride) {                                                                                              \
        andon::Floats<andon::FORMAT>::product<COLUMNS>(weights, rows, k, values, stride_in, out, columns, out_stride); \
    }
