// Scratch memory, and work shared by threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace brenier {

struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
inline std::unique_ptr<void, Free> allocate(std::int64_t bytes) {
    return std::unique_ptr<void, Free>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64}));
}

// Threads that sleep between calls. Whoever calls works as well and never waits for a thread that has not begun: where
// waking one takes longer than the work, the call is as fast as without it.
class Crew {
 public:
    // The crew of this process; one that was copied by fork() has no threads, and is left behind.
    static Crew& here() {
#if defined(__unix__) || defined(__APPLE__)
        static std::atomic<Crew*> crew{nullptr};
        static std::atomic<pid_t> owner{0};
        static std::mutex guard;
        if (owner.load(std::memory_order_acquire) != getpid()) {
            const std::lock_guard<std::mutex> lock(guard);
            if (owner.load() != getpid()) crew = new Crew, owner = getpid();
        }
        return *crew;
#else
        static Crew* const crew = new Crew;
        return *crew;
#endif
    }

    // job(thread) on the calling thread, and on up to `others` more, as they come; false if the crew is busy.
    bool run(int others, const std::function<void(int)>& job) {
        {
            const std::lock_guard<std::mutex> lock(guard_);
            if (job_) return false;
            while (size_ < others) {
                try {
                    std::thread([this] { serve(); }).detach();
                } catch (const std::system_error&) {  // no more threads to be had: those that there are will do
                    break;
                }
                ++size_;
            }
            job_ = &job, wanted_ = others, next_ = 1;
        }
        wake_.notify_all();
        job(0);
        std::unique_lock<std::mutex> lock(guard_);
        wanted_ = 0;
        done_.wait(lock, [this] { return active_ == 0; });
        job_ = nullptr;
        return true;
    }

 private:
    void serve() {
        std::unique_lock<std::mutex> lock(guard_);
        for (;;) {
            wake_.wait(lock, [this] { return wanted_ > 0; });
            --wanted_, ++active_;
            const auto* const job = job_;
            const int thread = next_++;
            lock.unlock();
            (*job)(thread);
            lock.lock();
            if (--active_ == 0) done_.notify_one();
        }
    }

    std::mutex guard_;
    std::condition_variable wake_, done_;
    const std::function<void(int)>* job_ = nullptr;
    int size_ = 0, wanted_ = 0, active_ = 0, next_ = 1;
};

// work(thread, item) for all items, on up to `threads` threads, the caller's among them. An exception of one of them
// (memory) ends the others and is thrown again here.
template <class Work>
void spread(std::int64_t items, int threads, Work work) {
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const std::function<void(int)> loop = [&](int thread) {
        try {
            for (std::int64_t i; (i = next.fetch_add(1)) < items;) work(thread, i);
        } catch (...) {
            next = items;
            const std::lock_guard<std::mutex> lock(guard);
            failure = std::current_exception();
        }
    };
    // a crew that works for another caller is not waited for
    if (threads < 2 || items < 2 || !Crew::here().run(threads - 1, loop)) loop(0);
    if (failure) std::rethrow_exception(failure);
}

}  // namespace brenier
