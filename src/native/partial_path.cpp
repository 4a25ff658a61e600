// Points that are left out of the best matching of k pairs lie under none of its arcs: one there would serve its nearer
// end for less. So between two neighbours of those left out lie as many x as y, matched with each other from left to
// right, and the next pair to come in are two neighbours, an x and a y: all pairs between move by one place.
//
// The level of a place on the line is the number of x before it, less that of y. What lies between two neighbours is
// matched from its own level up and down; to move by one place is to shift that level by one. At p = 1 the cost is the
// length of the line times the distance from the level, and what a shift costs is known from those before.
#include "partial_path.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "inline.hpp"
#include "threads.hpp"

namespace brenier {
namespace {

using std::int32_t;
using std::int64_t;

constexpr int64_t kWorkPerThread = 1 << 13;  // points that take as long as starting a thread
constexpr int64_t kPoll = 1 << 12;           // pairs between two looks for an interrupt
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The costs of x[t] - y[t] for t < size, less those of u[t] - v[t] for t < size - 1.
BRENIER_SIMD_CLONES
double change_of_squares(const double* x, const double* y, const double* u, const double* v, int64_t size) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < size - 1; ++t) {
        const double now = x[t] - y[t], before = u[t] - v[t];
        sum += now * now - before * before;
    }
    const double last = x[size - 1] - y[size - 1];
    return sum + last * last;
}

double change_of_powers(const double* x, const double* y, const double* u, const double* v, int64_t size, double p) {
    double sum = 0;
    for (int64_t t = 0; t < size - 1; ++t) {
        sum += std::pow(std::fabs(x[t] - y[t]), p) - std::pow(std::fabs(u[t] - v[t]), p);
    }
    return sum + std::pow(std::fabs(x[size - 1] - y[size - 1]), p);
}

// Two neighbours among the points that are left out, an x and a y.
struct Candidate {
    double price;
    int32_t left, right;
};

struct Dearer {
    bool operator()(const Candidate& s, const Candidate& t) const {
        return s.price > t.price || (s.price == t.price && s.left > t.left);
    }
};

// One problem; the room serves the next as well.
class Path {
 public:
    Path(int64_t n, int64_t m, double p)
        : n_(n), m_(m), size_(static_cast<int32_t>(n + m)), p_(p), z_(n + m), is_x_(n + m), before_(n + m),
          prev_(n + m), next_(n + m) {
        if (p == 1) up_.resize(n + m), down_.resize(n + m), alike_.resize(n + m), total_.resize(n + m + 1);
    }

    template <class Poll>
    void run(const double* x, const double* y, int64_t pairs, double price, int64_t* step_x, int64_t* step_y,
             double* prices, const Poll& poll) {
        const int64_t most = std::min(n_, m_);
        x_ = x, y_ = y;
        std::fill_n(step_x, n_, most + 1);
        std::fill_n(step_y, m_, most + 1);
        std::fill_n(prices, most, kInfinity);
        merge();
        if (p_ == 1) measure();
        heap_.clear();
        for (int32_t t = 0; t + 1 < size_; ++t) {
            if (is_x_[t] != is_x_[t + 1]) heap_.push_back({price_of(t, t + 1), t, t + 1});
        }
        std::make_heap(heap_.begin(), heap_.end(), Dearer{});
        for (int64_t made = 0; made < pairs && !heap_.empty();) {
            const Candidate best = heap_.front();
            std::pop_heap(heap_.begin(), heap_.end(), Dearer{});
            heap_.pop_back();
            if (next_[best.left] != best.right) continue;  // one of them has come in since
            if (!(best.price < price)) break;
            prices[made++] = best.price;
            for (const int32_t t : {best.left, best.right}) {
                if (is_x_[t]) {
                    step_x[before_[t]] = made;
                } else {
                    step_y[t - before_[t]] = made;
                }
            }
            join(best.left, best.right);
            if (made % kPoll == 0) poll();
        }
    }

 private:
    // Both sides in one order; on a tie, x first.
    void merge() {
        int64_t i = 0, j = 0;
        for (int32_t t = 0; t < size_; ++t) {
            const bool is_x = j == m_ || (i < n_ && x_[i] <= y_[j]);
            is_x_[t] = is_x, before_[t] = static_cast<int32_t>(i);
            z_[t] = is_x ? x_[i++] : y_[j++];
            prev_[t] = t - 1, next_[t] = t + 1;
        }
    }

    double length(int32_t t) const { return t + 1 < size_ ? z_[t + 1] - z_[t] : 0; }

    // For p = 1: what the shifts of each gap cost at first, and how much of the line lies at each level so far.
    void measure() {
        std::fill(total_.begin(), total_.end(), 0.0);
        int64_t level = m_;
        for (int32_t t = 0; t < size_; ++t) {
            level += is_x_[t] ? 1 : -1;
            up_[t] = down_[t] = length(t);
            alike_[t] = total_[level] += length(t);
        }
    }

    // By how much the cost rises if two neighbours come in.
    double price_of(int32_t left, int32_t right) const {
        const bool x_first = is_x_[left];
        if (p_ == 1) return x_first ? up_[left] : down_[left];
        const int64_t size = (right - left + 1) / 2;
        const double *x = x_ + before_[left], *y = y_ + (left - before_[left]);
        const double *u = x + x_first, *v = y + !x_first;  // those that were matched before
        return p_ == 2 ? change_of_squares(x, y, u, v, size) : change_of_powers(x, y, u, v, size, p_);
    }

    void join(int32_t left, int32_t right) {
        const int32_t first = prev_[left], last = next_[right];
        if (p_ == 1 && first >= 0) {  // before the first neighbour nothing will ever shift
            // what is between has shifted: back costs the contrary, and on as much more as lies at the new level
            const double here = alike_[right] - length(right) - (left > 0 ? alike_[left - 1] : 0);
            const double back = is_x_[left] ? -up_[left] : -down_[left];
            const double on = -back + 2 * here;
            up_[first] += (is_x_[left] ? on : back) + up_[right];
            down_[first] += (is_x_[left] ? back : on) + down_[right];
        }
        next_[left] = next_[right] = -1;
        if (first >= 0) next_[first] = last;
        if (last < size_) prev_[last] = first;
        if (first < 0 || last == size_ || is_x_[first] == is_x_[last]) return;
        heap_.push_back({price_of(first, last), first, last});
        std::push_heap(heap_.begin(), heap_.end(), Dearer{});
    }

    const int64_t n_, m_;
    const int32_t size_;
    const double p_;
    const double *x_ = nullptr, *y_ = nullptr;
    std::vector<double> z_;              // all positions, ascending
    std::vector<char> is_x_;
    std::vector<int32_t> before_;        // how many x lie before
    std::vector<int32_t> prev_, next_;   // neighbours among those left out; next is -1 for those that have come in
    std::vector<double> up_, down_;      // what it costs to shift the gap to the next neighbour, by x..y or by y..x
    std::vector<double> alike_, total_;  // how much of the line up to the next point is at the same level; by level
    std::vector<Candidate> heap_;
};

}  // namespace

void partial_paths(const PartialPaths& task, int threads, const std::function<void()>& poll) {
    const int64_t n = task.n, m = task.m, most = std::min(n, m);
    threads = static_cast<int>(std::clamp<int64_t>(task.count * (n + m) / kWorkPerThread, 1, std::max(threads, 1)));
    std::vector<std::unique_ptr<Path>> room(threads);
    spread(task.count, threads, [&](int thread, int64_t k) {
        if (!room[thread]) room[thread] = std::make_unique<Path>(n, m, task.p);
        const auto look = [&] {
            if (thread == 0) poll();
        };
        look();
        room[thread]->run(task.x + k * n, task.y + k * m, task.pairs[k], task.price[k], task.step_x + k * n,
                          task.step_y + k * m, task.prices + k * most, look);
    });
}

}  // namespace brenier
