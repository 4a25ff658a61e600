#include "distances.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "inline.hpp"
#include "threads.hpp"

namespace brenier {
namespace {

using std::int64_t;

constexpr int64_t kPanel = 32;       // columns that are summed at once, in registers
constexpr int64_t kBlock = 1 << 15;  // numbers of y that stay in cache while the rows of x pass
constexpr int64_t kRows = 16;        // rows of x per piece of work

// The sums of one row of x with the columns of a panel, (d, kPanel).
BRENIER_SIMD_CLONES
void panel_sums(const double* x, const double* panel, int64_t d, Power power, double* out) {
    double sums[kPanel] = {};
    if (power == Power::kAbsolute) {
        for (int64_t k = 0; k < d; ++k)
#pragma omp simd
            for (int64_t j = 0; j < kPanel; ++j) sums[j] += std::fabs(x[k] - panel[k * kPanel + j]);
    } else {
        for (int64_t k = 0; k < d; ++k)
#pragma omp simd
            for (int64_t j = 0; j < kPanel; ++j) {
                const double e = x[k] - panel[k * kPanel + j];
                sums[j] += e * e;
            }
    }
    if (power == Power::kRoot) {
#pragma omp simd
        for (int64_t j = 0; j < kPanel; ++j) sums[j] = std::sqrt(sums[j]);
    }
    std::copy_n(sums, kPanel, out);
}

}  // namespace

void distances(const double* x, const double* y, double* out, int64_t n, int64_t m, int64_t d, Power power, int threads,
               const std::function<void()>& poll) {
    const int64_t panels = (m + kPanel - 1) / kPanel, size = d * kPanel;
    std::vector<double> columns(static_cast<std::size_t>(panels * size));
    for (int64_t j = 0; j < m; ++j)
        for (int64_t k = 0; k < d; ++k) columns[j / kPanel * size + k * kPanel + j % kPanel] = y[j * d + k];

    const int64_t block = std::max<int64_t>(1, kBlock / std::max<int64_t>(size, 1));
    spread((n + kRows - 1) / kRows, threads, [&](int thread, int64_t piece) {
        if (thread == 0) poll();
        const int64_t last = std::min(n, (piece + 1) * kRows);
        for (int64_t start = 0; start < panels; start += block) {
            const int64_t end = std::min(panels, start + block);
            for (int64_t i = piece * kRows; i < last; ++i) {
                double* row = out + i * m;
                for (int64_t p = start; p < end; ++p) {
                    const double* panel = columns.data() + p * size;
                    if ((p + 1) * kPanel <= m) {
                        panel_sums(x + i * d, panel, d, power, row + p * kPanel);
                        continue;
                    }
                    double rest[kPanel];
                    panel_sums(x + i * d, panel, d, power, rest);
                    std::copy_n(rest, m - p * kPanel, row + p * kPanel);
                }
            }
        }
    });
}

}  // namespace brenier
