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

// Some of a matrix's rows, as files have them, to the packed layout: those of `tiles` tiles from `first` on; one thread for
// each lane of each pair.
template <class F>
__device__ void pack(const uint8_t *rows_in, int first, int tiles, int rows, int k, uint8_t *out) {
    const Packed<F> packed(out, rows, k);
    int groups = k / GROUP;
    size_t row_bytes = static_cast<size_t>(k / F::BLOCK) * F::BLOCK_BYTES;
    size_t count = static_cast<size_t>(tiles) * packed.pairs * 32;
    for (size_t index = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < count;
         index += static_cast<size_t>(gridDim.x) * blockDim.x) {
        int lane = index % 32, g = lane / 4, t = lane % 4;
        size_t unit = index / 32;
        int pair = unit % packed.pairs;
        int tile = first + static_cast<int>(unit / packed.pairs);
        uint8_t *of_tile = const_cast<uint8_t *>(packed.at(tile, 0));
        uint8_t *to = of_tile + Packed<F>::pair_at(pair);
        int row[2] = {tile * TILE_ROWS + g, tile * TILE_ROWS + g + 8};
        const uint8_t *source[2];
        for (int r = 0; r < 2; r++) {
            source[r] = rows_in + static_cast<size_t>(row[r] < rows ? row[r] - first * TILE_ROWS : 0) * row_bytes;
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
                uint32_t *levels = reinterpret_cast<uint32_t *>(Packed<F>::low(to));
                if constexpr (F::LOW == 2) {
                    uint32_t *fragment = levels + (local * 32 + lane) * 4;
                    fragment[r] = words[0];
                    fragment[2 + r] = words[1];
                } else {
                    levels[lane * 4 + local * 2 + r] = low;
                }
                if (t == 0) {
                    uint32_t scale = there ? F::scale(source[r], group) : 0;
                    int at = g * 4 + local * 2 + r;
                    uint8_t *scales = Packed<F>::scales(to);
                    if constexpr (F::SCALE_WORDS == 4) {
                        reinterpret_cast<uint32_t *>(scales)[at] = scale;
                    } else {
                        reinterpret_cast<uint16_t *>(scales)[at] = static_cast<uint16_t>(scale);
                    }
                }
                if constexpr (F::FACTOR_WORDS > 0) {
                    if (t == 0 && pair % 4 == 0 && local == 0) {
                        uint32_t factor = there ? F::factor(source[r], pair / 4) : 0;
                        int at = g * 2 + r;
                        uint8_t *factors = of_tile + Packed<F>::factors_at(pair);
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
            uint32_t *words = reinterpret_cast<uint32_t *>(Packed<F>::high(to));
            for (int word = 0; word < F::HIGH; word++) {
                words[word * 32 + lane] = high[word];
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------ rows of tokens

// Factors of 256 elements of two rows, of lane g.
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
    const Packed<F> packed(weights, rows, k);
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
    const uint8_t *of_tile = packed.at(tile, 0), *from = of_tile + Packed<F>::pair_at(pair);
    const int at = g * 4 + t;
    const uint32_t *low = reinterpret_cast<const uint32_t *>(Packed<F>::low(from));
    const uint32_t *high = reinterpret_cast<const uint32_t *>(Packed<F>::high(from));
    uint32_t code;
    if constexpr (F::LOW == 2) {
        code = low[(local * 32 + at) * 4 + j] >> (8 * i) & 255;
    } else {
        code = low[at * 4 + local * 2 + r] >> (8 * i + 4 * half) & 15;
    }
    if constexpr (F::HIGH == 1) {
        code |= (high[at] >> (8 * i + 4 * local + j) & 1) << 4;
    } else if constexpr (F::HIGH == 2) {
        code |= (high[local * 32 + at] >> (8 * i + 2 * j) & 3) << 4;
    }
    const float level = static_cast<float>(level_of<F>(code));
    uint2 blocks = make_uint2(0, 0);
    if constexpr (F::FACTOR_WORDS > 0) {
        blocks = block_factors<F>(of_tile + Packed<F>::factors_at(pair), g);
    }
    uint32_t words[F::SCALE_WORDS];
    for (int word = 0; word < F::SCALE_WORDS; word++) {
        words[word] = reinterpret_cast<const uint32_t *>(Packed<F>::scales(from))[g * F::SCALE_WORDS + word];
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

// The factors of a group's rows g and g + 8 as products take them, and room for one more: so lanes that write those of
// four pairs at once do not meet in the banks of shared memory.
using GroupFactors = float4[9];

// Writes the factors of the two groups of a pair.
template <class F>
__device__ __forceinline__ void spread_factors(GroupFactors *factors, const uint8_t *scales, uint2 blocks, int g) {
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
// stretches of eight groups, which its warps take in turn; the host says how many warps there are. All of a stretch that
// needs no accumulator is done by many warps at a time and kept in registers. The accumulators pass from warp to warp in
// the order of stretches, and for each block of columns on their own; what a warp does in its turn is as little as can be.
// Weights are asked for a stretch ahead, those of the next tile too. So are columns: what comes from a cache waits for what
// was asked of the memory before it. One block of columns has room for two stretches; of two, each is asked for as soon as
// the stretch before has been multiplied with it.
//
// The last stretch may have fewer groups than there are copied: what lies beyond a tile's end is another's, or slack
// at the end of the buffer, and is not used.
template <class F, int BLOCKS>
struct Decode {
    static constexpr int STAGES = 2;
    static constexpr int GROUPS = 8, PAIRS = GROUPS / 2;
    static constexpr int BLOCK_ROWS = TILE_ROWS, BLOCK_COLUMNS = 8 * BLOCKS;
    using P = Packed<F>;
    // Weights of a stretch.
    static constexpr int UNITS = PAIRS / P::UNIT_PAIRS, STAGE_BYTES = UNITS * P::UNIT_BYTES;
    // What a warp has: weights, levels and scales of columns, factors of rows, and what it is handed.
    static constexpr int LEVEL_BYTES = GROUPS * 256, COLUMN_BYTES = LEVEL_BYTES + GROUPS * 64;
    static constexpr int COLUMNS_AT = STAGES * STAGE_BYTES;
    static constexpr int SPREAD_AT = COLUMNS_AT + 2 * COLUMN_BYTES;
    static constexpr int HAND_AT = SPREAD_AT + GROUPS * sizeof(GroupFactors);
    static constexpr int WARP_BYTES = HAND_AT + BLOCKS * 32 * 16;
    // The most warps that there may be: where a block has least shared memory it has 99 KB.
    static constexpr int WARPS = 99 * 1024 / WARP_BYTES < 8 ? 99 * 1024 / WARP_BYTES : 8;
    static constexpr int SHARED_BYTES = WARPS * WARP_BYTES;
    static_assert(BLOCKS * WARPS <= 16, "a barrier for every warp and block of columns");

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

    // Weights, past the first-level cache.
    __device__ __forceinline__ static void fetch(uint8_t *stage, const P &packed, Place place, int lane) {
        fetch_from<0>(stage + lane * 16, packed.at(place.tile, place.stretch * UNITS) + lane * 16, lane);
    }
    template <int AT>
    __device__ __forceinline__ static void fetch_from(uint8_t *stage, const uint8_t *from, int lane) {
        if (AT + 512 <= STAGE_BYTES || lane < (STAGE_BYTES - AT) / 16) {
            copy_16_behind<AT>(stage, from);
        }
        if constexpr (AT + 512 < STAGE_BYTES) {
            fetch_from<AT + 512>(stage, from, lane);
        }
    }

    // Levels and scales of a block's columns that are there, which every tile needs.
    __device__ __forceinline__ static void fetch_columns(uint8_t *to, const uint2 *levels, const float2 *scales,
                                                         int groups, int columns, int block, int stretch, int lane) {
        const uint64_t first = static_cast<uint32_t>(block * groups + stretch * GROUPS);
        const uint8_t *level = reinterpret_cast<const uint8_t *>(levels) + first * 256 + lane * 16;
        const uint8_t *scale = reinterpret_cast<const uint8_t *>(scales) + first * 64 + lane * 16;
        to += lane * 16;
        // Of a column 32 bytes lie together.
        if (block * 8 + lane % 16 / 2 < columns) {
#pragma unroll
            for (int at = 0; at < LEVEL_BYTES; at += 512) {
                copy_16_cached(to + at, level + at);
            }
        }
        static_assert(GROUPS * 64 == 32 * 16, "a copy of each lane");
        if (BLOCKS == 1 || block * 8 < columns) {
            copy_16_cached(to + LEVEL_BYTES, scale);
        }
    }

    // What groups of a stretch bring to the accumulators of a lane: two rows by two columns.
    struct Terms {
        float value[GROUPS][4], product[GROUPS][4];
        float row_minimum[GROUPS][2], column_sum[GROUPS][2];

        // All that needs no accumulator.
        __device__ __forceinline__ void make(const uint8_t *stage, const uint8_t *columns,
                                             const GroupFactors *spread, float2 own, int lane) {
            const int g = lane / 4, t = lane % 4;
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                Raw<F> raw;
                const uint8_t *from = stage + P::pair_at(pair);
                load_raw<F>(raw, P::low(from), P::high(from), lane);
#pragma unroll
                for (int local = 0; local < 2; local++) {
                    const int i = 2 * pair + local;
                    uint32_t a[4];
                    F::unpack(a, raw, local);
                    const float4 factors = spread[i][g];
                    const float2 s = row_scales<F>(factors, own);
                    const uint2 b = reinterpret_cast<const uint2 *>(columns)[i * 32 + lane];
                    const float4 column = reinterpret_cast<const float4 *>(columns + LEVEL_BYTES)[i * 4 + t];
                    group_dot<F>(value[i], a, b, factors);
                    product[i][0] = s.x * column.x;
                    product[i][1] = s.x * column.z;
                    product[i][2] = s.y * column.x;
                    product[i][3] = s.y * column.z;
                    if constexpr (F::MINIMUM) {
                        row_minimum[i][0] = factors.y;
                        row_minimum[i][1] = factors.w;
                        column_sum[i][0] = column.y;
                        column_sum[i][1] = column.w;
                    }
                }
            }
        }

        // Has groups from `count` on leave accumulators as they are: -0 may be added to anything.
        __device__ __forceinline__ void leave_out(int count) {
#pragma unroll
            for (int i = 0; i < GROUPS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    value[i][j] = i < count ? value[i][j] : 0.0f;
                    product[i][j] = i < count ? product[i][j] : -0.0f;
                }
                if constexpr (F::MINIMUM) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        row_minimum[i][j] = i < count ? row_minimum[i][j] : -0.0f;
                        column_sum[i][j] = i < count ? column_sum[i][j] : 0.0f;
                    }
                }
            }
        }

        __device__ __forceinline__ void add(float (&acc)[4]) const {
#pragma unroll
            for (int i = 0; i < GROUPS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float sum = fmaf(product[i][j], value[i][j], acc[j]);
                    if constexpr (F::MINIMUM) {
                        sum = fmaf(row_minimum[i][j / 2], column_sum[i][j % 2], sum);
                    }
                    acc[j] = sum;
                }
            }
        }
    };

    __device__ static void run(const uint8_t *weights, int rows, int k, const uint2 *levels, const float2 *scales,
                               float *out, int columns, int out_stride) {
        uint8_t *shared = shared_memory();
        const P packed(weights, rows, k);
        const int warps = blockDim.x / 32;
        // The same for all of a warp, which the compiler does not see.
        const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0);
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int groups = k / GROUP;
        const int stretches = ceil_div(packed.pairs, PAIRS);
        const int next_warp = warp + 1 == warps ? 0 : warp + 1;
        uint8_t *mine = kept_place(shared + warp * WARP_BYTES);
        GroupFactors *spread = reinterpret_cast<GroupFactors *>(mine + SPREAD_AT);
        float4 *handed = reinterpret_cast<float4 *>(mine + HAND_AT) + lane;
        float4 *hand = reinterpret_cast<float4 *>(mine + (next_warp - warp) * WARP_BYTES + HAND_AT) + lane;

        // The block's last.
        const int last_tile = packed.tiles - 1 - (packed.tiles - 1 - static_cast<int>(blockIdx.x)) % static_cast<int>(gridDim.x);
        Place now = {static_cast<int>(blockIdx.x), 0};
        now.advance(warp, stretches);
        // Weights do not depend on the kernel before, columns do.
        launch_next();
        if (now.tile < packed.tiles) {
            fetch(mine, packed, now, lane);
        }
        wait_for_kernel_before();
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            if (now.tile < packed.tiles) {
                fetch_columns(mine + COLUMNS_AT + block * COLUMN_BYTES, levels, scales, groups, columns, block,
                              now.stretch, lane);
            }
            copy_commit();
        }
        // The first turn has nothing before it.
        if (warp + 1 == warps) {
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                hand[block * 32] = make_float4(0, 0, 0, 0);
                barrier_arrive(block * WARPS + next_warp);
            }
        }
        int slot = 0;
        while (now.tile <= last_tile) {
            Place next = now;
            next.advance(warps, stretches);
            const bool goes_on = next.tile <= last_tile;
            __syncwarp(); // what is overwritten has been read by every lane
            if (goes_on) {
                fetch(mine + (slot ^ 1) * STAGE_BYTES, packed, next, lane);
                if constexpr (BLOCKS == 1) {
                    fetch_columns(mine + COLUMNS_AT + (slot ^ 1) * COLUMN_BYTES, levels, scales, groups, columns, 0,
                                  next.stretch, lane);
                }
            }
            copy_commit();
            copy_wait<BLOCKS>();
            __syncwarp();
            const uint8_t *stage = mine + slot * STAGE_BYTES;
            const uint8_t *of_columns = mine + COLUMNS_AT + (BLOCKS == 1 ? slot : 0) * COLUMN_BYTES;
            slot ^= 1;
            const uint2 blocks = block_factors<F>(stage + P::factors_at(t), g);
            spread_factors<F>(spread + 2 * t, P::scales(stage + P::pair_at(t)), blocks, g);
            __syncwarp();
            float2 own = make_float2(0, 0);
            if constexpr (F::HALVES) {
                own = halves(blocks.x);
            }
            const bool ends = now.stretch + 1 == stretches;
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                if (block > 0) {
                    copy_wait<BLOCKS>();
                    __syncwarp();
                }
                Terms terms;
                terms.make(stage, of_columns + block * COLUMN_BYTES, spread, own, lane);
                if constexpr (BLOCKS > 1) {
                    __syncwarp(); // columns have been read by every lane
                    if (goes_on) {
                        fetch_columns(mine + COLUMNS_AT + block * COLUMN_BYTES, levels, scales, groups, columns, block,
                                      next.stretch, lane);
                    }
                    copy_commit();
                }
                const int left = groups - now.stretch * GROUPS;
                if (left < GROUPS) {
                    terms.leave_out(left);
                }
                float acc[4];
                // A loop of one round, which the compiler does not know: it would move the making of terms into the turn.
                do {
                    barrier_wait(block * WARPS + warp);
                    const float4 before = handed[block * 32];
                    acc[0] = before.x, acc[1] = before.y, acc[2] = before.z, acc[3] = before.w;
                    terms.add(acc);
                    // The next tile begins with nothing.
                    hand[block * 32] = make_float4(ends ? 0.0f : acc[0], ends ? 0.0f : acc[1], ends ? 0.0f : acc[2],
                                                   ends ? 0.0f : acc[3]);
                    barrier_arrive(block * WARPS + next_warp);
                } while (blockDim.y > 1);
                if (ends) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        int row = now.tile * TILE_ROWS + g + j / 2 * 8, column = block * 8 + 2 * t + j % 2;
                        if (row < rows && column < columns) {
                            out[static_cast<size_t>(column) * out_stride + row] = acc[j];
                        }
                    }
                }
            }
            now = next;
        }
        // The last turn has nothing after it: whose turn it would be waits for it.
        if (now.tile == last_tile + static_cast<int>(gridDim.x) && now.stretch == 0) {
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                barrier_wait(block * WARPS + warp);
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
    using P = Packed<F>;
    static constexpr int TILE_BYTES = PAIRS * P::PAIR_BYTES;
    static constexpr int FACTORS_AT = TILES * TILE_BYTES;
    static constexpr int LEVELS_AT = FACTORS_AT + TILES * P::FACTOR_BYTES;
    static constexpr int COLUMN_SCALES_AT = LEVELS_AT + COLUMN_BLOCKS * GROUPS * 256;
    static constexpr int STAGE_BYTES = COLUMN_SCALES_AT + COLUMN_BLOCKS * GROUPS * 64;
    static constexpr int SPREAD_BYTES = WARP_TILES * GROUPS * sizeof(GroupFactors);
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + WARPS * SPREAD_BYTES;

    // What a thread copies in every step: BYTES of each of PIECES pieces. Matrices are smaller than 4 GiB.
    template <int PIECES, int BYTES> struct Share {
        static constexpr int THREADS = WARPS * 32, CHUNKS = PIECES * BYTES / 16, COUNT = ceil_div(CHUNKS, THREADS);
        uint32_t from[COUNT];

        // Pieces are `apart` bytes apart, from `first` on; the last is `last`.
        __device__ __forceinline__ Share(int first, int last, uint32_t apart) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                const int index = i * THREADS + threadIdx.x;
                const int piece = min(first + index / (BYTES / 16), last);
                from[i] = static_cast<uint32_t>(piece) * apart + index % (BYTES / 16) * 16;
            }
        }

        __device__ __forceinline__ void fetch(uint8_t *to, const uint8_t *start) const {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                if ((i + 1) * THREADS <= CHUNKS || i * THREADS + threadIdx.x < CHUNKS) {
                    copy_16(to + (i * THREADS + threadIdx.x) * 16, start + from[i]);
                }
            }
        }
    };

    // Of what the format has not.
    template <int PIECES> struct Share<PIECES, 0> {
        __device__ __forceinline__ Share(int, int, uint32_t) {}
        __device__ __forceinline__ void fetch(uint8_t *, const uint8_t *) const {}
    };

    __device__ static void run(const uint8_t *weights, int rows, int k, const uint2 *levels, const float2 *scales,
                               float *out, int columns, int out_stride) {
        uint8_t *shared = shared_memory();
        const P packed(weights, rows, k);
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int warp_tile = warp % (TILES / WARP_TILES) * WARP_TILES;
        const int warp_block = warp / (TILES / WARP_TILES) * WARP_BLOCKS;
        const int tile = blockIdx.y * TILES, block = blockIdx.x * COLUMN_BLOCKS;
        const int groups = k / GROUP, last_block = ceil_div(columns, 8) - 1, last_tile = packed.tiles - 1;
        const int steps = ceil_div(packed.pairs, PAIRS);
        GroupFactors *spread =
            reinterpret_cast<GroupFactors *>(shared + STAGES * STAGE_BYTES + warp * SPREAD_BYTES);
        const Share<TILES, TILE_BYTES> weight(tile, last_tile, packed.units * P::UNIT_BYTES);
        const Share<TILES, P::FACTOR_BYTES> factor(tile, last_tile, packed.units * P::UNIT_BYTES);
        const Share<COLUMN_BLOCKS, GROUPS * 256> level(block, last_block, groups * 256);
        const Share<COLUMN_BLOCKS, GROUPS * 64> column_scale(block, last_block, groups * 64);
        auto fetch = [&](int slot, int step) {
            uint8_t *stage = shared + slot * STAGE_BYTES;
            const int group = step * GROUPS;
            weight.fetch(stage, packed.start + P::pair_at(step * PAIRS));
            factor.fetch(stage + FACTORS_AT, packed.start + P::factors_at(step * PAIRS));
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
                const uint8_t *from = stage + (warp_tile + mine) * TILE_BYTES;
                const uint2 blocks = block_factors<F>(stage + FACTORS_AT + (warp_tile + mine) * P::FACTOR_BYTES, g);
                spread_factors<F>(spread + mine * GROUPS + pair * 2, P::scales(from + pair * P::PAIR_BYTES), blocks, g);
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
                    const uint8_t *from = stage + (warp_tile + i) * TILE_BYTES + pair * P::PAIR_BYTES;
                    load_raw<F>(raw[i], P::low(from), P::high(from), lane);
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

// Formats of eight bits have twice the bytes in a stretch.
template <class F> constexpr bool is_wide() { return F::LOW == 2; }

template <class F> using Decode8 = Decode<F, 1>;
template <class F> using Decode16 = Decode<F, 2>;
// Blocks of the most warps that a processor's registers have to do for; Q4_1 takes a few more than two leave.
template <class F> constexpr int decode_16_blocks() { return F::SCALE_WORDS == 4 ? 1 : 2; }
template <class F> using Panel64 = Panel<F, 64, 2, 2, (is_wide<F>() ? 2 : 3)>;
template <class F> using Panel128 = Panel<F, 128, 1, 4, 2>;

} // namespace andon

// The kernels of a format, by the names that the host asks for.
#define ANDON_MATMUL(NAME, FORMAT)                                                                                     \
    extern "C" __global__ void NAME##_pack(const uint8_t *rows_in, int first, int tiles, int rows, int k,              \
                                           uint8_t *out) {                                                             \
        andon::pack<andon::FORMAT>(rows_in, first, tiles, rows, k, out);                                               \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(256) void NAME##_embed(const uint8_t *weights, int rows, int k,            \
                                                                   const uint32_t *tokens, float scale, float *out) {  \
        andon::embed<andon::FORMAT>(weights, rows, k, tokens, scale, out);                                             \
    }                                                                                                                  \
    ANDON_PRODUCT(NAME##_decode_8, andon::Decode8<andon::FORMAT>, 2)             \
    ANDON_PRODUCT(NAME##_decode_16, andon::Decode16<andon::FORMAT>, andon::decode_16_blocks<andon::FORMAT>())         \
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
