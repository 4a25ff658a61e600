// Python bindings of the Laplacian solver. Nothing is computed here.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "laplacian.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace brenier {

namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The graph, whose arrays it keeps alive, and its factor.
class Laplacian {
 public:
  Laplacian(Vector<std::int64_t> starts, Vector<std::int32_t> columns, Vector<double> weights, Vector<double> ground,
            std::uint64_t seed)
      : starts_(std::move(starts)), columns_(std::move(columns)), weights_(std::move(weights)),
        ground_(std::move(ground)), factor_(factorised(graph(), seed)) {}

  nb::tuple solve(Vector<double> rhs, double rtol, std::int32_t max_iter) const {
    auto* x = new std::vector<double>(rhs.shape(0));
    nb::capsule owner(x, [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
    LaplacianResult result{};
    {
      nb::gil_scoped_release nogil;
      result = solve_laplacian(graph(), factor_, rhs.data(), x->data(), rtol, max_iter);
    }
    return nb::make_tuple(nb::ndarray<nb::numpy, double, nb::ndim<1>>(x->data(), {x->size()}, owner), result.residual,
                          result.iterations);
  }

 private:
  BipartiteGraph graph() const {
    const auto n = static_cast<std::int32_t>(starts_.shape(0)) - 1;
    const auto m = static_cast<std::int32_t>(ground_.shape(0)) - n;
    return {n, m, starts_.data(), columns_.data(), weights_.data(), ground_.data()};
  }
  static ApproximateCholesky factorised(const BipartiteGraph& graph, std::uint64_t seed) {
    nb::gil_scoped_release nogil;
    return ApproximateCholesky(graph, seed);
  }

  Vector<std::int64_t> starts_;
  Vector<std::int32_t> columns_;
  Vector<double> weights_, ground_;
  ApproximateCholesky factor_;
};

}  // namespace

void bind_laplacian(nb::module_& module) {
  nb::class_<Laplacian>(module, "Laplacian")
      .def(nb::init<Vector<std::int64_t>, Vector<std::int32_t>, Vector<double>, Vector<double>, std::uint64_t>(),
           "starts"_a, "columns"_a, "weights"_a, "ground"_a, "seed"_a)
      .def("solve", &Laplacian::solve, "rhs"_a, "rtol"_a, "max_iter"_a);
}

}  // namespace brenier
