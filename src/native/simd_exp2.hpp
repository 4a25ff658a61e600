// Coefficients of 2^r on [0, 1): minimax polynomials of the relative error, from our own Remez exchange
// (benchmarks/exp2_coefficients.py). The constant term comes first.
#pragma once

namespace brenier {
namespace {

template <class T>
struct Exp2;

template <>
struct Exp2<float> {  // 7.5e-8, about half a unit in the last place
    static constexpr int degree = 5;
    static constexpr float c[degree + 1] = {0x1.fffffep-1f, 0x1.62e4f6p-1f, 0x1.ebd5a8p-3f,
                                            0x1.c95446p-5f, 0x1.26900cp-7f, 0x1.ec320ap-10f};
    // Below, 2^x is flushed to zero; above, it is infinite.
    static constexpr float lowest = -127.0f, highest = 128.0f;
};

template <>
struct Exp2<double> {  // 3.1e-18
    static constexpr int degree = 11;
    static constexpr double c[degree + 1] = {
        0x1.0p+0,
        0x1.62e42fefa39f8p-1,
        0x1.ebfbdff82bf15p-3,
        0x1.c6b08d7069586p-5,
        0x1.3b2ab6f6c95f0p-7,
        0x1.5d87ff5b36c78p-10,
        0x1.4308f8ee16623p-13,
        0x1.ffcfe813e0364p-17,
        0x1.628e03bc9f109p-20,
        0x1.b86cf36e086b9p-24,
        0x1.c26b3b678a995p-28,
        0x1.58d4aa07996a1p-31,
    };
    static constexpr double lowest = -1023.0, highest = 1024.0;
};

// P(r) by Horner: the pipeline is kept full by the other vectors of the tile.
template <class V>
inline V exp2_polynomial(V r) {
    using P = Exp2<typename V::scalar>;
    V p = V::set1(P::c[P::degree]);
#pragma GCC unroll 16
    for (int i = P::degree - 1; i >= 0; --i) p = fma(p, r, V::set1(P::c[i]));
    return p;
}

}  // namespace
}  // namespace brenier
