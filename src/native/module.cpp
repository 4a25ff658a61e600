// Python bindings of the native kernels. Nothing is computed here.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <chrono>
#include <cstdint>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "network_simplex.hpp"

namespace brenier {
void bind_pairwise(nanobind::module_& module);
void bind_tiny_sinkhorn(nanobind::module_& module);
void bind_laplacian(nanobind::module_& module);
}

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Hand a vector over to NumPy without a copy.
template <class T>
auto to_numpy(std::vector<T>&& values) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner);
}

// Looks for Ctrl-C and asks the caller's function, a few dozen times per second at most: each look needs the GIL.
class Poll {
 public:
  explicit Poll(nb::object interrupt) : interrupt_(std::move(interrupt)) {}

  bool operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (stopped_ || now < next_) return stopped_;
    next_ = now + std::chrono::milliseconds(25);
    nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    stopped_ = !interrupt_.is_none() && nb::cast<bool>(nb::bool_(interrupt_()));
    return stopped_;
  }

 private:
  nb::object interrupt_;
  std::chrono::steady_clock::time_point next_{};
  bool stopped_ = false;
};

nb::tuple network_simplex(Matrix cost, Vector<std::int64_t> supply, Vector<std::int64_t> demand,
                          std::optional<Vector<double>> f, std::optional<Vector<double>> g, std::int64_t max_iter,
                          nb::object interrupt) {
  const brenier::TransportProblem problem{
      cost.data(),   static_cast<std::int32_t>(cost.shape(0)), static_cast<std::int32_t>(cost.shape(1)),
      supply.data(), demand.data(), f ? f->data() : nullptr, g ? g->data() : nullptr};
  Poll poll(std::move(interrupt));
  brenier::TransportBasis basis;
  {
    nb::gil_scoped_release nogil;
    basis = brenier::network_simplex(problem, max_iter, [&poll] { return poll(); });
  }
  return nb::make_tuple(to_numpy(std::move(basis.rows)), to_numpy(std::move(basis.cols)),
                        to_numpy(std::move(basis.flow)), to_numpy(std::move(basis.f)), to_numpy(std::move(basis.g)),
                        basis.n_iter, basis.optimal);
}

using brenier::ListedTransport;
using Integers = Vector<std::int64_t>;
using Doubles = Vector<double>;

brenier::Arcs arcs(const Integers& rows, const Integers& cols, const Doubles& cost) {
  return {rows.data(), cols.data(), cost.data(), cost.shape(0)};
}

void bind_listed_transport(nb::module_& module) {
  nb::class_<ListedTransport>(module, "ListedTransport")
      .def("__init__",
           [](ListedTransport* self, Integers supply, Integers demand) {
             new (self) ListedTransport(static_cast<std::int32_t>(supply.shape(0)),
                                        static_cast<std::int32_t>(demand.shape(0)), supply.data(), demand.data());
           },
           "supply"_a, "demand"_a)
      .def("plant",
           [](ListedTransport& self, Integers rows, Integers cols, Doubles cost, Doubles f, Doubles g) {
             nb::gil_scoped_release nogil;
             return self.plant(arcs(rows, cols, cost), f.data(), g.data());
           },
           "rows"_a, "cols"_a, "cost"_a, "f"_a, "g"_a)
      .def("leftovers",
           [](const ListedTransport& self) {
             auto [rows, cols] = self.leftovers();
             return nb::make_tuple(to_numpy(std::move(rows)), to_numpy(std::move(cols)));
           })
      .def("pivot",
           [](ListedTransport& self, std::int64_t max_iter, nb::object interrupt) {
             Poll poll(std::move(interrupt));
             nb::gil_scoped_release nogil;
             return self.pivot(max_iter, [&poll] { return poll(); });
           },
           "max_iter"_a, "interrupt"_a.none())
      .def("add",
           [](ListedTransport& self, Integers rows, Integers cols, Doubles cost) {
             nb::gil_scoped_release nogil;
             return self.add(arcs(rows, cols, cost));
           },
           "rows"_a, "cols"_a, "cost"_a)
      .def("basis",
           [](const ListedTransport& self) {
             auto basis = self.basis();
             return nb::make_tuple(to_numpy(std::move(basis.rows)), to_numpy(std::move(basis.cols)),
                                   to_numpy(std::move(basis.flow)), to_numpy(std::move(basis.f)),
                                   to_numpy(std::move(basis.g)), basis.n_iter);
           })
      .def_prop_ro("size", &ListedTransport::size)
      .def_prop_ro("tolerance", &ListedTransport::tolerance);
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "The compiled kernels: network simplex, pairwise operations, Sinkhorn scaling of many small matrices.";
  module.def("network_simplex", &network_simplex, "cost"_a.noconvert(), "supply"_a, "demand"_a, "f"_a.none(), "g"_a.none(),
             "max_iter"_a, "interrupt"_a.none());
  bind_listed_transport(module);
  brenier::bind_pairwise(module);
  brenier::bind_tiny_sinkhorn(module);
  brenier::bind_laplacian(module);
}
