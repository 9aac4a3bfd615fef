// Halves as far as kernels/cuda uses them.
#pragma once

#include "cuda.h"

struct __half { _Float16 value; };
struct __half2 { _Float16 x, y; };

inline float2 __half22float2(__half2 value) { return {static_cast<float>(value.x), static_cast<float>(value.y)}; }
inline float __half2float(__half value) { return static_cast<float>(value.value); }
inline __half __float2half_rn(float value) { return {static_cast<_Float16>(value)}; }
inline unsigned short __half_as_ushort(__half value) { return bits_as<unsigned short>(value); }
inline __half __ushort_as_half(unsigned short value) { return bits_as<__half>(value); }
