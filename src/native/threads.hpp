// Scratch memory, and work shared by threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace brenier {

struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
inline std::unique_ptr<void, Free> allocate(std::int64_t bytes) {
    return std::unique_ptr<void, Free>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64}));
}

// work(thread, item) for all items, on up to `threads` threads, the caller's among them. An exception of one of them
// (memory) ends the others and is thrown again here.
template <class Work>
void spread(std::int64_t items, int threads, Work work) {
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto loop = [&](int thread) {
        try {
            for (std::int64_t i; (i = next.fetch_add(1)) < items;) work(thread, i);
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

}  // namespace brenier
