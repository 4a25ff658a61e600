#include "pairwise_impl.hpp"
#include "simd_avx2.hpp"

namespace brenier {

template <>
Engine<float> avx2_engine<float>() {
    return engine<F32x8>("avx2");
}
template <>
Engine<double> avx2_engine<double>() {
    return engine<F64x4>("avx2");
}

}  // namespace brenier
