// Attention of query heads that share a KV head: kernels/src/op/attention.rs states the result.
//
// A block takes some rows (query heads of consecutive columns) through chunks of 256 positions. Warp `w` has rows `w`,
// `w` + 8 and so on; its lanes share out positions when it makes scores, and dimensions when it sums values. Pages of
// keys and values come to shared memory one ahead.
#include "arithmetic.cuh"
#include "cache.cuh"

namespace andon {

struct Attend {
    const float *queries;   // of column c at c * query_stride, heads one after the other
    int query_stride;
    const uint16_t *cache;
    const int *table;
    int heads, kv_heads, columns;
    int position;           // of the first column
    int length;             // positions that there are
    int before, after;      // positions that a column sees before and after its own
    float scale, cap;       // no cap: 0
    float *partial_sums;    // of chunk s, head h, column c: {top, sum} at (s * columns + c) * heads + h; null: whole rows
    float *output;          // like partial_sums, but HEAD_DIM elements; whole rows: of column c at c * heads * HEAD_DIM
};

template <int HEAD_DIM, int WARP_ROWS> struct Attention {
    static constexpr int WARPS = 8, ROWS = WARPS * WARP_ROWS;
    static constexpr int PAGE_BYTES = PAGE * HEAD_DIM * 2;
    static constexpr int DIMS = HEAD_DIM / 32; // of a lane: two at a time, 64 apart
    static constexpr int QUERIES_AT = 2 * PAGE_BYTES;
    static constexpr int SCORES_AT = QUERIES_AT + ROWS * HEAD_DIM * 4;
    static constexpr int SHARED_BYTES = SCORES_AT + ROWS * CHUNK * 4;

    // Starts copying page number `number` of the sequence, its keys or its values.
    __device__ static void fetch(uint8_t *to, const Attend &attend, int kv_head, int number, bool values) {
        const uint16_t *page = page_of(attend.cache, attend.table, number * PAGE, attend.kv_heads, kv_head, HEAD_DIM);
        const uint8_t *from = reinterpret_cast<const uint8_t *>(page) + (values ? PAGE_BYTES : 0);
        for (int at = threadIdx.x * 16; at < PAGE_BYTES; at += WARPS * 32 * 16) {
            copy_16(to + at, from + at);
        }
    }

    __device__ static void run(const Attend &attend) {
        uint8_t *shared = shared_memory();
        float *queries = reinterpret_cast<float *>(shared + QUERIES_AT);
        float *scores = reinterpret_cast<float *>(shared + SCORES_AT);
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int kv_head = blockIdx.y, group = attend.heads / attend.kv_heads;
        const int rows = attend.columns * group, first_row = blockIdx.z * ROWS;
        const int last_row = min(rows, first_row + ROWS) - 1;

        // Positions that some row of this block sees, and its chunks.
        const int first_seen = max(0, attend.position + first_row / group - attend.before);
        const int end_seen = min(attend.length, attend.position + last_row / group + attend.after + 1);
        const int chunk_begin = attend.partial_sums ? first_seen / CHUNK + static_cast<int>(blockIdx.x)
                                                    : first_seen / CHUNK;
        int chunk_end = ceil_div(end_seen, CHUNK);
        if (attend.partial_sums) {
            chunk_end = min(chunk_end, chunk_begin + 1);
        }

        for (int i = threadIdx.x; i < ROWS * HEAD_DIM; i += WARPS * 32) {
            const int row = first_row + i / HEAD_DIM;
            float value = 0.0f;
            if (row < rows) {
                const size_t at = static_cast<size_t>(row / group) * attend.query_stride +
                                  (kv_head * group + row % group) * HEAD_DIM;
                value = attend.queries[at + i % HEAD_DIM];
            }
            queries[i] = value;
        }

        float total_top[WARP_ROWS], total_sum[WARP_ROWS], total[WARP_ROWS][DIMS];
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            total_top[r] = __int_as_float(0xff800000);
            total_sum[r] = 0.0f;
#pragma unroll
            for (int d = 0; d < DIMS; d++) {
                total[r][d] = 0.0f;
            }
        }

        for (int chunk = chunk_begin; chunk < chunk_end; chunk++) {
            const int begin = max(first_seen, chunk * CHUNK), end = min(end_seen, (chunk + 1) * CHUNK);
            const int page_begin = begin / PAGE, pages = ceil_div(end, PAGE) - page_begin;
            // What each row sees of the chunk.
            int seen_begin[WARP_ROWS], seen_end[WARP_ROWS];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                const int row = first_row + r * WARPS + warp, position = attend.position + row / group;
                seen_begin[r] = max(chunk * CHUNK, position - attend.before) - chunk * CHUNK;
                seen_end[r] = row < rows ? min(end, position + attend.after + 1) - chunk * CHUNK : 0;
            }
            float top[WARP_ROWS], sum[WARP_ROWS], out[WARP_ROWS][DIMS];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
#pragma unroll
                for (int d = 0; d < DIMS; d++) {
                    out[r][d] = 0.0f;
                }
            }
            __syncthreads(); // the pages before have been read
            fetch(shared, attend, kv_head, page_begin, false);
            copy_commit();
            // Pages of keys, and then the same of values.
            for (int step = 0; step < 2 * pages; step++) {
                const int next = step + 1;
                copy_wait<0>();
                __syncthreads();
                if (next < 2 * pages) {
                    fetch(shared + next % 2 * PAGE_BYTES, attend, kv_head, page_begin + next % pages, next >= pages);
                }
                copy_commit();
                const uint8_t *page = shared + step % 2 * PAGE_BYTES;
                const int at = (page_begin + step % pages) * PAGE - chunk * CHUNK;
                if (step < pages) {
                    // Lane l has positions 2 l and 2 l + 1 of the page.
                    float s[WARP_ROWS][2];
#pragma unroll
                    for (int r = 0; r < WARP_ROWS; r++) {
                        s[r][0] = s[r][1] = 0.0f;
                    }
                    const uint8_t *keys = page + (lane / 8 * KEY_TILE * HEAD_DIM + lane % 8 * 2) * 2;
#pragma unroll 4
                    for (int d = 0; d < HEAD_DIM; d += 4) {
                        float2 k[4];
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            k[i] = halves(*reinterpret_cast<const uint32_t *>(keys + (d + i) * KEY_TILE * 2));
                        }
#pragma unroll
                        for (int r = 0; r < WARP_ROWS; r++) {
                            const float4 q =
                                *reinterpret_cast<const float4 *>(queries + (r * WARPS + warp) * HEAD_DIM + d);
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
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            const int p = at + 2 * lane + i;
                            float score = attend.scale * s[r][i];
                            if (attend.cap > 0.0f) {
                                score = attend.cap * hyperbolic_tangent(score / attend.cap);
                            }
                            // What is not seen weighs exactly zero.
                            const bool seen = p >= seen_begin[r] && p < seen_end[r];
                            scores[(r * WARPS + warp) * CHUNK + p] = seen ? score : __int_as_float(0xff800000);
                        }
                    }
                    if (step == pages - 1) {
                        __syncwarp();
#pragma unroll
                        for (int r = 0; r < WARP_ROWS; r++) {
                            weigh(scores + (r * WARPS + warp) * CHUNK, page_begin * PAGE - chunk * CHUNK,
                                  at + PAGE, seen_begin[r] < seen_end[r], lane, top[r], sum[r]);
                        }
                        __syncwarp();
                    }
                } else {
                    // Lane l has dimensions 64 i + 2 l and 64 i + 2 l + 1.
                    const int low = max(0, begin - chunk * CHUNK - at), high = min(PAGE, end - chunk * CHUNK - at);
                    for (int p = low; p < high; p++) {
                        float2 v[DIMS / 2];
#pragma unroll
                        for (int i = 0; i < DIMS / 2; i++) {
                            v[i] = halves(reinterpret_cast<const uint32_t *>(page)[p * (HEAD_DIM / 2) + 32 * i + lane]);
                        }
#pragma unroll
                        for (int r = 0; r < WARP_ROWS; r++) {
                            const float weight = scores[(r * WARPS + warp) * CHUNK + at + p];
                            if (at + p >= seen_begin[r] && at + p < seen_end[r]) {
#pragma unroll
                                for (int i = 0; i < DIMS / 2; i++) {
                                    out[r][2 * i] = fmaf(weight, v[i].x, out[r][2 * i]);
                                    out[r][2 * i + 1] = fmaf(weight, v[i].y, out[r][2 * i + 1]);
                                }
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                merge(total_top[r], total_sum[r], total[r], top[r], sum[r], out[r]);
            }
        }
        copy_wait<0>();
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            const int row = first_row + r * WARPS + warp;
            if (row >= rows) {
                continue;
            }
            const int column = row / group, head = kv_head * group + row % group;
            if (attend.partial_sums) {
                const size_t at = (static_cast<size_t>(blockIdx.x) * attend.columns + column) * attend.heads + head;
                if (lane == 0) {
                    reinterpret_cast<float2 *>(attend.partial_sums)[at] = make_float2(total_top[r], total_sum[r]);
                }
                store(attend.output + at * HEAD_DIM, total[r], 1.0f, lane);
            } else {
                const size_t at = static_cast<size_t>(column) * attend.heads + head;
                store(attend.output + at * HEAD_DIM, total[r], total_sum[r], lane);
            }
        }
    }

    __device__ static void store(float *to, const float (&values)[DIMS], float by, int lane) {
#pragma unroll
        for (int i = 0; i < DIMS / 2; i++) {
            reinterpret_cast<float2 *>(to)[32 * i + lane] = make_float2(values[2 * i] / by, values[2 * i + 1] / by);
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

    __device__ static void merge(float &top, float &sum, float (&out)[DIMS], float top_next, float sum_next,
                                 const float (&next)[DIMS]) {
        if (sum_next == 0.0f) {
            return;
        }
        if (sum == 0.0f) {
            top = top_next;
            sum = sum_next;
#pragma unroll
            for (int d = 0; d < DIMS; d++) {
                out[d] = next[d];
            }
            return;
        }
        const float larger = top_next > top ? top_next : top;
        const float before = exponential(top - larger), after = exponential(top_next - larger);
        top = larger;
        sum = sum * before + sum_next * after;
#pragma unroll
        for (int d = 0; d < DIMS; d++) {
            out[d] = out[d] * before + next[d] * after;
        }
    }
};

// Merges partial results of `parts` chunks in ascending order; a warp for each row.
template <int HEAD_DIM>
__device__ void merge_parts(const float *partial_sums, const float *partial, int parts, int rows, float *output) {
    using A = Attention<HEAD_DIM, 1>;
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    float top = __int_as_float(0xff800000), sum = 0.0f, out[A::DIMS];
#pragma unroll
    for (int d = 0; d < A::DIMS; d++) {
        out[d] = 0.0f;
    }
    for (int part = 0; part < parts; part++) {
        const size_t at = static_cast<size_t>(part) * rows + row;
        const float2 next = reinterpret_cast<const float2 *>(partial_sums)[at];
        float values[A::DIMS];
#pragma unroll
        for (int i = 0; i < A::DIMS / 2; i++) {
            const float2 two = reinterpret_cast<const float2 *>(partial + at * HEAD_DIM)[32 * i + lane];
            values[2 * i] = two.x;
            values[2 * i + 1] = two.y;
        }
        A::merge(top, sum, out, next.x, next.y, values);
    }
    A::store(output + static_cast<size_t>(row) * HEAD_DIM, out, sum, lane);
}

} // namespace andon

#define ANDON_ATTENTION(HEAD_DIM, WARP_ROWS, NAME)                                                                     \
    extern "C" __global__ __launch_bounds__(256) void NAME(                                                            \
        const float *queries, int query_stride, const uint16_t *cache, const int *table, int heads, int kv_heads,     \
        int columns, int position, int length, int before, int after, float scale, float cap, float *partial_sums,    \
        float *output) {                                                                                               \
        const andon::Attend attend = {queries,  query_stride, cache,  table, heads, kv_heads,     columns, position,   \
                                      length,   before,       after,  scale, cap,   partial_sums, output};             \
        andon::Attention<HEAD_DIM, WARP_ROWS>::run(attend);                                                            \
    }
#define ANDON_ATTENTIONS(HEAD_DIM, MANY)                                                                               \
    ANDON_ATTENTION(HEAD_DIM, 1, attend_##HEAD_DIM##_few)                                                              \
    ANDON_ATTENTION(HEAD_DIM, MANY, attend_##HEAD_DIM##_many)                                                          \
    extern "C" __global__ __launch_bounds__(128) void attend_##HEAD_DIM##_merge(                                       \
        const float *partial_sums, const float *partial, int parts, int rows, float *output) {                         \
        andon::merge_parts<HEAD_DIM>(partial_sums, partial, parts, rows, output);                                      \
    }

ANDON_ATTENTIONS(64, 8)
ANDON_ATTENTIONS(128, 8)
ANDON_ATTENTIONS(256, 4)
