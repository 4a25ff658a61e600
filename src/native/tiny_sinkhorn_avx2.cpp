#include "simd_avx2.hpp"
#include "tiny_sinkhorn_impl.hpp"

namespace brenier {

template <>
TinyEngine<float> tiny_avx2_engine<float>() {
    return tiny_engine<F32x8>("avx2");
}
template <>
TinyEngine<double> tiny_avx2_engine<double>() {
    return tiny_engine<F64x4>("avx2");
}

}  // namespace brenier
