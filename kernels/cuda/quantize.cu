// Activations to 8 bits.
#include "quantize.cuh"

// `count` columns of `k` elements, column `c` from `values + c * stride`; a warp for each group, groups in x.
extern "C" __global__ __launch_bounds__(256) void quantize(const float *values, int k, int stride, int count,
                                                           uint8_t *levels, float2 *scales) {
    const int lane = threadIdx.x % 32, group = blockIdx.x * 8 + threadIdx.x / 32, column = blockIdx.y;
    const int groups = k / andon::GROUP;
    if (group < groups && column < count) {
        const float value = values[static_cast<size_t>(column) * stride + group * andon::GROUP + lane];
        andon::quantize_group(value, lane, column, group, groups, levels, scales);
    }
}
