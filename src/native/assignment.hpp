// The assignment problem on dense cost matrices, many at once: what one call is, and who can run it.
#pragma once

#include <cstdint>
#include <functional>

namespace brenier {

// `count` problems, dense and row-major, one after the other. An infinite cost forbids a pair.
template <class T>
struct AssignmentTask {
    std::int64_t count, n, m;
    const T* cost;        // (count, n, m)
    const double* start;  // (count, m) duals of the columns to start from, for n = m without a price; or none
    std::int64_t pairs;   // to match; at most the shorter side
    double price;         // what a pair may cost, infinite for anything: dearer ones stay unmatched

    std::int64_t* cols;   // (count, n) the column of each row, -1 where it has none
    double* f;            // (count, n) f_i + g_j <= c_ij, f_i <= level
    double* g;            // (count, m) <= 0 where columns may stay unmatched
    double* level;        // (count,) f of unmatched rows; 0 where all rows are matched, or all columns are
    std::int64_t* found;  // (count,) pairs
};

// One problem that lies somewhere: n rows of `width` numbers, which start `stride` numbers apart. Columns from m on are
// padding with infinite cost.
struct AssignmentView {
    std::int64_t n, m, width, stride;
    const double* cost;
    const double* start;
    std::int64_t pairs;
    double price;
};

// The answer to a view; the arrays have the sizes that `assignment_scratch` counts for.
struct AssignmentAnswer {
    std::int32_t* cols;  // (n,)
    std::int32_t* rows;  // (m,)
    double *f, *g;       // (n,), (m,)
    double level;
    std::int64_t found;
};

struct AssignmentEngine {
    const char* name;
    std::int64_t (*scratch_size)(std::int64_t n, std::int64_t m);  // bytes
    AssignmentAnswer (*run)(const AssignmentView&, void* scratch, const std::function<void()>& poll);
};

AssignmentEngine assignment_plain_engine();
#ifdef BRENIER_AVX2
AssignmentEngine assignment_avx2_engine();
#endif
#ifdef BRENIER_AVX512
AssignmentEngine assignment_avx512_engine();
#endif

// `poll` is called now and then, by the calling thread only; it may throw.
template <class T>
void assignment(const AssignmentTask<T>& task, int threads, const AssignmentEngine& engine,
                const std::function<void()>& poll);

}  // namespace brenier
