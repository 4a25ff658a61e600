#include "assignment_impl.hpp"
#include "simd_avx512.hpp"

namespace brenier {

AssignmentEngine assignment_avx512_engine() { return assignment_engine<F64x8>("avx512"); }

}  // namespace brenier
