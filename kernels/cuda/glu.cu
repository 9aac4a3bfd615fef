// Gated linear units, in 8 bits: kernels/src/op/glu.rs.
#include "arithmetic.cuh"
#include "quantize.cuh"

// `count` columns of 2 `n` elements, gates before what they gate, `stride` from one column to the next; a warp for each
// group, groups in x. `kind` is 0 for SwiGLU and 1 for GEGLU by tanh.
extern "C" __global__ __launch_bounds__(256) void glu_quantize(const float *gates, int n, int stride, int count, int kind,
                                                               uint8_t *levels, float2 *scales) {
    const int lane = threadIdx.x % 32, group = blockIdx.x * 8 + threadIdx.x / 32, column = blockIdx.y;
    const int groups = n / andon::GROUP;
    if (group < groups && column < count) {
        const float *from = gates + static_cast<size_t>(column) * stride + group * andon::GROUP + lane;
        const float gate = from[0], up = from[n];
        const float value =
            kind == 0 ? gate / (1.0f + andon::exponential(-gate)) * up : andon::gelu_tanh(gate) * up;
        andon::quantize_group(value, lane, column, group, groups, levels, scales);
    }
}
