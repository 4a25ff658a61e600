// Cuts a batch of small problems into groups and spreads them over threads.
#include "tiny_sinkhorn.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "threads.hpp"

namespace brenier {

using std::int64_t;

namespace {

constexpr int64_t kWorkPerThread = 1 << 21;  // multiply-adds that cost as much as starting a thread

}  // namespace

template <class T>
void tiny_sinkhorn(const TinyTask<T>& task, int threads, const TinyEngine<T>& engine) {
    if (task.count <= 0) return;
    const int64_t sweeps = task.op == TinyOp::implicit ? task.m : 2 * task.n_iter;
    const int64_t useful = task.count * task.n * task.m * (sweeps + 8) / kWorkPerThread;
    threads = static_cast<int>(std::clamp<int64_t>(useful, 1, std::max(threads, 1)));
    const int64_t groups = (task.count + engine.width - 1) / engine.width, bytes = engine.scratch_size(task);
    const int64_t some = std::clamp<int64_t>(groups / (8 * threads), 1, 64);
    std::vector<std::unique_ptr<void, Free>> scratch(threads);
    spread((groups + some - 1) / some, threads, [&](int thread, int64_t item) {
        if (!scratch[thread]) scratch[thread] = allocate(bytes);
        for (int64_t i = item * some; i < std::min(groups, (item + 1) * some); ++i) {
            engine.run(task, i * engine.width, scratch[thread].get());
        }
    });
}

template void tiny_sinkhorn<float>(const TinyTask<float>&, int, const TinyEngine<float>&);
template void tiny_sinkhorn<double>(const TinyTask<double>&, int, const TinyEngine<double>&);

}  // namespace brenier
