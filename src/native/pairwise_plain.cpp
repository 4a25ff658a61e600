#include "pairwise_impl.hpp"
#include "simd_plain.hpp"

namespace brenier {

template <>
Engine<float> plain_engine<float>() {
    return engine<Plain<float>>("plain");
}
template <>
Engine<double> plain_engine<double>() {
    return engine<Plain<double>>("plain");
}

}  // namespace brenier
