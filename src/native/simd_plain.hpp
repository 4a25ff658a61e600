// Vectors for every other machine: 128 bits in the compiler's own vector types (SSE2 on x86, NEON on ARM), or single
// numbers where it has none.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd_exp2.hpp"

namespace brenier {
namespace {

#if defined(__GNUC__)

template <class T>
struct Bits;
template <>
struct Bits<float> {
    using integer = std::int32_t;
    static constexpr int bias = 127, shift = 23;
};
template <>
struct Bits<double> {
    using integer = std::int64_t;
    static constexpr int bias = 1023, shift = 52;
};

template <class T>
struct Plain {
    using scalar = T;
    using integer = typename Bits<T>::integer;
    static constexpr int width = 16 / sizeof(T), row_tile = 4, col_tile = 2;
    typedef T vector __attribute__((vector_size(16)));
    typedef integer mask __attribute__((vector_size(16)));
    vector v;
    static Plain load(const T* p) {
        Plain out;
        std::memcpy(&out.v, p, sizeof(vector));
        return out;
    }
    static Plain widen(const float* p) {
        Plain out;
        for (int i = 0; i < width; ++i) out.v[i] = T(p[i]);
        return out;
    }
    static Plain set1(T x) { return {x - vector{}}; }
    void store(T* p) const { std::memcpy(p, &v, sizeof(vector)); }
    friend Plain operator+(Plain a, Plain b) { return {a.v + b.v}; }
    friend Plain operator-(Plain a, Plain b) { return {a.v - b.v}; }
    friend Plain operator*(Plain a, Plain b) { return {a.v * b.v}; }
    friend Plain operator/(Plain a, Plain b) { return {a.v / b.v}; }
    friend Plain fma(Plain a, Plain b, Plain c) { return {a.v * b.v + c.v}; }  // fused where the target can
    friend Plain fnma(Plain a, Plain b, Plain c) { return {c.v - a.v * b.v}; }
    friend Plain max(Plain a, Plain b) { return {a.v > b.v ? a.v : b.v}; }  // b where one is NaN
    friend Plain min(Plain a, Plain b) { return {a.v < b.v ? a.v : b.v}; }
    friend Plain abs(Plain a) { return {a.v < 0 ? -a.v : a.v}; }
    friend Plain sqrt(Plain a) {
        for (int i = 0; i < width; ++i) a.v[i] = std::sqrt(a.v[i]);
        return a;
    }
    friend Plain where_greater(Plain a, Plain b, Plain yes, Plain no) { return {a.v > b.v ? yes.v : no.v}; }
    friend mask at_least(Plain a, Plain b) { return a.v >= b.v; }
    static mask either(mask a, mask b) { return a | b; }
    static bool any(mask a) {
        std::uint64_t half[2];
        std::memcpy(half, &a, sizeof half);
        return (half[0] | half[1]) != 0;
    }
    static unsigned bits(mask a) {
        unsigned out = 0;
        for (int i = 0; i < width; ++i) out |= unsigned(a[i] & 1) << i;
        return out;
    }
    friend T sum(Plain a) {
        T out = a.v[0];
        for (int i = 1; i < width; ++i) out += a.v[i];
        return out;
    }
    friend T least(Plain a) {
        T out = a.v[0];
        for (int i = 1; i < width; ++i) out = a.v[i] < out ? a.v[i] : out;
        return out;
    }
    friend Plain exp2(Plain x) {
        using P = Exp2<T>;
        x = min(set1(P::highest), max(set1(P::lowest), x));
        mask n = __builtin_convertvector(x.v, mask);  // towards zero
        n += __builtin_convertvector(n, vector) > x.v;  // a true comparison is -1
        const mask bits = (n + Bits<T>::bias) << Bits<T>::shift;
        vector scale;
        std::memcpy(&scale, &bits, sizeof scale);
        return exp2_polynomial(x - Plain{__builtin_convertvector(n, vector)}) * Plain{scale};
    }
};

#else

template <class T>
struct Plain {
    using scalar = T;
    static constexpr int width = 1, row_tile = 4, col_tile = 2;
    T v;
    static Plain load(const T* p) { return {*p}; }
    static Plain widen(const float* p) { return {T(*p)}; }
    static Plain set1(T x) { return {x}; }
    void store(T* p) const { *p = v; }
    friend Plain operator+(Plain a, Plain b) { return {a.v + b.v}; }
    friend Plain operator-(Plain a, Plain b) { return {a.v - b.v}; }
    friend Plain operator*(Plain a, Plain b) { return {a.v * b.v}; }
    friend Plain operator/(Plain a, Plain b) { return {a.v / b.v}; }
    friend Plain fma(Plain a, Plain b, Plain c) { return {a.v * b.v + c.v}; }
    friend Plain fnma(Plain a, Plain b, Plain c) { return {c.v - a.v * b.v}; }
    friend Plain max(Plain a, Plain b) { return {a.v > b.v ? a.v : b.v}; }
    friend Plain min(Plain a, Plain b) { return {a.v < b.v ? a.v : b.v}; }
    friend Plain abs(Plain a) { return {std::fabs(a.v)}; }
    friend Plain sqrt(Plain a) { return {std::sqrt(a.v)}; }
    friend Plain where_greater(Plain a, Plain b, Plain yes, Plain no) { return a.v > b.v ? yes : no; }
    using mask = bool;
    friend mask at_least(Plain a, Plain b) { return a.v >= b.v; }
    static mask either(mask a, mask b) { return a || b; }
    static bool any(mask a) { return a; }
    static unsigned bits(mask a) { return a; }
    friend T sum(Plain a) { return a.v; }
    friend T least(Plain a) { return a.v; }
    friend Plain exp2(Plain a) { return {std::exp2(a.v)}; }
};

#endif

}  // namespace
}  // namespace brenier
