// The residual sum, its norm, and that in 8 bits.
#include "arithmetic.cuh"
#include "quantize.cuh"

// A block for each column of `n` elements, with `n` floats of shared memory.
//
// Where `delta` is there, its column, or with `delta_weight` the norm of that, times `delta_scale`, is added to the column
// of `x`. Where `weight` is there, the norm of the column is quantized.
extern "C" __global__ __launch_bounds__(256) void add_norm_quantize(float *x, const float *delta,
                                                                    const float *delta_weight, float delta_scale,
                                                                    const float *weight, float epsilon, int n,
                                                                    uint8_t *levels, float2 *scales) {
    float *values = reinterpret_cast<float *>(andon::shared_memory());
    __shared__ float factor;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x;
    x += static_cast<size_t>(column) * n;
    if (delta != nullptr) {
        delta += static_cast<size_t>(column) * n;
        if (delta_weight != nullptr) {
            for (int i = threadIdx.x; i < n; i += blockDim.x) {
                values[i] = delta[i];
            }
            __syncthreads();
            if (warp == 0) {
                const float result = andon::norm_factor(values, n, epsilon, lane);
                if (lane == 0) {
                    factor = result;
                }
            }
            __syncthreads();
            const float scale = factor;
            for (int i = threadIdx.x; i < n; i += blockDim.x) {
                const float sum = x[i] + values[i] * scale * delta_weight[i] * delta_scale;
                x[i] = sum;
                values[i] = sum;
            }
        } else {
            for (int i = threadIdx.x; i < n; i += blockDim.x) {
                const float sum = x[i] + delta[i] * delta_scale;
                x[i] = sum;
                values[i] = sum;
            }
        }
    } else {
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            values[i] = x[i];
        }
    }
    if (weight == nullptr) {
        return;
    }
    __syncthreads();
    if (warp == 0) {
        const float result = andon::norm_factor(values, n, epsilon, lane);
        if (lane == 0) {
            factor = result;
        }
    }
    __syncthreads();
    const float scale = factor;
    const int groups = n / andon::GROUP;
    for (int group = warp; group < groups; group += blockDim.x / 32) {
        const int i = group * andon::GROUP + lane;
        andon::quantize_group(values[i] * scale * weight[i], lane, column, group, groups, levels, scales);
    }
}
