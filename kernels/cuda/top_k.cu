// The largest logits of columns, in order: the largest first, of equal ones the lowest token first.
//
// A candidate is one word: the logit's bits, changed so that they are ordered as logits are, above the token's
// complement. So the largest word is the best candidate, and no two are equal.
#include "device.cuh"

namespace andon {

// Bits of the least magnitude of a logit that is no sound one, 2^96; all that is not finite has larger ones.
constexpr uint32_t FAULT = 0x6f800000;

// Candidates that a block sorts at a time, two for each of its threads.
constexpr int SORTED = 2048;

__device__ __forceinline__ uint64_t candidate(float logit, int token) {
    const uint32_t bits = __float_as_uint(logit + 0.0f); // of both zeros the positive one
    const uint32_t ordered = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~token);
}

// Sorts `count` words, a power of two, the largest first: Batcher's bitonic network. All threads of a block call this.
__device__ __forceinline__ void sort_descending(uint64_t *words, int count) {
    for (int size = 2; size <= count; size *= 2) {
        for (int distance = size / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < count / 2; i += blockDim.x) {
                const int low = 2 * i - i % distance, high = low + distance;
                const bool descending = (low & size) == 0;
                const uint64_t a = words[low], b = words[high];
                if ((a < b) == descending) {
                    words[low] = b;
                    words[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

__device__ __forceinline__ int power_of_two(int count) {
    int result = 2;
    while (result < count) {
        result *= 2;
    }
    return result;
}

} // namespace andon

// The `k` best of each stretch of SORTED tokens, stretches in x and columns in y: `[column][stretch][k]`. Where a logit is
// no sound one, the first of the 1 + 2 k words that are found of its column becomes 1.
extern "C" __global__ __launch_bounds__(1024) void top_k_stretches(const float *logits, int tokens, int stride, int k,
                                                                   uint64_t *best, int *found) {
    uint64_t *words = reinterpret_cast<uint64_t *>(andon::shared_memory());
    const int first = blockIdx.x * andon::SORTED, column = blockIdx.y;
    const int count = min(andon::SORTED, tokens - first);
    for (int i = threadIdx.x; i < andon::SORTED; i += blockDim.x) {
        uint64_t word = 0;
        if (i < count) {
            const float logit = logits[static_cast<size_t>(column) * stride + first + i];
            if ((__float_as_uint(logit) & 0x7fffffff) >= andon::FAULT) {
                found[static_cast<size_t>(column) * (1 + 2 * k)] = 1;
            } else {
                word = andon::candidate(logit, first + i);
            }
        }
        words[i] = word;
    }
    if (k == 1) {
        // The best of all is what halving finds.
        for (int half = andon::SORTED / 2; half > 0; half /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < half; i += blockDim.x) {
                words[i] = words[i] > words[i + half] ? words[i] : words[i + half];
            }
        }
        __syncthreads();
    } else {
        andon::sort_descending(words, andon::SORTED);
    }
    uint64_t *to = best + (static_cast<size_t>(column) * gridDim.x + blockIdx.x) * k;
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        to[i] = words[i];
    }
}

// The `k` best of `count` candidates of each column: tokens and then logits, behind the first word that is found of it. A
// block for each column. `k` is at most half of SORTED. Where there are fewer, tokens are -1.
extern "C" __global__ __launch_bounds__(1024) void top_k_merge(const uint64_t *candidates, int count, int k, int *found) {
    uint64_t *words = reinterpret_cast<uint64_t *>(andon::shared_memory());
    const int column = blockIdx.x;
    candidates += static_cast<size_t>(column) * count;
    int kept = 0;
    for (int first = 0; first < count;) {
        const int taken = min(andon::SORTED - kept, count - first);
        const int sorted = andon::power_of_two(kept + taken);
        for (int i = kept + threadIdx.x; i < sorted; i += blockDim.x) {
            words[i] = i < kept + taken ? candidates[first + i - kept] : 0;
        }
        andon::sort_descending(words, sorted);
        first += taken;
        kept = min(k, kept + taken);
        __syncthreads();
    }
    int *tokens = found + static_cast<size_t>(column) * (1 + 2 * k) + 1;
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        const uint64_t word = i < kept ? words[i] : 0;
        const uint32_t ordered = static_cast<uint32_t>(word >> 32);
        const uint32_t bits = ordered & 0x80000000 ? ordered & 0x7fffffff : ~ordered;
        tokens[i] = word == 0 ? -1 : static_cast<int>(~static_cast<uint32_t>(word));
        tokens[k + i] = word == 0 ? 0 : static_cast<int>(bits);
    }
}
