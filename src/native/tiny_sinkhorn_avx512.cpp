#include "simd_avx512.hpp"
#include "tiny_sinkhorn_impl.hpp"

namespace brenier {

template <>
TinyEngine<float> tiny_avx512_engine<float>() {
    return tiny_engine<F32x16>("avx512");
}
template <>
TinyEngine<double> tiny_avx512_engine<double>() {
    return tiny_engine<F64x8>("avx512");
}

}  // namespace brenier
