#include "assignment_impl.hpp"
#include "simd_avx2.hpp"

namespace brenier {

AssignmentEngine assignment_avx2_engine() { return assignment_engine<F64x4>("avx2"); }

}  // namespace brenier
