// The small-matrix kernels, once, for any vector type V: each lane of a vector belongs to another matrix, so that
// nothing is shuffled between loading and storing. Each translation unit that includes this compiles it for one
// instruction set.
//
// The scaling is P = u_i K_ij v_j with K_ij = 2^(x_ij + f_i + g_j), x = (S - row maximum) / (epsilon ln 2). The
// potentials f and g stay fixed while u and v iterate: an iteration is one pass over K and no exponential. One
// iteration changes u and v by a factor of at most max(n, m) from the second on (Sinkhorn's ratios of sums to masses
// can only contract), so it is enough to look now and then whether they strayed from 1; then they are absorbed into f
// and g, and K is built anew from the scores.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "inline.hpp"
#include "tiny_sinkhorn.hpp"

namespace brenier {
namespace {

using std::int64_t;

// Powers of two: where an entry of K counts as zero, and how far u and v may stray.
template <class T>
struct Room;
template <>
struct Room<float> {
    static constexpr float flush = -100, stray = 15;
};
template <>
struct Room<double> {
    static constexpr double flush = -900, stray = 150;
};

template <class V>
BRENIER_INLINE V divide(V a, V b) {
    return {a.v / b.v};
}

// a / b, and 0 where b is 0; NaN stays.
template <class V>
BRENIER_INLINE V share(V a, V b) {
    using T = typename V::scalar;
    return where_greater(V::set1(std::numeric_limits<T>::min()), b, V::set1(0), divide(a, b));
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define BRENIER_SHUFFLE 1
#endif
#endif

// Rows and columns of a W x W block change places, in log2(W) rounds of exchanges between two vectors.
#if defined(BRENIER_SHUFFLE)
template <int S, int W, bool Second, class X, int... I>
BRENIER_INLINE X exchanged(X a, X b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (((I & S) != 0) == Second ? (Second ? W + I : I)
                                                                    : (Second ? I + S : W + I - S))...);
}
template <int S, class V>
BRENIER_INLINE void exchange(V (&x)[V::width]) {
    constexpr int W = V::width;
    if constexpr (S < W) {
        using I = std::make_integer_sequence<int, W>;
        each<W>([&](auto i) BRENIER_INLINE_LAMBDA {
            if constexpr ((i & S) == 0) {
                const auto a = x[i].v, b = x[i + S].v;
                x[i].v = exchanged<S, W, false>(a, b, I{});
                x[i + S].v = exchanged<S, W, true>(a, b, I{});
            }
        });
        exchange<2 * S>(x);
    }
}
template <class V>
BRENIER_INLINE void transpose(V (&x)[V::width]) {
    exchange<1>(x);
}
#else
template <class V>
inline void transpose(V (&x)[V::width]) {
    constexpr int W = V::width;
    typename V::scalar from[W][W], to[W][W];
    for (int i = 0; i < W; ++i) x[i].store(from[i]);
    for (int i = 0; i < W; ++i) {
        for (int j = 0; j < W; ++j) to[j][i] = from[i][j];
    }
    for (int i = 0; i < W; ++i) x[i] = V::load(to[i]);
}
#endif

template <class V>
struct Group {
    using T = typename V::scalar;
    static constexpr int W = V::width, R = V::row_tile, C = V::col_tile;

    const TinyTask<T>& task;
    const int64_t n, m, first, live;  // lanes beyond `live` repeat the last problem
    T* next;                          // scratch memory that is still free

    Group(const TinyTask<T>& task, int64_t n, int64_t m, int64_t first, void* scratch)
        : task(task), n(n), m(m), first(first), live(task.count - first < W ? task.count - first : W),
          next(static_cast<T*>(scratch)) {}

    T* take(int64_t vectors) {
        T* const out = next;
        next += vectors * W;
        return out;
    }
    int64_t lane(int l) const { return first + (l < live ? l : live - 1); }

    // Lane l of vector place(e) is number e of problem first + l.
    template <class Place>
    void gather(const T* from, int64_t size, T* to, Place place) const {
        const T* at[W];
        for (int l = 0; l < W; ++l) at[l] = from + lane(l) * size;
        int64_t e = 0;
        for (; e + W <= size; e += W) {
            V x[W];
            each<W>([&](auto l) BRENIER_INLINE_LAMBDA { x[l] = V::load(at[l] + e); });
            transpose(x);
            each<W>([&](auto q) BRENIER_INLINE_LAMBDA { x[q].store(to + place(e + q) * W); });
        }
        for (; e < size; ++e) {
            T* const out = to + place(e) * W;
            for (int l = 0; l < W; ++l) out[l] = at[l][e];
        }
    }
    template <class Place>
    void scatter(const T* from, int64_t size, T* to, Place place) const {
        T* at[W];
        for (int l = 0; l < W; ++l) at[l] = to + lane(l) * size;
        int64_t e = 0;
        for (; e + W <= size; e += W) {
            V x[W];
            each<W>([&](auto q) BRENIER_INLINE_LAMBDA { x[q] = V::load(from + place(e + q) * W); });
            transpose(x);
            for (int l = 0; l < live; ++l) x[l].store(at[l] + e);
        }
        for (; e < size; ++e) {
            const T* const in = from + place(e) * W;
            for (int l = 0; l < live; ++l) at[l][e] = in[l];
        }
    }
    void gather(const T* from, int64_t size, T* to) const {
        gather(from, size, to, [](int64_t e) { return e; });
    }
    void scatter(const T* from, int64_t size, T* to) const {
        scatter(from, size, to, [](int64_t e) { return e; });
    }

    // The lines of an array that belong to a group, on their way to the cache while something else is computed: the
    // lanes read in steps, which the hardware does not foresee.
    template <bool Write>
    void fetch(const T* array, int64_t size, int64_t group) const {
#if defined(__GNUC__)
        const int64_t end = least_of((group + W) * size, task.count * size), line = 64 / sizeof(T);
        for (int64_t i = group * size; i < end; i += line) __builtin_prefetch(array + i, Write, 2);
#endif
    }
    static int64_t least_of(int64_t x, int64_t y) { return y < x ? y : x; }

    BRENIER_INLINE static V at(const T* p, int64_t i) { return V::load(p + i * W); }
    BRENIER_INLINE static void put(V x, T* p, int64_t i) { x.store(p + i * W); }
    static void fill(T* p, int64_t vectors, T value) {
        for (int64_t i = 0; i < vectors; ++i) put(V::set1(value), p, i);
    }

    // t_j = sum_i K_ij y_i with y_i = middle(i, sum_j K_ij x_j): both products in one pass.
    template <class Middle>
    BRENIER_INLINE void sweep(const T* K, const T* x, T* t, Middle&& middle) const {
        switch (m) {
            case 4: return sweep_short<4>(K, x, t, middle);
            case 8: return sweep_short<8>(K, x, t, middle);
            default: break;
        }
        fill(t, m, 0);
        int64_t i = 0;
        for (; i + R <= n; i += R) sweep_rows<R>(K + i * m * W, x, t, i, middle);
        for (; i + 3 <= n; i += 3) sweep_rows<3>(K + i * m * W, x, t, i, middle);
        for (; i < n; ++i) sweep_rows<1>(K + i * m * W, x, t, i, middle);
    }
    template <int Q, class Middle>
    BRENIER_INLINE void sweep_rows(const T* K, const T* x, T* t, int64_t i, Middle& middle) const {
        V s[Q];
        each<Q>([&](auto q) BRENIER_INLINE_LAMBDA { s[q] = V::set1(0); });
        for (int64_t j = 0; j < m; ++j) {
            const V xj = V::load(x + j * W);
            each<Q>([&](auto q) BRENIER_INLINE_LAMBDA { s[q] = fma(V::load(K + (q * m + j) * W), xj, s[q]); });
        }
        each<Q>([&](auto q) BRENIER_INLINE_LAMBDA { s[q] = middle(i + q, s[q]); });
        for (int64_t j = 0; j < m; ++j) {
            V tj = V::load(t + j * W);
            each<Q>([&](auto q) BRENIER_INLINE_LAMBDA { tj = fma(V::load(K + (q * m + j) * W), s[q], tj); });
            tj.store(t + j * W);
        }
    }
    template <int M, class Middle>
    BRENIER_INLINE void sweep_short(const T* K, const T* x, T* t, Middle& middle) const {
        V total[M], xs[M];
        each<M>([&](auto j) BRENIER_INLINE_LAMBDA {
            total[j] = V::set1(0);
            xs[j] = V::load(x + j * W);
        });
        for (int64_t i = 0; i < n; ++i, K += M * W) {
            V even = V::set1(0), odd = V::set1(0);
            each<M / 2>([&](auto j) BRENIER_INLINE_LAMBDA {
                even = fma(V::load(K + 2 * j * W), xs[2 * j], even);
                odd = fma(V::load(K + (2 * j + 1) * W), xs[2 * j + 1], odd);
            });
            const V y = middle(i, even + odd);
            each<M>([&](auto j) BRENIER_INLINE_LAMBDA { total[j] = fma(V::load(K + j * W), y, total[j]); });
        }
        each<M>([&](auto j) BRENIER_INLINE_LAMBDA { total[j].store(t + j * W); });
    }

    V epsilon() const {
        T out[W];
        for (int l = 0; l < W; ++l) out[l] = task.epsilon[lane(l) * task.epsilon_step];
        return V::load(out);
    }
};

// u and v, forward and through the iterations.
template <class V>
struct Scaling : Group<V> {
    using Base = Group<V>;
    using T = typename V::scalar;
    using Base::W, Base::R, Base::C, Base::n, Base::m, Base::task, Base::at, Base::put;
    static constexpr T kInfinity = std::numeric_limits<T>::infinity();

    T *const K, *const u, *const r, *const a, *const f, *const spare;  // (n, m), (n,): the row maximum is `a`
    T *const v, *const c, *const g, *const t;                          // (m,)
    const V unit;
    int64_t period;  // iterations between two looks at u and v
    // What the gradient of the iterations needs: u and v after each, and for each segment of iterations that share
    // their potentials where it begins, f, g, and the v that it starts from.
    const bool kept;
    T *us = nullptr, *vs = nullptr, *potentials = nullptr;
    int64_t *begins = nullptr, segments = 0;

    static int64_t numbers(const TinyTask<T>& k) {
        const int64_t n = k.n, m = k.m, forward = n * m + 5 * n + 4 * m;
        if (k.op == TinyOp::forward) return forward * W;
        const int64_t history = 2 * k.n_iter * (n + m) + (k.n_iter + 1) * (n + 2 * m) + 2 * k.n_iter + 2;
        return (forward + history + 2 * n * m + 3 * n + 2 * m) * W;
    }

    Scaling(const TinyTask<T>& task, int64_t first, void* scratch)
        : Base(task, task.n, task.m, first, scratch),
          K(this->take(n * m)), u(this->take(n)), r(this->take(n)), a(this->take(n)), f(this->take(n)),
          spare(this->take(n)), v(this->take(m)), c(this->take(m)), g(this->take(m)), t(this->take(m)),
          unit(divide(V::set1(T(1.4426950408889634074)), this->epsilon())), kept(task.op == TinyOp::unrolled) {
        if (kept) {
            us = this->take(task.n_iter * n), vs = this->take(task.n_iter * m);
            potentials = this->take((task.n_iter + 1) * (n + 2 * m));
            begins = reinterpret_cast<int64_t*>(this->take(2 * task.n_iter + 2));
        }
        const double bits = std::log2(double(n < m ? m : n));
        period = task.r || bits == 0 ? 1 : int64_t(Room<T>::stray / bits);
        if (period < 1) period = 1;
    }

    // 2^x, zero where it is too small to matter; NaN stays.
    BRENIER_INLINE static V gibbs(V x) { return where_greater(V::set1(Room<T>::flush), x, V::set1(0), exp2(x)); }

    // K from the scores and the potentials.
    void build() {
        this->gather(task.scores, n * m, K);
        for (int64_t i = 0; i < n; ++i) {
            const V ai = at(a, i), fi = at(f, i);
            T* const row = K + i * m * W;
            for (int64_t j = 0; j < m; ++j) put(gibbs(fma(at(row, j) - ai, unit, fi) + at(g, j)), row, j);
        }
    }

    V sum(const T* p, int64_t count) const {
        V out = V::set1(0);
        for (int64_t i = 0; i < count; ++i) out = out + at(p, i);
        return out;
    }

    void start() {
        const V none = V::set1(-kInfinity), zero = V::set1(0), one = V::set1(1);
        this->gather(task.scores, n * m, K);
        this->fill(g, m, -kInfinity);  // the greatest exponents of the columns
        for (int64_t i = 0; i < n; ++i) {
            T* const row = K + i * m * W;
            V best = none;
            for (int64_t j = 0; j < m; ++j) best = max(at(row, j), best);
            put(where_greater(best, none, one, zero), r, i);
            best = max(V::set1(std::numeric_limits<T>::lowest()), best);
            put(best, a, i);
            for (int64_t j = 0; j < m; ++j) {
                const V x = (at(row, j) - best) * unit;
                put(max(x, at(g, j)), g, j);
                put(gibbs(x), row, j);
            }
        }
        V depth = zero;  // of the column that is the least wanted
        for (int64_t j = 0; j < m; ++j) {
            const V best = at(g, j);
            put(where_greater(best, none, one, zero), c, j);
            depth = max(where_greater(best, none, zero - best, zero), depth);
        }
        if (task.r) {
            masses(task.r, task.r_step, n, r);
            masses(task.c, task.c_step, m, c);
        } else {
            const V total = sum(r, n), each_one = share(total, sum(c, m));
            for (int64_t j = 0; j < m; ++j) put(at(c, j) * each_one, c, j);
        }
        this->fill(f, n, 0);
        if (!task.r && !any_greater(depth, Room<T>::stray)) {
            this->fill(g, m, 0);
            this->fill(v, m, 1);
        } else {
            balance();
        }
        if (kept) open(0);
    }

    void masses(const T* from, int64_t step, int64_t size, T* to) const {
        if (step) return this->gather(from, size, to);
        for (int64_t i = 0; i < size; ++i) put(V::set1(from[i]), to, i);
    }

    // The same first iteration with other potentials: f of its rows, and columns whose greatest entry is 1.
    void balance() {
        for (int64_t i = 0; i < n; ++i) {
            put(share(at(r, i), sum(K + i * m * W, m)), u, i);
        }
        absorb_side(u, f, n);
        this->fill(g, m, -kInfinity);
        this->gather(task.scores, n * m, K);
        for (int64_t i = 0; i < n; ++i) {
            const V ai = at(a, i), fi = where_greater(at(r, i), V::set1(0), at(f, i), V::set1(-kInfinity));
            for (int64_t j = 0; j < m; ++j) put(max(fma(at(K, i * m + j) - ai, unit, fi), at(g, j)), g, j);
        }
        for (int64_t j = 0; j < m; ++j) {
            const V best = at(g, j);
            put(exp2(best), v, j);
            put(where_greater(best, V::set1(-kInfinity), V::set1(0) - best, V::set1(0)), g, j);
        }
        build();
    }

    static bool any_greater(V x, T bound) {
        T lane[W];
        x.store(lane);
        for (int l = 0; l < W; ++l) {
            if (lane[l] > bound) return true;
        }
        return false;
    }

    bool strayed() const {
        V high = V::set1(1), low = V::set1(-1);  // `low` is minus the least
        const auto look = [&](const T* p, int64_t count) {
            for (int64_t i = 0; i < count; ++i) {
                const V x = at(p, i), y = where_greater(x, V::set1(0), x, V::set1(1));
                high = max(y, high);
                low = max(V::set1(0) - y, low);
            }
        };
        look(u, n);
        look(v, m);
        return any_greater(high, std::exp2(Room<T>::stray)) || any_greater(low, -std::exp2(-Room<T>::stray));
    }

    void absorb_side(T* x, T* potential, int64_t count) const {
        for (int64_t i = 0; i < count * W; ++i) {
            if (x[i] > 0) {
                potential[i] += std::log2(x[i]);
                x[i] = 1;
            }
        }
    }
    void absorb() {
        absorb_side(u, f, n);
        absorb_side(v, g, m);
        build();
    }

    void copy(const T* from, T* to, int64_t vectors) const {
        for (int64_t i = 0; i < vectors; ++i) put(at(from, i), to, i);
    }
    void open(int64_t iteration) {
        T* const to = potentials + segments * (n + 2 * m) * W;
        copy(f, to, n);
        copy(g, to + n * W, m);
        copy(v, to + (n + m) * W, m);
        begins[segments++] = iteration;
    }

    // Returns how many iterations each lane took.
    V iterate() {
        const V tol = V::set1(task.tol), zero = V::set1(0), one = V::set1(1), half = V::set1(T(0.5));
        V taken = zero;
        for (int64_t k = 0; k < task.n_iter; ++k) {
            if (k > 0 && k % period == 0 && strayed()) {
                absorb();
                if (kept) open(k);
            }
            if (task.tol > 0) {
                V worst = zero, done = zero;
                this->sweep(K, v, t, [&](int64_t i, V s) BRENIER_INLINE_LAMBDA {
                    const V y = share(at(r, i), s);
                    worst = max(abs(fnma(at(u, i), s, at(r, i))), worst);
                    put(y, spare, i);
                    return y;
                });
                if (k > 0) done = where_greater(worst, tol, zero, one);
                for (int64_t i = 0; i < n; ++i) put(where_greater(done, half, at(u, i), at(spare, i)), u, i);
                for (int64_t j = 0; j < m; ++j) {
                    put(where_greater(done, half, at(v, j), share(at(c, j), at(t, j))), v, j);
                }
                taken = taken + one - done;
                if (!any_greater(one - done, 0)) break;
            } else {
                this->sweep(K, v, t, [&](int64_t i, V s) BRENIER_INLINE_LAMBDA {
                    const V y = share(at(r, i), s);
                    put(y, u, i);
                    return y;
                });
                for (int64_t j = 0; j < m; ++j) put(share(at(c, j), at(t, j)), v, j);
                taken = taken + one;
            }
            if (kept) {
                copy(u, us + k * n * W, n);
                copy(v, vs + k * m * W, m);
            }
        }
        return taken;
    }

    void forward() {
        start();
        this->template fetch<false>(task.scores, n * m, this->first + W);
        this->template fetch<true>(task.plan, n * m, this->first);
        T taken[W], error[W];
        iterate().store(taken);
        if (strayed()) {  // an entry may have grown from one that counted as zero
            absorb();
            this->sweep(K, v, t, [&](int64_t i, V) BRENIER_INLINE_LAMBDA { return at(u, i); });
            for (int64_t j = 0; j < m; ++j) put(share(at(c, j), at(t, j)), v, j);  // what large potentials round off
        }
        V worst = V::set1(0), total = V::set1(0);
        this->fill(t, m, 0);
        for (int64_t i = 0; i < n; ++i) {
            const V ui = at(u, i);
            T* const row = K + i * m * W;
            V s = V::set1(0);
            for (int64_t j = 0; j < m; ++j) {
                const V p = ui * at(row, j) * at(v, j);
                put(p, row, j);
                put(at(t, j) + p, t, j);
                s = s + p;
            }
            worst = max(abs(s - at(r, i)), worst);
            total = total + s;
        }
        for (int64_t j = 0; j < m; ++j) worst = max(abs(at(t, j) - at(c, j)), worst);
        fma(total, V::set1(0), worst).store(error);  // NaN where an entry is
        this->scatter(K, n * m, task.plan);
        for (int64_t l = 0; l < this->live; ++l) {
            task.error[this->first + l] = error[l];
            task.iterations[this->first + l] = static_cast<int64_t>(taken[l]);
        }
    }

    // out_ij += K_ij (D_ij - sum over the iterations of a segment of u_i weight_j + w_i v_j), then D = 0.
    void close(int64_t segment, int64_t end, const T* weights, const T* ws, T* D, T* out) const {
        int64_t i = 0;
        for (; i + R <= n; i += R) close_rows<R>(segment, end, i, weights, ws, D, out);
        for (; i < n; ++i) close_rows<1>(segment, end, i, weights, ws, D, out);
    }
    template <int Q>
    void close_rows(int64_t segment, int64_t end, int64_t i, const T* weights, const T* ws, T* D, T* out) const {
        int64_t j = 0;
        for (; j + C <= m; j += C) close_block<Q, C>(segment, end, i, j, weights, ws, D, out);
        for (; j < m; ++j) close_block<Q, 1>(segment, end, i, j, weights, ws, D, out);
    }
    template <int Q, int S>
    BRENIER_INLINE void close_block(int64_t segment, int64_t end, int64_t i, int64_t j, const T* weights, const T* ws,
                                    T* D, T* out) const {
        V acc[Q][S];
        each<Q>([&](auto q) BRENIER_INLINE_LAMBDA {
            each<S>([&](auto s) BRENIER_INLINE_LAMBDA { acc[q][s] = at(D, (i + q) * m + j + s); });
        });
        for (int64_t k = begins[segment]; k < end; ++k) {
            const T* const from = started_from(segment, k);
            V weight[S], vk[S];
            each<S>([&](auto s) BRENIER_INLINE_LAMBDA {
                weight[s] = at(weights, k * m + j + s);
                vk[s] = at(from, j + s);
            });
            each<Q>([&](auto q) BRENIER_INLINE_LAMBDA {
                const V uk = at(us, k * n + i + q), w = at(ws, k * n + i + q);
                each<S>([&](auto s) BRENIER_INLINE_LAMBDA {
                    acc[q][s] = fnma(w, vk[s], fnma(uk, weight[s], acc[q][s]));
                });
            });
        }
        each<Q>([&](auto q) BRENIER_INLINE_LAMBDA {
            each<S>([&](auto s) BRENIER_INLINE_LAMBDA {
                const int64_t e = (i + q) * m + j + s;
                put(fma(at(K, e), acc[q][s], at(out, e)), out, e);
                put(V::set1(0), D, e);
            });
        });
    }
    // The v that iteration k began with.
    const T* started_from(int64_t segment, int64_t k) const {
        if (k > begins[segment]) return vs + (k - 1) * m * W;
        return potentials + segment * (n + 2 * m) * W + (n + m) * W;
    }

    // With f_k and g_k the potentials after iteration k: backwards through g_k = log c - log sum_i K_ij u_i and
    // f_k = log r - log sum_j K_ij v_j. Each step back is a sweep like the step forward.
    void backward() {
        start();
        this->template fetch<false>(task.grad, n * m, this->first);
        iterate();
        this->template fetch<false>(task.scores, n * m, this->first + W);
        this->template fetch<true>(task.d_scores, n * m, this->first);
        T *const weights = this->take(task.n_iter * m), *const ws = this->take(task.n_iter * n);
        T *const D = this->take(n * m), *const out = this->take(n * m);
        T *const d_f = this->take(n), *const d_r = this->take(n), *const over_r = this->take(n);
        T *const d_c = this->take(m), *const over_c = this->take(m);
        this->gather(task.grad, n * m, D);
        this->fill(t, m, 0);
        this->fill(out, n * m, 0);
        this->fill(d_r, n, 0);
        for (int64_t i = 0; i < n; ++i) {
            V s = V::set1(0);
            for (int64_t j = 0; j < m; ++j) {
                const V outer = at(u, i) * at(v, j) * at(D, i * m + j), x = outer * at(K, i * m + j);
                put(outer, D, i * m + j);
                put(at(t, j) + x, t, j);
                s = s + x;
            }
            put(s, d_f, i);
            put(share(V::set1(1), at(r, i)), over_r, i);
        }
        for (int64_t j = 0; j < m; ++j) {
            put(share(V::set1(1), at(c, j)), over_c, j);
            const V d = at(t, j) * at(over_c, j);
            put(d, d_c, j);
            put(d * at(v, j), weights, (task.n_iter - 1) * m + j);
        }
        int64_t segment = segments - 1, end = task.n_iter;
        for (int64_t k = task.n_iter; k-- > 0;) {
            this->sweep(K, weights + k * m * W, t, [&](int64_t i, V s) BRENIER_INLINE_LAMBDA {
                const V uk = at(us, k * n + i), d = fnma(uk, s, at(d_f, i)) * at(over_r, i), w = d * uk;
                put(at(d_r, i) + d, d_r, i);
                put(w, ws, k * n + i);
                return w;
            });
            this->fill(d_f, n, 0);  // only the last u and v reach the plan
            if (k > 0) {
                const T* const from = started_from(segment, k);
                for (int64_t j = 0; j < m; ++j) {
                    const V d = (V::set1(0) - at(from, j)) * at(t, j) * at(over_c, j);
                    put(at(d_c, j) + d, d_c, j);
                    put(d * at(vs, (k - 1) * m + j), weights, (k - 1) * m + j);
                }
            }
            if (k == begins[segment]) {
                close(segment, end, weights, ws, D, out);
                if (segment-- > 0) {
                    end = k;
                    const T* const from = potentials + segment * (n + 2 * m) * W;
                    copy(from, f, n);
                    copy(from + n * W, g, m);
                    build();
                }
            }
        }
        const V over = divide(V::set1(1), this->epsilon());
        for (int64_t e = 0; e < n * m; ++e) put(at(out, e) * over, out, e);
        this->scatter(out, n * m, task.d_scores);
        if (task.d_r) this->scatter(d_r, n, task.d_r);
        if (task.d_c) this->scatter(d_c, m, task.d_c);
    }
};

// The gradient of the fixed point. With H the gradient towards P and R, C the sums of P, the multipliers solve
//     R lambda + P mu = (P o H) 1,   P^T lambda + C mu = (P o H)^T 1,
// and P o (H - lambda - mu) is what reaches the exponents. The Schur complement C - P^T R^-1 P is the Laplacian of a
// graph on the columns with the weights A_jk = sum_i P_ij P_ik / R_i. It is eliminated on these weights alone: a
// diagonal is the sum of the weights that are left, so nothing is ever subtracted (Grassmann, Taksar & Heyman 1985), and
// plans close to permutations lose no digits. The shorter side takes the part of the columns.
template <class V>
struct FixedPoint : Group<V> {
    using Base = Group<V>;
    using T = typename V::scalar;
    using Base::W, Base::R, Base::C, Base::n, Base::m, Base::task, Base::at, Base::put;

    const bool swapped;
    T *const P, *const H, *const A;                     // (n, m), (n, m), (m, m) above the diagonal
    T *const over_rows, *const lambda;                  // (n,)
    T *const sums, *const b, *const over, *const mu;    // (m,)

    static int64_t numbers(const TinyTask<T>& k) {
        const int64_t n = k.n < k.m ? k.m : k.n, m = k.n < k.m ? k.n : k.m;
        return (2 * n * m + m * m + 2 * n + 4 * m) * W;
    }

    FixedPoint(const TinyTask<T>& task, int64_t first, void* scratch)
        : Base(task, task.n < task.m ? task.m : task.n, task.n < task.m ? task.n : task.m, first, scratch),
          swapped(task.n < task.m), P(this->take(n * m)), H(this->take(n * m)), A(this->take(m * m)),
          over_rows(this->take(n)), lambda(this->take(n)), sums(this->take(m)), b(this->take(m)),
          over(this->take(m)), mu(this->take(m)) {}

    // A_jk for J rows from j on and the columns from the same j on.
    template <int J>
    void weights(int64_t j) const {
        int64_t k = j;
        for (; k + C <= m; k += C) weights_block<J, C>(j, k);
        for (; k < m; ++k) weights_block<J, 1>(j, k);
    }
    template <int J, int S>
    BRENIER_INLINE void weights_block(int64_t j, int64_t k) const {
        V acc[J][S];
        each<J>([&](auto q) BRENIER_INLINE_LAMBDA {
            each<S>([&](auto s) BRENIER_INLINE_LAMBDA { acc[q][s] = V::set1(0); });
        });
        for (int64_t i = 0; i < n; ++i) {
            const V scale = at(over_rows, i);
            V right[S];
            each<S>([&](auto s) BRENIER_INLINE_LAMBDA { right[s] = at(P, i * m + k + s) * scale; });
            each<J>([&](auto q) BRENIER_INLINE_LAMBDA {
                const V left = at(P, i * m + j + q);
                each<S>([&](auto s) BRENIER_INLINE_LAMBDA { acc[q][s] = fma(left, right[s], acc[q][s]); });
            });
        }
        each<J>([&](auto q) BRENIER_INLINE_LAMBDA {
            each<S>([&](auto s) BRENIER_INLINE_LAMBDA { put(acc[q][s], A, (j + q) * m + k + s); });
        });
    }

    template <bool Swapped>
    void move(const T* from, T* to, bool out) const {
        const int64_t rows = task.n, cols = task.m;
        const auto place = [=](int64_t e) { return Swapped ? e % cols * rows + e / cols : e; };
        if (out) {
            this->scatter(from, n * m, to, place);
        } else {
            this->gather(from, n * m, to, place);
        }
    }
    void move(const T* from, T* to, bool out) const {
        if (swapped) {
            move<true>(from, to, out);
        } else {
            move<false>(from, to, out);
        }
    }

    void run() {
        const V zero = V::set1(0), one = V::set1(1);
        move(task.solved, P, false);
        move(task.grad, H, false);
        this->fill(sums, m, 0);
        this->fill(b, m, 0);
        for (int64_t i = 0; i < n; ++i) {  // H less its mean over the row: nothing is left of b on the side of the rows
            T *const row = P + i * m * W, *const h = H + i * m * W;
            V total = zero, mean = zero;
            for (int64_t j = 0; j < m; ++j) {
                const V p = at(row, j);
                total = total + p;
                mean = fma(p, at(h, j), mean);
                put(at(sums, j) + p, sums, j);
            }
            const V scale = share(one, total);
            mean = mean * scale;
            put(scale, over_rows, i);
            put(mean, lambda, i);
            for (int64_t j = 0; j < m; ++j) {
                const V rest = at(h, j) - mean;
                put(rest, h, j);
                put(fma(at(row, j), rest, at(b, j)), b, j);
            }
        }
        this->template fetch<false>(task.solved, n * m, this->first + W);
        this->template fetch<false>(task.grad, n * m, this->first + W);
        this->template fetch<true>(task.d_scores, n * m, this->first);
        int64_t j0 = 0;
        for (; j0 + R <= m; j0 += R) weights<R>(j0);
        for (; j0 < m; ++j0) weights<1>(j0);
        for (int64_t j = 0; j + 1 < m; ++j) {
            T* const row = A + j * m * W;
            V total = zero;
            for (int64_t k = j + 1; k < m; ++k) total = total + at(row, k);
            // what hangs on less than rounding is a component of its own
            const V floor = at(sums, j) * V::set1(std::numeric_limits<T>::epsilon());
            const V inverse = where_greater(floor, total, zero, share(one, total)), bj = at(b, j);
            put(inverse, over, j);
            for (int64_t k = j + 1; k < m; ++k) {
                const V l = at(row, k) * inverse;
                T* const below = A + k * m * W;
                put(fma(l, bj, at(b, k)), b, k);
                for (int64_t q = k + 1; q < m; ++q) put(fma(l, at(row, q), at(below, q)), below, q);
            }
        }
        put(zero, mu, m - 1);
        for (int64_t j = m - 1; j-- > 0;) {
            V s = at(b, j);
            for (int64_t k = j + 1; k < m; ++k) s = fma(at(A, j * m + k), at(mu, k), s);
            put(s * at(over, j), mu, j);
        }
        const V scale = divide(one, this->epsilon());
        for (int64_t i = 0; i < n; ++i) {
            T *const row = P + i * m * W, *const h = H + i * m * W;
            V shift = zero;
            for (int64_t j = 0; j < m; ++j) shift = fma(at(row, j), at(mu, j), shift);
            shift = shift * at(over_rows, i);
            put(at(lambda, i) - shift, lambda, i);
            for (int64_t j = 0; j < m; ++j) put(at(row, j) * scale * (at(h, j) + shift - at(mu, j)), h, j);
        }
        move(H, task.d_scores, true);
        if (task.d_r) this->scatter(swapped ? mu : lambda, task.n, task.d_r);
        if (task.d_c) this->scatter(swapped ? lambda : mu, task.m, task.d_c);
    }
};

template <class V>
int64_t tiny_scratch_size(const TinyTask<typename V::scalar>& task) {
    const int64_t numbers = task.op == TinyOp::implicit ? FixedPoint<V>::numbers(task) : Scaling<V>::numbers(task);
    return numbers * int64_t(sizeof(typename V::scalar));
}

template <class V>
void tiny_run(const TinyTask<typename V::scalar>& task, int64_t first, void* scratch) {
    switch (task.op) {
        case TinyOp::forward: return Scaling<V>(task, first, scratch).forward();
        case TinyOp::implicit: return FixedPoint<V>(task, first, scratch).run();
        case TinyOp::unrolled: return Scaling<V>(task, first, scratch).backward();
    }
}

template <class V>
TinyEngine<typename V::scalar> tiny_engine(const char* name) {
    return {name, V::width, tiny_scratch_size<V>, tiny_run<V>};
}

}  // namespace
}  // namespace brenier
