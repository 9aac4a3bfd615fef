// The kernels, compiled for a processor, by name.
#include "kernels.h"

#include "attention.cu"
#include "columns.cu"
#include "glu.cu"
#include "heads.cu"
#include "matmul_bf16.cu"
#include "matmul_f16.cu"
#include "matmul_f32.cu"
#include "matmul_iq4_nl.cu"
#include "matmul_iq4_xs.cu"
#include "matmul_q3_k.cu"
#include "matmul_q4_0.cu"
#include "matmul_q4_1.cu"
#include "matmul_q4_k.cu"
#include "matmul_q5_0.cu"
#include "matmul_q5_1.cu"
#include "matmul_q5_k.cu"
#include "matmul_q6_k.cu"
#include "matmul_q8_0.cu"
#include "norm.cu"
#include "quantize.cu"
#include "stream.cu"
#include "top_k.cu"

namespace {

template <class... T, size_t... I>
void call(void (*kernel)(T...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<T *>(arguments[I])...);
}

template <class... T> void unpacked(void (*kernel)(T...), void **arguments) {
    call(kernel, arguments, std::index_sequence_for<T...>());
}

template <auto KERNEL> void entry(void **arguments) { unpacked(KERNEL, arguments); }

template <class... T> Arguments kept(void (*)(T...), void **arguments) {
    Arguments result;
    for (size_t bytes : {sizeof(T)...}) {
        const char *from = static_cast<const char *>(*arguments++);
        result.emplace_back(from, from + bytes);
    }
    return result;
}

template <auto KERNEL> Arguments keep(void **arguments) { return kept(KERNEL, arguments); }

#define KERNEL(NAME) {#NAME, entry<NAME>, keep<NAME>, nullptr, 0},
#define PRODUCT(NAME) {#NAME, entry<NAME>, keep<NAME>, &NAME##_launch, sizeof(andon::Launch)},
#define PRODUCTS(FORMAT)                                                                                               \
    KERNEL(FORMAT##_pack) KERNEL(FORMAT##_embed)                                                                                        \
    PRODUCT(FORMAT##_decode_8) PRODUCT(FORMAT##_decode_16) PRODUCT(FORMAT##_panel_64) PRODUCT(FORMAT##_panel_128)

#define FLOATS(FORMAT)                                                                                                 \
    KERNEL(FORMAT##_pack) KERNEL(FORMAT##_embed) KERNEL(FORMAT##_product_1) KERNEL(FORMAT##_product_8)

#define ATTENTION(HEAD_DIM)                                                                                            \
    PRODUCT(attend_##HEAD_DIM##_few_f16) PRODUCT(attend_##HEAD_DIM##_many_f16)                                         \
    PRODUCT(attend_##HEAD_DIM##_few_q8) PRODUCT(attend_##HEAD_DIM##_many_q8) KERNEL(attend_##HEAD_DIM##_merge)

const Kernel kernels[] = {
    PRODUCTS(q4_0) PRODUCTS(q4_1) PRODUCTS(q5_0) PRODUCTS(q8_0) PRODUCTS(q4_k) PRODUCTS(q5_k) PRODUCTS(q6_k)
    PRODUCTS(q5_1) PRODUCTS(q3_k) PRODUCTS(iq4_nl) PRODUCTS(iq4_xs)
    FLOATS(f32) FLOATS(f16) FLOATS(bf16)
    KERNEL(quantize) KERNEL(add_norm_quantize) KERNEL(glu_quantize) KERNEL(heads_f16) KERNEL(heads_q8)
    KERNEL(add_bias) KERNEL(norm_columns) KERNEL(finish_logits) KERNEL(gather_columns)
    KERNEL(stream_copy) KERNEL(stream_read) KERNEL(top_k_stretches) KERNEL(top_k_merge)
    ATTENTION(32) ATTENTION(64) ATTENTION(96) ATTENTION(128) ATTENTION(256)
    PRODUCT(attend_96_some_f16) PRODUCT(attend_128_some_f16) PRODUCT(attend_256_some_f16)
};

} // namespace

const Kernel *find_kernel(const char *name) {
    for (const Kernel &kernel : kernels) {
        if (strcmp(kernel.name, name) == 0) return &kernel;
    }
    return nullptr;
}
