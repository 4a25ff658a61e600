// Shortest augmenting paths for the assignment problem
//
//   min sum of c_ij over pairs,  each row and each column in one pair at most,
//
// with the dual f_i + g_j <= c_ij. Only g is kept: the best f for it is f_i = min_j c_ij - g_j. Jonker & Volgenant
// (1987) in three phases: column reduction, augmenting row reduction, and shortest augmenting paths of Dijkstra's kind;
// for rectangles without the first (Crouse, 2016), since a column that stays unmatched needs g = 0.
//
// - A price p lets row i stay unmatched at cost p: a column of its own, which enters each phase as one number.
// - Exactly k pairs of least cost: k times the shortest augmenting path from all unmatched rows at once. Paths grow
//   dearer, so the length of the last is the common f of the unmatched rows, and a price ends the search early.
// - The rows of the cost are read from left to right, a vector at a time. Columns that a search has left behind carry
//   g = -inf, which makes them dear without a branch. Row numbers live in doubles, where vectors of both can be blended.
#pragma once

#include <cstdint>
#include <limits>

#include "assignment.hpp"
#include "inline.hpp"

namespace brenier {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kPollEvery = 1 << 20;  // entries of the cost read between two polls
constexpr std::int64_t kWars = 2;             // displaced rows per free row: prices that creep are left to the paths

inline std::int64_t padded(std::int64_t count) { return (count + 15) / 16 * 16; }

struct Scratch {  // hands out aligned arrays, or only counts
    char* at;
    std::int64_t bytes = 0;
    template <class T>
    T* take(std::int64_t count) {
        T* out = at ? reinterpret_cast<T*>(at + bytes) : nullptr;
        bytes += padded(count) * static_cast<std::int64_t>(sizeof(T));
        bytes = (bytes + 63) / 64 * 64;
        return out;
    }
};

template <class V>
class Assignment {
    static constexpr int width = V::width;
    using Index = std::int32_t;
    using int64 = std::int64_t;

  public:
    static int64 scratch_size(int64 n, int64 m) {
        Scratch scratch{nullptr};
        Assignment counted;
        counted.lay_out(n, m, scratch);
        return scratch.bytes;
    }

    static AssignmentAnswer run(const AssignmentView& view, void* memory, const std::function<void()>& poll) {
        Scratch scratch{static_cast<char*>(memory)};
        Assignment solver;
        solver.lay_out(view.n, view.m, scratch);
        solver.view_ = view;
        solver.columns_ = padded(view.m);
        solver.poll_ = &poll;
        return solver.solve();
    }

  private:
    AssignmentView view_{};
    int64 columns_ = 0;  // of the arrays over columns, padding included
    const std::function<void()>* poll_ = nullptr;
    int64 unpolled_ = 0;
    double *g_, *distance_, *before_, *taken_;  // over columns; `taken_` is infinite where a column is matched
    double *left_g_, *left_distance_;           // of the columns that a search has left behind
    double *minima_, *nearest_;                 // least cost among the rows without a pair, and that row
    double* f_;
    Index *rows_, *cols_, *order_, *free_;
    int64 found_ = 0, entered_ = -1;  // the row that the last path has given its pair
    double level_ = 0;                // f of rows without a pair

    void lay_out(int64 n, int64 m, Scratch& scratch) {
        g_ = scratch.take<double>(m), distance_ = scratch.take<double>(m), before_ = scratch.take<double>(m);
        taken_ = scratch.take<double>(m), left_g_ = scratch.take<double>(m), left_distance_ = scratch.take<double>(m);
        minima_ = scratch.take<double>(m), nearest_ = scratch.take<double>(m), f_ = scratch.take<double>(n);
        rows_ = scratch.take<Index>(m), cols_ = scratch.take<Index>(n);
        order_ = scratch.take<Index>(m), free_ = scratch.take<Index>(n);
    }

    const double* row(int64 i) const { return view_.cost + i * view_.stride; }

    // Costs of row i from column j on; beyond the last they are infinite.
    BRENIER_INLINE V costs(const double* row, int64 j) const {
        if (j + width <= view_.width) return V::load(row + j);
        double last[width];
        for (int k = 0; k < width; ++k) last[k] = j + k < view_.width ? row[j + k] : kInfinity;
        return V::load(last);
    }

    // f(j, costs) for the vectors of row i.
    template <class F>
    BRENIER_INLINE void along(int64 i, F f) {
        const double* c = row(i);
        int64 j = 0;
        for (; j + width <= view_.width; j += width) f(j, V::load(c + j));
        if (j < view_.width) f(j, costs(c, j));
        if ((unpolled_ += view_.width) >= kPollEvery) {
            unpolled_ = 0;
            if (*poll_) (*poll_)();
        }
    }

    // Where the vector of the least values of each lane has its least, `value`, and where that lane found it.
    static BRENIER_INLINE int64 place(V values, double value, V starts) {
        if (!(value < kInfinity)) return -1;
        double at[width];
        starts.store(at);
        const int lane = lowest_bit(V::bits(at_least(V::set1(value), values)));
        return static_cast<int64>(at[lane]) + lane;
    }

    AssignmentAnswer solve() {
        const int64 n = view_.n, shorter = view_.n < view_.m ? view_.n : view_.m;
        for (int64 j = 0; j < columns_; ++j) g_[j] = 0, taken_[j] = 0;
        for (int64 j = 0; j < view_.m; ++j) rows_[j] = -1;
        for (int64 i = 0; i < n; ++i) cols_[i] = -1;
        const bool priced = view_.price < kInfinity;
        if (view_.pairs < shorter) {
            cheapest_pairs();
        } else {
            level_ = priced ? view_.price : kInfinity;
            int64 waiting;
            if (view_.start) {
                for (int64 j = 0; j < view_.m; ++j) g_[j] = view_.start[j];
                waiting = all_free();
            } else {
                waiting = n == view_.m && !priced ? reduce_columns() : all_free();
            }
            waiting = reduce_rows(waiting);
            for (int64 k = 0; k < waiting; ++k) augment(free_[k]);
        }
        finish();
        return {cols_, rows_, f_, g_, level_, found_};
    }

    int64 all_free() {
        for (int64 i = 0; i < view_.n; ++i) free_[i] = static_cast<Index>(i);
        return view_.n;
    }

    void match(int64 i, int64 j) {
        rows_[j] = static_cast<Index>(i);
        cols_[i] = static_cast<Index>(j);
        taken_[j] = kInfinity;
    }

    // The least cost of each column among the rows without a pair, and its row.
    void column_minima(double* minima, double* at) {
        for (int64 j = 0; j < columns_; ++j) minima[j] = kInfinity, at[j] = -1;
        for (int64 i = 0; i < view_.n; ++i) {
            const V number = V::set1(static_cast<double>(i));
            along(i, [&](int64 j, V c) BRENIER_INLINE_LAMBDA {
                const V old = V::load(minima + j);
                where_greater(old, c, number, V::load(at + j)).store(at + j);
                where_greater(old, c, c, old).store(minima + j);
            });
        }
    }

    // Column reduction and reduction transfer; returns the number of rows that are left, listed in free_.
    int64 reduce_columns() {
        column_minima(g_, before_);
        Index* const minima = order_;  // columns that have their minimum in a row
        for (int64 i = 0; i < view_.n; ++i) minima[i] = 0;
        for (int64 j = view_.m - 1; j >= 0; --j) {
            const int64 i = static_cast<int64>(before_[j]);
            if (i < 0) {
                g_[j] = 0;  // nothing allowed
            } else if (minima[i]++ == 0) {
                match(i, j);
            }
        }
        for (int64 j = view_.m; j < columns_; ++j) g_[j] = 0;
        int64 waiting = 0;
        for (int64 i = 0; i < view_.n; ++i) {
            if (cols_[i] < 0) {
                free_[waiting++] = static_cast<Index>(i);
            } else if (minima[i] == 1) {  // its own column is at zero, the least of all
                const double second = two_least(i).second;
                if (second < kInfinity) g_[cols_[i]] -= second;
            }
        }
        return waiting;
    }

    struct TwoLeast {
        double first, second;
        int64 at;
    };

    // The two least values of c_ij - g_j in row i.
    BRENIER_INLINE TwoLeast two_least(int64 i) {
        V first = V::set1(kInfinity), second = first, at = V::set1(0.0), start = at;
        along(i, [&](int64 j, V c) BRENIER_INLINE_LAMBDA {
            const V x = c - V::load(g_ + j);
            at = where_greater(first, x, start, at);
            second = min(second, max(first, x));
            first = min(first, x);
            start = start + V::set1(width);
        });
        const double best = least(first);
        const int64 j = place(first, best, at);
        double numbers[width];
        for (int k = 0; k < width; ++k) numbers[k] = k;
        const V elsewhere = abs(V::load(numbers) - V::set1(static_cast<double>(j & (width - 1))));
        second = min(second, where_greater(elsewhere, V::set1(0.5), first, V::set1(kInfinity)));
        return {best, least(second), j};
    }

    // A column without a pair where c_ij - g_j is at most `limit`, or -1.
    int64 unmatched_column(int64 i, double limit) const {
        const V bound = V::set1(limit);
        for (int64 j = 0; j < view_.m; j += width) {
            const V x = costs(row(i), j) - V::load(g_ + j) + V::load(taken_ + j);
            if (const unsigned hit = V::bits(at_least(bound, x))) return j + lowest_bit(hit);
        }
        return -1;
    }

    // Augmenting row reduction, one sweep over the free rows. Each takes its best column, at a price that makes it no
    // better than its second, and sets its owner free. Returns the number of rows that are left.
    int64 reduce_rows(int64 waiting) {
        int64 next = 0, kept = 0, steps = 0;
        const int64 most = kWars * waiting;
        while (next < waiting) {
            const int64 i = free_[next++];
            const TwoLeast two = two_least(i);
            if (two.first > level_) continue;  // dearer than its price, and that for good
            if (!(two.first < kInfinity)) {
                free_[kept++] = static_cast<Index>(i);
                continue;
            }
            const double second = two.second < level_ ? two.second : level_;
            const double lowered = second < kInfinity ? g_[two.at] - (second - two.first) : g_[two.at];
            const bool lowers = lowered < g_[two.at];
            if (taken_[two.at] == 0) {
                g_[two.at] = lowered;
                match(i, two.at);
            } else if (lowers && ++steps <= most) {
                const Index owner = rows_[two.at];
                g_[two.at] = lowered;
                match(i, two.at);
                cols_[owner] = -1;
                free_[--next] = owner;
            } else if (const int64 j = lowers ? -1 : unmatched_column(i, two.first); j >= 0) {
                match(i, j);
            } else {
                free_[kept++] = static_cast<Index>(i);
            }
        }
        return kept;
    }

    // The least distance and its column, and the least of a column without a pair.
    struct Nearest {
        double any, unmatched;
        int64 column;
    };

    // Distances from row i, which is `offset` below its dual f: the first of a search, or better ones than before.
    template <bool initial>
    BRENIER_INLINE Nearest relax(int64 i, double offset) {
        V any = V::set1(kInfinity), unmatched = any, at = V::set1(0.0), start = at;
        const V shift = V::set1(offset), number = V::set1(static_cast<double>(i));
        along(i, [&](int64 j, V c) BRENIER_INLINE_LAMBDA {
            V d = (c - shift) - V::load(g_ + j);
            if constexpr (initial) {
                number.store(before_ + j);
            } else {
                const V old = V::load(distance_ + j);
                where_greater(old, d, number, V::load(before_ + j)).store(before_ + j);
                d = where_greater(old, d, d, old);
            }
            d.store(distance_ + j);
            at = where_greater(any, d, start, at);
            any = min(any, d);
            unmatched = min(unmatched, d + V::load(taken_ + j));
            start = start + V::set1(width);
        });
        const double nearest = least(any);
        return {nearest, least(unmatched), place(any, nearest, at)};
    }

    // A column without a pair at their least distance.
    BRENIER_INLINE int64 nearest_unmatched(double distance) const {
        const V bound = V::set1(distance);
        for (int64 j = 0;; j += width) {
            const V d = V::load(distance_ + j) + V::load(taken_ + j);
            if (const unsigned hit = V::bits(at_least(bound, d))) return j + lowest_bit(hit);
        }
    }

    // Dijkstra's search, once the first distances are set, to a column without a pair or to a row whose price is less,
    // and the change of pairs along its path. Returns the length, infinite if there is no path. A search that would
    // exceed `limit` changes no pairs, and the duals as if it ended there. `bail` is the price of the row that it
    // began with.
    double search(Nearest near, double bail, int64 bailing, double limit) {
        int64 left = 0;
        double length;
        int64 sink = -1;
        for (;;) {
            if (near.unmatched <= near.any && near.unmatched <= bail) {
                length = near.unmatched;
                if (length < kInfinity && length <= limit) sink = nearest_unmatched(length);
                break;
            }
            if (bail <= near.any) {
                length = bail;
                break;
            }
            const double nearest = near.any;
            if (nearest > limit) {
                length = nearest;
                break;
            }
            const int64 j = near.column, i = rows_[j];
            order_[left] = static_cast<Index>(j);
            left_g_[left] = g_[j];
            left_distance_[left++] = nearest;
            const double offset = (row(i)[j] - g_[j]) - nearest;
            g_[j] = -kInfinity;
            distance_[j] = kInfinity;
            if (level_ - offset < bail) bail = level_ - offset, bailing = i;
            near = relax<false>(i, offset);
        }
        const bool done = sink >= 0 || (bailing >= 0 && length == bail && length < kInfinity);
        const double reach = length <= limit ? length : limit;
        for (int64 k = 0; k < left; ++k) {
            g_[order_[k]] = reach < kInfinity ? left_g_[k] - (reach - left_distance_[k]) : left_g_[k];
        }
        if (!done) return length;
        int64 j = sink;
        if (sink >= 0) {
            taken_[sink] = kInfinity;
        } else {
            j = cols_[bailing];
            cols_[bailing] = -1;
        }
        while (j >= 0) {
            entered_ = static_cast<int64>(before_[j]);
            const int64 next = cols_[entered_];
            match(entered_, j);
            j = next;
        }
        return length;
    }

    // Finds a place for row i.
    void augment(int64 i) {
        const Nearest near = relax<true>(i, 0.0);
        search(near, level_, level_ < kInfinity ? i : -1, kInfinity);
    }

    // As many pairs as asked for, each by the shortest path from all unmatched rows.
    void cheapest_pairs() {
        level_ = kInfinity;
        column_minima(minima_, nearest_);
        double longest = kInfinity;
        for (int64 found = 0; found < view_.pairs; ++found) {
            const double length = search(from_unmatched(), kInfinity, -1, view_.price);
            if (!(length <= view_.price && length < kInfinity)) {
                longest = view_.price;
                break;
            }
            longest = length;
            column_minima_without(entered_);
        }
        level_ = longest;
    }

    // Distances from all rows without a pair; to the padding too, which a search that goes on reads.
    Nearest from_unmatched() {
        V any = V::set1(kInfinity), unmatched = any, at = V::set1(0.0), start = at;
        for (int64 j = 0; j < view_.width; j += width) {
            const V d = V::load(minima_ + j) - V::load(g_ + j);
            V::load(nearest_ + j).store(before_ + j);
            d.store(distance_ + j);
            at = where_greater(any, d, start, at);
            any = min(any, d);
            unmatched = min(unmatched, d + V::load(taken_ + j));
            start = start + V::set1(width);
        }
        const double nearest = least(any);
        return {nearest, least(unmatched), place(any, nearest, at)};
    }

    // Row i has found its pair: the columns that were nearest to it look for another row.
    void column_minima_without(int64 i) {
        for (int64 j = 0; j < view_.m; ++j) {
            if (nearest_[j] != static_cast<double>(i)) continue;
            minima_[j] = kInfinity;
            for (int64 k = 0; k < view_.n; ++k) {
                const double cost = row(k)[j];
                if (cost < minima_[j] && cols_[k] < 0) minima_[j] = cost, nearest_[j] = static_cast<double>(k);
            }
        }
    }

    void finish() {
        for (int64 i = 0; i < view_.n; ++i) {
            V least_of = V::set1(level_);
            along(i, [&](int64 j, V c) BRENIER_INLINE_LAMBDA { least_of = min(least_of, c - V::load(g_ + j)); });
            f_[i] = least(least_of);
            found_ += cols_[i] >= 0;
        }
        if (!(level_ < kInfinity)) level_ = 0;
    }
};

template <class V>
AssignmentEngine assignment_engine(const char* name) {
    return {name, &Assignment<V>::scratch_size, &Assignment<V>::run};
}

}  // namespace
}  // namespace brenier
