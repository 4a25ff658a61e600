// All distances of two clouds, from differences.
#pragma once

#include <cstdint>
#include <functional>

namespace brenier {

enum class Power { kAbsolute, kSquares, kRoot };

// out[i, j] = the sum over k of |x_ik - y_jk|, that of their squares, or its root; x (n, d), y (m, d), out (n, m).
// `poll` is called now and then, by the calling thread only; it may throw.
void distances(const double* x, const double* y, double* out, std::int64_t n, std::int64_t m, std::int64_t d,
               Power power, int threads, const std::function<void()>& poll);

}  // namespace brenier
