// What the compiler is told: to unroll loops, so that small arrays of vectors become registers; to compile for several
// processors.
#pragma once

#include <type_traits>
#include <utility>

#if defined(__GNUC__)
#define BRENIER_INLINE inline __attribute__((always_inline))
#define BRENIER_INLINE_LAMBDA __attribute__((always_inline))
#define BRENIER_NOINLINE __attribute__((noinline))
#else
#define BRENIER_INLINE inline
#define BRENIER_INLINE_LAMBDA
#define BRENIER_NOINLINE
#endif

// One binary for several instruction sets: the loader picks the widest that the processor has.
#if defined(__x86_64__) && defined(__GLIBC__) && (!defined(__clang__) || __clang_major__ >= 14)
#define BRENIER_SIMD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BRENIER_SIMD_CLONES
#endif

namespace brenier {
namespace {

// f(0), ..., f(N - 1) with the index known to the compiler, so that arrays of vectors become registers.
template <int N, class F>
BRENIER_INLINE void each(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) BRENIER_INLINE_LAMBDA {
        (f(std::integral_constant<int, I>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

// The number of the lowest bit, of those that are set.
inline int lowest_bit(unsigned bits) {
#if defined(__GNUC__)
    return __builtin_ctz(bits);
#else
    int out = 0;
    for (; !(bits & 1); bits >>= 1) ++out;
    return out;
#endif
}

}  // namespace
}  // namespace brenier
