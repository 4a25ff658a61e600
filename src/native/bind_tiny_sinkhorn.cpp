// Sinkhorn scaling of small matrices for Python. Arrays come as addresses: kernels/tiny.py owns them, checks them and
// keeps them alive during the call.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "tiny_sinkhorn.hpp"

namespace nb = nanobind;

namespace brenier {

std::string simd_in_use();

namespace {

template <class T>
TinyEngine<T> engine_in_use() {
    const std::string name = simd_in_use();
#ifdef BRENIER_AVX512
    if (name == "avx512") return tiny_avx512_engine<T>();
#endif
#ifdef BRENIER_AVX2
    if (name == "avx2") return tiny_avx2_engine<T>();
#endif
    return tiny_plain_engine<T>();
}

template <class T>
void call(int op, const std::vector<std::int64_t>& sizes, double tol, const std::vector<std::uintptr_t>& at,
          const std::vector<std::int64_t>& steps, int threads) {
    const auto in = [&](int i) { return reinterpret_cast<const T*>(at[i]); };
    const auto out = [&](int i) { return reinterpret_cast<T*>(at[i]); };
    TinyTask<T> t{};
    t.op = static_cast<TinyOp>(op);
    t.count = sizes[0], t.n = sizes[1], t.m = sizes[2], t.n_iter = sizes[3];
    t.tol = static_cast<T>(tol);
    t.epsilon_step = steps[0], t.r_step = steps[1], t.c_step = steps[2];
    t.scores = in(0), t.epsilon = in(1), t.r = in(2), t.c = in(3), t.solved = in(4), t.grad = in(5);
    if (t.op == TinyOp::forward) {
        t.plan = out(6), t.error = out(7), t.iterations = reinterpret_cast<std::int64_t*>(at[8]);
    } else {
        t.d_scores = out(6), t.d_r = out(7), t.d_c = out(8);
    }
    const TinyEngine<T> engine = engine_in_use<T>();
    nb::gil_scoped_release release;
    tiny_sinkhorn(t, threads, engine);
}

void tiny_sinkhorn_call(int op, bool is_double, const std::vector<std::int64_t>& sizes, double tol,
                        const std::vector<std::uintptr_t>& at, const std::vector<std::int64_t>& steps, int threads) {
    if (sizes.size() != 4 || at.size() != 9 || steps.size() != 3) {
        throw std::invalid_argument("tiny_sinkhorn: expected 4 sizes, 9 addresses and 3 steps");
    }
    if (is_double) {
        call<double>(op, sizes, tol, at, steps, threads);
    } else {
        call<float>(op, sizes, tol, at, steps, threads);
    }
}

}  // namespace

void bind_tiny_sinkhorn(nb::module_& m) {
    m.def("tiny_sinkhorn", &tiny_sinkhorn_call, nb::arg("op"), nb::arg("is_double"), nb::arg("sizes"), nb::arg("tol"),
          nb::arg("addresses"), nb::arg("steps"), nb::arg("threads"));
}

}  // namespace brenier
