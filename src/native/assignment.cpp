// Spreads assignment problems over threads, and lays out anew what the engine cannot read in place: in float64, the
// shorter side as the rows, small ones padded to whole vectors.
#include "assignment.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "threads.hpp"

namespace brenier {

using std::int64_t;

namespace {

constexpr int64_t kWorkPerThread = 1 << 16;  // entries whose problems cost as much as starting a thread
constexpr int64_t kCopied = 1 << 16;         // entries up to which ragged rows are laid out anew
constexpr int64_t kBlock = 8;                // of a transposition, and of padding: the widest vector
constexpr double kInfinity = std::numeric_limits<double>::infinity();

int64_t padded(int64_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

template <class T>
void copy(const T* from, int64_t n, int64_t m, double* to, int64_t stride) {
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < m; ++j) to[i * stride + j] = static_cast<double>(from[i * m + j]);
        for (int64_t j = m; j < stride; ++j) to[i * stride + j] = kInfinity;
    }
}

template <class T>
void transpose(const T* from, int64_t n, int64_t m, double* to, int64_t stride) {
    for (int64_t first = 0; first < m; first += kBlock) {
        const int64_t last = std::min(m, first + kBlock);
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = first; j < last; ++j) to[j * stride + i] = static_cast<double>(from[i * m + j]);
        }
    }
    for (int64_t j = 0; j < m; ++j) std::fill(to + j * stride + n, to + (j + 1) * stride, kInfinity);
}

struct Room {  // of one thread
    std::unique_ptr<void, Free> scratch, costs;
};

template <class T>
const double* in_place(const T* cost) {
    if constexpr (std::is_same_v<T, double>) return cost;
    return nullptr;
}

}  // namespace

template <class T>
void assignment(const AssignmentTask<T>& task, int threads, const AssignmentEngine& engine,
                const std::function<void()>& poll) {
    const int64_t n = task.n, m = task.m, size = n * m;
    if (task.count <= 0) return;
    // all of the shorter side is the rows' business; where rows may stay unmatched, both shapes will do
    const bool turned = n > m && task.pairs == m && !(task.price < kInfinity);
    const int64_t rows = turned ? m : n, cols = turned ? n : m, stride = padded(cols);
    const bool aligned = m % kBlock == 0 || size > kCopied;
    const bool copied = turned || !aligned || !std::is_same_v<T, double>;
    const int64_t bytes = engine.scratch_size(rows, cols);
    threads = static_cast<int>(std::clamp<int64_t>(task.count * size / kWorkPerThread, 1, std::max(threads, 1)));
    const int64_t some = std::clamp<int64_t>(task.count / (8 * threads), 1, 64);
    const std::function<void()> silent;
    std::vector<Room> room(threads);
    spread((task.count + some - 1) / some, threads, [&](int thread, int64_t item) {
        auto& [scratch, costs] = room[thread];
        if (!scratch) scratch = allocate(bytes);
        if (copied && !costs) costs = allocate(rows * stride * static_cast<int64_t>(sizeof(double)));
        auto* const own = static_cast<double*>(costs.get());
        if (thread == 0 && poll) poll();
        for (int64_t k = item * some; k < std::min(task.count, (item + 1) * some); ++k) {
            const T* cost = task.cost + k * size;
            if (turned) {
                transpose(cost, n, m, own, stride);
            } else if (copied) {
                copy(cost, n, m, own, stride);
            }
            const AssignmentView view{rows,
                                      cols,
                                      copied ? stride : cols,
                                      copied ? stride : cols,
                                      copied ? own : in_place(cost),
                                      task.start ? task.start + k * m : nullptr,
                                      task.pairs,
                                      task.price};
            const AssignmentAnswer answer = engine.run(view, scratch.get(), thread == 0 ? poll : silent);
            std::copy_n(turned ? answer.rows : answer.cols, n, task.cols + k * n);
            std::copy_n(turned ? answer.g : answer.f, n, task.f + k * n);
            std::copy_n(turned ? answer.f : answer.g, m, task.g + k * m);
            task.level[k] = answer.level;
            task.found[k] = answer.found;
        }
    });
}

template void assignment<float>(const AssignmentTask<float>&, int, const AssignmentEngine&,
                                const std::function<void()>&);
template void assignment<double>(const AssignmentTask<double>&, int, const AssignmentEngine&,
                                 const std::function<void()>&);

}  // namespace brenier
