#include "distances.hpp"

#include <algorithm>
#include <cmath>

#include "inline.hpp"
#include "threads.hpp"

namespace brenier {
namespace {

using std::int64_t;

constexpr int64_t kBlock = 1 << 15;  // numbers of y that stay in cache while the rows of x pass
constexpr int64_t kRows = 16;        // rows of x per piece of work

// One row of x with four of y: four sums at a time keep the adders busy.
BRENIER_SIMD_CLONES
void four_sums(const double* x, const double* y, int64_t d, bool squares, double* out) {
    const double *y0 = y, *y1 = y + d, *y2 = y + 2 * d, *y3 = y + 3 * d;
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    if (squares) {
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t k = 0; k < d; ++k) {
            const double e0 = x[k] - y0[k], e1 = x[k] - y1[k], e2 = x[k] - y2[k], e3 = x[k] - y3[k];
            s0 += e0 * e0, s1 += e1 * e1, s2 += e2 * e2, s3 += e3 * e3;
        }
        s0 = std::sqrt(s0), s1 = std::sqrt(s1), s2 = std::sqrt(s2), s3 = std::sqrt(s3);
    } else {
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t k = 0; k < d; ++k) {
            s0 += std::fabs(x[k] - y0[k]), s1 += std::fabs(x[k] - y1[k]);
            s2 += std::fabs(x[k] - y2[k]), s3 += std::fabs(x[k] - y3[k]);
        }
    }
    out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

BRENIER_SIMD_CLONES
double one_sum(const double* x, const double* y, int64_t d, bool squares) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < d; ++k) {
        const double e = x[k] - y[k];
        sum += squares ? e * e : std::fabs(e);
    }
    return squares ? std::sqrt(sum) : sum;
}

}  // namespace

void distances(const double* x, const double* y, double* out, int64_t n, int64_t m, int64_t d, bool squares,
               int threads, const std::function<void()>& poll) {
    const int64_t block = std::max<int64_t>(4, kBlock / std::max<int64_t>(d, 1) / 4 * 4);
    spread((n + kRows - 1) / kRows, threads, [&](int thread, int64_t piece) {
        if (thread == 0) poll();
        const int64_t last = std::min(n, (piece + 1) * kRows);
        for (int64_t start = 0; start < m; start += block) {
            const int64_t end = std::min(m, start + block);
            for (int64_t i = piece * kRows; i < last; ++i) {
                int64_t j = start;
                for (; j + 4 <= end; j += 4) four_sums(x + i * d, y + j * d, d, squares, out + i * m + j);
                for (; j < end; ++j) out[i * m + j] = one_sum(x + i * d, y + j * d, d, squares);
            }
        }
    });
}

}  // namespace brenier
