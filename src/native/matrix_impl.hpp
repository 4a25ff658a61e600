// The kernels over a given matrix, once, for any vector type V; see pairwise_impl.hpp for how they are compiled.
//
// Where the sum runs along the memory, a vector holds W of its terms; where it runs across, a vector holds W outputs
// and nothing is ever reduced inside a vector. Sums are taken in chunks: the largest exponent of a chunk first, then
// its exponentials, both from the first-level cache. Within a chunk sums are in T, from chunk to chunk in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "inline.hpp"
#include "pairwise.hpp"

namespace brenier {
namespace {

template <class T>
BRENIER_INLINE void add(Pool<T>& pool, T value, std::int64_t row, std::int64_t col) {
    if (!(value <= pool.limit)) return;
    if (pool.count == pool.room) {
        make_room(pool);
        if (!(value <= pool.limit)) return;
    }
    pool.entries[pool.count++] = {value, std::int32_t(row), std::int32_t(col)};
}

constexpr std::int64_t kSeeds = 1024;  // minima of sets of entries, which bound the k-th smallest
constexpr double kLogOf2 = 0.693147180559945309417232121458;
// Fourth roots of the smallest numbers: sums of a rescaled kernel are at least this, its scalings at most one over it.
template <class T>
constexpr double safe_sum() {
    return sizeof(T) == 8 ? 0x1p-255 : 0x1p-31;
}

constexpr double kInfinite = std::numeric_limits<double>::infinity();

template <class V>
struct MatrixRunner {
    using T = typename V::scalar;
    static constexpr int W = V::width;
    static constexpr int L = V::row_tile;            // vectors of outputs side by side
    static constexpr std::int64_t lines = L * W;
    static constexpr std::int64_t kAlong = 1024;     // terms of a chunk along the memory
    static constexpr std::int64_t kAcross = 64;      // and across it
    static constexpr int kVectors = 8;               // right-hand sides at a time

    const MatrixTask<T>& task;
    const double unscale = task.epsilon * kLogOf2, scale = 1 / unscale;
    const T lowest = -std::numeric_limits<T>::infinity();

    // Lane sums and maxima, in a fixed order.
    static double total(V v) {
        T lane[W];
        v.store(lane);
        double out = 0;
        for (int l = 0; l < W; ++l) out += lane[l];
        return out;
    }
    static T greatest(V v) {
        T lane[W];
        v.store(lane);
        T out = lane[0];
        for (int l = 1; l < W; ++l) out = lane[l] > out ? lane[l] : out;
        return out;
    }

    // ----------------------------------------------------------------------------- sums along the memory, row by row

    // Calls use(c, g, j) for whole vectors of a row, and for the rest padded with g = -inf.
    template <class Use>
    void along(const T* row, std::int64_t begin, std::int64_t end, Use&& use) const {
        std::int64_t j = begin;
        for (; j + W <= end; j += W) use(V::load(row + j), V::load(task.g + j), j);
        if (j == end) return;
        T c[W], g[W];
        for (int l = 0; l < W; ++l) {
            const bool inside = j + l < end;
            c[l] = inside ? row[j + l] : T(0);
            g[l] = inside ? task.g[j + l] : lowest;
        }
        use(V::load(c), V::load(g), j);
    }

    void row_softmin(std::int64_t i) const {
        const T* row = task.cost + i * task.row_step;
        const V s = V::set1(T(scale));
        double shift = -kInfinite, sum = 0;
        for (std::int64_t j = 0; j < task.m; j += kAlong) {
            const std::int64_t end = j + kAlong < task.m ? j + kAlong : task.m;
            V best[4] = {V::set1(lowest), V::set1(lowest), V::set1(lowest), V::set1(lowest)};
            int turn = 0;
            along(row, j, end, [&](V c, V g, std::int64_t) {
                best[turn] = max(g - c, best[turn]);
                turn = (turn + 1) & 3;
            });
            const double top = double(greatest(max(max(best[0], best[1]), max(best[2], best[3]))));
            if (top == -kInfinite) continue;
            if (top > shift) {
                sum = sum > 0 ? sum * std::exp2((shift - top) * scale) : 0;
                shift = top;
            }
            const V at = V::set1(T(shift));  // taken off before the scaling: the exponent is never above zero
            V parts[4] = {V::set1(0), V::set1(0), V::set1(0), V::set1(0)};
            turn = 0;
            along(row, j, end, [&](V c, V g, std::int64_t) {
                parts[turn] = parts[turn] + exp2((g - c - at) * s);
                turn = (turn + 1) & 3;
            });
            sum += total(parts[0] + parts[1] + (parts[2] + parts[3]));
        }
        // an infinite shift: no mass at all, or a column of infinite g
        task.out[i] = T(std::isinf(shift) ? -shift : -(shift + std::log2(sum) * unscale));
    }

    void row_cmin(std::int64_t i) const {
        const T* row = task.cost + i * task.row_step;
        V best = V::set1(lowest), at = V::set1(0);
        along(row, 0, task.m, [&](V c, V g, std::int64_t j) {
            const V z = g - c;
            at = where_greater(z, best, V::set1(T(j / W)), at);
            best = where_greater(z, best, z, best);
        });
        T value[W], where[W];
        best.store(value);
        at.store(where);
        double top = -kInfinite, column = 0;
        for (int l = 0; l < W; ++l) {
            const double j = double(where[l]) * W + l;
            if (value[l] > top || (value[l] == top && j < column)) top = value[l], column = j;
        }
        task.out[i] = T(-top);
        task.index[i] = std::int64_t(column);
    }

    // Calls use(begin, end) for the ranges of columns that the rows of the task meet.
    template <class Use>
    void ranges(Use&& use) const {
        const List& list = task.list;
        if (!list.starts) return use(std::int64_t(0), task.m);
        for (const std::int64_t* b = list.begin; b != list.end; ++b) use(list.starts[*b], list.starts[*b + 1]);
    }

    // Lowers the limit before anything is kept, as for clouds of points, by a look at the first columns.
    bool lower(const T* row, V f, Pool<T>& pool, std::int64_t looked) const {
        const std::int64_t size = looked / (4 * pool.most + W);  // vectors of a set: W sets of entries
        if (size < 1 || 4 * pool.most + 2 * W > kSeeds) return false;
        const V zero = V::set1(0);
        T seeds[kSeeds];
        V best = V::set1(lowest);
        std::int64_t turn = 0, filled = 0;
        const auto look = [&](V c, V g, std::int64_t) {
            if (filled + W > kSeeds) return;
            best = max(zero - (c - f - g), best);
            if (++turn < size) return;
            (zero - best).store(seeds + filled);
            best = V::set1(lowest), turn = 0, filled += W;
        };
        ranges([&](std::int64_t begin, std::int64_t end) {
            end = end - begin < looked ? end : begin + looked;
            looked -= end - begin;
            along(row, begin, end, look);
        });
        if (filled < pool.most) return false;
        const T bound = kth_smallest(seeds, filled, pool.most);
        if (!(bound < pool.limit)) return false;
        pool.limit = bound;
        return true;
    }

    void row_entries(std::int64_t i, Pool<T>& pool) const {
        const T* row = task.cost + i * task.row_step;
        const V f = V::set1(task.f[i]);
        if (task.op == Op::support) {
            const std::int64_t columns = task.list.starts ? task.list.columns : task.m;
            if (lower(row, f, pool, columns / 8)) lower(row, f, pool, columns);
        }
        V top = V::set1(pool.limit);
        ranges([&](std::int64_t begin, std::int64_t end) {
            along(row, begin, end, [&](V c, V g, std::int64_t j) {
                const V reduced = c - f - g;
                const auto hits = at_least(top, reduced);
                if (!V::any(hits)) return;
                T value[W];
                reduced.store(value);
                for (unsigned bits = V::bits(hits); bits; bits &= bits - 1) {
                    const int l = lowest_bit(bits);
                    if (j + l < end) add(pool, value[l], i, j + l);
                }
                top = V::set1(pool.limit);
            });
        });
    }

    // The exponentials of a chunk of a row, kept in the first-level cache.
    void row_exponentials(const T* row, T f, std::int64_t begin, std::int64_t end, T* kept) const {
        const V s = V::set1(T(scale)), shift = V::set1(f);
        along(row, begin, end, [&](V c, V g, std::int64_t j) { exp2((shift + g - c) * s).store(kept + (j - begin)); });
    }

    void row_apply(std::int64_t i) const {
        const T* row = task.cost + i * task.row_step;
        alignas(64) T kept[kAlong + W];
        for (std::int64_t q = 0; q < task.k; q += kVectors) {
            const int width = int(task.k - q < kVectors ? task.k - q : kVectors);
            double sums[kVectors] = {};
            for (std::int64_t j = 0; j < task.m; j += kAlong) {
                const std::int64_t end = j + kAlong < task.m ? j + kAlong : task.m;
                row_exponentials(row, task.f[i], j, end, kept);
                T part[kVectors] = {};
                if (task.k == 1) {
                    part[0] = dot(kept, task.vectors + j, end - j);
                } else {
                    for (std::int64_t t = j; t < end; ++t) {
                        const T p = kept[t - j];
                        const T* v = task.vectors + t * task.k + q;
                        for (int w = 0; w < width; ++w) part[w] += p * v[w];
                    }
                }
                for (int w = 0; w < width; ++w) sums[w] += part[w];
            }
            for (int w = 0; w < width; ++w) task.out[i * task.k + q + w] = T(sums[w]);
        }
    }

    template <class S>
    static V fetch(const S* p) {
        if constexpr (std::is_same_v<S, T>) {
            return V::load(p);
        } else {
            return V::widen(p);
        }
    }

    template <class S>
    static T dot(const S* a, const T* b, std::int64_t count) {
        V parts[4] = {V::set1(0), V::set1(0), V::set1(0), V::set1(0)};
        std::int64_t t = 0;
        for (; t + 4 * W <= count; t += 4 * W) {
            for (int l = 0; l < 4; ++l) parts[l] = fma(fetch(a + t + l * W), V::load(b + t + l * W), parts[l]);
        }
        T out = T(total(parts[0] + parts[1] + (parts[2] + parts[3])));
        for (; t < count; ++t) out += T(a[t]) * b[t];
        return out;
    }

    template <class S>
    void row_gibbs(std::int64_t i, S* stored) const {
        const T* row = task.cost + i * task.row_step;
        S* out = stored + i * task.m;
        alignas(64) T kept[kAlong + W];
        for (std::int64_t j = 0; j < task.m; j += kAlong) {
            const std::int64_t end = j + kAlong < task.m ? j + kAlong : task.m;
            row_exponentials(row, task.f[i], j, end, kept);
            for (std::int64_t t = j; t < end; ++t) out[t] = S(kept[t - j]);
        }
    }

    // Terms below the smallest number that were dropped when P was made are at most 1 / safe^3 after scaling: nothing
    // beside a sum of at least `safe`.
    T rescaled(T f, double sum) const {
        const double safe = task.kernel ? safe_sum<float>() : safe_sum<T>();
        return sum >= safe ? T(double(f) - std::log2(sum) * unscale) : std::numeric_limits<T>::quiet_NaN();
    }

    template <class S>
    void row_rescaled(std::int64_t i, const S* kernel) const {
        const S* row = kernel + i * task.row_step;
        double sum = 0;
        for (std::int64_t j = 0; j < task.m; j += kAlong) {
            sum += double(dot(row + j, task.g + j, kAlong < task.m - j ? kAlong : task.m - j));
        }
        task.out[i] = rescaled(task.f[i], sum);
    }

    void row_moments(std::int64_t i) const {
        const T* row = task.cost + i * task.row_step;
        const V s = V::set1(T(scale)), shift = V::set1(task.f[i]);
        double mass = 0, cost = 0;
        for (std::int64_t j = 0; j < task.m; j += kAlong) {
            const std::int64_t end = j + kAlong < task.m ? j + kAlong : task.m;
            V parts = V::set1(0), costs = V::set1(0);
            along(row, j, end, [&](V c, V g, std::int64_t) {
                const V p = exp2((shift + g - c) * s);
                parts = parts + p;
                costs = fma(p, c, costs);
            });
            mass += total(parts);
            cost += total(costs);
        }
        task.out[i] = T(mass);
        task.second[i] = T(cost);
    }

    // --------------------------------------------------------------- sums across the memory, L vectors of outputs each

    // Calls use(l, c, j) for the L * W outputs from i on, and all j of a chunk; the last outputs are copied first.
    template <class Use>
    void across(std::int64_t i, std::int64_t begin, std::int64_t end, T* buffer, Use&& use) const {
        across(task.cost, i, begin, end, buffer, use);
    }

    template <class S, class Use>
    void across(const S* matrix, std::int64_t i, std::int64_t begin, std::int64_t end, T* buffer, Use&& use) const {
        const std::int64_t wide = L * W;
        const bool whole = i + wide <= task.n;
        if (!whole) {
            for (std::int64_t j = begin; j < end; ++j) {
                const S* from = matrix + i + j * task.col_step;
                T* to = buffer + (j - begin) * wide;
                for (std::int64_t l = 0; l < wide; ++l) to[l] = i + l < task.n ? T(from[l]) : T(0);
            }
        }
        for (std::int64_t j = begin; j < end; ++j) {
            if (whole) {
                const S* from = matrix + i + j * task.col_step;
                for (int l = 0; l < L; ++l) use(l, fetch(from + l * W), j);
            } else {
                const T* from = buffer + (j - begin) * wide;
                for (int l = 0; l < L; ++l) use(l, V::load(from + l * W), j);
            }
        }
    }

    void column_softmin(std::int64_t i, T* buffer) const {
        const V s = V::set1(T(scale));
        double shift[L * W], sum[L * W] = {};
        for (double& x : shift) x = -kInfinite;
        for (std::int64_t j = 0; j < task.m; j += kAcross) {
            const std::int64_t end = j + kAcross < task.m ? j + kAcross : task.m;
            V best[L], at[L], parts[L];
            for (V& b : best) b = V::set1(lowest);
            across(i, j, end, buffer, [&](int l, V c, std::int64_t t) { best[l] = max(V::set1(task.g[t]) - c, best[l]); });
            T top[L * W];
            for (int l = 0; l < L; ++l) best[l].store(top + l * W);
            for (int l = 0; l < L * W; ++l) {
                if (double(top[l]) > shift[l]) {
                    sum[l] = sum[l] > 0 ? sum[l] * std::exp2((shift[l] - double(top[l])) * scale) : 0;
                    shift[l] = double(top[l]);
                }
                top[l] = shift[l] > -kInfinite ? T(shift[l]) : T(0);
            }
            for (int l = 0; l < L; ++l) at[l] = V::load(top + l * W), parts[l] = V::set1(0);
            across(i, j, end, buffer, [&](int l, V c, std::int64_t t) {
                parts[l] = parts[l] + exp2((V::set1(task.g[t]) - c - at[l]) * s);
            });
            for (int l = 0; l < L; ++l) parts[l].store(top + l * W);
            for (int l = 0; l < L * W; ++l) sum[l] += double(top[l]);
        }
        const std::int64_t count = task.n - i < L * W ? task.n - i : L * W;
        for (std::int64_t l = 0; l < count; ++l) {
            task.out[i + l] = T(std::isinf(shift[l]) ? -shift[l] : -(shift[l] + std::log2(sum[l]) * unscale));
        }
    }

    void column_cmin(std::int64_t i, T* buffer) const {
        double value[L * W], where[L * W] = {};
        for (double& x : value) x = -kInfinite;
        for (std::int64_t j = 0; j < task.m; j += kAcross) {
            const std::int64_t end = j + kAcross < task.m ? j + kAcross : task.m;
            V best[L], at[L];
            for (int l = 0; l < L; ++l) best[l] = V::set1(lowest), at[l] = V::set1(0);
            across(i, j, end, buffer, [&](int l, V c, std::int64_t t) {
                const V z = V::set1(task.g[t]) - c;
                at[l] = where_greater(z, best[l], V::set1(T(t - j)), at[l]);
                best[l] = where_greater(z, best[l], z, best[l]);
            });
            for (int l = 0; l < L; ++l) {
                T some[W], from[W];
                best[l].store(some);
                at[l].store(from);
                for (int w = 0; w < W; ++w) {
                    if (some[w] > value[l * W + w]) value[l * W + w] = some[w], where[l * W + w] = double(from[w]) + double(j);
                }
            }
        }
        const std::int64_t count = task.n - i < L * W ? task.n - i : L * W;
        for (std::int64_t l = 0; l < count; ++l) task.out[i + l] = T(-value[l]), task.index[i + l] = std::int64_t(where[l]);
    }

    void column_entries(std::int64_t i, std::int64_t stop, Pool<T>* pools, std::int64_t step, T* buffer) const {
        const std::int64_t count = stop - i < L * W ? stop - i : L * W;
        V f[L];
        load_f(i, f);
        T limit[L * W];
        const auto look = [&] {
            for (std::int64_t l = 0; l < L * W; ++l) limit[l] = l < count ? pools[l * step].limit : lowest;
        };
        look();
        ranges([&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t j = begin; j < end; j += kAcross) {
                across(i, j, j + kAcross < end ? j + kAcross : end, buffer, [&](int l, V c, std::int64_t t) {
                    const V reduced = c - f[l] - V::set1(task.g[t]);
                    const auto hits = at_least(V::load(limit + l * W), reduced);
                    if (!V::any(hits)) return;
                    T value[W];
                    reduced.store(value);
                    for (unsigned bits = V::bits(hits); bits; bits &= bits - 1) {
                        const std::int64_t w = lowest_bit(bits), at = l * W + w;
                        if (at >= count) break;
                        Pool<T>& pool = pools[at * step];
                        add(pool, value[w], i + at, t);
                        limit[at] = pool.limit;
                    }
                    if (step == 0) look();
                });
            }
        });
    }

    // f as L vectors; what lies beyond the last output has no mass.
    void load_f(std::int64_t i, V (&f)[L]) const {
        T lane[L * W];
        for (std::int64_t l = 0; l < L * W; ++l) lane[l] = i + l < task.n ? task.f[i + l] : lowest;
        for (int l = 0; l < L; ++l) f[l] = V::load(lane + l * W);
    }

    void column_sums(std::int64_t i, T* buffer) const {  // apply and moments
        const V s = V::set1(T(scale));
        V f[L];
        load_f(i, f);
        const bool moments = task.op == Op::moments;
        const std::int64_t rounds = moments ? 2 : task.k;
        const std::int64_t count = task.n - i < L * W ? task.n - i : L * W;
        alignas(64) T kept[kAcross * L * W];
        double sums[2][L * W];
        for (std::int64_t q = 0; q < rounds; q += 2) {  // two right-hand sides at a time
            for (auto& each : sums) {
                for (double& x : each) x = 0;
            }
            const bool pair = q + 1 < rounds;
            for (std::int64_t j = 0; j < task.m; j += kAcross) {
                const std::int64_t end = j + kAcross < task.m ? j + kAcross : task.m;
                V parts[2][L];
                for (auto& each : parts) {
                    for (V& p : each) p = V::set1(0);
                }
                across(i, j, end, buffer, [&](int l, V c, std::int64_t t) {
                    const V p = exp2((f[l] + V::set1(task.g[t]) - c) * s);
                    if (moments) {
                        parts[0][l] = parts[0][l] + p;
                        parts[1][l] = fma(p, c, parts[1][l]);
                    } else {
                        const T* v = task.vectors + t * task.k + q;
                        parts[0][l] = fma(p, V::set1(v[0]), parts[0][l]);
                        if (pair) parts[1][l] = fma(p, V::set1(v[1]), parts[1][l]);
                    }
                });
                for (int h = 0; h < 2; ++h) {
                    for (int l = 0; l < L; ++l) parts[h][l].store(kept + l * W);
                    for (int l = 0; l < L * W; ++l) sums[h][l] += double(kept[l]);
                }
            }
            for (std::int64_t l = 0; l < count; ++l) {
                if (moments) {
                    task.out[i + l] = T(sums[0][l]);
                    task.second[i + l] = T(sums[1][l]);
                } else {
                    task.out[(i + l) * task.k + q] = T(sums[0][l]);
                    if (pair) task.out[(i + l) * task.k + q + 1] = T(sums[1][l]);
                }
            }
        }
    }

    template <class S>
    void column_rescaled(std::int64_t i, const S* kernel, T* buffer) const {
        double sums[L * W] = {};
        T kept[L * W];
        for (std::int64_t j = 0; j < task.m; j += kAcross) {
            const std::int64_t end = j + kAcross < task.m ? j + kAcross : task.m;
            V parts[L];
            for (V& p : parts) p = V::set1(0);
            const auto add = [&](int l, V p, std::int64_t t) { parts[l] = fma(p, V::set1(task.g[t]), parts[l]); };
            across(kernel, i, j, end, buffer, add);
            for (int l = 0; l < L; ++l) parts[l].store(kept + l * W);
            for (int l = 0; l < L * W; ++l) sums[l] += double(kept[l]);
        }
        const std::int64_t count = task.n - i < L * W ? task.n - i : L * W;
        for (std::int64_t l = 0; l < count; ++l) task.out[i + l] = rescaled(task.f[i + l], sums[l]);
    }

    void run(std::int64_t begin, std::int64_t end) const {
        const std::int64_t step = task.op == Op::support;  // from the pool of a row to that of the next
        if (task.col_step == 1) {
            for (std::int64_t i = begin; i < end; ++i) {
                switch (task.op) {
                    case Op::support:
                    case Op::smallest: row_entries(i, task.pools[(i - begin) * step]); break;
                    case Op::softmin: row_softmin(i); break;
                    case Op::cmin: row_cmin(i); break;
                    case Op::apply: row_apply(i); break;
                    case Op::gibbs: task.kernel ? row_gibbs(i, task.kernel) : row_gibbs(i, task.out); break;
                    case Op::rescaled: task.kernel ? row_rescaled(i, task.kernel) : row_rescaled(i, task.cost); break;
                    default: row_moments(i);
                }
            }
            return;
        }
        alignas(64) T buffer[kAcross * L * W];
        for (std::int64_t i = begin; i < end; i += L * W) {
            switch (task.op) {
                case Op::support:
                case Op::smallest: column_entries(i, end, task.pools + (i - begin) * step, step, buffer); break;
                case Op::softmin: column_softmin(i, buffer); break;
                case Op::cmin: column_cmin(i, buffer); break;
                case Op::rescaled:
                    task.kernel ? column_rescaled(i, task.kernel, buffer) : column_rescaled(i, task.cost, buffer);
                    break;
                default: column_sums(i, buffer);
            }
        }
    }
};

template <class V>
void run_matrix(const MatrixTask<typename V::scalar>& task, std::int64_t begin, std::int64_t end) {
    MatrixRunner<V>{task}.run(begin, end);
}

}  // namespace
}  // namespace brenier
