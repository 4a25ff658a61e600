#include "assignment_impl.hpp"
#include "simd_plain.hpp"

namespace brenier {

AssignmentEngine assignment_plain_engine() { return assignment_engine<Plain<double>>("plain"); }

}  // namespace brenier
