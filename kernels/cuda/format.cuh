// Packed weights: how levels and scales of each format lie in device memory, and how they become what products take.
//
// A matrix is a sequence over tiles of 16 rows and, within one, over units: a pair of groups (64 elements; the last of a
// row may be half empty, with zeros), or four pairs in formats with factors of 256 elements. So a stretch of a tile is
// one piece of memory. A unit has for each pair, one after the other,
//
// - low: for every lane of a warp the words {first group: row g, row g + 8; second group: row g, row g + 8}.
//   Byte i of a word has the low four bits of element 4 t + i in its low, and of element 16 + 4 t + i in its high half. For
//   Q8_0 there is twice that, the whole levels {row g, row g + 8, row g at 16, row g + 8 at 16} of each group.
// - high: for Q5, one word for every lane, bit 4 group + j of whose byte i is the fifth bit of byte i of
//   fragment word j; for Q6, one word for each group, bits 2 j and 2 j + 1 of whose byte i are the upper bits of byte i of
//   word j.
// - scales: for every g {first group: row g, row g + 8; second group: row g, row g + 8}, of 16 bits each
//   (Q4_1 and Q5_1: 32),
//
// and then factors of 256 elements: for every g {row g, row g + 8}.
//
// Levels with an offset are stored less their offset: the top bit is flipped, and the level is unpacked to the top of
// its byte, as a multiple of 2, 4, 8 or 16 of itself. The sum is read off as a float whose last place is worth the
// inverse: with sums started at BIAS_BITS, the bits of the integer are the bits of the float BIAS + sum / multiple.
#pragma once

#include "device.cuh"

namespace andon {

// A pair's levels, as a lane holds them.
template <class F> struct Raw {
    uint4 low[F::LOW];
    uint32_t high[F::HIGH == 0 ? 1 : F::HIGH];
};

// Where the parts of a unit are, and units of a matrix.
template <class F> struct Packed {
    const uint8_t *start;
    int tiles, pairs, units;

    static constexpr int LOW_BYTES = F::LOW * 512;
    static constexpr int HIGH_BYTES = F::HIGH * 128;
    static constexpr int SCALE_BYTES = F::SCALE_WORDS * 32;
    static constexpr int FACTOR_BYTES = F::FACTOR_WORDS * 32;
    static constexpr int UNIT_PAIRS = F::FACTOR_WORDS > 0 ? 4 : 1;
    static constexpr int PAIR_BYTES = LOW_BYTES + HIGH_BYTES + SCALE_BYTES;
    static constexpr int UNIT_BYTES = UNIT_PAIRS * PAIR_BYTES + FACTOR_BYTES;

    __device__ __forceinline__ Packed(const uint8_t *weights, int rows, int k)
        : start(weights), tiles(ceil_div(rows, TILE_ROWS)), pairs(ceil_div(k, 2 * GROUP)),
          units(ceil_div(pairs, UNIT_PAIRS)) {}

    // Of unit `unit` of a tile. Matrices are smaller than 4 GiB, so they have fewer units than that.
    __device__ __forceinline__ const uint8_t *at(int tile, int unit) const {
        return start + static_cast<uint64_t>(static_cast<uint32_t>(tile * units + unit)) * UNIT_BYTES;
    }

    // Where pair `pair` is in units one after the other, and the factors that it shares.
    __device__ __forceinline__ static int pair_at(int pair) {
        return pair / UNIT_PAIRS * UNIT_BYTES + pair % UNIT_PAIRS * PAIR_BYTES;
    }
    __device__ __forceinline__ static int factors_at(int pair) {
        return pair / UNIT_PAIRS * UNIT_BYTES + UNIT_PAIRS * PAIR_BYTES;
    }

    // Parts of a pair.
    template <class T> __device__ __forceinline__ static T *low(T *pair) { return pair; }
    template <class T> __device__ __forceinline__ static T *high(T *pair) { return pair + LOW_BYTES; }
    template <class T> __device__ __forceinline__ static T *scales(T *pair) { return pair + LOW_BYTES + HIGH_BYTES; }
};

// Row factors of a group, as its products take them: of row g in x and y, of row g + 8 in z and w. Scales are x and z,
// minus the minimums y and w; Q3_K and Q6_K have the scales of both halves here and their own scale apart. Codes are levels, in
// two's complement where there is an OFFSET, the worth of the sign, and of IQ4 numbers of levels.

struct Q4_0 {
    static constexpr int BLOCK = 32, BLOCK_BYTES = 18, LOW = 1, HIGH = 0, SCALE_WORDS = 2, FACTOR_WORDS = 0;
    static constexpr bool MINIMUM = false, HALVES = false;
    static constexpr int OFFSET = 8;
    static constexpr float BIAS = 786432.0f; // 1.5 * 2^19: the last place is 1 / 16
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q4_0> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        a[0] = (u << 4) & 0xf0f0f0f0;
        a[1] = (v << 4) & 0xf0f0f0f0;
        a[2] = u & 0xf0f0f0f0;
        a[3] = v & 0xf0f0f0f0;
    }
    __device__ static float4 factors(const uint32_t *scales, uint2, int group) {
        float2 s = halves(scales[group]);
        return make_float4(s.x, 0.0f, s.y, 0.0f);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 32 * BLOCK_BYTES;
        int at = element % 32;
        return (block[2 + at % 16] >> (at / 16 * 4) & 15) ^ 8;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *block = row + group * BLOCK_BYTES;
        return block[0] | block[1] << 8;
    }
};

struct Q4_1 {
    static constexpr int BLOCK = 32, BLOCK_BYTES = 20, LOW = 1, HIGH = 0, SCALE_WORDS = 4, FACTOR_WORDS = 0;
    static constexpr bool MINIMUM = true, HALVES = false;
    static constexpr int OFFSET = 0;
    static constexpr float BIAS = 12582912.0f; // 1.5 * 2^23: the last place is 1
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q4_1> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        a[0] = u & 0x0f0f0f0f;
        a[1] = v & 0x0f0f0f0f;
        a[2] = (u >> 4) & 0x0f0f0f0f;
        a[3] = (v >> 4) & 0x0f0f0f0f;
    }
    __device__ static float4 factors(const uint32_t *scales, uint2, int group) {
        float2 g = halves(scales[2 * group]), h = halves(scales[2 * group + 1]);
        return make_float4(g.x, g.y, h.x, h.y);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 32 * BLOCK_BYTES;
        int at = element % 32;
        return block[4 + at % 16] >> (at / 16 * 4) & 15;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *block = row + group * BLOCK_BYTES;
        return block[0] | block[1] << 8 | block[2] << 16 | static_cast<uint32_t>(block[3]) << 24;
    }
};

struct Q5_0 {
    static constexpr int BLOCK = 32, BLOCK_BYTES = 22, LOW = 1, HIGH = 1, SCALE_WORDS = 2, FACTOR_WORDS = 0;
    static constexpr bool MINIMUM = false, HALVES = false;
    static constexpr int OFFSET = 16;
    static constexpr float BIAS = 1572864.0f; // 1.5 * 2^20: the last place is 1 / 8
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q5_0> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        uint32_t h = raw.high[0];
        int r = 4 * group;
        a[0] = ((u << 3) & 0x78787878) | ((h << (7 - r)) & 0x80808080);
        a[1] = ((v << 3) & 0x78787878) | ((h << (6 - r)) & 0x80808080);
        a[2] = ((u >> 1) & 0x78787878) | ((h << (5 - r)) & 0x80808080);
        a[3] = ((v >> 1) & 0x78787878) | ((h << (4 - r)) & 0x80808080);
    }
    __device__ static float4 factors(const uint32_t *scales, uint2, int group) {
        float2 s = halves(scales[group]);
        return make_float4(s.x, 0.0f, s.y, 0.0f);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 32 * BLOCK_BYTES;
        int at = element % 32;
        uint32_t high = block[2 + at / 8] >> (at % 8) & 1;
        return ((block[6 + at % 16] >> (at / 16 * 4) & 15) | high << 4) ^ 16;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *block = row + group * BLOCK_BYTES;
        return block[0] | block[1] << 8;
    }
};

struct Q5_1 {
    static constexpr int BLOCK = 32, BLOCK_BYTES = 24, LOW = 1, HIGH = 1, SCALE_WORDS = 4, FACTOR_WORDS = 0;
    static constexpr bool MINIMUM = true, HALVES = false;
    static constexpr int OFFSET = 0;
    static constexpr float BIAS = 12582912.0f; // 1.5 * 2^23: the last place is 1
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q5_1> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        uint32_t h = group ? raw.high[0] >> 4 : raw.high[0];
        a[0] = (u & 0x0f0f0f0f) | ((h << 4) & 0x10101010);
        a[1] = (v & 0x0f0f0f0f) | ((h << 3) & 0x10101010);
        a[2] = ((u >> 4) & 0x0f0f0f0f) | ((h << 2) & 0x10101010);
        a[3] = ((v >> 4) & 0x0f0f0f0f) | ((h << 1) & 0x10101010);
    }
    __device__ static float4 factors(const uint32_t *scales, uint2, int group) {
        float2 g = halves(scales[2 * group]), h = halves(scales[2 * group + 1]);
        return make_float4(g.x, g.y, h.x, h.y);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 32 * BLOCK_BYTES;
        int at = element % 32;
        uint32_t high = block[4 + at / 8] >> (at % 8) & 1;
        return (block[8 + at % 16] >> (at / 16 * 4) & 15) | high << 4;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *block = row + group * BLOCK_BYTES;
        return block[0] | block[1] << 8 | block[2] << 16 | static_cast<uint32_t>(block[3]) << 24;
    }
};

struct Q8_0 {
    static constexpr int BLOCK = 32, BLOCK_BYTES = 34, LOW = 2, HIGH = 0, SCALE_WORDS = 2, FACTOR_WORDS = 0;
    static constexpr bool MINIMUM = false, HALVES = false;
    static constexpr int OFFSET = 128;
    static constexpr float BIAS = 12582912.0f; // 1.5 * 2^23: the last place is 1
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q8_0> &raw, int group) {
        const uint4 words = group ? raw.low[1] : raw.low[0];
        a[0] = words.x;
        a[1] = words.y;
        a[2] = words.z;
        a[3] = words.w;
    }
    __device__ static float4 factors(const uint32_t *scales, uint2, int group) {
        float2 s = halves(scales[group]);
        return make_float4(s.x, 0.0f, s.y, 0.0f);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        return row[element / 32 * BLOCK_BYTES + 2 + element % 32];
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *block = row + group * BLOCK_BYTES;
        return block[0] | block[1] << 8;
    }
};

// The 6-bit scale (low byte) and minimum (high byte) of a group of a Q4_K or Q5_K block: those of groups 0 to 3 are the
// low six bits of bytes 0 to 3 and 4 to 7; groups 4 to 7 have four bits in bytes 8 to 11 and two on top of the former.
__device__ __forceinline__ uint32_t k_scale(const uint8_t *packed, int group) {
    if (group < 4) {
        return (packed[group] & 63) | (packed[group + 4] & 63) << 8;
    }
    uint32_t low = packed[group + 4];
    uint32_t scale = (low & 15) | packed[group - 4] >> 6 << 4;
    uint32_t minimum = low >> 4 | packed[group] >> 6 << 4;
    return scale | minimum << 8;
}

// Scales and minimums of a group of two rows, with the f16 factors of their blocks.
__device__ __forceinline__ float4 k_factors(uint32_t scales, uint2 blocks) {
    float2 g = halves(blocks.x), h = halves(blocks.y);
    float4 f;
    f.x = g.x * static_cast<float>(scales & 255);
    f.y = -(g.y * static_cast<float>(scales >> 8 & 255));
    f.z = h.x * static_cast<float>(scales >> 16 & 255);
    f.w = -(h.y * static_cast<float>(scales >> 24));
    return f;
}

struct Q4K {
    static constexpr int BLOCK = 256, BLOCK_BYTES = 144, LOW = 1, HIGH = 0, SCALE_WORDS = 2, FACTOR_WORDS = 2;
    static constexpr bool MINIMUM = true, HALVES = false;
    static constexpr int OFFSET = 0;
    static constexpr float BIAS = 12582912.0f; // 1.5 * 2^23: the last place is 1
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q4K> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        a[0] = u & 0x0f0f0f0f;
        a[1] = v & 0x0f0f0f0f;
        a[2] = (u >> 4) & 0x0f0f0f0f;
        a[3] = (v >> 4) & 0x0f0f0f0f;
    }
    __device__ static float4 factors(const uint32_t *scales, uint2 blocks, int group) {
        return k_factors(scales[group], blocks);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 256 * BLOCK_BYTES;
        int group = element % 256 / 32;
        return block[16 + group / 2 * 32 + element % 32] >> (group % 2 * 4) & 15;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        return k_scale(row + group / 8 * BLOCK_BYTES + 4, group % 8);
    }
    __device__ static uint32_t factor(const uint8_t *row, int super) {
        const uint8_t *block = row + super * BLOCK_BYTES;
        return block[0] | block[1] << 8 | block[2] << 16 | static_cast<uint32_t>(block[3]) << 24;
    }
};

struct Q5K {
    static constexpr int BLOCK = 256, BLOCK_BYTES = 176, LOW = 1, HIGH = 1, SCALE_WORDS = 2, FACTOR_WORDS = 2;
    static constexpr bool MINIMUM = true, HALVES = false;
    static constexpr int OFFSET = 0;
    static constexpr float BIAS = 12582912.0f; // 1.5 * 2^23: the last place is 1
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q5K> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        uint32_t h = group ? raw.high[0] >> 4 : raw.high[0];
        a[0] = (u & 0x0f0f0f0f) | ((h << 4) & 0x10101010);
        a[1] = (v & 0x0f0f0f0f) | ((h << 3) & 0x10101010);
        a[2] = ((u >> 4) & 0x0f0f0f0f) | ((h << 2) & 0x10101010);
        a[3] = ((v >> 4) & 0x0f0f0f0f) | ((h << 1) & 0x10101010);
    }
    __device__ static float4 factors(const uint32_t *scales, uint2 blocks, int group) {
        return k_factors(scales[group], blocks);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 256 * BLOCK_BYTES;
        int group = element % 256 / 32;
        uint32_t low = block[48 + group / 2 * 32 + element % 32] >> (group % 2 * 4) & 15;
        return low | (block[16 + element % 32] >> group & 1) << 4;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        return k_scale(row + group / 8 * BLOCK_BYTES + 4, group % 8);
    }
    __device__ static uint32_t factor(const uint8_t *row, int super) {
        const uint8_t *block = row + super * BLOCK_BYTES;
        return block[0] | block[1] << 8 | block[2] << 16 | static_cast<uint32_t>(block[3]) << 24;
    }
};

struct Q6K {
    static constexpr int BLOCK = 256, BLOCK_BYTES = 210, LOW = 1, HIGH = 2, SCALE_WORDS = 2, FACTOR_WORDS = 1;
    static constexpr bool MINIMUM = false, HALVES = true;
    static constexpr int OFFSET = 32;
    static constexpr float BIAS = 3145728.0f; // 1.5 * 2^21: the last place is 1 / 4
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q6K> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        uint32_t h = group ? raw.high[1] : raw.high[0];
        a[0] = ((u << 2) & 0x3c3c3c3c) | ((h << 6) & 0xc0c0c0c0);
        a[1] = ((v << 2) & 0x3c3c3c3c) | ((h << 4) & 0xc0c0c0c0);
        a[2] = ((u >> 2) & 0x3c3c3c3c) | ((h << 2) & 0xc0c0c0c0);
        a[3] = ((v >> 2) & 0x3c3c3c3c) | (h & 0xc0c0c0c0);
    }
    // The scales of both halves of the group, of row g and of row g + 8.
    __device__ static float4 factors(const uint32_t *scales, uint2, int group) {
        uint32_t s = scales[group];
        return make_float4(static_cast<float>(static_cast<int8_t>(s & 255)),
                           static_cast<float>(static_cast<int8_t>(s >> 8 & 255)),
                           static_cast<float>(static_cast<int8_t>(s >> 16 & 255)),
                           static_cast<float>(static_cast<int8_t>(s >> 24)));
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 256 * BLOCK_BYTES;
        int at = element % 256, half = at / 128, quarter = at / 32 % 4, index = at % 32;
        uint32_t low = block[half * 64 + quarter % 2 * 32 + index] >> (quarter / 2 * 4) & 15;
        uint32_t high = block[128 + half * 32 + index] >> (quarter * 2) & 3;
        return (low | high << 4) ^ 32;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *scales = row + group / 8 * BLOCK_BYTES + 192 + group % 8 * 2;
        return scales[0] | scales[1] << 8;
    }
    __device__ static uint32_t factor(const uint8_t *row, int super) {
        const uint8_t *block = row + super * BLOCK_BYTES + 208;
        return block[0] | block[1] << 8;
    }
};

// The 6-bit scale of a half of a group of a Q3_K block, less 32: bytes 0 to 7 have four bits of two halves each, bytes 8 to 11
// two more of four.
__device__ __forceinline__ uint32_t q3_k_scale(const uint8_t *packed, int half) {
    uint32_t low = packed[half % 8] >> (half / 8 * 4) & 15, high = packed[8 + half % 4] >> (half / 4 * 2) & 3;
    return static_cast<uint32_t>(static_cast<int>(low | high << 4) - 32) & 255;
}

// As levels of four bits, which leaves one of them free.
struct Q3K {
    static constexpr int BLOCK = 256, BLOCK_BYTES = 110, LOW = 1, HIGH = 0, SCALE_WORDS = 2, FACTOR_WORDS = 1;
    static constexpr bool MINIMUM = false, HALVES = true;
    static constexpr int OFFSET = 8;
    static constexpr float BIAS = 786432.0f; // 1.5 * 2^19: the last place is 1 / 16
    __device__ static void unpack(uint32_t (&a)[4], const Raw<Q3K> &raw, int group) {
        uint32_t u = group ? raw.low[0].z : raw.low[0].x, v = group ? raw.low[0].w : raw.low[0].y;
        a[0] = (u << 4) & 0xf0f0f0f0;
        a[1] = (v << 4) & 0xf0f0f0f0;
        a[2] = u & 0xf0f0f0f0;
        a[3] = v & 0xf0f0f0f0;
    }
    __device__ static float4 factors(const uint32_t *scales, uint2 blocks, int group) {
        return Q6K::factors(scales, blocks, group);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 256 * BLOCK_BYTES;
        int at = element % 256, index = at % 32;
        uint32_t low = block[32 + at / 128 * 32 + index] >> (at / 32 % 4 * 2) & 3;
        return ((low | (block[index] >> (at / 32) & 1) << 2) - 4) & 15;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *packed = row + group / 8 * BLOCK_BYTES + 96;
        return q3_k_scale(packed, group % 8 * 2) | q3_k_scale(packed, group % 8 * 2 + 1) << 8;
    }
    __device__ static uint32_t factor(const uint8_t *row, int super) {
        const uint8_t *block = row + super * BLOCK_BYTES + 108;
        return block[0] | block[1] << 8;
    }
};

// What the codes of IQ4_NL and IQ4_XS stand for, in four words of four.
__device__ __forceinline__ uint32_t iq4_word(int word) {
    constexpr uint32_t WORDS[4] = {0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535};
    return WORDS[word];
}

// What eight of these codes stand for: those in the low halves of the bytes of `codes`, and in the high halves.
__device__ __forceinline__ void iq4_levels(uint32_t codes, uint32_t &low, uint32_t &high) {
    uint32_t four[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        // The selector has four codes. Their lower three bits choose among half of the levels, the fourth the half.
        const uint32_t selector = codes >> (16 * i);
        const uint32_t lower = __byte_perm(iq4_word(0), iq4_word(1), selector & 0x7777);
        const uint32_t upper = __byte_perm(iq4_word(2), iq4_word(3), selector & 0x7777);
        four[i] = __byte_perm(lower, upper, 0x3210 | (selector & 0x8888) >> 1);
    }
    low = __byte_perm(four[0], four[1], 0x6420);
    high = __byte_perm(four[0], four[1], 0x7531);
}

struct IQ4NL {
    static constexpr int BLOCK = 32, BLOCK_BYTES = 18, LOW = 1, HIGH = 0, SCALE_WORDS = 2, FACTOR_WORDS = 0;
    static constexpr bool MINIMUM = false, HALVES = false;
    static constexpr int OFFSET = 0;
    static constexpr float BIAS = 12582912.0f; // 1.5 * 2^23: the last place is 1
    __device__ static void unpack(uint32_t (&a)[4], const Raw<IQ4NL> &raw, int group) {
        iq4_levels(group ? raw.low[0].z : raw.low[0].x, a[0], a[2]);
        iq4_levels(group ? raw.low[0].w : raw.low[0].y, a[1], a[3]);
    }
    __device__ static float4 factors(const uint32_t *scales, uint2, int group) {
        float2 s = halves(scales[group]);
        return make_float4(s.x, 0.0f, s.y, 0.0f);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 32 * BLOCK_BYTES;
        int at = element % 32;
        return block[2 + at % 16] >> (at / 16 * 4) & 15;
    }
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *block = row + group * BLOCK_BYTES;
        return block[0] | block[1] << 8;
    }
};

struct IQ4XS {
    static constexpr int BLOCK = 256, BLOCK_BYTES = 136, LOW = 1, HIGH = 0, SCALE_WORDS = 2, FACTOR_WORDS = 1;
    static constexpr bool MINIMUM = false, HALVES = false;
    static constexpr int OFFSET = 0;
    static constexpr float BIAS = 12582912.0f; // 1.5 * 2^23: the last place is 1
    __device__ static void unpack(uint32_t (&a)[4], const Raw<IQ4XS> &raw, int group) {
        iq4_levels(group ? raw.low[0].z : raw.low[0].x, a[0], a[2]);
        iq4_levels(group ? raw.low[0].w : raw.low[0].y, a[1], a[3]);
    }
    __device__ static float4 factors(const uint32_t *scales, uint2 blocks, int group) {
        const float2 own = halves(blocks.x);
        const uint32_t s = scales[group];
        return make_float4(own.x * static_cast<float>(static_cast<int8_t>(s & 255)), 0.0f,
                           own.y * static_cast<float>(static_cast<int8_t>(s >> 16 & 255)), 0.0f);
    }
    __device__ static uint32_t code(const uint8_t *row, int element) {
        const uint8_t *block = row + element / 256 * BLOCK_BYTES;
        int group = element % 256 / 32, at = element % 32;
        return block[8 + group * 16 + at % 16] >> (at / 16 * 4) & 15;
    }
    // The 6-bit scale of a group, less 32.
    __device__ static uint32_t scale(const uint8_t *row, int group) {
        const uint8_t *block = row + group / 8 * BLOCK_BYTES;
        int at = group % 8;
        uint32_t low = block[4 + at / 2] >> (at % 2 * 4) & 15, high = block[2 + at / 4] >> (at % 4 * 2) & 3;
        return static_cast<uint32_t>(static_cast<int>(low | high << 4) - 32) & 255;
    }
    __device__ static uint32_t factor(const uint8_t *row, int super) {
        const uint8_t *block = row + super * BLOCK_BYTES;
        return block[0] | block[1] << 8;
    }
};

// The level that a code stands for.
template <class F> __device__ __forceinline__ int level_of(uint32_t code) {
    return static_cast<int>(code ^ F::OFFSET) - F::OFFSET;
}
__device__ __forceinline__ int iq4_level(uint32_t code) {
    return static_cast<int8_t>(iq4_word(code / 4) >> (code % 4 * 8) & 255);
}
template <> __device__ __forceinline__ int level_of<IQ4NL>(uint32_t code) { return iq4_level(code); }
template <> __device__ __forceinline__ int level_of<IQ4XS>(uint32_t code) { return iq4_level(code); }

// Whether sums that are no multiple of theirs become floats by an instruction that converts them, instead of one that
// subtracts the bias: a variant to be timed (README.md, "Instructions and time").
#ifdef ANDON_CONVERT_SUMS
constexpr bool CONVERT_SUMS = true;
#else
constexpr bool CONVERT_SUMS = false;
#endif

// What a group's integer sums are worth, of two rows and two columns (see multiply_32): the sum of products of levels,
// exactly; for Q3_K and Q6_K that of the halves' sums times their scales.
template <class F>
__device__ __forceinline__ void group_dot(float (&value)[4], const uint32_t (&a)[4], uint2 b, float4 factors) {
    const int bias = __float_as_int(F::BIAS);
    int d[4];
    if constexpr (F::HALVES) {
        int e[4];
        multiply_16(d, a[0], a[1], b.x, bias);
        multiply_16(e, a[2], a[3], b.y, bias);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // All exact: below 2^24 in magnitude, and the bias has two bits, a scale eight.
            const float scale = i < 2 ? factors.y : factors.w;
            const float first = __int_as_float(d[i]) - F::BIAS;
            const float second = fmaf(scale, __int_as_float(e[i]), scale * -F::BIAS);
            value[i] = fmaf(i < 2 ? factors.x : factors.z, first, second);
        }
    } else if constexpr (CONVERT_SUMS && F::BIAS == 12582912.0f) {
        multiply_32(d, a, b, 0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            value[i] = static_cast<float>(d[i]);
        }
    } else {
        multiply_32(d, a, b, bias);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            value[i] = __int_as_float(d[i]) - F::BIAS;
        }
    }
}

} // namespace andon
