// Cuts calls into tasks and spreads them over threads.
#include "pairwise.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "threads.hpp"

namespace brenier {
namespace {

using std::int64_t;

constexpr int64_t kRows = 256;             // of a task
constexpr int64_t kPairsPerThread = 1 << 17;  // starting a thread costs about as much as this many pairs

template <class T>
Task<T> nth(Task<T> task, const Steps& steps, int64_t i) {
    const auto move = [i](const T*& at, int64_t step) {
        if (at) at += i * step;
    };
    move(task.rows, steps.rows);
    move(task.cols, steps.cols);
    move(task.f, steps.f);
    move(task.g, steps.g);
    move(task.vectors, steps.vectors);
    move(task.left, steps.left);
    move(task.right, steps.right);
    move(task.term, steps.term);
    move(task.epsilon, steps.epsilon);
    task.out += i * task.n * (task.op == Op::apply ? task.k : 1);
    if (task.cost) task.cost += i * task.n;
    if (task.index) task.index += i * task.n;
    return task;
}

}  // namespace

template <class T>
void pairwise(const Task<T>& first, const Steps& steps, int64_t count, int threads, const Engine<T>& engine) {
    if (count <= 0 || first.n <= 0) return;
    const int64_t pairs = first.n * first.m;
    const int64_t useful = std::max<int64_t>(1, count * pairs / kPairsPerThread);
    threads = static_cast<int>(std::clamp<int64_t>(threads, 1, useful));
    const int64_t numbers = engine.packed_size(first);

    if (count >= 2 * threads) {  // a thread to a problem
        const int64_t bytes = engine.scratch_size(first, std::min(first.n, kRows));
        std::vector<std::unique_ptr<void, Free>> packed(threads), scratch(threads);
        // small problems are taken several at a time
        const int64_t group = std::clamp<int64_t>(count / (8 * threads), 1, 64), groups = (count + group - 1) / group;
        spread(groups, threads, [&](int thread, int64_t item) {
            if (!packed[thread]) {
                packed[thread] = allocate(numbers * sizeof(T));
                scratch[thread] = allocate(bytes);
            }
            T* const columns = static_cast<T*>(packed[thread].get());
            for (int64_t i = item * group; i < std::min(count, (item + 1) * group); ++i) {
                const Task<T> task = nth(first, steps, i);
                engine.pack(task, columns);
                for (int64_t row = 0; row < task.n; row += kRows) {
                    engine.run(task, columns, row, std::min(task.n, row + kRows), scratch[thread].get());
                }
            }
        });
        return;
    }

    const auto packed = allocate(numbers * sizeof(T));
    T* const columns = static_cast<T*>(packed.get());
    // several tasks for each thread, so that a slow one can be waited for
    const int64_t tile = engine.row_tile, share = (first.n + 4 * threads - 1) / (4 * threads);
    const int64_t rows = threads == 1 ? kRows : std::min(kRows, (share + tile - 1) / tile * tile);
    const int64_t bytes = engine.scratch_size(first, std::min(first.n, rows));
    for (int64_t i = 0; i < count; ++i) {
        const Task<T> task = nth(first, steps, i);
        engine.pack(task, columns);
        std::vector<std::unique_ptr<void, Free>> scratch(threads);
        spread((task.n + rows - 1) / rows, threads, [&](int thread, int64_t item) {
            if (!scratch[thread]) scratch[thread] = allocate(bytes);
            engine.run(task, columns, item * rows, std::min(task.n, (item + 1) * rows), scratch[thread].get());
        });
    }
}

template void pairwise<float>(const Task<float>&, const Steps&, int64_t, int, const Engine<float>&);
template void pairwise<double>(const Task<double>&, const Steps&, int64_t, int, const Engine<double>&);

}  // namespace brenier
