// The kernels, once, for any vector type V. Each translation unit that includes this compiles it for one instruction
// set, so everything here is internal to it: nothing may leak to a unit that runs on a lesser machine.
//
// Columns are packed in panels of C vectors: first the numbers that belong to the columns (potential, right-hand
// sides), then one line per coordinate. A tile is R rows against one panel; its R * C accumulators stay in
// registers while the coordinates stream by, and the exponentials follow at once. Panels are visited in blocks that
// fit the cache, each block by all rows of the task. Within a block sums are in T, from block to block in double.
// Where a task meets only some columns, each block is first gathered from their panels, without gaps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "inline.hpp"
#include "matrix_impl.hpp"
#include "pairwise.hpp"

namespace brenier {
namespace {

using std::int64_t;

constexpr double kLn2 = 0.693147180559945309417232121458;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kBlockBytes = 192 * 1024;  // of packed columns; a share of a second-level cache
constexpr int64_t kBlockCols = 2048;         // bounds the length of a sum in T
constexpr int64_t kStoredCols = 512;         // when P itself is kept: R rows of it fit the first-level cache
constexpr int64_t kDirect = 4;               // right-hand sides up to here need no second product
constexpr int64_t kLookTwice = 8;            // coordinates up to which a second look at all columns is cheap

template <class T>
inline T least(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T most(T a, T b) {
    return a < b ? b : a;
}
inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Where things lie in the packed columns and in the scratch memory of a task.
template <class V>
struct Layout {
    using T = typename V::scalar;
    static constexpr int W = V::width, R = V::row_tile, C = V::col_tile, PW = W * C;

    int64_t panels, visited, direct, extra, panel, block;  // `visited`: panels that the rows of the task meet
    int64_t right, values, value_panels;  // offsets of the packed `right` and `vectors`, and panels of the latter
    int64_t size, state;                  // numbers of T packed; doubles of state per row
    int64_t gathered, kept, sums;         // numbers of T of a block gathered from a list, of P, of sums in vectors
    int64_t origins;                      // the columns that were gathered, where they are asked for
    double scale, unscale;                // costs times `scale` are exponents of two
    double packed_scale;                  // what `pack` multiplies by; a list leaves it to the gathering

    explicit Layout(const Task<T>& t) {
        const bool listing = t.op == Op::support || t.op == Op::smallest;
        const bool gibbs = t.op != Op::cmin && t.op != Op::matvec && !listing;
        unscale = gibbs ? double(*t.epsilon) * kLn2 : 1.0;
        scale = 1.0 / unscale;
        packed_scale = t.list.starts ? 1.0 : scale;
        panels = (t.m + PW - 1) / PW;
        visited = t.list.starts ? (t.list.columns + PW - 1) / PW : panels;
        const bool stored = t.op == Op::slope || (t.op == Op::apply && (t.k > kDirect || t.r > 0));
        direct = t.op == Op::apply && !stored ? (t.k <= 2 ? t.k : kDirect) : 0;
        extra = 1 + direct + (t.op == Op::moments);
        panel = (extra + t.d) * PW;
        value_panels = stored && t.op == Op::apply ? (t.k + PW - 1) / PW : 0;
        right = panels * panel;
        values = right + panels * t.r * PW;
        size = values + value_panels * panels * PW * PW;
        const int64_t per_column = (extra + t.d + t.r + value_panels * PW) * int64_t(sizeof(T));
        block = least(kBlockBytes / per_column, stored ? kStoredCols : kBlockCols) / PW;
        block = most(block, int64_t(1));
        gathered = t.list.starts ? block * (panel + t.r * PW + value_panels * PW * PW) : 0;
        kept = stored ? 2 * R * block * PW : 0;
        origins = t.list.starts && (t.op == Op::cmin || listing) ? block * PW : 0;
        sums = t.op == Op::slope ? R * t.d * W : 0;
        state = t.op == Op::slope ? t.d : t.op == Op::apply ? (stored ? value_panels * PW : direct) : t.op == Op::matvec ? 1 : 2;
        if (listing) state = t.op == Op::support ? kSeeds * int64_t(sizeof(T) / 4) / 2 : 0;
    }
};

template <class V>
int64_t packed_size(const Task<typename V::scalar>& t) {
    return Layout<V>(t).size;
}

template <class V>
int64_t scratch_size(const Task<typename V::scalar>& t, int64_t rows) {
    using L = Layout<V>;
    const L at(t);
    return (round_up(rows, L::R) * at.state + at.origins) * int64_t(sizeof(double)) +
           (at.kept + at.sums + at.gathered) * int64_t(sizeof(typename V::scalar));
}

template <class V>
void pack(const Task<typename V::scalar>& t, typename V::scalar* packed) {
    using T = typename V::scalar;
    using L = Layout<V>;
    const L at(t);
    // Distances are scaled after the fact: scaling the coordinates first would blur the difference of near points.
    const double coordinate = t.kind == Kind::dot ? at.packed_scale : 1.0;
    for (int64_t p = 0; p < at.panels; ++p) {
        T* line = packed + p * at.panel;
        const int64_t first = p * L::PW, some = least<int64_t>(L::PW, t.m - first);
        const auto fill = [&](auto value, T padding) {
            for (int64_t j = 0; j < some; ++j) line[j] = value(first + j);
            for (int64_t j = some; j < L::PW; ++j) line[j] = padding;
            line += L::PW;
        };
        if (t.op == Op::matvec) {
            fill([&](int64_t j) { return t.vectors[j]; }, T(0));
        } else {  // a column beyond the last has no mass
            fill([&](int64_t j) { return T(double(t.g[j]) * at.packed_scale); }, T(-kInfinity));
        }
        if (t.op == Op::moments) fill([&](int64_t j) { return t.term[j]; }, T(0));
        for (int64_t q = 0; q < at.direct; ++q) {
            fill([&](int64_t j) { return q < t.k ? t.vectors[j * t.k + q] : T(0); }, T(0));
        }
        for (int64_t c = 0; c < t.d; ++c) fill([&](int64_t j) { return T(t.cols[j * t.d + c] * coordinate); }, T(0));
        line = packed + at.right + p * t.r * L::PW;
        for (int64_t c = 0; c < t.r; ++c) fill([&](int64_t j) { return t.right[j * t.r + c]; }, T(0));
    }
    for (int64_t q = 0; q < at.value_panels; ++q) {
        T* line = packed + at.values + q * at.panels * L::PW * L::PW;
        const int64_t first = q * L::PW, some = least<int64_t>(L::PW, t.k - first);
        for (int64_t j = 0; j < at.panels * L::PW; ++j, line += L::PW) {
            for (int64_t c = 0; c < L::PW; ++c) line[c] = j < t.m && c < some ? t.vectors[j * t.k + first + c] : T(0);
        }
    }
}

template <class V>
BRENIER_INLINE typename V::scalar greatest(V v) {
    using T = typename V::scalar;
    T lane[V::width];
    v.store(lane);
    T out = lane[0];
    for (int i = 1; i < V::width; ++i) out = most(out, lane[i]);
    return out;
}

// All tiles of R rows against `count` panels. `use.tile` receives, for Kind::dot, the inner products, plus the first
// line of the panel where Fold says so (it is free as the start of the sum); else the distances.
template <class V, Kind K, int D, bool Fold, class Use>
BRENIER_INLINE void sweep(const typename V::scalar* const (&row)[V::row_tile], int64_t d,
                          const typename V::scalar* panel, int64_t extra, int64_t stride, int64_t count, Use& use) {
    constexpr int R = V::row_tile, C = V::col_tile, W = V::width, PW = W * C;
    const int64_t dim = D > 0 ? D : d;
    for (int64_t p = 0; p < count; ++p, panel += stride) {
        V acc[R][C];
        each<C>([&](auto c) BRENIER_INLINE_LAMBDA {
            const V start = Fold ? V::load(panel + c * W) : V::set1(0);
            each<R>([&](auto r) BRENIER_INLINE_LAMBDA { acc[r][c] = start; });
        });
        const auto coordinate = [&](int64_t k) BRENIER_INLINE_LAMBDA {
            V y[C];
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA { y[c] = V::load(panel + (extra + k) * PW + c * W); });
            each<R>([&](auto r) BRENIER_INLINE_LAMBDA {
                const V x = V::set1(row[r][k]);
                each<C>([&](auto c) BRENIER_INLINE_LAMBDA {
                    if constexpr (K == Kind::dot) {
                        acc[r][c] = fma(x, y[c], acc[r][c]);
                    } else {
                        const V delta = x - y[c];
                        if constexpr (K == Kind::l1) acc[r][c] = acc[r][c] + abs(delta);
                        if constexpr (K == Kind::l2) acc[r][c] = fma(delta, delta, acc[r][c]);
                        if constexpr (K == Kind::linf) acc[r][c] = max(acc[r][c], abs(delta));
                    }
                });
            });
        };
        if constexpr (D > 0) {
            each<D>([&](auto k) BRENIER_INLINE_LAMBDA { coordinate(k); });
        } else {
            for (int64_t k = 0; k < dim; ++k) coordinate(k);
        }
        if constexpr (K == Kind::l2) {
            each<R>([&](auto r) BRENIER_INLINE_LAMBDA {
                each<C>([&](auto c) BRENIER_INLINE_LAMBDA { acc[r][c] = sqrt(acc[r][c]); });
            });
        }
        use.tile(acc, panel, p);
    }
}

// The uses of a tile. `exponent` is (g_j - c_ij) scale: already the sum itself for Kind::dot with Fold.

template <class V, Kind K>
struct Use {
    using T = typename V::scalar;
    static constexpr int R = V::row_tile, C = V::col_tile, W = V::width, PW = W * C;
    static constexpr bool fold = K == Kind::dot;
    T scale;

    BRENIER_INLINE V exponent(V acc, const T* panel, int c) const {
        if constexpr (fold) return acc;
        return fnma(acc, V::set1(scale), V::load(panel + c * W));
    }
};

template <class V, Kind K>
struct Largest : Use<V, K> {
    using Base = Use<V, K>;
    using T = typename Base::T;
    V best[Base::R];

    explicit Largest(T scale) : Base{scale} {
        each<Base::R>([&](auto r) { best[r] = V::set1(T(-kInfinity)); });
    }
    BRENIER_INLINE void tile(const V (&acc)[Base::R][Base::C], const T* panel, int64_t) {
        each<Base::R>([&](auto r) BRENIER_INLINE_LAMBDA {
            each<Base::C>([&](auto c) BRENIER_INLINE_LAMBDA {
                best[r] = max(this->exponent(acc[r][c], panel, c), best[r]);
            });
        });
    }
};

template <class V, Kind K>
struct LargestAt : Use<V, K> {
    using Base = Use<V, K>;
    using T = typename Base::T;
    V best[Base::R], at[Base::R];  // `at` counts vectors from the start of the block: exact in T

    LargestAt() : Base{T(1)} {
        each<Base::R>([&](auto r) {
            best[r] = V::set1(T(-kInfinity));
            at[r] = V::set1(T(0));
        });
    }
    BRENIER_INLINE void tile(const V (&acc)[Base::R][Base::C], const T* panel, int64_t p) {
        each<Base::C>([&](auto c) BRENIER_INLINE_LAMBDA {
            const V here = V::set1(T(p * Base::C + c));
            each<Base::R>([&](auto r) BRENIER_INLINE_LAMBDA {
                const V z = this->exponent(acc[r][c], panel, c);
                at[r] = where_greater(z, best[r], here, at[r]);  // strictly: the smallest index wins
                best[r] = max(z, best[r]);
            });
        });
    }
};

// sum_j 2^(exponent - shift), times each of the N lines after the first of the panel where N > 0.
template <class V, Kind K, int N>
struct Sum : Use<V, K> {
    using Base = Use<V, K>;
    using T = typename Base::T;
    static constexpr int lines = N > 0 ? N : 1;
    T shift[Base::R];
    V total[Base::R][lines];

    explicit Sum(T scale) : Base{scale} {
        each<Base::R>([&](auto r) {
            each<lines>([&](auto q) { total[r][q] = V::set1(T(0)); });
        });
    }
    BRENIER_INLINE void tile(const V (&acc)[Base::R][Base::C], const T* panel, int64_t) {
        each<Base::R>([&](auto r) BRENIER_INLINE_LAMBDA {
            const V s = V::set1(shift[r]);
            each<Base::C>([&](auto c) BRENIER_INLINE_LAMBDA {
                const V p = exp2(this->exponent(acc[r][c], panel, c) - s);
                if constexpr (N == 0) {
                    total[r][0] = total[r][0] + p;
                } else {
                    each<N>([&](auto q) BRENIER_INLINE_LAMBDA {
                        total[r][q] = fma(p, V::load(panel + (1 + q) * Base::PW + c * Base::W), total[r][q]);
                    });
                }
            });
        });
    }
};

// Keeps P for a product with many right-hand sides, or for l2, where Divide says so, P / c and 0 where c = 0.
template <class V, Kind K, bool Divide = false>
struct Store : Use<V, K> {
    using Base = Use<V, K>;
    using T = typename Base::T;
    T shift[Base::R];
    T* out;
    int64_t stride;

    BRENIER_INLINE void tile(const V (&acc)[Base::R][Base::C], const T* panel, int64_t p) {
        each<Base::R>([&](auto r) BRENIER_INLINE_LAMBDA {
            const V s = V::set1(shift[r]);
            each<Base::C>([&](auto c) BRENIER_INLINE_LAMBDA {
                V kept = exp2(this->exponent(acc[r][c], panel, c) - s);
                if constexpr (Divide && K == Kind::l2) {
                    const V zero = V::set1(T(0));
                    kept = where_greater(acc[r][c], zero, kept / acc[r][c], zero);
                }
                kept.store(out + r * stride + p * Base::PW + c * Base::W);
            });
        });
    }
};

// Multiplies what was stored by another inner product.
template <class V>
struct Weigh {
    using T = typename V::scalar;
    static constexpr int R = V::row_tile, C = V::col_tile, W = V::width;
    T* out;
    int64_t stride;

    BRENIER_INLINE void tile(const V (&acc)[R][C], const T*, int64_t p) {
        each<R>([&](auto r) BRENIER_INLINE_LAMBDA {
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA {
                T* at = out + r * stride + p * C * W + c * W;
                (V::load(at) * acc[r][c]).store(at);
            });
        });
    }
};

// Adds a finished tile to sums in double.
template <class V>
struct AddTo {
    using T = typename V::scalar;
    static constexpr int R = V::row_tile, C = V::col_tile, W = V::width;
    double* out;  // (R, stride)
    int64_t stride;

    BRENIER_INLINE void tile(const V (&acc)[R][C], const T*, int64_t p) {
        T lane[R][C * W];
        each<R>([&](auto r) BRENIER_INLINE_LAMBDA {
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA { acc[r][c].store(lane[r] + c * W); });
        });
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < C * W; ++i) out[r * stride + p * C * W + i] += lane[r][i];
        }
    }
};

template <class V, Kind K>
struct Moments : Use<V, K> {
    using Base = Use<V, K>;
    using T = typename Base::T;
    static constexpr bool fold = false;  // the cost itself is wanted
    T shift[Base::R];
    T unscale;
    V mass[Base::R], cost[Base::R];

    Moments(T scale, T unscale) : Base{scale}, unscale(unscale) {
        each<Base::R>([&](auto r) { mass[r] = cost[r] = V::set1(T(0)); });
    }
    BRENIER_INLINE void tile(const V (&acc)[Base::R][Base::C], const T* panel, int64_t) {
        each<Base::R>([&](auto r) BRENIER_INLINE_LAMBDA {
            const V s = V::set1(shift[r]);
            each<Base::C>([&](auto c) BRENIER_INLINE_LAMBDA {
                const V g = V::load(panel + c * Base::W), term = V::load(panel + Base::PW + c * Base::W);
                V z, price;
                if constexpr (K == Kind::dot) {
                    z = acc[r][c] + g;
                    price = fnma(acc[r][c], V::set1(unscale), term);
                } else {
                    z = fnma(acc[r][c], V::set1(this->scale), g);
                    price = acc[r][c] + term;
                }
                const V p = exp2(z - s);
                mass[r] = mass[r] + p;
                cost[r] = fma(p, price, cost[r]);
            });
        });
    }
};

template <class V, Kind K>
struct Product {
    using T = typename V::scalar;
    static constexpr int R = V::row_tile, C = V::col_tile, W = V::width;
    static constexpr bool fold = false;
    V total[R];

    Product() {
        each<R>([&](auto r) { total[r] = V::set1(T(0)); });
    }
    BRENIER_INLINE void tile(const V (&acc)[R][C], const T* panel, int64_t) {
        each<C>([&](auto c) BRENIER_INLINE_LAMBDA {
            const V w = V::load(panel + c * W);
            each<R>([&](auto r) BRENIER_INLINE_LAMBDA {
                total[r] = K == Kind::dot ? fnma(acc[r][c], w, total[r]) : fma(acc[r][c], w, total[r]);
            });
        });
    }
};

// Puts the entries within the limit of their row into its pool.
template <class V, Kind K>
struct Within : Use<V, K> {
    using Base = Use<V, K>;
    using T = typename Base::T;
    static constexpr int R = Base::R, C = Base::C, W = Base::W, PW = Base::PW;
    T shift[R], limit[R];  // -f, and the limit of the pool
    Pool<T>* pools[R];     // absent for what is no row of the task
    int64_t row;           // the first
    int64_t first, columns;  // columns of all blocks before this one, and of all blocks
    const int64_t* origins;  // of the columns of the block, where they were gathered

    Within() : Base{T(1)} {}

    BRENIER_INLINE void tile(const V (&acc)[R][C], const T* panel, int64_t p) {
        V reduced[R][C];
        typename V::mask within{};
        each<R>([&](auto r) BRENIER_INLINE_LAMBDA {
            const V s = V::set1(shift[r]), top = V::set1(limit[r]);
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA {
                reduced[r][c] = s - this->exponent(acc[r][c], panel, c);
                const auto hit = at_least(top, reduced[r][c]);
                within = V::either(within, hit);
            });
        });
        if (!V::any(within)) return;
        T value[R * PW];
        each<R>([&](auto r) BRENIER_INLINE_LAMBDA {
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA { reduced[r][c].store(value + r * PW + c * W); });
        });
        put(value, p);
    }

    BRENIER_NOINLINE void put(const T* value, int64_t p) {
        for (int r = 0; r < R; ++r) {
            if (!pools[r]) continue;
            for (int c = 0; c < C; ++c) {
                const T* const lane = value + r * PW + c * W;
                const int64_t place = p * PW + c * W;
                for (unsigned hits = V::bits(at_least(V::set1(limit[r]), V::load(lane))); hits; hits &= hits - 1) {
                    const int64_t l = lowest_bit(hits), at = place + l;
                    if (first + at >= columns) break;
                    add(*pools[r], lane[l], row + r, origins ? origins[at] : first + at);
                }
                limit[r] = pools[r]->limit;
            }
        }
    }
};

// One task: rows [begin, end) of one problem, and all columns or those of its list.
template <class V, Kind K, int D>
struct Runner {
    using T = typename V::scalar;
    using L = Layout<V>;
    static constexpr int R = L::R, C = L::C, W = L::W, PW = L::PW;

    const Task<T>& task;
    const L at;
    const T* packed;
    int64_t begin, end;
    double* state;     // (rows, at.state)
    int64_t* origins;  // the columns that were gathered
    T* kept;           // (R, columns of a block)
    T* sums;           // (R, d) vectors, for slope
    T* gathered;       // a block of columns from the list

    // The block in use: its panels, `right` and `vectors`, and the step between two panels of `vectors`.
    const T *here = nullptr, *right = nullptr, *values = nullptr;
    int64_t value_step = 0;
    // The next column of the list.
    const int64_t* listed;
    int64_t column = 0, stop = 0;

    Runner(const Task<T>& t, const T* packed, int64_t begin, int64_t end, void* scratch)
        : task(t), at(t), packed(packed), begin(begin), end(end), state(static_cast<double*>(scratch)),
          origins(reinterpret_cast<int64_t*>(state + round_up(end - begin, R) * at.state)),
          kept(reinterpret_cast<T*>(origins + at.origins)),
          sums(kept + at.kept), gathered(sums + at.sums), listed(t.list.begin) {}

    // body(first row of the group, its state, first panel, number of panels)
    template <class Body>
    void blocks(Body body) {
        blocks(at.visited, body);
    }

    // Of the first panels alone.
    template <class Body>
    void blocks(int64_t visited, Body body) {
        listed = task.list.begin, column = stop = 0;
        for (int64_t p = 0; p < visited; p += at.block) {
            const int64_t count = least(at.block, visited - p);
            if (at.gathered) {
                gather(count);
            } else {
                here = packed + p * at.panel;
                right = packed + at.right + p * task.r * PW;
                values = packed + at.values + p * PW * PW;
                value_step = at.panels * PW * PW;
            }
            for (int64_t i = begin; i < end; i += R) body(i, state + (i - begin) * at.state, p, count);
        }
    }

    // The next columns of the list, in panels without gaps.
    void gather(int64_t count) {
        here = gathered;
        T* const to_right = gathered + count * at.panel;
        T* const to_values = to_right + count * task.r * PW;
        right = to_right, values = to_values;
        value_step = count * PW * PW;
        const T factor = T(at.scale), coordinate = task.kind == Kind::dot ? factor : T(1);
        const int64_t lines = at.panel / PW;
        int64_t filled = 0;
        while (filled < count * PW && next()) {
            const int64_t p = column / PW, lane = column % PW, q = filled / PW, place = filled % PW;
            const int64_t some = least(stop - column, PW - most(lane, place));
            const T* from = packed + p * at.panel + lane;
            T* to = gathered + q * at.panel + place;
            for (int64_t l = 0; l < lines; ++l, from += PW, to += PW) {
                const T by = l >= at.extra ? coordinate : l == 0 && task.op != Op::matvec ? factor : T(1);
                copy(from, to, some, by);
            }
            from = packed + at.right + p * task.r * PW + lane;
            to = to_right + q * task.r * PW + place;
            for (int64_t l = 0; l < task.r; ++l, from += PW, to += PW) copy(from, to, some, T(1));
            for (int64_t v = 0; v < at.value_panels; ++v) {
                from = packed + at.values + (v * at.panels * PW + column) * PW;
                std::copy_n(from, some * PW, to_values + v * value_step + filled * PW);
            }
            if (at.origins) {
                for (int64_t j = 0; j < some; ++j) origins[filled + j] = column + j;
            }
            column += some, filled += some;
        }
        if (const int64_t place = filled % PW) {  // only at the end: what is left of the panel has no mass
            const int64_t q = filled / PW;
            T* to = gathered + q * at.panel;
            std::fill(to + place, to + PW, task.op == Op::matvec ? T(0) : T(-kInfinity));
            for (int64_t l = 1; l < lines; ++l) std::fill(to + l * PW + place, to + (l + 1) * PW, T(0));
            to = to_right + q * task.r * PW;
            for (int64_t l = 0; l < task.r; ++l) std::fill(to + l * PW + place, to + (l + 1) * PW, T(0));
            for (int64_t v = 0; v < at.value_panels; ++v) {
                to = to_values + v * value_step + q * PW * PW;
                std::fill(to + place * PW, to + PW * PW, T(0));
            }
        }
    }

    // Moves on to the next column block with columns, taking those that follow without a gap with it.
    bool next() {
        const int64_t* const starts = task.list.starts;
        while (column == stop && listed != task.list.end) {
            column = starts[*listed], stop = starts[*listed + 1];
            while (++listed != task.list.end && starts[*listed] == stop) stop = starts[*listed + 1];
        }
        return column < stop;
    }

    static BRENIER_INLINE void copy(const T* from, T* to, int64_t some, T by) {
        if (some == PW) {
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA { (V::load(from + c * W) * V::set1(by)).store(to + c * W); });
        } else {
            for (int64_t j = 0; j < some; ++j) to[j] = from[j] * by;
        }
    }

    // A group that sticks out at the end repeats the last row.
    int64_t row(int64_t i, int r) const { return least(i + r, task.n - 1); }

    template <class U>
    BRENIER_INLINE void tiles(int64_t i, int64_t count, U& use, int64_t from = 0) const {
        const T* rows[R];
        for (int r = 0; r < R; ++r) rows[r] = task.rows + row(i, r) * task.d;
        sweep<V, K, D, U::fold>(rows, task.d, here + from * at.panel, at.extra, at.panel, count, use);
    }

    template <class U>
    void shift_by_f(int64_t i, U& use) const {
        for (int r = 0; r < R; ++r) use.shift[r] = T(-double(task.f[row(i, r)]) * at.scale);
    }

    void fill(double value) {
        for (int64_t s = 0; s < round_up(end - begin, R) * at.state; ++s) state[s] = value;
    }

    // state: the shift M and the sum S of 2^(z - M). M is a z that was seen, not always the largest: the sums of a
    // block have room for 2^100 (float), and only a block that leaves it is visited again, with its true maximum.
    static constexpr double room = sizeof(T) == 4 ? 0x1p100 : 0x1p900;

    void softmin() {
        fill(0);
        for (int64_t i = begin; i < begin + round_up(end - begin, R); ++i) state[2 * (i - begin)] = -kInfinity;
        blocks([&](int64_t i, double* s, int64_t p, int64_t count) {
            double sums[R];
            bool again[R];
            for (int r = 0; r < R; ++r) again[r] = true;
            if (p == 0) raise(i, s, 1, again);
            if (!sum_block(i, s, count, sums, again)) {
                raise(i, s, count, again);
                sum_block(i, s, count, sums, again);
            }
            for (int r = 0; r < R; ++r) s[2 * r + 1] += sums[r];
        });
        for (int64_t i = begin; i < end; ++i) {
            const double* s = state + 2 * (i - begin);
            const bool extreme = s[0] == -kInfinity || s[0] == kInfinity;  // no mass at all, or a column of infinite h
            task.out[i] = T(extreme ? -s[0] : -(s[0] + std::log2(s[1])) * at.unscale);
        }
    }

    // Moves the shift up to the largest z of these panels; only where it is needed, so that what a row gives does not
    // depend on the rows beside it.
    void raise(int64_t i, double* s, int64_t count, const bool (&needed)[R]) {
        Largest<V, K> use(T(at.scale));
        tiles(i, count, use);
        for (int r = 0; r < R; ++r) {
            const double top = greatest(use.best[r]);
            if (needed[r] && top > s[2 * r]) {
                s[2 * r + 1] = s[2 * r + 1] > 0 ? s[2 * r + 1] * std::exp2(s[2 * r] - top) : 0;
                s[2 * r] = top;
            }
        }
    }

    bool sum_block(int64_t i, const double* s, int64_t count, double (&sums)[R], bool (&again)[R]) const {
        Sum<V, K, 0> use(T(at.scale));
        for (int r = 0; r < R; ++r) use.shift[r] = s[2 * r] > -kInfinity ? T(s[2 * r]) : T(0);
        tiles(i, count, use);
        bool good = true;
        for (int r = 0; r < R; ++r) {
            sums[r] = sum(use.total[r][0]);
            again[r] = !(sums[r] < room) || s[2 * r] == -kInfinity;
            good &= !again[r];
        }
        return good;
    }

    void cmin() {  // state: the largest g - c, and its column
        fill(0);
        for (int64_t i = begin; i < begin + round_up(end - begin, R); ++i) state[2 * (i - begin)] = -kInfinity;
        blocks([&](int64_t i, double* s, int64_t p, int64_t count) {
            LargestAt<V, K> use;
            tiles(i, count, use);
            for (int r = 0; r < R; ++r) {
                T best[W], where[W];
                use.best[r].store(best);
                use.at[r].store(where);
                double top = -kInfinity, column = 0;
                for (int l = 0; l < W; ++l) {
                    const double j = double(where[l]) * W + l;
                    if (best[l] > top || (best[l] == top && j < column)) top = best[l], column = j;
                }
                if (!(top > s[2 * r])) continue;
                s[2 * r] = top;
                s[2 * r + 1] = at.gathered ? double(origins[int64_t(column)]) : column + double(p * PW);
            }
        });
        for (int64_t i = begin; i < end; ++i) {
            task.out[i] = T(-state[2 * (i - begin)]);
            task.index[i] = int64_t(state[2 * (i - begin) + 1]);
        }
    }

    void list() {
        const bool apart = task.op == Op::support;
        // all columns where that is cheap, and where a block shows that the threshold is not what cuts the rows
        const bool more = task.d <= kLookTwice && at.visited > at.block;
        if (apart && lower(least(at.visited, at.block)) && more) lower(at.visited);
        blocks([&](int64_t i, double*, int64_t p, int64_t count) {
            Within<V, K> use;
            use.row = i;
            use.first = p * PW, use.columns = at.gathered ? task.list.columns : task.m;
            use.origins = at.origins ? origins : nullptr;
            for (int r = 0; r < R; ++r) use.pools[r] = i + r < end ? task.pools + (apart ? i + r - begin : 0) : nullptr;
            for (int r = 0; r < R; ++r) use.shift[r] = -task.f[row(i, r)];
            for (int r = 0; r < R; ++r) use.limit[r] = use.pools[r] ? use.pools[r]->limit : T(-kInfinity);
            tiles(i, count, use);
        });
    }

    // Lowers the limits before anything is kept: of the minima of more than k sets of entries, the k-th smallest is one
    // that no more than k - 1 entries need to be below. Few are then kept only to be dropped. Says whether one fell.
    bool lower(int64_t looked) {
        const int64_t most = task.pools->most, sets = (4 * most + W - 1) / W;
        if (most < 1 || sets > looked || sets * W > kSeeds) return false;
        bool fell = false;
        const auto seeds = [&](double* s, int r) { return reinterpret_cast<T*>(s + r * at.state); };
        blocks(looked, [&](int64_t i, double* s, int64_t p, int64_t count) {
            for (int64_t q = p * sets / looked; q < sets && q * looked / sets < p + count; ++q) {
                const int64_t start = q * looked / sets, from = p < start ? start : p;
                const int64_t to = least(p + count, (q + 1) * looked / sets);
                if (from >= to) continue;
                Largest<V, K> use(T(1));
                tiles(i, to - from, use, from - p);
                for (int r = 0; r < R; ++r) {
                    T* const seed = seeds(s, r) + q * W;
                    (from == start ? use.best[r] : max(use.best[r], V::load(seed))).store(seed);
                }
            }
        });
        for (int64_t i = begin; i < end; ++i) {
            T* const seed = seeds(state + (i - begin) * at.state, 0);
            for (int64_t l = 0; l < sets * W; ++l) seed[l] = -task.f[i] - seed[l];
            T& limit = task.pools[i - begin].limit;
            const T bound = kth_smallest(seed, sets * W, most);
            if (bound < limit) limit = bound, fell = true;
        }
        return fell;
    }

    template <int N>
    void apply_direct() {
        fill(0);
        blocks([&](int64_t i, double* s, int64_t, int64_t count) {
            Sum<V, K, N> use(T(at.scale));
            shift_by_f(i, use);
            tiles(i, count, use);
            for (int r = 0; r < R; ++r) {
                for (int q = 0; q < N; ++q) s[r * N + q] += sum(use.total[r][q]);
            }
        });
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t q = 0; q < task.k; ++q) task.out[i * task.k + q] = T(state[(i - begin) * N + q]);
        }
    }

    void apply_stored() {
        fill(0);
        blocks([&](int64_t i, double* s, int64_t, int64_t count) {
            const int64_t cols = count * PW;
            Store<V, K> use{{T(at.scale)}, {}, kept, cols};
            shift_by_f(i, use);
            tiles(i, count, use);
            const T* rows[R];
            weigh(i, count);
            for (int r = 0; r < R; ++r) rows[r] = kept + r * cols;
            AddTo<V> add{s, at.state};
            sweep<V, Kind::dot, 0, false>(rows, cols, values, 0, value_step, at.value_panels, add);
        });
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t q = 0; q < task.k; ++q) task.out[i * task.k + q] = T(state[(i - begin) * at.state + q]);
        }
    }

    // Multiplies the P that was kept by <left_i, right_j>.
    void weigh(int64_t i, int64_t count) {
        if (task.r == 0) return;
        const T* rows[R];
        for (int r = 0; r < R; ++r) rows[r] = task.left + row(i, r) * task.r;
        Weigh<V> use{kept, count * PW};
        sweep<V, Kind::dot, 0, false>(rows, task.r, right, 0, task.r * PW, count, use);
    }

    void slope() {
        if constexpr (K != Kind::dot) {
            fill(0);
            blocks([&](int64_t i, double* s, int64_t, int64_t count) {
                Store<V, K, true> use{{T(at.scale)}, {}, kept, count * PW};
                shift_by_f(i, use);
                tiles(i, count, use);
                weigh(i, count);
                for (int64_t q = 0; q < at.sums; ++q) sums[q] = 0;
                for (int r = 0; r < R; ++r) {
                    const T* x = task.rows + row(i, r) * task.d;
                    for (int64_t p = 0; p < count; ++p) add_slopes(x, here + p * at.panel, kept + (r * count + p) * PW,
                                                                   sums + r * task.d * W);
                    for (int64_t q = 0; q < task.d; ++q) s[r * task.d + q] += sum(V::load(sums + (r * task.d + q) * W));
                }
            });
            for (int64_t i = begin; i < end; ++i) {
                for (int64_t q = 0; q < task.d; ++q) task.out[i * task.d + q] = T(state[(i - begin) * task.d + q]);
            }
        }
    }

    // Adds weight_j dc(x, y_j)/dx for the columns j of a panel; for l2 the weights are divided by the distance already.
    BRENIER_INLINE void add_slopes(const T* x, const T* panel, const T* weight, T* to) const {
        const V zero = V::set1(T(0));
        V w[C], top[C];
        each<C>([&](auto c) BRENIER_INLINE_LAMBDA { w[c] = V::load(weight + c * W); });
        const auto delta = [&](int64_t q, int c) BRENIER_INLINE_LAMBDA {
            return V::set1(x[q]) - V::load(panel + (at.extra + q) * PW + c * W);
        };
        if constexpr (K == Kind::linf) {  // coordinates that tie for the largest share the weight
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA {
                V ties = zero;
                top[c] = zero;
                for (int64_t q = 0; q < task.d; ++q) top[c] = max(top[c], abs(delta(q, c)));
                for (int64_t q = 0; q < task.d; ++q) {
                    ties = ties + where_greater(top[c], abs(delta(q, c)), zero, V::set1(T(1)));
                }
                w[c] = w[c] / ties;
            });
        }
        for (int64_t q = 0; q < task.d; ++q) {
            V s = V::load(to + q * W);
            each<C>([&](auto c) BRENIER_INLINE_LAMBDA {
                const V by = delta(q, c);
                if constexpr (K == Kind::l2) {
                    s = fma(w[c], by, s);
                } else {
                    V part = where_greater(by, zero, w[c], where_greater(zero, by, zero - w[c], zero));
                    if constexpr (K == Kind::linf) part = where_greater(top[c], abs(by), zero, part);
                    s = s + part;
                }
            });
            s.store(to + q * W);
        }
    }

    void moments() {
        fill(0);
        blocks([&](int64_t i, double* s, int64_t, int64_t count) {
            Moments<V, K> use(T(at.scale), T(at.unscale));
            shift_by_f(i, use);
            tiles(i, count, use);
            for (int r = 0; r < R; ++r) {
                s[2 * r] += sum(use.mass[r]);
                s[2 * r + 1] += sum(use.cost[r]);
            }
        });
        for (int64_t i = begin; i < end; ++i) {
            task.out[i] = T(state[2 * (i - begin)]);
            task.cost[i] = T(state[2 * (i - begin) + 1]);
        }
    }

    void matvec() {
        fill(0);
        blocks([&](int64_t i, double* s, int64_t, int64_t count) {
            Product<V, K> use;
            tiles(i, count, use);
            for (int r = 0; r < R; ++r) s[r] += sum(use.total[r]);
        });
        for (int64_t i = begin; i < end; ++i) task.out[i] = T(state[i - begin]);
    }

    void run() {
        switch (task.op) {
            case Op::softmin: return softmin();
            case Op::cmin: return cmin();
            case Op::moments: return moments();
            case Op::matvec: return matvec();
            case Op::slope: return slope();
            case Op::support:
            case Op::smallest: return list();
            case Op::apply:
                if (at.direct == 1) return apply_direct<1>();
                if (at.direct == 2) return apply_direct<2>();
                if (at.direct == kDirect) return apply_direct<kDirect>();
                return apply_stored();
            default: return;  // over a matrix only
        }
    }
};

template <class V, Kind K>
void run_kind(const Task<typename V::scalar>& t, const typename V::scalar* packed, int64_t begin, int64_t end,
              void* scratch) {
    // The smallest dimensions are unrolled in full: there a tile is mostly exponentials.
    switch (t.d) {
        case 2: return Runner<V, K, 2>(t, packed, begin, end, scratch).run();
        case 3: return Runner<V, K, 3>(t, packed, begin, end, scratch).run();
        default: return Runner<V, K, 0>(t, packed, begin, end, scratch).run();
    }
}

template <class V>
void run(const Task<typename V::scalar>& t, const typename V::scalar* packed, int64_t begin, int64_t end,
         void* scratch) {
    switch (t.kind) {
        case Kind::dot: return run_kind<V, Kind::dot>(t, packed, begin, end, scratch);
        case Kind::l1: return run_kind<V, Kind::l1>(t, packed, begin, end, scratch);
        case Kind::l2: return run_kind<V, Kind::l2>(t, packed, begin, end, scratch);
        case Kind::linf: return run_kind<V, Kind::linf>(t, packed, begin, end, scratch);
    }
}

template <class V>
void exp2_array(const typename V::scalar* x, typename V::scalar* out, int64_t count) {
    typename V::scalar lane[V::width] = {};
    for (int64_t i = 0; i < count; i += V::width) {
        const int64_t some = least<int64_t>(V::width, count - i);
        for (int64_t l = 0; l < some; ++l) lane[l] = x[i + l];
        exp2(V::load(lane)).store(lane);
        for (int64_t l = 0; l < some; ++l) out[i + l] = lane[l];
    }
}

// 12 chains that do not wait for each other; each feeds on itself, or the compiler would do it once.
template <class V, class F>
BRENIER_INLINE typename V::scalar spin(int64_t count, F f) {
    constexpr int chains = 12;
    V x[chains];
    each<chains>([&](auto i) { x[i] = V::set1(typename V::scalar(0.01) * i); });
    for (int64_t n = 0; n < count; n += chains * V::width) {
        each<chains>([&](auto i) BRENIER_INLINE_LAMBDA { x[i] = f(x[i]); });
    }
    typename V::scalar out = 0;
    each<chains>([&](auto i) { out += sum(x[i]); });
    return out;
}

template <class V>
typename V::scalar spin_fma(int64_t count) {
    using T = typename V::scalar;
    return spin<V>(count, [](V x) BRENIER_INLINE_LAMBDA { return fma(x, V::set1(T(0.5)), V::set1(T(0.25))); });
}

template <class V>
typename V::scalar spin_exp2(int64_t count) {
    return spin<V>(count, [](V x) BRENIER_INLINE_LAMBDA { return exp2(x); });
}

template <class V>
Engine<typename V::scalar> engine(const char* name) {
    return {name,          V::row_tile,  packed_size<V>, scratch_size<V>,        pack<V>,       run<V>,
            exp2_array<V>, spin_fma<V>, spin_exp2<V>,   MatrixRunner<V>::lines, run_matrix<V>};
}

}  // namespace
}  // namespace brenier
