// All distances of two clouds in many dimensions, where no product of matrices gives them.
#pragma once

#include <cstdint>
#include <functional>

namespace brenier {

// out[i, j] = the sum over k of |x_ik - y_jk|, or the root of that of their squares; x (n, d), y (m, d), out (n, m).
// `poll` is called now and then, by the calling thread only; it may throw.
void distances(const double* x, const double* y, double* out, std::int64_t n, std::int64_t m, std::int64_t d,
               bool squares, int threads, const std::function<void()>& poll);

}  // namespace brenier
