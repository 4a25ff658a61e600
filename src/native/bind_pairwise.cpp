// The pairwise kernels for Python. Arrays come as addresses: kernels/native.py owns them, checks them and keeps them
// alive during the call.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pairwise.hpp"

namespace nb = nanobind;

namespace brenier {
namespace {

// What this machine can run, the best first.
template <class T>
const std::vector<Engine<T>>& engines() {
    static const std::vector<Engine<T>> all = [] {
        std::vector<Engine<T>> out;
#ifdef BRENIER_AVX512
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
            out.push_back(avx512_engine<T>());
        }
#endif
#ifdef BRENIER_AVX2
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out.push_back(avx2_engine<T>());
#endif
        out.push_back(plain_engine<T>());
        return out;
    }();
    return all;
}

std::size_t chosen = 0;  // an index of engines(); guarded by the GIL

std::vector<std::string> simd_levels() {
    std::vector<std::string> out;
    for (const auto& e : engines<float>()) out.emplace_back(e.name);
    return out;
}

std::string simd() { return engines<float>()[chosen].name; }

void set_simd(const std::string& name) {
    const auto levels = simd_levels();
    for (std::size_t i = 0; i < levels.size(); ++i) {
        if (levels[i] == name) {
            chosen = i;
            return;
        }
    }
    throw std::invalid_argument("simd: expected a level of simd_levels(), got " + name);
}

// Numbers of row blocks, column blocks and entries, row_starts, col_starts, indptr, cols: see kernels/native.py.
Blocks blocks_at(const std::int64_t* at, std::int64_t length, std::int64_t n, std::int64_t m) {
    if (length < 6 || at[0] < 0 || at[1] < 0 || at[2] < 0 || length != 6 + 2 * at[0] + at[1] + at[2]) {
        throw std::invalid_argument("pairwise: expected blocks as kernels/native.py packs them");
    }
    Blocks b{at[0], at[1], at + 3, nullptr, nullptr, nullptr};
    b.col_starts = b.row_starts + b.rows + 1;
    b.indptr = b.col_starts + b.cols + 1;
    b.listed = b.indptr + b.rows + 1;
    if (b.row_starts[b.rows] != n || b.col_starts[b.cols] != m) {
        throw std::invalid_argument("pairwise: expected blocks of as many rows and columns as there are");
    }
    return b;
}

template <class T>
void call(int op, int kind, const std::vector<std::int64_t>& sizes, const std::vector<std::uintptr_t>& at,
          const std::vector<std::int64_t>& step, int threads) {
    const auto in = [&](int i) { return reinterpret_cast<const T*>(at[i]); };
    Task<T> t{};
    t.op = static_cast<Op>(op);
    t.kind = static_cast<Kind>(kind);
    t.n = sizes[1], t.m = sizes[2], t.d = sizes[3], t.k = sizes[4], t.r = sizes[5];
    t.rows = in(0), t.cols = in(1), t.f = in(2), t.g = in(3);
    t.vectors = in(4), t.left = in(5), t.right = in(6), t.term = in(7);
    t.epsilon = in(8);
    t.out = reinterpret_cast<T*>(at[9]);
    if (t.op == Op::cmin) {
        t.index = reinterpret_cast<std::int64_t*>(at[10]);
    } else {
        t.cost = reinterpret_cast<T*>(at[10]);
    }
    const Steps steps{step[0], step[1], step[2], step[3], step[4], step[5], step[6], step[7], step[8]};
    const Engine<T>& engine = engines<T>()[chosen];
    if (at[11]) {
        const Blocks blocks = blocks_at(reinterpret_cast<const std::int64_t*>(at[11]), sizes[6], t.n, t.m);
        nb::gil_scoped_release release;
        return pairwise(t, blocks, steps.epsilon, threads, engine);
    }
    nb::gil_scoped_release release;
    pairwise(t, steps, sizes[0], threads, engine);
}

void pairwise_call(int op, int kind, bool is_double, const std::vector<std::int64_t>& sizes,
                   const std::vector<std::uintptr_t>& at, const std::vector<std::int64_t>& step, int threads) {
    if (sizes.size() != 7 || at.size() != 12 || step.size() != 9) {
        throw std::invalid_argument("pairwise: expected 7 sizes, 12 addresses and 9 steps");
    }
    if (is_double) {
        call<double>(op, kind, sizes, at, step, threads);
    } else {
        call<float>(op, kind, sizes, at, step, threads);
    }
}

template <class T>
void matrix_call(int op, bool across, bool shared, const std::vector<std::int64_t>& sizes,
                 const std::vector<std::uintptr_t>& at, int threads) {
    const auto in = [&](int i) { return reinterpret_cast<const T*>(at[i]); };
    MatrixTask<T> t{};
    t.op = static_cast<Op>(op);
    t.n = sizes[1], t.m = sizes[2], t.k = sizes[3];
    t.cost = in(0), t.f = in(1), t.g = in(2), t.vectors = in(3);
    t.row_step = across ? 1 : t.m, t.col_step = across ? t.n : 1;
    t.epsilon = 1;
    t.out = reinterpret_cast<T*>(at[5]);
    if (t.op == Op::cmin) {
        t.index = reinterpret_cast<std::int64_t*>(at[6]);
    } else if (t.op == Op::gibbs || t.op == Op::rescaled) {
        t.kernel = reinterpret_cast<float*>(at[6]);
    } else {
        t.second = reinterpret_cast<T*>(at[6]);
    }
    const Engine<T>& engine = engines<T>()[chosen];
    nb::gil_scoped_release release;
    over_matrix(t, shared, in(4), sizes[0], threads, engine);
}

void over_matrix_call(int op, bool across, bool shared, bool is_double, const std::vector<std::int64_t>& sizes,
                      const std::vector<std::uintptr_t>& at, int threads) {
    if (sizes.size() != 4 || at.size() != 7) throw std::invalid_argument("matrix: expected 4 sizes and 7 addresses");
    if (is_double) {
        matrix_call<double>(op, across, shared, sizes, at, threads);
    } else {
        matrix_call<float>(op, across, shared, sizes, at, threads);
    }
}

// What was found, until Python has made room for it.
struct Listed {
    virtual ~Listed() = default;
    std::int64_t count = 0;
    virtual void take(std::uintptr_t rows, std::uintptr_t cols, std::uintptr_t values) = 0;
};

template <class T>
struct ListedOf : Listed {
    Found<T> found;

    explicit ListedOf(Found<T>&& what) : found(std::move(what)) {
        for (const auto& part : found) count += static_cast<std::int64_t>(part.size());
    }
    void take(std::uintptr_t rows, std::uintptr_t cols, std::uintptr_t values) override {
        auto* row = reinterpret_cast<std::int64_t*>(rows);
        auto* col = reinterpret_cast<std::int64_t*>(cols);
        auto* value = reinterpret_cast<T*>(values);
        for (auto& part : found) {
            for (const auto& e : part) *row++ = e.row, *col++ = e.col, *value++ = e.value;
            part = {};
        }
    }
};

template <class T>
std::unique_ptr<Listed> entries_of(bool whole, int kind, bool across, const std::vector<std::int64_t>& sizes,
                                   const std::vector<std::uintptr_t>& at, double limit, int threads) {
    const auto in = [&](int i) { return reinterpret_cast<const T*>(at[i]); };
    const Op op = whole ? Op::smallest : Op::support;
    const std::int64_t n = sizes[0], m = sizes[1], d = sizes[2], most = sizes[3];
    const Engine<T>& engine = engines<T>()[chosen];
    Blocks blocks{};
    if (at[4]) blocks = blocks_at(reinterpret_cast<const std::int64_t*>(at[4]), sizes[4], n, m);
    const Blocks* const some = at[4] ? &blocks : nullptr;
    nb::gil_scoped_release release;
    if (kind < 0) {
        MatrixTask<T> t{};
        t.op = op;
        t.n = n, t.m = m;
        t.cost = in(0), t.f = in(2), t.g = in(3);
        t.row_step = across ? 1 : m, t.col_step = across ? n : 1;
        t.epsilon = 1;
        return std::make_unique<ListedOf<T>>(entries(t, some, T(limit), most, threads, engine));
    }
    Task<T> t{};
    t.op = op;
    t.kind = static_cast<Kind>(kind);
    t.n = n, t.m = m, t.d = d;
    t.rows = in(0), t.cols = in(1), t.f = in(2), t.g = in(3);
    return std::make_unique<ListedOf<T>>(entries(t, some, T(limit), most, threads, engine));
}

std::unique_ptr<Listed> entries_call(bool whole, int kind, bool across, bool is_double,
                                     const std::vector<std::int64_t>& sizes, const std::vector<std::uintptr_t>& at,
                                     double limit, int threads) {
    if (sizes.size() != 5 || at.size() != 5) throw std::invalid_argument("entries: expected 5 sizes and 5 addresses");
    return is_double ? entries_of<double>(whole, kind, across, sizes, at, limit, threads)
                     : entries_of<float>(whole, kind, across, sizes, at, limit, threads);
}

void exp2_call(bool is_double, std::uintptr_t x, std::uintptr_t out, std::int64_t count) {
    if (is_double) {
        engines<double>()[chosen].exp2(reinterpret_cast<const double*>(x), reinterpret_cast<double*>(out), count);
    } else {
        engines<float>()[chosen].exp2(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(out), count);
    }
}

// Operations a second of one thread, with nothing else to do: the best of five.
template <class T>
double rate(T (*spin)(std::int64_t)) {
    constexpr std::int64_t count = 1 << 26;
    double best = 0;
    volatile T kept;
    for (int i = 0; i < 5; ++i) {
        const auto start = std::chrono::steady_clock::now();
        kept = spin(count);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, count / seconds.count());
    }
    (void)kept;
    return best;
}

template <class T>
std::pair<double, double> rates() {
    const Engine<T>& engine = engines<T>()[chosen];
    return {rate(engine.spin_fma), rate(engine.spin_exp2)};
}

std::pair<double, double> rates_call(bool is_double) { return is_double ? rates<double>() : rates<float>(); }

}  // namespace

std::string simd_in_use() { return simd(); }

void bind_pairwise(nb::module_& m) {
    m.def("pairwise", &pairwise_call, nb::arg("op"), nb::arg("kind"), nb::arg("is_double"), nb::arg("sizes"),
          nb::arg("addresses"), nb::arg("steps"), nb::arg("threads"));
    m.def("over_matrix", &over_matrix_call, nb::arg("op"), nb::arg("across"), nb::arg("shared"), nb::arg("is_double"),
          nb::arg("sizes"), nb::arg("addresses"), nb::arg("threads"));
    nb::class_<Listed>(m, "Listed", "What `entries` found.")
        .def_ro("count", &Listed::count)
        .def("take", &Listed::take, nb::arg("rows"), nb::arg("cols"), nb::arg("values"),
             "Write it to int64 rows and columns and to values, and forget it.");
    m.def("entries", &entries_call, nb::arg("whole"), nb::arg("kind"), nb::arg("across"), nb::arg("is_double"),
          nb::arg("sizes"), nb::arg("addresses"), nb::arg("limit"), nb::arg("threads"),
          "The entries of small reduced cost; a kind below 0 is a matrix.");
    m.def("exp2", &exp2_call, nb::arg("is_double"), nb::arg("x"), nb::arg("out"), nb::arg("count"),
          "2^x of an array, by the kernels' own exponential; for tests.");
    m.def("rates", &rates_call, nb::arg("is_double"), nb::call_guard<nb::gil_scoped_release>(),
          "Multiply-adds and exponentials a second of one thread: the ceilings of the kernels.");
    m.def("simd_levels", &simd_levels, "Instruction sets that this build and this machine share, the best first.");
    m.def("simd", &simd, "The instruction set in use.");
    m.def("set_simd", &set_simd, nb::arg("name"), "Use another instruction set; for tests and benchmarks.");
}

}  // namespace brenier
