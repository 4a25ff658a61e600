#include "simd_plain.hpp"
#include "tiny_sinkhorn_impl.hpp"

namespace brenier {

template <>
TinyEngine<float> tiny_plain_engine<float>() {
    return tiny_engine<Plain<float>>("plain");
}
template <>
TinyEngine<double> tiny_plain_engine<double>() {
    return tiny_engine<Plain<double>>("plain");
}

}  // namespace brenier
