// What happens to heads between the products that make them and attention: biases, norms, rotation, and keys and values
// into the cache.
#include "arithmetic.cuh"
#include "cache.cuh"
#include "quantize.cuh"

namespace andon {

struct Heads {
    float *columns;
    int heads, kv_heads, head_dim;
    const float *bias;                        // of all heads of a column; null: none
    const float *query_weight, *key_weight;   // of the norms; null: none
    float epsilon;
    const float *query_factors;               // of each column; null: none
    const float2 *rotations;                  // {cosine, sine} of `pairs` pairs for each column
    int pairs, adjacent;                      // which elements are pairs: kernels/src/op/rope.rs
    uint8_t *cache;
    Places places;
};

// Columns of `heads` query heads, `kv_heads` key heads and as many value heads; a warp for each head, heads in x, columns
// in y. Queries stay where they are; keys and values go to the cache.
template <bool Q8> __device__ __forceinline__ void place(const Heads &h) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head_dim = h.head_dim;
    const int head = blockIdx.x * (blockDim.x / 32) + warp, column = blockIdx.y;
    const int of_column = h.heads + 2 * h.kv_heads, position = h.places.position(column);
    if (head >= of_column || position < 0) {
        return;
    }
    float *values = reinterpret_cast<float *>(shared_memory()) + warp * head_dim;
    float *from = h.columns + (static_cast<size_t>(column) * of_column + head) * head_dim;
    for (int i = lane; i < head_dim; i += 32) {
        values[i] = h.bias != nullptr ? from[i] + h.bias[head * head_dim + i] : from[i];
    }
    __syncwarp();
    const bool is_query = head < h.heads, is_value = head >= h.heads + h.kv_heads;
    if (!is_value) {
        const float *weight = is_query ? h.query_weight : h.key_weight;
        if (weight != nullptr) {
            const float factor = norm_factor(values, head_dim, h.epsilon, lane);
            for (int i = lane; i < head_dim; i += 32) {
                values[i] = values[i] * factor * weight[i];
            }
            __syncwarp();
        }
        const float2 *rotations = h.rotations + static_cast<size_t>(column) * h.pairs;
        for (int pair = lane; pair < h.pairs; pair += 32) {
            const int first = h.adjacent ? 2 * pair : pair, second = h.adjacent ? 2 * pair + 1 : pair + h.pairs;
            const float2 rotation = rotations[pair];
            const float x = values[first], y = values[second];
            values[first] = x * rotation.x - y * rotation.y;
            values[second] = x * rotation.y + y * rotation.x;
        }
        __syncwarp();
    }
    if (is_query) {
        const float factor = h.query_factors != nullptr ? h.query_factors[column] : 1.0f;
        for (int i = lane; i < head_dim; i += 32) {
            from[i] = values[i] * factor;
        }
        return;
    }
    const int in_page = position % PAGE, kv_head = (head - h.heads) % h.kv_heads;
    const int number = h.places.page(h.places.table(column), position / PAGE);
    uint8_t *page = page_of<Q8>(h.cache, number, h.kv_heads, kv_head, head_dim);
    if (is_value) {
        page += key_bytes<Q8>(head_dim);
    }
    if constexpr (!Q8) {
        uint16_t *halves = reinterpret_cast<uint16_t *>(page);
        for (int i = lane; i < head_dim; i += 32) {
            const int to = is_value ? in_page * head_dim + i : key_index(in_page, i, head_dim);
            halves[to] = __half_as_ushort(__float2half_rn(values[i]));
        }
    } else {
        uint16_t *scales = reinterpret_cast<uint16_t *>(page + PAGE * head_dim);
        if (is_value) {
            uint32_t largest = 0;
            for (int i = lane; i < head_dim; i += 32) {
                const uint32_t bits = magnitude_bits(values[i]);
                largest = bits > largest ? bits : largest;
            }
            const HeadScale scale(__reduce_max_sync(0xffffffff, largest));
            for (int i = lane; i < head_dim; i += 32) {
                page[in_page * head_dim + i] = static_cast<uint8_t>(scale.level(values[i]));
            }
            if (lane == 0) {
                scales[in_page] = scale.bits;
            }
            return;
        }
        for (int group = 0; group < head_dim / GROUP; group++) {
            const int i = group * GROUP + lane;
            const HeadScale scale(__reduce_max_sync(0xffffffff, magnitude_bits(values[i])));
            page[key_level_index(in_page, i, head_dim)] = static_cast<uint8_t>(scale.level(values[i]));
            if (lane == 0) {
                scales[key_scale_index(in_page, group, head_dim)] = scale.bits;
            }
        }
    }
}

} // namespace andon

#define ANDON_HEADS(NAME, Q8)                                                                                          \
    extern "C" __global__ __launch_bounds__(128) void NAME(                                                            \
        float *columns, int heads, int kv_heads, int head_dim, const float *bias, const float *query_weight,          \
        const float *key_weight, float epsilon, const float *query_factors, const float2 *rotations, int pairs,       \
        int adjacent, uint8_t *cache, const int *places, int columns_max) {                                            \
        const andon::Heads heads_of = {columns,    heads,   kv_heads,      head_dim,  bias,  query_weight,             \
                                       key_weight, epsilon, query_factors, rotations, pairs, adjacent,                 \
                                       cache,      {places, columns_max}};                                             \
        andon::place<Q8>(heads_of);                                                                                    \
    }

ANDON_HEADS(heads_f16, false)
ANDON_HEADS(heads_q8, true)
