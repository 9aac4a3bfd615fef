// What happens to heads between the products that make them and attention: norms, rotation, and keys and values into
// the cache.
#include "arithmetic.cuh"
#include "cache.cuh"

// Columns of `heads` query heads, `kv_heads` key heads and as many value heads; a warp for each head, heads in x, columns
// in y. Column `c` is at position `position + c`. Queries stay where they are; keys and values go to the cache in f16.
//
// Where `query_weight` and `key_weight` are there, queries and keys are normed first. `rotations` has {cosine, sine} of
// `pairs` pairs for each column; `adjacent` says which elements are pairs (kernels/src/op/rope.rs).
extern "C" __global__ __launch_bounds__(128) void heads_f16(float *columns, int heads, int kv_heads, int head_dim,
                                                            const float *query_weight, const float *key_weight,
                                                            float epsilon, const float2 *rotations, int pairs,
                                                            int adjacent, uint16_t *cache, const int *table,
                                                            int position) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int head = blockIdx.x * (blockDim.x / 32) + warp, column = blockIdx.y;
    if (head >= heads + 2 * kv_heads) {
        return;
    }
    float *values = reinterpret_cast<float *>(andon::shared_memory()) + warp * head_dim;
    float *from = columns + (static_cast<size_t>(column) * (heads + 2 * kv_heads) + head) * head_dim;
    for (int i = lane; i < head_dim; i += 32) {
        values[i] = from[i];
    }
    __syncwarp();
    const bool is_query = head < heads, is_value = head >= heads + kv_heads;
    if (!is_value) {
        const float *weight = is_query ? query_weight : key_weight;
        if (weight != nullptr) {
            const float factor = andon::norm_factor(values, head_dim, epsilon, lane);
            for (int i = lane; i < head_dim; i += 32) {
                values[i] = values[i] * factor * weight[i];
            }
            __syncwarp();
        }
        rotations += static_cast<size_t>(column) * pairs;
        for (int pair = lane; pair < pairs; pair += 32) {
            const int first = adjacent ? 2 * pair : pair, second = adjacent ? 2 * pair + 1 : pair + pairs;
            const float2 rotation = rotations[pair];
            const float x = values[first], y = values[second];
            values[first] = x * rotation.x - y * rotation.y;
            values[second] = x * rotation.y + y * rotation.x;
        }
        __syncwarp();
    }
    if (is_query) {
        for (int i = lane; i < head_dim; i += 32) {
            from[i] = values[i];
        }
        return;
    }
    const int at = position + column, in_page = at % andon::PAGE;
    const int kv_head = (head - heads) % kv_heads;
    uint16_t *page = andon::page_of(cache, table, at, kv_heads, kv_head, head_dim);
    for (int i = lane; i < head_dim; i += 32) {
        const int to = is_value ? andon::PAGE * head_dim + in_page * head_dim + i
                                : andon::key_index(in_page, i, head_dim);
        page[to] = __half_as_ushort(__float2half_rn(values[i]));
    }
}
