// Cuts calls into tasks and spreads them over threads.
#include "pairwise.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <tuple>
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
    task.out += i * task.n * (task.op == Op::apply ? task.k : task.op == Op::slope ? task.d : 1);
    if (task.cost) task.cost += i * task.n;
    if (task.index) task.index += i * task.n;
    return task;
}

// Rows [begin, end) of a row block, and the columns that it meets.
struct Item {
    int64_t block, begin, end;
    List list;
};

struct Items {
    std::vector<Item> items;
    int threads;
};

// Tasks of about the same number of pairs, several for each thread: a slow one can be waited for. Without blocks, all
// rows meet all columns.
Items cut(int64_t n, int64_t m, const Blocks* blocks, int64_t tile, int threads) {
    const int64_t whole[] = {0, n}, count = blocks ? blocks->rows : 1;
    const int64_t* const starts = blocks ? blocks->row_starts : whole;
    std::vector<List> lists(count, List{nullptr, nullptr, nullptr, m});
    int64_t pairs = 0;
    for (int64_t r = 0; r < count; ++r) {
        List& list = lists[r];
        if (blocks) {
            list = {blocks->col_starts, blocks->listed + blocks->indptr[r], blocks->listed + blocks->indptr[r + 1], 0};
            for (const int64_t* c = list.begin; c != list.end; ++c) {
                list.columns += list.starts[*c + 1] - list.starts[*c];
            }
        }
        pairs += list.columns * (starts[r + 1] - starts[r]);
    }
    threads = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, pairs / kPairsPerThread)));
    const int64_t share = pairs / (4 * threads) + 1;
    Items out{{}, threads};
    for (int64_t r = 0; r < count; ++r) {
        const int64_t wanted =
            threads == 1 ? kRows : std::min(kRows, share / std::max<int64_t>(1, lists[r].columns) + 1);
        const int64_t rows = (wanted + tile - 1) / tile * tile, stop = starts[r + 1];
        for (int64_t i = starts[r]; i < stop; i += rows) {
            out.items.push_back({r, i, std::min(stop, i + rows), lists[r]});
        }
    }
    return out;
}

template <class T>
bool before(const Entry<T>& a, const Entry<T>& b) {
    if (a.value != b.value) return a.value < b.value;
    return std::tie(a.row, a.col) < std::tie(b.row, b.col);
}

// Empties a pool for others. Its storage stays.
template <class T>
void open(Pool<T>& pool, T limit, int64_t most, bool ascending) {
    constexpr int64_t room = 32;
    if (pool.storage.empty()) pool.storage.resize(room);
    pool.limit = limit, pool.most = most, pool.count = 0, pool.ascending = ascending;
    pool.room = static_cast<int64_t>(pool.storage.size());
    pool.entries = pool.storage.data();
}

template <class T>
void keep_the_smallest(Pool<T>& pool) {
    if (pool.count <= pool.most) return;
    std::nth_element(pool.entries, pool.entries + pool.most - 1, pool.entries + pool.count, before<T>);
    pool.count = pool.most;
    const T last = pool.entries[pool.most - 1].value;
    // what ties with the last and comes later is not smaller
    const T limit = pool.ascending ? std::nextafter(last, -std::numeric_limits<T>::infinity()) : last;
    pool.limit = std::min(pool.limit, limit);
}

// `run(thread, item, pools)` offers entries to pools of the rows, or to one.
template <class T, class Run>
Found<T> gather(const Items& cut, bool apart, T limit, int64_t most, Run run) {
    Found<T> found(apart ? cut.items.size() : 1);
    std::vector<std::vector<Pool<T>>> pools(cut.threads);
    if (most <= 0) return found;
    spread(static_cast<int64_t>(cut.items.size()), cut.threads, [&](int thread, int64_t at) {
        const Item& item = cut.items[at];
        auto& mine = pools[thread];
        if (!apart) {
            if (mine.empty()) open(mine.emplace_back(), limit, most, false);
            return run(thread, item, mine.data());
        }
        const int64_t rows = item.end - item.begin;
        if (static_cast<int64_t>(mine.size()) < rows) mine.resize(rows);
        for (int64_t i = 0; i < rows; ++i) open(mine[i], limit, std::min(most, item.list.columns), true);
        run(thread, item, mine.data());
        auto& out = found[at];
        for (int64_t i = 0; i < rows; ++i) {
            keep_the_smallest(mine[i]);
            Entry<T>*const first = mine[i].entries, *const last = first + mine[i].count;
            if (most < item.list.columns) std::sort(first, last, before<T>);
            out.insert(out.end(), first, last);
        }
    });
    if (apart) return found;
    Pool<T> all{};
    open(all, limit, most, false);
    all.storage.clear();
    for (auto& mine : pools) {
        for (auto& pool : mine) all.storage.insert(all.storage.end(), pool.entries, pool.entries + pool.count);
    }
    all.entries = all.storage.data(), all.count = static_cast<int64_t>(all.storage.size());
    keep_the_smallest(all);
    all.storage.resize(all.count);
    std::sort(all.storage.begin(), all.storage.end(), before<T>);
    found[0] = std::move(all.storage);
    return found;
}

template <class Task>
void check_sizes(const Task& task) {
    constexpr int64_t most = std::numeric_limits<std::int32_t>::max();
    if (task.n <= most && task.m <= most) return;
    throw std::invalid_argument("entries: expected fewer than 2^31 rows and columns");
}

}  // namespace

template <class T>
void make_room(Pool<T>& pool) {
    if (pool.count >= 2 * pool.most) return keep_the_smallest(pool);
    pool.room = std::min(2 * pool.room, std::max<int64_t>(2 * pool.most, pool.room + 1));
    pool.storage.resize(pool.room);
    pool.entries = pool.storage.data();
}

// By halving an interval: selection by swaps would wait for a branch at every value.
template <class T>
T kth_smallest(T* values, int64_t count, int64_t k) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    const auto up_to = [&](T x) {
        std::int32_t out = 0;
        for (int64_t i = 0; i < count; ++i) out += values[i] <= x;
        return out;
    };
    T low = infinity, high = -infinity;
    for (int64_t i = 0; i < count; ++i) {
        const bool finite = std::abs(values[i]) < infinity;
        low = finite && values[i] < low ? values[i] : low;
        high = finite && values[i] > high ? values[i] : high;
    }
    if (!(up_to(high) >= k)) return infinity;
    for (int turn = 0; turn < 12; ++turn) {
        const T middle = low / 2 + high / 2;
        const std::int32_t below = up_to(middle);
        (below >= k ? high : low) = middle;
        if (below == k) break;
    }
    return high;
}

template <class T>
Found<T> entries(const Task<T>& whole, const Blocks* blocks, T limit, int64_t most, int threads,
                 const Engine<T>& engine) {
    check_sizes(whole);
    const Items items = cut(whole.n, whole.m, blocks, engine.row_tile, threads);
    Task<T> task = whole;
    if (blocks) task.list.starts = blocks->col_starts;
    const auto packed = allocate(engine.packed_size(task) * static_cast<int64_t>(sizeof(T)));
    T* const columns = static_cast<T*>(packed.get());
    engine.pack(task, columns);
    const int64_t bytes = engine.scratch_size(task, std::min(task.n, kRows));
    std::vector<std::unique_ptr<void, Free>> scratch(items.threads);
    most = std::min(most, task.n * task.m);
    return gather(items, task.op == Op::support, limit, most, [&](int thread, const Item& item, Pool<T>* pools) {
        if (!scratch[thread]) scratch[thread] = allocate(bytes);
        Task<T> part = task;
        part.list = item.list;
        part.pools = pools;
        engine.run(part, columns, item.begin, item.end, scratch[thread].get());
    });
}

template <class T>
Found<T> entries(const MatrixTask<T>& whole, const Blocks* blocks, T limit, int64_t most, int threads,
                 const Engine<T>& engine) {
    check_sizes(whole);
    const Items items = cut(whole.n, whole.m, blocks, whole.col_step == 1 ? 1 : engine.matrix_lines, threads);
    most = std::min(most, whole.n * whole.m);
    return gather(items, whole.op == Op::support, limit, most, [&](int, const Item& item, Pool<T>* pools) {
        MatrixTask<T> part = whole;
        part.list = item.list;
        part.pools = pools;
        engine.run_matrix(part, item.begin, item.end);
    });
}

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
    const auto [items, used] = cut(whole.n, whole.m, &blocks, engine.row_tile, threads);
    threads = used;
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
        part.list = item.list;
        if (part.epsilon) part.epsilon += item.block * epsilon_step;
        engine.run(part, columns, item.begin, item.end, scratch[thread].get());
    });
}

// exp(g / epsilon); all NaN where one is too large for the sums to be trusted.
template <class T>
void scale(const T* g, T* out, int64_t m, double epsilon, bool narrow, const Engine<T>& engine) {
    const double highest = sizeof(T) == 8 && !narrow ? 255 : 31;  // of a power of two: see safe_sum
    const T factor = static_cast<T>(1.4426950408889634 / epsilon);
    bool sound = true;
    for (int64_t j = 0; j < m; ++j) {
        out[j] = g[j] * factor;
        sound &= out[j] <= highest;
    }
    if (sound) {
        engine.exp2(out, out, m);
    } else {
        std::fill(out, out + m, std::numeric_limits<T>::quiet_NaN());
    }
}

template <class T>
void over_matrix(MatrixTask<T> first, bool shared, const T* epsilons, int64_t count, int threads,
                 const Engine<T>& engine) {
    if (count <= 0 || first.n <= 0) return;
    const int64_t pairs = first.n * first.m;
    threads = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, count * pairs / kPairsPerThread)));
    // a few tasks for each thread; small problems are taken several at a time
    const int64_t wanted = std::max<int64_t>(1, count * first.n / (8 * threads)), tile = engine.matrix_lines;
    const int64_t rows = std::min<int64_t>(first.n, (std::min(wanted, first.n) + tile - 1) / tile * tile);
    const int64_t parts = (first.n + rows - 1) / rows;
    const int64_t group = std::clamp<int64_t>(wanted / first.n, 1, 64), groups = (count + group - 1) / group;
    std::vector<T> scalings;
    if (first.op == Op::rescaled) {
        scalings.resize(count * first.m);
        spread(groups, threads, [&](int, int64_t item) {
            for (int64_t i = item * group; i < std::min(count, (item + 1) * group); ++i) {
                scale(first.g + i * first.m, scalings.data() + i * first.m, first.m,
                      epsilons ? static_cast<double>(epsilons[i]) : first.epsilon, first.kernel, engine);
            }
        });
        first.g = scalings.data();
    }
    spread(groups * parts, threads, [&](int, int64_t item) {
        const int64_t begin = item % parts * rows, end = std::min(first.n, begin + rows);
        const int64_t last = std::min(count, (item / parts + 1) * group);
        for (int64_t i = item / parts * group; i < last; ++i) {
            MatrixTask<T> task = first;
            task.cost += shared ? 0 : i * pairs;
            if (task.f) task.f += i * task.n;
            if (task.g) task.g += i * task.m;
            if (task.vectors) task.vectors += i * task.m * task.k;
            if (epsilons) task.epsilon = static_cast<double>(epsilons[i]);
            task.out += i * task.n * (task.op == Op::apply ? task.k : task.op == Op::gibbs ? task.m : 1);
            if (task.second) task.second += i * task.n;
            if (task.kernel) task.kernel += shared && task.op == Op::rescaled ? 0 : i * pairs;
            if (task.index) task.index += i * task.n;
            engine.run_matrix(task, begin, end);
        }
    });
}

template void pairwise<float>(const Task<float>&, const Blocks&, int64_t, int, const Engine<float>&);
template void pairwise<double>(const Task<double>&, const Blocks&, int64_t, int, const Engine<double>&);
template void pairwise<float>(const Task<float>&, const Steps&, int64_t, int, const Engine<float>&);
template void pairwise<double>(const Task<double>&, const Steps&, int64_t, int, const Engine<double>&);

template void make_room<float>(Pool<float>&);
template void make_room<double>(Pool<double>&);
template float kth_smallest<float>(float*, int64_t, int64_t);
template double kth_smallest<double>(double*, int64_t, int64_t);

template Found<float> entries<float>(const Task<float>&, const Blocks*, float, int64_t, int, const Engine<float>&);
template Found<double> entries<double>(const Task<double>&, const Blocks*, double, int64_t, int,
                                       const Engine<double>&);
template Found<float> entries<float>(const MatrixTask<float>&, const Blocks*, float, int64_t, int,
                                     const Engine<float>&);
template Found<double> entries<double>(const MatrixTask<double>&, const Blocks*, double, int64_t, int,
                                       const Engine<double>&);

template void over_matrix<float>(MatrixTask<float>, bool, const float*, int64_t, int, const Engine<float>&);
template void over_matrix<double>(MatrixTask<double>, bool, const double*, int64_t, int, const Engine<double>&);

}  // namespace brenier
