// Python bindings of the native kernels. Nothing is computed here.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "assignment.hpp"
#include "distances.hpp"
#include "graph_flow.hpp"
#include "network_simplex.hpp"
#include "partial_path.hpp"

namespace brenier {
std::string simd_in_use();
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
      cost.data(), static_cast<std::int32_t>(cost.shape(0)), static_cast<std::int32_t>(cost.shape(1)),
      static_cast<std::int64_t>(cost.shape(1)), supply.data(), demand.data(), f ? f->data() : nullptr,
      g ? g->data() : nullptr};
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

template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

nb::tuple network_simplices(nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu> cost,
                            Rows<std::int64_t> supply, Rows<std::int64_t> demand,
                            std::optional<Rows<std::int32_t>> tree, int threads, nb::object interrupt) {
  const std::size_t count = cost.shape(0), n = cost.shape(1), m = cost.shape(2), arcs = n + m - 1;
  std::vector<std::int32_t> trees(count * (n + m), -1);
  if (tree) std::copy_n(tree->data(), trees.size(), trees.begin());
  std::vector<std::int64_t> rows(count * arcs), cols(count * arcs), flow(count * arcs), n_iter(count);
  std::vector<double> f_out(count * n), g_out(count * m);
  std::vector<std::uint8_t> optimal(count);
  const brenier::TransportBatch batch{
      static_cast<std::int64_t>(count), static_cast<std::int32_t>(n), static_cast<std::int32_t>(m), cost.data(),
      supply.data(), demand.data(), trees.data(), rows.data(), cols.data(), flow.data(),
      f_out.data(), g_out.data(), n_iter.data(), optimal.data()};
  Poll poll(std::move(interrupt));
  {
    nb::gil_scoped_release nogil;
    brenier::network_simplex(batch, threads, [&poll] { return poll(); });
  }
  return nb::make_tuple(to_numpy(std::move(rows)), to_numpy(std::move(cols)), to_numpy(std::move(flow)),
                        to_numpy(std::move(f_out)), to_numpy(std::move(g_out)), to_numpy(std::move(trees)),
                        to_numpy(std::move(n_iter)), to_numpy(std::move(optimal)));
}

auto smoothed_duals(Matrix cost, Vector<std::int64_t> supply, Vector<std::int64_t> demand, Vector<double> g) {
  const brenier::TransportProblem problem{
      cost.data(), static_cast<std::int32_t>(cost.shape(0)), static_cast<std::int32_t>(cost.shape(1)),
      static_cast<std::int64_t>(cost.shape(1)), supply.data(), demand.data(), nullptr, g.data()};
  Poll poll{nb::none()};
  std::vector<double> smoothed;
  {
    nb::gil_scoped_release nogil;
    smoothed = brenier::smoothed_duals(problem, [&poll] { return poll(); });
  }
  return to_numpy(std::move(smoothed));
}

using Writable = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void distances(Matrix x, Matrix y, int power, bool root, int threads, Writable out) {
  using brenier::Power;
  const Power kind = power == 1 ? Power::kAbsolute : root ? Power::kRoot : Power::kSquares;
  Poll poll{nb::none()};
  nb::gil_scoped_release nogil;
  brenier::distances(x.data(), y.data(), out.data(), x.shape(0), y.shape(0), x.shape(1), kind, threads,
                     [&poll] { poll(); });
}

nb::tuple partial_paths(Matrix x, Matrix y, double p, Vector<std::int64_t> pairs, Vector<double> price, int threads) {
  const std::size_t count = x.shape(0), n = x.shape(1), m = y.shape(1);
  std::vector<std::int64_t> step_x(count * n), step_y(count * m);
  std::vector<double> prices(count * std::min(n, m));
  const brenier::PartialPaths task{static_cast<std::int64_t>(count), static_cast<std::int64_t>(n),
                                   static_cast<std::int64_t>(m), x.data(), y.data(), p, pairs.data(), price.data(),
                                   step_x.data(), step_y.data(), prices.data()};
  Poll poll{nb::none()};
  {
    nb::gil_scoped_release nogil;
    brenier::partial_paths(task, threads, [&poll] { poll(); });
  }
  return nb::make_tuple(to_numpy(std::move(step_x)), to_numpy(std::move(step_y)), to_numpy(std::move(prices)));
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
           [](ListedTransport& self, Integers rows, Integers cols, Doubles cost, Doubles f, Doubles g,
              std::optional<Integers> flow) {
             nb::gil_scoped_release nogil;
             return self.plant(arcs(rows, cols, cost), f.data(), g.data(), flow ? flow->data() : nullptr);
           },
           "rows"_a, "cols"_a, "cost"_a, "f"_a, "g"_a, "flow"_a.none() = nb::none())
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

using Indices = Vector<std::int32_t>;

brenier::Graph graph(const Indices& tails, const Indices& heads, const Doubles& cost, std::size_t nodes) {
  return {static_cast<std::int32_t>(nodes), static_cast<std::int32_t>(cost.shape(0)), tails.data(), heads.data(),
          cost.data()};
}

nb::tuple graph_flow(Indices tails, Indices heads, Doubles cost, Integers supply, Indices tree, std::int64_t max_iter,
                     nb::object interrupt) {
  Poll poll(std::move(interrupt));
  brenier::GraphFlow out;
  {
    nb::gil_scoped_release nogil;
    out = brenier::graph_flow(graph(tails, heads, cost, supply.shape(0)), supply.data(), tree.data(), max_iter,
                              [&poll] { return poll(); });
  }
  return nb::make_tuple(to_numpy(std::move(out.flow)), to_numpy(std::move(out.potential)),
                        to_numpy(std::move(out.tree)), out.n_iter, out.optimal);
}

nb::tuple shipments(Indices tails, Indices heads, Doubles cost, Integers supply, Integers flow) {
  brenier::Shipments out;
  {
    nb::gil_scoped_release nogil;
    out = brenier::shipments(graph(tails, heads, cost, supply.shape(0)), supply.data(), flow.data());
  }
  return nb::make_tuple(to_numpy(std::move(out.from)), to_numpy(std::move(out.to)), to_numpy(std::move(out.mass)));
}

brenier::AssignmentEngine assignment_engine_in_use() {
  const std::string name = brenier::simd_in_use();
#ifdef BRENIER_AVX512
  if (name == "avx512") return brenier::assignment_avx512_engine();
#endif
#ifdef BRENIER_AVX2
  if (name == "avx2") return brenier::assignment_avx2_engine();
#endif
  return brenier::assignment_plain_engine();
}

template <class T>
nb::tuple assignment(nb::ndarray<const T, nb::ndim<3>, nb::c_contig, nb::device::cpu> cost,
                     std::optional<Matrix> start, std::int64_t pairs, double price, int threads) {
  const std::size_t count = cost.shape(0), n = cost.shape(1), m = cost.shape(2);
  std::vector<std::int64_t> cols(count * n), found(count);
  std::vector<double> f(count * n), g(count * m), level(count);
  const brenier::AssignmentTask<T> task{
      static_cast<std::int64_t>(count), static_cast<std::int64_t>(n), static_cast<std::int64_t>(m), cost.data(),
      start ? start->data() : nullptr, pairs, price, cols.data(), f.data(), g.data(), level.data(), found.data()};
  Poll poll{nb::none()};
  {
    nb::gil_scoped_release nogil;
    brenier::assignment(task, threads, assignment_engine_in_use(), [&poll] { poll(); });
  }
  return nb::make_tuple(to_numpy(std::move(cols)), to_numpy(std::move(f)), to_numpy(std::move(g)),
                        to_numpy(std::move(level)), to_numpy(std::move(found)));
}

template <class T>
void bind_assignment(nb::module_& module) {
  module.def("assignment", &assignment<T>, "cost"_a.noconvert(), "start"_a.none(), "pairs"_a, "price"_a, "threads"_a);
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "The compiled kernels: network simplex, flows on graphs, assignment, paths of partial transport, pairwise operations, Sinkhorn scaling of small matrices.";
  module.def("network_simplex", &network_simplex, "cost"_a.noconvert(), "supply"_a, "demand"_a, "f"_a.none(), "g"_a.none(),
             "max_iter"_a, "interrupt"_a.none());
  module.def("network_simplices", &network_simplices, "cost"_a.noconvert(), "supply"_a, "demand"_a,
             "tree"_a.none(), "threads"_a, "interrupt"_a.none());
  module.def("distances", &distances, "x"_a.noconvert(), "y"_a.noconvert(), "power"_a, "root"_a, "threads"_a,
             "out"_a.noconvert());
  module.def("partial_paths", &partial_paths, "x"_a.noconvert(), "y"_a.noconvert(), "p"_a, "pairs"_a, "price"_a,
             "threads"_a);
  module.def("smoothed_duals", &smoothed_duals, "cost"_a.noconvert(), "supply"_a, "demand"_a, "g"_a);
  bind_listed_transport(module);
  module.def("graph_flow", &graph_flow, "tails"_a, "heads"_a, "cost"_a, "supply"_a, "tree"_a, "max_iter"_a,
             "interrupt"_a.none());
  module.def("shipments", &shipments, "tails"_a, "heads"_a, "cost"_a, "supply"_a, "flow"_a);
  bind_assignment<float>(module);
  bind_assignment<double>(module);
  brenier::bind_pairwise(module);
  brenier::bind_tiny_sinkhorn(module);
  brenier::bind_laplacian(module);
}
