// Vectors of 16 floats or 8 doubles.
#pragma once

#include <immintrin.h>

#include "simd_exp2.hpp"

namespace brenier {
namespace {

struct F32x16 {
    using scalar = float;
    static constexpr int width = 16, row_tile = 8, col_tile = 2;
    __m512 v;
    static F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static F32x16 widen(const float* p) { return load(p); }
    static F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    using mask = __mmask16;
    static mask either(mask a, mask b) { return mask(a | b); }
    static unsigned bits(mask a) { return a; }
    static bool any(mask a) { return a != 0; }
};
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where one is NaN
inline F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F32x16 where_greater(F32x16 a, F32x16 b, F32x16 yes, F32x16 no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
inline F32x16::mask at_least(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline float sum(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
inline F32x16 exp2(F32x16 x) {
    x = max(F32x16::set1(-1000.0f), x);  // -inf - floor(-inf) would be NaN
    const F32x16 n{_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
    return {_mm512_scalef_ps(exp2_polynomial(x - n).v, n.v)};
}

struct F64x8 {
    using scalar = double;
    static constexpr int width = 8, row_tile = 8, col_tile = 2;
    __m512d v;
    static F64x8 load(const double* p) { return {_mm512_loadu_pd(p)}; }
    static F64x8 widen(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
    static F64x8 set1(double x) { return {_mm512_set1_pd(x)}; }
    void store(double* p) const { _mm512_storeu_pd(p, v); }
    using mask = __mmask8;
    static mask either(mask a, mask b) { return mask(a | b); }
    static unsigned bits(mask a) { return a; }
    static bool any(mask a) { return a != 0; }
};
inline F64x8 operator+(F64x8 a, F64x8 b) { return {_mm512_add_pd(a.v, b.v)}; }
inline F64x8 operator-(F64x8 a, F64x8 b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline F64x8 operator*(F64x8 a, F64x8 b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline F64x8 operator/(F64x8 a, F64x8 b) { return {_mm512_div_pd(a.v, b.v)}; }
inline F64x8 fma(F64x8 a, F64x8 b, F64x8 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline F64x8 fnma(F64x8 a, F64x8 b, F64x8 c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
inline F64x8 max(F64x8 a, F64x8 b) { return {_mm512_max_pd(a.v, b.v)}; }
inline F64x8 min(F64x8 a, F64x8 b) { return {_mm512_min_pd(a.v, b.v)}; }
inline F64x8 abs(F64x8 a) { return {_mm512_abs_pd(a.v)}; }
inline F64x8 sqrt(F64x8 a) { return {_mm512_sqrt_pd(a.v)}; }
inline F64x8 where_greater(F64x8 a, F64x8 b, F64x8 yes, F64x8 no) {
    return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
inline F64x8::mask at_least(F64x8 a, F64x8 b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GE_OQ); }
inline double sum(F64x8 a) { return _mm512_reduce_add_pd(a.v); }
inline double least(F64x8 a) { return _mm512_reduce_min_pd(a.v); }
inline F64x8 exp2(F64x8 x) {
    x = max(F64x8::set1(-10000.0), x);
    const F64x8 n{_mm512_roundscale_pd(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
    return {_mm512_scalef_pd(exp2_polynomial(x - n).v, n.v)};
}

}  // namespace
}  // namespace brenier
