// Vectors of 8 floats or 4 doubles, with fused multiply-add.
#pragma once

#include <immintrin.h>

#include "simd_exp2.hpp"

namespace brenier {
namespace {

struct F32x8 {
    using scalar = float;
    static constexpr int width = 8, row_tile = 6, col_tile = 2;
    __m256 v;
    static F32x8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static F32x8 widen(const float* p) { return load(p); }
    static F32x8 set1(float x) { return {_mm256_set1_ps(x)}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    using mask = __m256i;  // all bits of a lane
    static mask either(mask a, mask b) { return _mm256_or_si256(a, b); }
    static unsigned bits(mask a) { return unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(a))); }
    static bool any(mask a) { return bits(a) != 0; }
};
inline F32x8 operator+(F32x8 a, F32x8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32x8 operator-(F32x8 a, F32x8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32x8 operator*(F32x8 a, F32x8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32x8 operator/(F32x8 a, F32x8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32x8 fma(F32x8 a, F32x8 b, F32x8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x8 fnma(F32x8 a, F32x8 b, F32x8 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32x8 max(F32x8 a, F32x8 b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where one is NaN
inline F32x8 min(F32x8 a, F32x8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32x8 abs(F32x8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F32x8 sqrt(F32x8 a) { return {_mm256_sqrt_ps(a.v)}; }
inline F32x8 where_greater(F32x8 a, F32x8 b, F32x8 yes, F32x8 no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
inline F32x8::mask at_least(F32x8 a, F32x8 b) { return _mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)); }
inline float sum(F32x8 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline F32x8 exp2(F32x8 x) {
    using P = Exp2<float>;
    x = min(F32x8::set1(P::highest), max(F32x8::set1(P::lowest), x));
    const F32x8 n{_mm256_floor_ps(x.v)};
    // the exponent field of 2^n: 0 (zero) at the lowest, 255 (infinity) at the highest
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return exp2_polynomial(x - n) * F32x8{_mm256_castsi256_ps(_mm256_slli_epi32(e, 23))};
}

struct F64x4 {
    using scalar = double;
    static constexpr int width = 4, row_tile = 6, col_tile = 2;
    __m256d v;
    static F64x4 load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static F64x4 widen(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
    static F64x4 set1(double x) { return {_mm256_set1_pd(x)}; }
    void store(double* p) const { _mm256_storeu_pd(p, v); }
    using mask = __m256i;  // all bits of a lane
    static mask either(mask a, mask b) { return _mm256_or_si256(a, b); }
    static unsigned bits(mask a) { return unsigned(_mm256_movemask_pd(_mm256_castsi256_pd(a))); }
    static bool any(mask a) { return bits(a) != 0; }
};
inline F64x4 operator+(F64x4 a, F64x4 b) { return {_mm256_add_pd(a.v, b.v)}; }
inline F64x4 operator-(F64x4 a, F64x4 b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline F64x4 operator*(F64x4 a, F64x4 b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline F64x4 operator/(F64x4 a, F64x4 b) { return {_mm256_div_pd(a.v, b.v)}; }
inline F64x4 fma(F64x4 a, F64x4 b, F64x4 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline F64x4 fnma(F64x4 a, F64x4 b, F64x4 c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
inline F64x4 max(F64x4 a, F64x4 b) { return {_mm256_max_pd(a.v, b.v)}; }
inline F64x4 min(F64x4 a, F64x4 b) { return {_mm256_min_pd(a.v, b.v)}; }
inline F64x4 abs(F64x4 a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
inline F64x4 sqrt(F64x4 a) { return {_mm256_sqrt_pd(a.v)}; }
inline F64x4 where_greater(F64x4 a, F64x4 b, F64x4 yes, F64x4 no) {
    return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ))};
}
inline F64x4::mask at_least(F64x4 a, F64x4 b) { return _mm256_castpd_si256(_mm256_cmp_pd(a.v, b.v, _CMP_GE_OQ)); }
inline double sum(F64x4 a) {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
inline double least(F64x4 a) {
    const __m128d s = _mm_min_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
    return _mm_cvtsd_f64(_mm_min_sd(s, _mm_unpackhi_pd(s, s)));
}
inline F64x4 exp2(F64x4 x) {
    using P = Exp2<double>;
    x = min(F64x4::set1(P::highest), max(F64x4::set1(P::lowest), x));
    const F64x4 n{_mm256_floor_pd(x.v)};
    // n + 1023 in the low bits of n + 2^52 + 1023
    const __m256d biased = _mm256_add_pd(n.v, _mm256_set1_pd(0x1p52 + 1023.0));
    return exp2_polynomial(x - n) * F64x4{_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(biased), 52))};
}

}  // namespace
}  // namespace brenier
