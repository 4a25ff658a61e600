// Cuts calls into tasks and spreads them over threads.
#include "pairwise.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace brenier {
namespace {

using std::int64_t;

constexpr int64_t kRows = 256;             // of a task
constexpr int64_t kPairsPerThread = 1 << 17;  // starting a thread costs about as much as this many pairs

struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
std::unique_ptr<void, Free> allocate(int64_t bytes) {
    return std::unique_ptr<void, Free>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64}));
}

// work(thread, item) for all items, on up to `threads` threads, the caller's among them. An exception of one of them
// (memory) ends the others and is thrown again here.
template <class Work>
void spread(int64_t items, int threads, Work work) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto loop = [&](int thread) {
        try {
            for (int64_t i; (i = next.fetch_add(1)) < items;) work(thread, i);
        } catch (...) {
            next = items;
            const std::lock_guard<std::mutex> lock(guard);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) {
        try {
            others.emplace_back(loop, t);
        } catch (const std::system_error&) {  // no more threads to be had: those that started will do
            break;
        }
    }
    loop(0);
    for (auto& thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
}

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
    task.out += i * task.n * (task.op == Op::apply ? task.k : task.op == Op::slope ? task.d : 1);
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

template <class T>
void pairwise(const Task<T>& whole, const Blocks& blocks, int64_t epsilon_step, int threads, const Engine<T>& engine) {
    if (whole.n <= 0) return;
    struct Item {
        int64_t block, begin, end;
    };
    std::vector<int64_t> met(blocks.rows);  // columns of each row block
    int64_t pairs = 0;
    for (int64_t r = 0; r < blocks.rows; ++r) {
        for (int64_t i = blocks.indptr[r]; i < blocks.indptr[r + 1]; ++i) {
            met[r] += blocks.col_starts[blocks.listed[i] + 1] - blocks.col_starts[blocks.listed[i]];
        }
        pairs += met[r] * (blocks.row_starts[r + 1] - blocks.row_starts[r]);
    }
    threads = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, pairs / kPairsPerThread)));
    // tasks of about the same number of pairs, several for each thread
    const int64_t tile = engine.row_tile, share = pairs / (4 * threads) + 1;
    std::vector<Item> items;
    for (int64_t r = 0; r < blocks.rows; ++r) {
        const int64_t wanted = threads == 1 ? kRows : std::min(kRows, share / std::max<int64_t>(1, met[r]) + 1);
        const int64_t rows = (wanted + tile - 1) / tile * tile, stop = blocks.row_starts[r + 1];
        for (int64_t i = blocks.row_starts[r]; i < stop; i += rows) items.push_back({r, i, std::min(stop, i + rows)});
    }
    Task<T> task = whole;
    task.list = {blocks.col_starts, nullptr, nullptr, 0};
    const auto packed = allocate(engine.packed_size(task) * static_cast<int64_t>(sizeof(T)));
    T* const columns = static_cast<T*>(packed.get());
    engine.pack(task, columns);
    const int64_t bytes = engine.scratch_size(task, std::min(task.n, kRows));
    std::vector<std::unique_ptr<void, Free>> scratch(threads);
    spread(static_cast<int64_t>(items.size()), threads, [&](int thread, int64_t i) {
        if (!scratch[thread]) scratch[thread] = allocate(bytes);
        const Item& item = items[i];
        Task<T> part = task;
        const int64_t *const listed = blocks.listed + blocks.indptr[item.block],
                      *const end = blocks.listed + blocks.indptr[item.block + 1];
        part.list = {blocks.col_starts, listed, end, met[item.block]};
        if (part.epsilon) part.epsilon += item.block * epsilon_step;
        engine.run(part, columns, item.begin, item.end, scratch[thread].get());
    });
}

template void pairwise<float>(const Task<float>&, const Blocks&, int64_t, int, const Engine<float>&);
template void pairwise<double>(const Task<double>&, const Blocks&, int64_t, int, const Engine<double>&);
template void pairwise<float>(const Task<float>&, const Steps&, int64_t, int, const Engine<float>&);
template void pairwise<double>(const Task<double>&, const Steps&, int64_t, int, const Engine<double>&);

}  // namespace brenier
