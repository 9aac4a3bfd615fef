// Attention of query heads that share a KV head: kernels/src/op/attention.rs states the result.
//
// A block takes some rows (query heads of consecutive columns of one sequence) through chunks of 256 positions. Warp `w`
// has rows `w`, `w` + 8 and so on; its lanes share out positions when it makes scores, and dimensions when it sums values.
// Pages of keys and values come to shared memory one ahead.
#include "arithmetic.cuh"
#include "cache.cuh"
#include "quantize.cuh"

namespace andon {

struct Attend {
    const float *queries;   // of column c at c * query_stride, heads one after the other
    int query_stride;
    const uint8_t *cache;
    Places places;
    int heads, kv_heads, columns;
    int before, after;      // positions that a column sees before and after its own
    float scale, cap;       // no cap: 0
    float *partial_sums;    // of chunk s, head h, column c: {top, sum} at (s * columns + c) * heads + h; null: whole rows
    float *output;          // like partial_sums, but HEAD_DIM elements; whole rows: of column c at c * heads * HEAD_DIM
};

// Dimensions that a lane sums: two at a time, 64 apart, where that shares them out, or one at a time.
template <int HEAD_DIM> struct Dims {
    static_assert(HEAD_DIM % 32 == 0, "every lane has as many");
    static constexpr int COUNT = HEAD_DIM / 32;
    static constexpr bool PAIRS = HEAD_DIM % 64 == 0;

    __device__ static void load(float (&to)[COUNT], const float *from, int lane) {
#pragma unroll
        for (int i = 0; i < COUNT; i += PAIRS ? 2 : 1) {
            if constexpr (PAIRS) {
                const float2 two = reinterpret_cast<const float2 *>(from)[16 * i + lane];
                to[i] = two.x;
                to[i + 1] = two.y;
            } else {
                to[i] = from[32 * i + lane];
            }
        }
    }

    __device__ static void load_halves(float (&to)[COUNT], const uint8_t *from, int lane) {
#pragma unroll
        for (int i = 0; i < COUNT; i += PAIRS ? 2 : 1) {
            if constexpr (PAIRS) {
                const float2 two = halves(reinterpret_cast<const uint32_t *>(from)[16 * i + lane]);
                to[i] = two.x;
                to[i + 1] = two.y;
            } else {
                to[i] = __half2float(__ushort_as_half(reinterpret_cast<const uint16_t *>(from)[32 * i + lane]));
            }
        }
    }

    __device__ static void load_levels(float (&to)[COUNT], const uint8_t *from, int lane) {
#pragma unroll
        for (int i = 0; i < COUNT; i += PAIRS ? 2 : 1) {
            if constexpr (PAIRS) {
                const uint16_t two = reinterpret_cast<const uint16_t *>(from)[16 * i + lane];
                to[i] = static_cast<float>(static_cast<int8_t>(two & 255));
                to[i + 1] = static_cast<float>(static_cast<int8_t>(two >> 8));
            } else {
                to[i] = static_cast<float>(static_cast<int8_t>(from[32 * i + lane]));
            }
        }
    }

    __device__ static void store(float *to, const float (&values)[COUNT], float by, int lane) {
#pragma unroll
        for (int i = 0; i < COUNT; i += PAIRS ? 2 : 1) {
            if constexpr (PAIRS) {
                reinterpret_cast<float2 *>(to)[16 * i + lane] = make_float2(values[i] / by, values[i + 1] / by);
            } else {
                to[32 * i + lane] = values[i] / by;
            }
        }
    }
};

// Merges the partial result of a row's next chunk into those before: a sum of zero says that nothing was seen.
template <int COUNT>
__device__ __forceinline__ void merge(float &top, float &sum, float (&out)[COUNT], float top_next, float sum_next,
                                      const float (&next)[COUNT]) {
    if (sum_next == 0.0f) {
        return;
    }
    if (sum == 0.0f) {
        top = top_next;
        sum = sum_next;
#pragma unroll
        for (int d = 0; d < COUNT; d++) {
            out[d] = next[d];
        }
        return;
    }
    const float larger = top_next > top ? top_next : top;
    const float before = exponential(top - larger), after = exponential(top_next - larger);
    top = larger;
    sum = sum * before + sum_next * after;
#pragma unroll
    for (int d = 0; d < COUNT; d++) {
        out[d] = out[d] * before + next[d] * after;
    }
}

template <int HEAD_DIM, bool Q8, int WARP_ROWS> struct Attention {
    using D = Dims<HEAD_DIM>;
    static constexpr int WARPS = 8, ROWS = WARPS * WARP_ROWS;
    static constexpr int KEY_BYTES = key_bytes<Q8>(HEAD_DIM), VALUE_BYTES = value_bytes<Q8>(HEAD_DIM);
    static constexpr int PAGE_BYTES = KEY_BYTES > VALUE_BYTES ? KEY_BYTES : VALUE_BYTES;
    static constexpr int GROUPS = HEAD_DIM / GROUP;
    // A row's query: f32, or the levels of both parts and their scales, whole words of 16 bytes.
    static constexpr int QUERY_BYTES = Q8 ? (2 * HEAD_DIM + 2 * GROUPS * 4 + 15) / 16 * 16 : HEAD_DIM * 4;
    static constexpr int QUERIES_AT = 2 * PAGE_BYTES;
    static constexpr int SCORES_AT = QUERIES_AT + ROWS * QUERY_BYTES;
    static constexpr int SHARED_BYTES = SCORES_AT + ROWS * CHUNK * 4;
    static constexpr int BLOCK_ROWS = ROWS;

    // Starts copying page `number` of the cache, its keys or its values.
    __device__ static void fetch(uint8_t *to, const Attend &attend, int kv_head, int number, bool values) {
        const uint8_t *from = page_of<Q8>(attend.cache, number, attend.kv_heads, kv_head, HEAD_DIM);
        from += values ? KEY_BYTES : 0;
        const int bytes = values ? VALUE_BYTES : KEY_BYTES;
        for (int at = threadIdx.x * 16; at < bytes; at += WARPS * 32 * 16) {
            copy_16(to + at, from + at);
        }
    }

    // Brings the queries of rows to shared memory, as scores take them; a warp brings those that it has.
    __device__ static void load_queries(uint8_t *shared, const Attend &attend, const Run &run, int kv_head, int group,
                                        int first_row, int rows, int warp, int lane) {
        for (int r = 0; r < WARP_ROWS; r++) {
            const int in_block = r * WARPS + warp, row = first_row + in_block;
            uint8_t *to = shared + QUERIES_AT + in_block * QUERY_BYTES;
            const int column = run.first + row / group, head = kv_head * group + row % group;
            const float *from = attend.queries + static_cast<size_t>(column) * attend.query_stride + head * HEAD_DIM;
            for (int g = 0; g < GROUPS; g++) {
                float value = row < rows ? from[g * GROUP + lane] : 0.0f;
                if constexpr (!Q8) {
                    reinterpret_cast<float *>(to)[g * GROUP + lane] = value;
                } else {
                    // In two parts: what the first leaves is the second.
                    float *scales = reinterpret_cast<float *>(to + 2 * HEAD_DIM);
#pragma unroll
                    for (int part = 0; part < 2; part++) {
                        const HeadScale scale(__reduce_max_sync(0xffffffff, magnitude_bits(value)));
                        const int level = scale.level(value);
                        to[part * HEAD_DIM + g * GROUP + lane] = static_cast<uint8_t>(level);
                        if (lane == 0) {
                            scales[part * GROUPS + g] = scale.scale;
                        }
                        value = value - static_cast<float>(level) * scale.scale;
                    }
                }
            }
        }
        __syncwarp();
    }

    // Scores of a warp's rows at positions 2 lane and 2 lane + 1 of a page.
    __device__ static void score(float (&s)[WARP_ROWS][2], const uint8_t *page, const uint8_t *queries, float scale,
                                 int warp, int lane) {
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            s[r][0] = s[r][1] = 0.0f;
        }
        if constexpr (!Q8) {
            // More at a time would not fit the registers of many rows.
            constexpr int UNROLL = WARP_ROWS == 1 ? 4 : 1;
            const uint8_t *keys = page + (lane / 8 * KEY_TILE * HEAD_DIM + lane % 8 * 2) * 2;
#pragma unroll UNROLL
            for (int d = 0; d < HEAD_DIM; d += 4) {
                float2 k[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    k[i] = halves(*reinterpret_cast<const uint32_t *>(keys + (d + i) * KEY_TILE * 2));
                }
#pragma unroll
                for (int r = 0; r < WARP_ROWS; r++) {
                    const float4 q =
                        *reinterpret_cast<const float4 *>(queries + (r * WARPS + warp) * QUERY_BYTES + d * 4);
                    s[r][0] = fmaf(q.x, k[0].x, s[r][0]);
                    s[r][1] = fmaf(q.x, k[0].y, s[r][1]);
                    s[r][0] = fmaf(q.y, k[1].x, s[r][0]);
                    s[r][1] = fmaf(q.y, k[1].y, s[r][1]);
                    s[r][0] = fmaf(q.z, k[2].x, s[r][0]);
                    s[r][1] = fmaf(q.z, k[2].y, s[r][1]);
                    s[r][0] = fmaf(q.w, k[3].x, s[r][0]);
                    s[r][1] = fmaf(q.w, k[3].y, s[r][1]);
                }
            }
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                s[r][0] = scale * s[r][0];
                s[r][1] = scale * s[r][1];
            }
        } else {
            const int tile = lane / 8, in_tile = lane % 8 * 2;
            const uint8_t *levels = page + tile * KEY_TILE * HEAD_DIM + in_tile * 4;
            const uint8_t *scales = page + PAGE * HEAD_DIM + (tile * KEY_TILE * GROUPS + in_tile) * 2;
            float second[WARP_ROWS][2];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                second[r][0] = second[r][1] = 0.0f;
            }
#pragma unroll 1
            for (int g = 0; g < GROUPS; g++) {
                uint2 k[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    k[i] = *reinterpret_cast<const uint2 *>(levels + (g * 8 + i) * (4 * KEY_TILE));
                }
                const float2 key_scale = halves(*reinterpret_cast<const uint32_t *>(scales + g * KEY_TILE * 2));
#pragma unroll
                for (int r = 0; r < WARP_ROWS; r++) {
                    const uint8_t *query = queries + (r * WARPS + warp) * QUERY_BYTES;
                    const float *query_scales = reinterpret_cast<const float *>(query + 2 * HEAD_DIM);
#pragma unroll
                    for (int part = 0; part < 2; part++) {
                        const uint4 *words = reinterpret_cast<const uint4 *>(query + part * HEAD_DIM + g * GROUP);
                        const uint4 q[2] = {words[0], words[1]};
                        int sum[2] = {0, 0};
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            sum[0] = multiply_4(q[i].x, k[4 * i].x, sum[0]);
                            sum[1] = multiply_4(q[i].x, k[4 * i].y, sum[1]);
                            sum[0] = multiply_4(q[i].y, k[4 * i + 1].x, sum[0]);
                            sum[1] = multiply_4(q[i].y, k[4 * i + 1].y, sum[1]);
                            sum[0] = multiply_4(q[i].z, k[4 * i + 2].x, sum[0]);
                            sum[1] = multiply_4(q[i].z, k[4 * i + 2].y, sum[1]);
                            sum[0] = multiply_4(q[i].w, k[4 * i + 3].x, sum[0]);
                            sum[1] = multiply_4(q[i].w, k[4 * i + 3].y, sum[1]);
                        }
                        const float own = query_scales[part * GROUPS + g];
                        float(&to)[2] = part == 0 ? s[r] : second[r];
                        to[0] = fmaf(own * key_scale.x, static_cast<float>(sum[0]), to[0]);
                        to[1] = fmaf(own * key_scale.y, static_cast<float>(sum[1]), to[1]);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                s[r][0] = scale * s[r][0] + scale * second[r][0];
                s[r][1] = scale * s[r][1] + scale * second[r][1];
            }
        }
    }

    __device__ static void run(const Attend &attend) {
        uint8_t *shared = shared_memory();
        float *scores = reinterpret_cast<float *>(shared + SCORES_AT);
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int kv_head = blockIdx.y, group = attend.heads / attend.kv_heads;
        // The run that this block has rows of. There may be more blocks than all runs need.
        const int runs = attend.places.runs();
        int block = blockIdx.z, index = 0, rows = 0;
        Run run = {0, 0, 0, 0};
        for (;; index++) {
            if (index == runs) {
                return;
            }
            run = attend.places.run(index);
            rows = run.columns * group;
            const int blocks = ceil_div(rows, ROWS);
            if (block < blocks) {
                break;
            }
            block -= blocks;
        }
        const int length = run.position + run.columns;
        const int first_row = block * ROWS, last_row = min(rows, first_row + ROWS) - 1;

        // Positions that some row of this block sees, and its chunks.
        const int first_seen = max(0, run.position + first_row / group - attend.before);
        const int end_seen = min(length, run.position + last_row / group + attend.after + 1);
        const int chunk_begin = attend.partial_sums ? first_seen / CHUNK + static_cast<int>(blockIdx.x)
                                                    : first_seen / CHUNK;
        int chunk_end = ceil_div(end_seen, CHUNK);
        if (attend.partial_sums) {
            chunk_end = min(chunk_end, chunk_begin + 1);
        }
        if (chunk_begin < chunk_end) {
            load_queries(shared, attend, run, kv_head, group, first_row, rows, warp, lane);
        }

        // Positions of rows; one that is not there sees nothing.
        int own[WARP_ROWS];
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            const int row = first_row + r * WARPS + warp;
            own[r] = row < rows ? run.position + row / group : -(1 << 30);
        }
        float total_top[WARP_ROWS], total_sum[WARP_ROWS], total[WARP_ROWS][D::COUNT];
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            total_top[r] = __int_as_float(0xff800000);
            total_sum[r] = 0.0f;
#pragma unroll
            for (int d = 0; d < D::COUNT; d++) {
                total[r][d] = 0.0f;
            }
        }

        for (int chunk = chunk_begin; chunk < chunk_end; chunk++) {
            const int begin = max(first_seen, chunk * CHUNK), end = min(end_seen, (chunk + 1) * CHUNK);
            const int page_begin = begin / PAGE, pages = ceil_div(end, PAGE) - page_begin;
            // What each row sees of the chunk.
            auto sees_from = [&](int r) { return max(0, own[r] - attend.before - chunk * CHUNK); };
            auto sees_to = [&](int r) { return min(end, own[r] + attend.after + 1) - chunk * CHUNK; };
            float top[WARP_ROWS], sum[WARP_ROWS], out[WARP_ROWS][D::COUNT];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
#pragma unroll
                for (int d = 0; d < D::COUNT; d++) {
                    out[r][d] = 0.0f;
                }
            }
            __syncthreads(); // the pages before have been read
            fetch(shared, attend, kv_head, attend.places.page(run.table, page_begin), false);
            copy_commit();
            // Pages of keys, and then the same of values.
            for (int step = 0; step < 2 * pages; step++) {
                const int next = step + 1;
                copy_wait<0>();
                __syncthreads();
                if (next < 2 * pages) {
                    const int number = attend.places.page(run.table, page_begin + next % pages);
                    fetch(shared + next % 2 * PAGE_BYTES, attend, kv_head, number, next >= pages);
                }
                copy_commit();
                const uint8_t *page = shared + step % 2 * PAGE_BYTES;
                const int at = (page_begin + step % pages) * PAGE - chunk * CHUNK;
                if (step < pages) {
                    float s[WARP_ROWS][2];
                    score(s, page, shared + QUERIES_AT, attend.scale, warp, lane);
#pragma unroll
                    for (int r = 0; r < WARP_ROWS; r++) {
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            const int p = at + 2 * lane + i;
                            float score = s[r][i];
                            if (attend.cap > 0.0f) {
                                score = attend.cap * hyperbolic_tangent(score / attend.cap);
                            }
                            // What is not seen weighs exactly zero.
                            const bool seen = p >= sees_from(r) && p < sees_to(r);
                            scores[(r * WARPS + warp) * CHUNK + p] = seen ? score : __int_as_float(0xff800000);
                        }
                    }
                    if (step == pages - 1) {
                        __syncwarp();
#pragma unroll
                        for (int r = 0; r < WARP_ROWS; r++) {
                            weigh(scores + (r * WARPS + warp) * CHUNK, page_begin * PAGE - chunk * CHUNK,
                                  at + PAGE, sees_from(r) < sees_to(r), lane, top[r], sum[r]);
                        }
                        __syncwarp();
                    }
                } else {
                    const int low = max(0, begin - chunk * CHUNK - at), high = min(PAGE, end - chunk * CHUNK - at);
                    for (int p = low; p < high; p++) {
                        float v[D::COUNT], scale = 1.0f;
                        if constexpr (Q8) {
                            D::load_levels(v, page + p * HEAD_DIM, lane);
                            const uint16_t *scales = reinterpret_cast<const uint16_t *>(page + PAGE * HEAD_DIM);
                            scale = __half2float(__ushort_as_half(scales[p]));
                        } else {
                            D::load_halves(v, page + p * HEAD_DIM * 2, lane);
                        }
#pragma unroll
                        for (int r = 0; r < WARP_ROWS; r++) {
                            float weight = scores[(r * WARPS + warp) * CHUNK + at + p];
                            if constexpr (Q8) {
                                weight = weight * scale;
                            }
                            if (at + p >= sees_from(r) && at + p < sees_to(r)) {
#pragma unroll
                                for (int d = 0; d < D::COUNT; d++) {
                                    out[r][d] = fmaf(weight, v[d], out[r][d]);
                                }
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                merge<D::COUNT>(total_top[r], total_sum[r], total[r], top[r], sum[r], out[r]);
            }
        }
        copy_wait<0>();
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            const int row = first_row + r * WARPS + warp;
            if (row >= rows) {
                continue;
            }
            const int column = run.first + row / group, head = kv_head * group + row % group;
            if (attend.partial_sums) {
                const size_t at = (static_cast<size_t>(blockIdx.x) * attend.columns + column) * attend.heads + head;
                if (lane == 0) {
                    reinterpret_cast<float2 *>(attend.partial_sums)[at] = make_float2(total_top[r], total_sum[r]);
                }
                // What a row sees nothing of is not read.
                if (total_sum[r] != 0.0f) {
                    D::store(attend.output + at * HEAD_DIM, total[r], 1.0f, lane);
                }
            } else {
                const size_t at = static_cast<size_t>(column) * attend.heads + head;
                D::store(attend.output + at * HEAD_DIM, total[r], total_sum[r], lane);
            }
        }
    }

    // Weights of the scores from `begin` to `end`, whole tiles, and their sum in 16 lanes.
    __device__ static void weigh(float *scores, int begin, int end, bool any, int lane, float &top, float &sum) {
        float largest = __int_as_float(0xff800000);
        for (int p = begin + lane; p < end; p += 32) {
            largest = scores[p] > largest ? scores[p] : largest;
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            const float other = __shfl_xor_sync(0xffffffff, largest, mask);
            largest = other > largest ? other : largest;
        }
        for (int p = begin + lane; p < end; p += 32) {
            scores[p] = exponential(scores[p] - largest);
        }
        __syncwarp();
        float mine = 0.0f;
        for (int p = begin + lane % 16; p < end; p += 16) {
            mine = mine + scores[p];
        }
        const float all = __shfl_sync(0xffffffff, sum_lanes(mine), 0);
        top = any ? largest : __int_as_float(0xff800000);
        sum = any ? all : 0.0f;
    }
};

// Merges partial results of `parts` chunks in ascending order; a warp for each row.
template <int HEAD_DIM>
__device__ void merge_parts(const float *partial_sums, const float *partial, int parts, int rows, float *output) {
    using D = Dims<HEAD_DIM>;
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    float top = __int_as_float(0xff800000), sum = 0.0f, out[D::COUNT];
#pragma unroll
    for (int d = 0; d < D::COUNT; d++) {
        out[d] = 0.0f;
    }
    for (int part = 0; part < parts; part++) {
        const size_t at = static_cast<size_t>(part) * rows + row;
        const float2 next = reinterpret_cast<const float2 *>(partial_sums)[at];
        if (next.y == 0.0f) {
            continue;
        }
        float values[D::COUNT];
        D::load(values, partial + at * HEAD_DIM, lane);
        merge<D::COUNT>(top, sum, out, next.x, next.y, values);
    }
    D::store(output + static_cast<size_t>(row) * HEAD_DIM, out, sum, lane);
}

} // namespace andon

#define ANDON_ATTENTION(HEAD_DIM, Q8, WARP_ROWS, NAME)                                                                 \
    using NAME##_kernel = andon::Attention<HEAD_DIM, Q8, WARP_ROWS>;                                                   \
    extern "C" __device__ const andon::Launch NAME##_launch = {256, NAME##_kernel::SHARED_BYTES,                       \
                                                               NAME##_kernel::BLOCK_ROWS, andon::CHUNK};               \
    extern "C" __global__ __launch_bounds__(256, 1) void NAME(                                                         \
        const float *queries, int query_stride, const uint8_t *cache, const int *places, int columns_max, int heads,  \
        int kv_heads, int columns, int before, int after, float scale, float cap, float *partial_sums,                \
        float *output) {                                                                                               \
        const andon::Attend attend = {queries, query_stride, cache, {places, columns_max}, heads,        kv_heads,     \
                                      columns, before,       after, scale,                 cap,          partial_sums, \
                                      output};                                                                         \
        NAME##_kernel::run(attend);                                                                                    \
    }
#define ANDON_ATTENTIONS(HEAD_DIM, MANY)                                                                               \
    ANDON_ATTENTION(HEAD_DIM, false, 1, attend_##HEAD_DIM##_few_f16)                                                   \
    ANDON_ATTENTION(HEAD_DIM, false, MANY, attend_##HEAD_DIM##_many_f16)                                               \
    ANDON_ATTENTION(HEAD_DIM, true, 1, attend_##HEAD_DIM##_few_q8)                                                     \
    ANDON_ATTENTION(HEAD_DIM, true, MANY, attend_##HEAD_DIM##_many_q8)                                                 \
    extern "C" __global__ __launch_bounds__(128) void attend_##HEAD_DIM##_merge(                                       \
        const float *partial_sums, const float *partial, int parts, int rows, float *output) {                         \
        andon::merge_parts<HEAD_DIM>(partial_sums, partial, parts, rows, output);                                      \
    }

ANDON_ATTENTIONS(32, 8)
ANDON_ATTENTIONS(64, 8)
ANDON_ATTENTIONS(96, 8)
ANDON_ATTENTIONS(128, 8)
ANDON_ATTENTIONS(256, 4)

// Of some rows: for devices that let a block have no more than 99 KB of shared memory, where many take more.
ANDON_ATTENTION(96, false, 4, attend_96_some_f16)
ANDON_ATTENTION(128, false, 4, attend_128_some_f16)
ANDON_ATTENTION(256, false, 2, attend_256_some_f16)
