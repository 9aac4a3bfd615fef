// Products of packed weights with quantized columns: kernels/src/op/matmul.rs states the result, these give its bytes.
//
// An output has one accumulator, which takes its groups in ascending order by the same operations whatever kernel
// computes it and however many columns there are. So results for 1 to 16 columns, of the panel kernel, and of the
// processor's kernels are the same bytes.
//
// Columns lie in blocks of eight: levels as [block][group][lane] words of eight bytes, fragments of multiply_32; scales
// as [block][group][column] {scale, scale times the sum of the levels}. Columns beyond the last may hold anything.
#pragma once

#include "format.cuh"

namespace andon {

// ------------------------------------------------------------------------------------------------ packing

// Rows as files have them to the packed layout; one thread for each lane of each pair.
template <class F> __device__ void pack(const uint8_t *rows_in, int rows, int k, uint8_t *out) {
    Planes<F> planes(out, rows, k);
    int groups = k / GROUP;
    size_t row_bytes = static_cast<size_t>(k / F::BLOCK) * F::BLOCK_BYTES;
    size_t count = static_cast<size_t>(planes.tiles) * planes.pairs * 32;
    for (size_t index = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < count;
         index += static_cast<size_t>(gridDim.x) * blockDim.x) {
        int lane = index % 32, g = lane / 4, t = lane % 4;
        size_t unit = index / 32;
        int pair = unit % planes.pairs;
        int tile = unit / planes.pairs;
        int row[2] = {tile * TILE_ROWS + g, tile * TILE_ROWS + g + 8};
        const uint8_t *source[2];
        for (int r = 0; r < 2; r++) {
            source[r] = rows_in + static_cast<size_t>(row[r] < rows ? row[r] : 0) * row_bytes;
        }
        uint32_t high[2] = {0, 0};
        for (int local = 0; local < 2; local++) {
            int group = pair * 2 + local;
            for (int r = 0; r < 2; r++) {
                bool there = row[r] < rows && group < groups;
                uint32_t words[2] = {0, 0}, low = 0;
                for (int half = 0; half < 2; half++) {
                    for (int i = 0; i < 4; i++) {
                        uint32_t code = there ? F::code(source[r], group * GROUP + half * 16 + t * 4 + i) : 0;
                        words[half] |= code << (8 * i);
                        low |= (code & 15) << (8 * i + 4 * half);
                        int j = half * 2 + r;
                        if constexpr (F::HIGH == 1) {
                            high[0] |= (code >> 4 & 1) << (8 * i + 4 * local + j);
                        } else if constexpr (F::HIGH == 2) {
                            high[local] |= (code >> 4 & 3) << (8 * i + 2 * j);
                        }
                    }
                }
                uint32_t *to = reinterpret_cast<uint32_t *>(const_cast<uint8_t *>(planes.low));
                if constexpr (F::LOW == 2) {
                    uint32_t *fragment = to + ((unit * 2 + local) * 32 + lane) * 4;
                    fragment[r] = words[0];
                    fragment[2 + r] = words[1];
                } else {
                    to[(unit * 32 + lane) * 4 + local * 2 + r] = low;
                }
                if (t == 0) {
                    uint32_t scale = there ? F::scale(source[r], group) : 0;
                    size_t at = (unit * 8 + g) * 4 + local * 2 + r;
                    uint8_t *scales = const_cast<uint8_t *>(planes.scales);
                    if constexpr (F::SCALE_WORDS == 4) {
                        reinterpret_cast<uint32_t *>(scales)[at] = scale;
                    } else {
                        reinterpret_cast<uint16_t *>(scales)[at] = static_cast<uint16_t>(scale);
                    }
                }
                if constexpr (F::FACTOR_WORDS > 0) {
                    if (t == 0 && pair % 4 == 0 && local == 0) {
                        uint32_t factor = there ? F::factor(source[r], pair / 4) : 0;
                        size_t at = ((static_cast<size_t>(tile) * planes.supers + pair / 4) * 8 + g) * 2 + r;
                        uint8_t *factors = const_cast<uint8_t *>(planes.factors);
                        if constexpr (F::FACTOR_WORDS == 2) {
                            reinterpret_cast<uint32_t *>(factors)[at] = factor;
                        } else {
                            reinterpret_cast<uint16_t *>(factors)[at] = static_cast<uint16_t>(factor);
                        }
                    }
                }
            }
        }
        if constexpr (F::HIGH > 0) {
            uint32_t *to = reinterpret_cast<uint32_t *>(const_cast<uint8_t *>(planes.high));
            for (int word = 0; word < F::HIGH; word++) {
                to[(unit * F::HIGH + word) * 32 + lane] = high[word];
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------ rows of tokens

// Factors of 256 elements of two rows, of lane g of a plane.
template <class F> __device__ __forceinline__ uint2 block_factors(const uint8_t *shared, int g) {
    if constexpr (F::FACTOR_WORDS == 2) {
        return reinterpret_cast<const uint2 *>(shared)[g];
    } else if constexpr (F::FACTOR_WORDS == 1) {
        return make_uint2(reinterpret_cast<const uint32_t *>(shared)[g], 0);
    } else {
        return make_uint2(0, 0);
    }
}

// Row `tokens[c]` times `scale` to column `c`, as kernels/src/block decodes it; a warp for each group, groups in x and
// columns in y. A token that has no row gets what is not a number.
template <class F>
__device__ void embed(const uint8_t *weights, int rows, int k, const uint32_t *tokens, float scale, float *out) {
    const Planes<F> planes(weights, rows, k);
    const int lane = threadIdx.x % 32, group = blockIdx.x * 8 + threadIdx.x / 32, column = blockIdx.y;
    if (group >= k / GROUP) {
        return;
    }
    out += static_cast<size_t>(column) * k + group * GROUP + lane;
    const uint32_t token = tokens[column];
    if (token >= static_cast<uint32_t>(rows)) {
        *out = __int_as_float(0x7fc00000);
        return;
    }
    const int tile = token / TILE_ROWS, g = token % 8, r = token % TILE_ROWS / 8;
    const int pair = group / 2, local = group % 2, half = lane / 16, t = lane % 16 / 4, i = lane % 4, j = half * 2 + r;
    const size_t unit = static_cast<size_t>(tile) * planes.pairs + pair;
    const int at = g * 4 + t;
    const uint32_t *low = reinterpret_cast<const uint32_t *>(planes.low);
    const uint32_t *high = reinterpret_cast<const uint32_t *>(planes.high);
    uint32_t code;
    if constexpr (F::LOW == 2) {
        code = low[((unit * 2 + local) * 32 + at) * 4 + j] >> (8 * i) & 255;
    } else {
        code = low[(unit * 32 + at) * 4 + local * 2 + r] >> (8 * i + 4 * half) & 15;
    }
    if constexpr (F::HIGH == 1) {
        code |= (high[unit * 32 + at] >> (8 * i + 4 * local + j) & 1) << 4;
    } else if constexpr (F::HIGH == 2) {
        code |= (high[(unit * 2 + local) * 32 + at] >> (8 * i + 2 * j) & 3) << 4;
    }
    const float level = static_cast<float>(static_cast<int>(code ^ F::OFFSET) - F::OFFSET);
    uint2 blocks = make_uint2(0, 0);
    if constexpr (F::FACTOR_WORDS > 0) {
        const size_t super = static_cast<size_t>(tile) * planes.supers + pair / 4;
        blocks = block_factors<F>(planes.factors + super * Planes<F>::FACTOR_BYTES, g);
    }
    uint32_t words[F::SCALE_WORDS];
    for (int word = 0; word < F::SCALE_WORDS; word++) {
        words[word] = reinterpret_cast<const uint32_t *>(planes.scales)[(unit * 8 + g) * F::SCALE_WORDS + word];
    }
    const float4 factors = F::factors(words, blocks, local);
    float value;
    if constexpr (F::HALVES) {
        const float2 own = halves(blocks.x);
        const float first = r ? factors.z : factors.x, second = r ? factors.w : factors.y;
        value = (r ? own.y : own.x) * (half ? second : first) * level;
    } else {
        value = (r ? factors.z : factors.x) * level;
        if constexpr (F::MINIMUM) {
            value = value + (r ? factors.w : factors.y);
        }
    }
    *out = value * scale;
}

// ------------------------------------------------------------------------------------------------ pieces of both kernels

// The scale of Q6_K blocks of rows g and g + 8; the other formats have theirs in the group's factors.
template <class F> __device__ __forceinline__ float2 row_scales(float4 factors, float2 blocks) {
    return F::HALVES ? blocks : make_float2(factors.x, factors.z);
}

// Writes the factors of the two groups of a pair, of rows g and g + 8, as products take them.
template <class F>
__device__ __forceinline__ void spread_factors(float4 (*factors)[8], const uint8_t *scales, uint2 blocks, int g) {
    uint32_t words[F::SCALE_WORDS];
#pragma unroll
    for (int i = 0; i < F::SCALE_WORDS; i += 2) {
        uint2 two = reinterpret_cast<const uint2 *>(scales)[g * (F::SCALE_WORDS / 2) + i / 2];
        words[i] = two.x;
        words[i + 1] = two.y;
    }
    factors[0][g] = F::factors(words, blocks, 0);
    factors[1][g] = F::factors(words, blocks, 1);
}

// Levels of a pair from shared memory.
template <class F>
__device__ __forceinline__ void load_raw(Raw<F> &raw, const uint8_t *low, const uint8_t *high, int lane) {
#pragma unroll
    for (int i = 0; i < F::LOW; i++) {
        raw.low[i] = reinterpret_cast<const uint4 *>(low)[i * 32 + lane];
    }
#pragma unroll
    for (int i = 0; i < F::HIGH; i++) {
        raw.high[i] = reinterpret_cast<const uint32_t *>(high)[i * 32 + lane];
    }
}

// ------------------------------------------------------------------------------------------------ few columns

// Products with up to 8 * BLOCKS columns. A block of threads computes tiles of rows one after the other, each in
// stretches of its columns, which its warps take in turn. All of a stretch that needs no accumulator is done by many
// warps at a time, and the accumulators pass from warp to warp in the order of stretches. Weights are asked for several
// stretches ahead, those of the next tile too.
//
// The last stretch may have fewer groups than there are copied: what lies beyond a plane's end is another's, or slack
// at the end of the buffer, and is not used.
template <class F, int BLOCKS, int WARPS_, int GROUPS_, int STAGES_>
struct Decode {
    static constexpr int WARPS = WARPS_;
    static constexpr int STAGES = STAGES_;
    // Groups of a stretch, chosen so that what waits for the accumulators stays in registers.
    static constexpr int GROUPS = GROUPS_;
    static constexpr int PAIRS = GROUPS / 2;
    static constexpr int BLOCK_ROWS = TILE_ROWS, BLOCK_COLUMNS = 8 * BLOCKS;
    using P = Planes<F>;
    static constexpr int HIGH_AT = PAIRS * P::LOW_BYTES;
    static constexpr int SCALES_AT = HIGH_AT + PAIRS * P::HIGH_BYTES;
    static constexpr int FACTORS_AT = SCALES_AT + PAIRS * P::SCALE_BYTES;
    static constexpr int COLUMNS_AT = FACTORS_AT + P::FACTOR_BYTES;
    static constexpr int STAGE_BYTES = COLUMNS_AT + BLOCKS * GROUPS * 64;
    static constexpr int SPREAD_BYTES = GROUPS * 8 * 16;
    static constexpr int HAND_BYTES = BLOCKS * 32 * 16;
    static constexpr int SHARED_BYTES = WARPS * (STAGES * STAGE_BYTES + SPREAD_BYTES) + HAND_BYTES;
    static_assert(BLOCKS <= 2, "columns of the first block and of the last");
    static_assert(WARPS > 1 && WARPS < 16, "a barrier for every warp, and one for all");

    // Where a warp is: a tile and a stretch of it.
    struct Place {
        int tile, stretch;

        // Goes on by `count` stretches of the block's.
        __device__ __forceinline__ void advance(int count, int stretches) {
            stretch += count;
            while (stretch >= stretches) {
                stretch -= stretches;
                tile += gridDim.x;
            }
        }
    };

    template <int BYTES> __device__ __forceinline__ static void fetch_plane(uint8_t *to, const uint8_t *from, int lane) {
#pragma unroll
        for (int first = 0; first < BYTES; first += 512) {
            if (first + 512 <= BYTES || lane < (BYTES - first) / 16) {
                copy_16(to + first + lane * 16, from + first + lane * 16);
            }
        }
    }

    // Weights, past the first-level cache.
    __device__ __forceinline__ static void fetch(uint8_t *stage, const P &planes, Place place, int lane) {
        const int pair = place.stretch * PAIRS;
        const size_t unit = static_cast<size_t>(place.tile) * planes.pairs + pair;
        fetch_plane<PAIRS * P::LOW_BYTES>(stage, planes.low + unit * P::LOW_BYTES, lane);
        fetch_plane<PAIRS * P::HIGH_BYTES>(stage + HIGH_AT, planes.high + unit * P::HIGH_BYTES, lane);
        fetch_plane<PAIRS * P::SCALE_BYTES>(stage + SCALES_AT, planes.scales + unit * P::SCALE_BYTES, lane);
        const size_t super = static_cast<size_t>(place.tile) * planes.supers + pair / 4;
        fetch_plane<P::FACTOR_BYTES>(stage + FACTORS_AT, planes.factors + super * P::FACTOR_BYTES, lane);
    }

    // Scales of columns, which every tile needs.
    __device__ __forceinline__ static void fetch_columns(uint8_t *stage, const float4 *(&column_scales)[BLOCKS],
                                                         Place place, int lane) {
#pragma unroll
        for (int first = 0; first < BLOCKS * GROUPS * 4; first += 32) {
            const int index = first + lane, block = index / (GROUPS * 4), at = index % (GROUPS * 4);
            if (BLOCKS * GROUPS * 4 % 32 == 0 || index < BLOCKS * GROUPS * 4) {
                const float4 *base = block == 0 ? column_scales[0] : column_scales[BLOCKS - 1];
                copy_16_cached(stage + COLUMNS_AT + index * 16, base + place.stretch * (GROUPS * 4) + at);
            }
        }
    }

    __device__ static void run(const uint8_t *weights, int rows, int k, const uint2 *levels, const float2 *scales,
                               float *out, int columns, int out_stride) {
        uint8_t *shared = shared_memory();
        const P planes(weights, rows, k);
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int groups = k / GROUP;
        const int stretches = ceil_div(planes.pairs, PAIRS);
        uint8_t *stages = shared + warp * (STAGES * STAGE_BYTES + SPREAD_BYTES);
        float4(*spread)[8] = reinterpret_cast<float4(*)[8]>(stages + STAGES * STAGE_BYTES);
        float4 *hand = reinterpret_cast<float4 *>(shared + WARPS * (STAGES * STAGE_BYTES + SPREAD_BYTES));
        // A column that is not there is read as the first, or as what lies in its place: its results go nowhere.
        const uint2 *column_levels[BLOCKS];
        const float4 *column_scales[BLOCKS];
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            const bool levels_there = block * 8 + g < columns, scales_there = block * 8 < columns;
            column_levels[block] = levels + (levels_there ? static_cast<size_t>(block) * groups * 32 + lane : t);
            column_scales[block] = reinterpret_cast<const float4 *>(scales) +
                                   (scales_there ? static_cast<size_t>(block) * groups * 4 : 0);
        }

        Place now = {static_cast<int>(blockIdx.x), 0};
        now.advance(warp, stretches);
        // Weights do not depend on the kernel before, columns do.
        launch_next();
        Place next = now;
#pragma unroll
        for (int ahead = 0; ahead < STAGES - 1; ahead++) {
            if (next.tile < planes.tiles) {
                fetch(stages + ahead * STAGE_BYTES, planes, next, lane);
            }
            next.advance(WARPS, stretches);
        }
        wait_for_kernel_before();
        next = now;
#pragma unroll
        for (int ahead = 0; ahead < STAGES - 1; ahead++) {
            if (next.tile < planes.tiles) {
                fetch_columns(stages + ahead * STAGE_BYTES, column_scales, next, lane);
            }
            copy_commit();
            next.advance(WARPS, stretches);
        }
        int slot = 0;
        for (; now.tile < planes.tiles; now.advance(WARPS, stretches)) {
            const int next_slot = slot == 0 ? STAGES - 1 : slot - 1;
            __syncwarp(); // what is overwritten has been read by every lane
            if (next.tile < planes.tiles) {
                fetch(stages + next_slot * STAGE_BYTES, planes, next, lane);
                fetch_columns(stages + next_slot * STAGE_BYTES, column_scales, next, lane);
            }
            copy_commit();
            next.advance(WARPS, stretches);
            const int tile = now.tile, stretch = now.stretch;
            const bool begins = stretch == 0, ends = stretch + 1 == stretches;
            const int first = stretch * GROUPS;
            uint2 b[BLOCKS][GROUPS];
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
#pragma unroll
                for (int i = 0; i < GROUPS; i++) {
                    b[block][i] = __ldg(column_levels[block] + first * 32 + i * 32);
                }
            }
            copy_wait<STAGES - 1>();
            __syncwarp();
            const uint8_t *stage = stages + slot * STAGE_BYTES;
            slot = slot == STAGES - 1 ? 0 : slot + 1;
            const float4 *x = reinterpret_cast<const float4 *>(stage + COLUMNS_AT) + t;
            const uint2 blocks = block_factors<F>(stage + FACTORS_AT, g);
            if (PAIRS >= 4 || t < PAIRS) {
                spread_factors<F>(spread + 2 * t, stage + SCALES_AT + t * P::SCALE_BYTES, blocks, g);
            }
            __syncwarp();
            float2 own = make_float2(0, 0);
            if constexpr (F::HALVES) {
                own = halves(blocks.x);
            }
            float value[BLOCKS][GROUPS][4], product[BLOCKS][GROUPS][4];
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                Raw<F> raw;
                load_raw<F>(raw, stage + pair * P::LOW_BYTES, stage + HIGH_AT + pair * P::HIGH_BYTES, lane);
#pragma unroll
                for (int local = 0; local < 2; local++) {
                    const int i = 2 * pair + local;
                    uint32_t a[4];
                    F::unpack(a, raw, local);
                    const float4 factors = spread[i][g];
                    const float2 s = row_scales<F>(factors, own);
#pragma unroll
                    for (int block = 0; block < BLOCKS; block++) {
                        group_dot<F>(value[block][i], a, b[block][i], factors);
                        const float4 column = x[(block * GROUPS + i) * 4];
                        product[block][i][0] = s.x * column.x;
                        product[block][i][1] = s.x * column.z;
                        product[block][i][2] = s.y * column.x;
                        product[block][i][3] = s.y * column.z;
                    }
                }
            }
            float acc[BLOCKS][4];
            // The block's first stretch has none before it, its last none after it.
            if (!begins || tile != static_cast<int>(blockIdx.x)) {
                barrier_wait(1 + warp);
            }
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                float4 before = make_float4(0, 0, 0, 0);
                if (!begins) {
                    before = hand[block * 32 + lane];
                }
                acc[block][0] = before.x, acc[block][1] = before.y;
                acc[block][2] = before.z, acc[block][3] = before.w;
            }
            auto add = [&](int i) {
                float4 factors = make_float4(0, 0, 0, 0);
                if constexpr (F::MINIMUM) {
                    factors = spread[i][g];
                }
#pragma unroll
                for (int block = 0; block < BLOCKS; block++) {
                    float4 column = make_float4(0, 0, 0, 0);
                    if constexpr (F::MINIMUM) {
                        column = x[(block * GROUPS + i) * 4];
                    }
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        float sum = fmaf(product[block][i][j], value[block][i][j], acc[block][j]);
                        if constexpr (F::MINIMUM) {
                            sum = fmaf(j < 2 ? factors.y : factors.w, j % 2 ? column.w : column.y, sum);
                        }
                        acc[block][j] = sum;
                    }
                }
            };
            if (first + GROUPS <= groups) {
#pragma unroll
                for (int i = 0; i < GROUPS; i++) {
                    add(i);
                }
            } else {
#pragma unroll
                for (int i = 0; i < GROUPS - 1; i++) {
                    if (first + i < groups) {
                        add(i);
                    }
                }
            }
            if (!ends) {
#pragma unroll
                for (int block = 0; block < BLOCKS; block++) {
                    hand[block * 32 + lane] =
                        make_float4(acc[block][0], acc[block][1], acc[block][2], acc[block][3]);
                }
            }
            if (!ends || tile + static_cast<int>(gridDim.x) < planes.tiles) {
                barrier_arrive(1 + (warp + 1) % WARPS);
            }
            if (ends) {
#pragma unroll
                for (int block = 0; block < BLOCKS; block++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        int row = tile * TILE_ROWS + g + j / 2 * 8, column = block * 8 + 2 * t + j % 2;
                        if (row < rows && column < columns) {
                            out[static_cast<size_t>(column) * out_stride + row] = acc[block][j];
                        }
                    }
                }
            }
        }
        copy_wait<0>();
    }
};

// ------------------------------------------------------------------------------------------------ many columns

// Products with many columns: 128 rows by COLUMNS columns for a block of threads, its eight warps four by two.
//
// Tiles and blocks of columns that are not there are read as the last that is; their results go nowhere. Groups beyond
// the last are copied, as for few columns, and not used.
template <class F, int COLUMNS, int WARP_TILES_, int PAIRS_, int STAGES_, int UNROLL = 2>
struct Panel {
    static constexpr int WARPS = 8, TILES = 8, WARP_TILES = WARP_TILES_;
    static constexpr int COLUMN_BLOCKS = COLUMNS / 8, WARP_BLOCKS = COLUMN_BLOCKS / WARP_TILES;
    static constexpr int STAGES = STAGES_;
    static constexpr int PAIRS = PAIRS_, GROUPS = 2 * PAIRS;
    static constexpr int BLOCK_ROWS = TILES * TILE_ROWS, BLOCK_COLUMNS = COLUMNS;
    using P = Planes<F>;
    static constexpr int HIGH_AT = TILES * PAIRS * P::LOW_BYTES;
    static constexpr int SCALES_AT = HIGH_AT + TILES * PAIRS * P::HIGH_BYTES;
    static constexpr int FACTORS_AT = SCALES_AT + TILES * PAIRS * P::SCALE_BYTES;
    static constexpr int LEVELS_AT = FACTORS_AT + TILES * P::FACTOR_BYTES;
    static constexpr int COLUMN_SCALES_AT = LEVELS_AT + COLUMN_BLOCKS * GROUPS * 256;
    static constexpr int STAGE_BYTES = COLUMN_SCALES_AT + COLUMN_BLOCKS * GROUPS * 64;
    static constexpr int SPREAD_BYTES = WARP_TILES * GROUPS * 8 * 16;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + WARPS * SPREAD_BYTES;

    // What a thread copies of a plane in every step: BYTES of each of UNITS units. Matrices are smaller than 4 GiB.
    template <int UNITS, int BYTES> struct Share {
        static constexpr int THREADS = WARPS * 32, CHUNKS = UNITS * BYTES / 16, COUNT = ceil_div(CHUNKS, THREADS);
        uint32_t from[COUNT];

        // Units are `unit_bytes` apart, from unit `first` on; the last is `last`.
        __device__ __forceinline__ Share(int first, int last, uint32_t unit_bytes) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                const int index = i * THREADS + threadIdx.x;
                const int unit = min(first + index / (BYTES / 16), last);
                from[i] = static_cast<uint32_t>(unit) * unit_bytes + index % (BYTES / 16) * 16;
            }
        }

        __device__ __forceinline__ void fetch(uint8_t *to, const uint8_t *plane) const {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                if ((i + 1) * THREADS <= CHUNKS || i * THREADS + threadIdx.x < CHUNKS) {
                    copy_16(to + (i * THREADS + threadIdx.x) * 16, plane + from[i]);
                }
            }
        }
    };

    // Of a plane that the format has not.
    template <int UNITS> struct Share<UNITS, 0> {
        __device__ __forceinline__ Share(int, int, uint32_t) {}
        __device__ __forceinline__ void fetch(uint8_t *, const uint8_t *) const {}
    };

    __device__ static void run(const uint8_t *weights, int rows, int k, const uint2 *levels, const float2 *scales,
                               float *out, int columns, int out_stride) {
        uint8_t *shared = shared_memory();
        const P planes(weights, rows, k);
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int warp_tile = warp % (TILES / WARP_TILES) * WARP_TILES;
        const int warp_block = warp / (TILES / WARP_TILES) * WARP_BLOCKS;
        const int tile = blockIdx.y * TILES, block = blockIdx.x * COLUMN_BLOCKS;
        const int groups = k / GROUP, last_block = ceil_div(columns, 8) - 1, last_tile = planes.tiles - 1;
        const int steps = ceil_div(planes.pairs, PAIRS);
        float4(*spread)[8] =
            reinterpret_cast<float4(*)[8]>(shared + STAGES * STAGE_BYTES + warp * SPREAD_BYTES);
        const Share<TILES, PAIRS * P::LOW_BYTES> low(tile, last_tile, planes.pairs * P::LOW_BYTES);
        const Share<TILES, PAIRS * P::HIGH_BYTES> high(tile, last_tile, planes.pairs * P::HIGH_BYTES);
        const Share<TILES, PAIRS * P::SCALE_BYTES> row_scale(tile, last_tile, planes.pairs * P::SCALE_BYTES);
        const Share<TILES, P::FACTOR_BYTES> factor(tile, last_tile, planes.supers * P::FACTOR_BYTES);
        const Share<COLUMN_BLOCKS, GROUPS * 256> level(block, last_block, groups * 256);
        const Share<COLUMN_BLOCKS, GROUPS * 64> column_scale(block, last_block, groups * 64);
        auto fetch = [&](int slot, int step) {
            uint8_t *stage = shared + slot * STAGE_BYTES;
            const int pair = step * PAIRS, group = step * GROUPS;
            low.fetch(stage, planes.low + pair * P::LOW_BYTES);
            high.fetch(stage + HIGH_AT, planes.high + pair * P::HIGH_BYTES);
            row_scale.fetch(stage + SCALES_AT, planes.scales + pair * P::SCALE_BYTES);
            factor.fetch(stage + FACTORS_AT, planes.factors + pair / 4 * P::FACTOR_BYTES);
            level.fetch(stage + LEVELS_AT, reinterpret_cast<const uint8_t *>(levels) + group * 256);
            column_scale.fetch(stage + COLUMN_SCALES_AT, reinterpret_cast<const uint8_t *>(scales) + group * 64);
        };

        float acc[WARP_TILES][WARP_BLOCKS][4];
#pragma unroll
        for (int i = 0; i < WARP_TILES; i++) {
#pragma unroll
            for (int j = 0; j < WARP_BLOCKS; j++) {
                acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0.0f;
            }
        }
#pragma unroll
        for (int ahead = 0; ahead < STAGES - 1; ahead++) {
            if (ahead < steps) {
                fetch(ahead, ahead);
            }
            copy_commit();
        }
        int slot = 0;
        for (int step = 0; step < steps; step++) {
            copy_wait<STAGES - 2>();
            __syncthreads(); // the step has come, and the one before has been read
            const int next = step + STAGES - 1, next_slot = slot == 0 ? STAGES - 1 : slot - 1;
            if (next < steps) {
                fetch(next_slot, next);
            }
            copy_commit();
            const uint8_t *stage = shared + slot * STAGE_BYTES;
            slot = slot == STAGES - 1 ? 0 : slot + 1;
            static_assert(PAIRS == 2 || PAIRS == 4, "a step is within 256 elements");
#pragma unroll
            for (int i = t; i < WARP_TILES * PAIRS; i += 4) {
                const int mine = i / PAIRS, pair = i % PAIRS;
                const uint8_t *from = stage + SCALES_AT + ((warp_tile + mine) * PAIRS + pair) * P::SCALE_BYTES;
                const uint2 blocks = block_factors<F>(stage + FACTORS_AT + (warp_tile + mine) * P::FACTOR_BYTES, g);
                spread_factors<F>(spread + mine * GROUPS + pair * 2, from, blocks, g);
            }
            __syncwarp();
            float2 own[WARP_TILES];
#pragma unroll
            for (int i = 0; i < WARP_TILES; i++) {
                own[i] = make_float2(0, 0);
                if constexpr (F::HALVES) {
                    own[i] = halves(block_factors<F>(stage + FACTORS_AT + (warp_tile + i) * P::FACTOR_BYTES, g).x);
                }
            }
            auto add = [&](const Raw<F> (&raw)[WARP_TILES], int local, int group) {
                uint32_t a[WARP_TILES][4];
                float4 factors[WARP_TILES];
                float2 s[WARP_TILES];
#pragma unroll
                for (int i = 0; i < WARP_TILES; i++) {
                    F::unpack(a[i], raw[i], local);
                    factors[i] = spread[i * GROUPS + group][g];
                    s[i] = row_scales<F>(factors[i], own[i]);
                }
#pragma unroll
                for (int j = 0; j < WARP_BLOCKS; j++) {
                    const int at = (warp_block + j) * GROUPS + group;
                    const uint2 b = reinterpret_cast<const uint2 *>(stage + LEVELS_AT)[at * 32 + lane];
                    const float4 x = reinterpret_cast<const float4 *>(stage + COLUMN_SCALES_AT)[at * 4 + t];
#pragma unroll
                    for (int i = 0; i < WARP_TILES; i++) {
                        float value[4];
                        group_dot<F>(value, a[i], b, factors[i]);
#pragma unroll
                        for (int n = 0; n < 4; n++) {
                            const float product = (n < 2 ? s[i].x : s[i].y) * (n % 2 ? x.z : x.x);
                            float sum = fmaf(product, value[n], acc[i][j][n]);
                            if constexpr (F::MINIMUM) {
                                sum = fmaf(n < 2 ? factors[i].y : factors[i].w, n % 2 ? x.w : x.y, sum);
                            }
                            acc[i][j][n] = sum;
                        }
                    }
                }
            };
            auto load = [&](Raw<F> (&raw)[WARP_TILES], int pair) {
#pragma unroll
                for (int i = 0; i < WARP_TILES; i++) {
                    const int unit = (warp_tile + i) * PAIRS + pair;
                    load_raw<F>(raw[i], stage + unit * P::LOW_BYTES, stage + HIGH_AT + unit * P::HIGH_BYTES, lane);
                }
            };
            const int left = groups - step * GROUPS;
            if (left >= GROUPS) {
#pragma unroll UNROLL
                for (int pair = 0; pair < PAIRS; pair++) {
                    Raw<F> raw[WARP_TILES];
                    load(raw, pair);
                    add(raw, 0, 2 * pair);
                    add(raw, 1, 2 * pair + 1);
                }
            } else {
#pragma unroll 1
                for (int group = 0; group < left; group++) {
                    Raw<F> raw[WARP_TILES];
                    load(raw, group / 2);
                    add(raw, group % 2, group);
                }
            }
            __syncwarp(); // factors have been read by every lane
        }
        copy_wait<0>();
#pragma unroll
        for (int i = 0; i < WARP_TILES; i++) {
#pragma unroll
            for (int j = 0; j < WARP_BLOCKS; j++) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    int row = (tile + warp_tile + i) * TILE_ROWS + g + n / 2 * 8;
                    int column = (block + warp_block + j) * 8 + 2 * t + n % 2;
                    if (row < rows && column < columns) {
                        out[static_cast<size_t>(column) * out_stride + row] = acc[i][j][n];
                    }
                }
            }
        }
    }
};

// Sizes of the kernels, measured with all of a card's memory in motion: more warps of fewer groups each wait longer for
// the accumulators, fewer leave the memory idle. Formats of eight bits have twice the bytes in a stretch.
template <class F> constexpr bool is_wide() { return F::LOW == 2; }
template <class F> constexpr int decode_warps() { return is_wide<F>() ? 8 : 5; }
template <class F> constexpr int decode_stages() { return is_wide<F>() ? 2 : 3; }

template <class F> using Decode8 = Decode<F, 1, decode_warps<F>(), 8, decode_stages<F>()>;
template <class F> using Decode16 = Decode<F, 2, decode_warps<F>(), 4, decode_stages<F>()>;
template <class F> using Panel64 = Panel<F, 64, 2, 2, (is_wide<F>() ? 2 : 3)>;
template <class F> using Panel128 = Panel<F, 128, 1, 4, 2>;

// Blocks of a processor that registers have to be left for.
template <class F> constexpr int decode_8_blocks() { return is_wide<F>() ? 2 : 4; }
template <class F> constexpr int decode_16_blocks() { return is_wide<F>() ? 2 : 3; }

} // namespace andon

// The kernels of a format, by the names that the host asks for.
#define ANDON_MATMUL(NAME, FORMAT)                                                                                     \
    extern "C" __global__ void NAME##_pack(const uint8_t *rows_in, int rows, int k, uint8_t *out) {                    \
        andon::pack<andon::FORMAT>(rows_in, rows, k, out);                                                             \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(256) void NAME##_embed(const uint8_t *weights, int rows, int k,            \
                                                                   const uint32_t *tokens, float scale, float *out) {  \
        andon::embed<andon::FORMAT>(weights, rows, k, tokens, scale, out);                                             \
    }                                                                                                                  \
    ANDON_PRODUCT(NAME##_decode_8, andon::Decode8<andon::FORMAT>, andon::decode_8_blocks<andon::FORMAT>())             \
    ANDON_PRODUCT(NAME##_decode_16, andon::Decode16<andon::FORMAT>, andon::decode_16_blocks<andon::FORMAT>())          \
    ANDON_PRODUCT(NAME##_panel_64, andon::Panel64<andon::FORMAT>, 2)                                                   \
    ANDON_PRODUCT(NAME##_panel_128, andon::Panel128<andon::FORMAT>, 1)

#define ANDON_PRODUCT(NAME, KERNEL, BLOCKS_MIN)                                                                        \
    using NAME##_kernel = KERNEL;                                                                                      \
    extern "C" __device__ const andon::Launch NAME##_launch = {                                                               \
        NAME##_kernel::WARPS * 32, NAME##_kernel::SHARED_BYTES, NAME##_kernel::BLOCK_ROWS,                             \
        NAME##_kernel::BLOCK_COLUMNS};                                                                                 \
    extern "C" __global__ __launch_bounds__(NAME##_kernel::WARPS * 32, BLOCKS_MIN) void NAME(                          \
        const uint8_t *weights, int rows, int k, const uint2 *levels, const float2 *scales, float *out, int columns,   \
        int out_stride) {                                                                                              \
        NAME##_kernel::run(weights, rows, k, levels, scales, out, columns, out_stride);                                \
    }
