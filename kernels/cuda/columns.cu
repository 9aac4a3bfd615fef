// What few models need of columns of f32, in place: biases, norms of all heads together, the last of logits; and copies of
// some columns.
#include "arithmetic.cuh"

// Adds `bias` to `n` elements of each column, `stride` from one to the next; columns in y.
extern "C" __global__ __launch_bounds__(256) void add_bias(float *values, int stride, int n, const float *bias) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float *at = values + static_cast<size_t>(blockIdx.y) * stride + i;
        *at = *at + bias[i];
    }
}

// Norms `n` elements of each column from `first` on; a block for each column, with `n` floats of shared memory.
extern "C" __global__ __launch_bounds__(256) void norm_columns(float *values, int stride, int first, int n,
                                                               const float *weight, float epsilon) {
    float *kept = reinterpret_cast<float *>(andon::shared_memory());
    __shared__ float factor;
    values += static_cast<size_t>(blockIdx.x) * stride + first;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        kept[i] = values[i];
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const float result = andon::norm_factor(kept, n, epsilon, threadIdx.x);
        if (threadIdx.x == 0) {
            factor = result;
        }
    }
    __syncthreads();
    const float scale = factor;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        values[i] = kept[i] * scale * weight[i];
    }
}

// Logits as products give them, plus `bias` where it is there, times `scale`, kept within `cap` unless that is 0; columns
// in y.
extern "C" __global__ __launch_bounds__(256) void finish_logits(float *logits, int stride, int n, const float *bias,
                                                                float scale, float cap) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float *at = logits + static_cast<size_t>(blockIdx.y) * stride + i;
        float value = *at;
        if (bias != nullptr) {
            value = value + bias[i];
        }
        value = value * scale;
        if (cap > 0.0f) {
            value = cap * andon::hyperbolic_tangent(value / cap);
        }
        *at = value;
    }
}

// Copies column `indices[c]` of `n` elements to column `c`, columns in y; one that is not among `count` is left out.
extern "C" __global__ __launch_bounds__(256) void gather_columns(const float *from, int count, int n, const int *indices,
                                                                 float *to) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, index = indices[blockIdx.y];
    if (i < n && index >= 0 && index < count) {
        to[static_cast<size_t>(blockIdx.y) * n + i] = from[static_cast<size_t>(index) * n + i];
    }
}
