#include "pairwise_impl.hpp"
#include "simd_avx512.hpp"

namespace brenier {

template <>
Engine<float> avx512_engine<float>() {
    return engine<F32x16>("avx512");
}
template <>
Engine<double> avx512_engine<double>() {
    return engine<F64x8>("avx512");
}

}  // namespace brenier
