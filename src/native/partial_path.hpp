// Partial transport of points of one mass on the line: the order in which they join the best matching as it grows.
#pragma once

#include <cstdint>
#include <functional>

namespace brenier {

// `count` problems, one after the other, at the cost |x - y|^p with p >= 1.
struct PartialPaths {
    std::int64_t count, n, m;
    const double *x, *y;        // (count, n) and (count, m), ascending
    double p;
    const std::int64_t* pairs;  // (count,) the path ends with so many pairs,
    const double* price;        // (count,) or where the next would cost as much

    std::int64_t *step_x, *step_y;  // (count, n) and (count, m) with which pair each came in; min(n, m) + 1 for none
    double* prices;                 // (count, min(n, m)) what each pair adds to the cost; infinite for those not made
};

// `poll` is called now and then, by the calling thread only; it may throw.
void partial_paths(const PartialPaths& task, int threads, const std::function<void()>& poll);

}  // namespace brenier
