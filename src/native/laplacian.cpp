#include "laplacian.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace brenier {

namespace {

constexpr double kLost = 1e3;      // a residual of so many times the least: rounding has taken over
constexpr double kMostEdges = 12;  // for each vertex; of more, a sample is factorised

// splitmix64: the sample needs no better, and must be the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  double operator()() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
  }

 private:
  std::uint64_t state_;
};

struct Edge {
  std::int32_t row, column;  // the latter counted after the rows
  double weight;
};

class Forest {
 public:
  explicit Forest(std::int32_t count) : parent_(static_cast<std::size_t>(count)) {
    std::iota(parent_.begin(), parent_.end(), 0);
  }
  bool join(std::int32_t a, std::int32_t b) {
    a = root(a), b = root(b);
    if (a == b) return false;
    parent_[static_cast<std::size_t>(a)] = b;
    return true;
  }

 private:
  std::int32_t root(std::int32_t v) {
    while (parent_[static_cast<std::size_t>(v)] != v) {
      auto& up = parent_[static_cast<std::size_t>(v)];
      up = parent_[static_cast<std::size_t>(up)];
      v = up;
    }
    return v;
  }
  std::vector<std::int32_t> parent_;
};

// All edges, or of too many a sample with the same Laplacian in expectation: the heavier for its ends, the likelier.
// It holds a spanning forest of heavy edges, so that it falls apart nowhere where the graph does not.
std::vector<Edge> sparsified(const BipartiteGraph& graph, const std::vector<double>& degrees, Random& random) {
  std::vector<Edge> edges;
  const auto count = static_cast<std::size_t>(graph.starts[graph.n]);
  const double most = kMostEdges * (graph.n + graph.m);
  const bool all = static_cast<double>(count) <= most;
  edges.reserve(all ? count : static_cast<std::size_t>(2 * most));
  std::vector<Edge> rest;
  for (std::int32_t i = 0; i < graph.n; ++i) {
    for (std::int64_t e = graph.starts[i]; e < graph.starts[i + 1]; ++e) {
      const Edge edge{i, graph.n + graph.columns[e], graph.weights[e]};
      if (!(edge.weight > 0)) continue;
      (all ? edges : rest).push_back(edge);
    }
  }
  if (all) return edges;
  // a forest of heavy edges: Kruskal on weights known to a factor of two
  std::vector<std::uint32_t> sorted(rest.size());
  {
    constexpr int kBuckets = 2200;
    std::vector<std::uint32_t> starts(kBuckets + 1, 0);
    const auto bucket = [](double w) { return std::clamp(1100 - std::ilogb(w), 0, kBuckets - 1); };
    for (const auto& edge : rest) ++starts[static_cast<std::size_t>(bucket(edge.weight)) + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (std::uint32_t k = 0; k < rest.size(); ++k) sorted[starts[static_cast<std::size_t>(bucket(rest[k].weight))]++] = k;
  }
  Forest forest(graph.n + graph.m);
  std::vector<bool> kept(rest.size(), false);
  auto missing = std::count_if(degrees.begin(), degrees.end(), [](double w) { return w > 0; }) - 1;
  for (std::size_t k = 0; k < sorted.size() && missing > 0; ++k) {
    const auto& edge = rest[sorted[k]];
    if (forest.join(edge.row, edge.column)) kept[sorted[k]] = true, --missing;
  }
  for (std::size_t k = 0; k < rest.size(); ++k) {
    const auto& edge = rest[k];
    const double share = edge.weight / degrees[static_cast<std::size_t>(edge.row)] +
                         edge.weight / degrees[static_cast<std::size_t>(edge.column)];
    const double p = kept[k] ? 1.0 : std::min(1.0, kMostEdges / 2 * share);
    if (p >= 1 || random() < p) edges.push_back({edge.row, edge.column, edge.weight / p});
  }
  return edges;
}

// The weights of all edges of each vertex.
std::vector<double> weighted_degrees(const BipartiteGraph& graph) {
  std::vector<double> sums(graph.ground, graph.ground + graph.n + graph.m);
  for (std::int32_t i = 0; i < graph.n; ++i) {
    for (std::int64_t e = graph.starts[i]; e < graph.starts[i + 1]; ++e) {
      sums[static_cast<std::size_t>(i)] += graph.weights[e];
      sums[static_cast<std::size_t>(graph.n + graph.columns[e])] += graph.weights[e];
    }
  }
  return sums;
}

// Vertices by degree: a vertex of nearly the least degree in constant time.
class Queue {
 public:
  Queue(const std::vector<std::int32_t>& degrees)
      : key_(degrees), next_(degrees.size()), previous_(degrees.size()),
        heads_(static_cast<std::size_t>(kBuckets), -1) {
    for (std::size_t v = 0; v < degrees.size(); ++v) push(static_cast<std::int32_t>(v));
  }
  std::int32_t pop() {
    while (heads_[static_cast<std::size_t>(least_)] < 0) ++least_;
    const auto v = heads_[static_cast<std::size_t>(least_)];
    remove(v);
    return v;
  }
  void change(std::int32_t v, std::int32_t by) {
    remove(v);
    key_[static_cast<std::size_t>(v)] += by;
    push(v);
  }

 private:
  static constexpr std::int32_t kBuckets = 512;
  std::size_t bucket(std::int32_t v) const {
    return static_cast<std::size_t>(std::clamp(key_[static_cast<std::size_t>(v)], 0, kBuckets - 1));
  }
  void push(std::int32_t v) {
    auto& head = heads_[bucket(v)];
    previous_[static_cast<std::size_t>(v)] = -1;
    next_[static_cast<std::size_t>(v)] = head;
    if (head >= 0) previous_[static_cast<std::size_t>(head)] = v;
    head = v;
    least_ = std::min(least_, static_cast<std::int32_t>(bucket(v)));
  }
  void remove(std::int32_t v) {
    const auto before = previous_[static_cast<std::size_t>(v)], after = next_[static_cast<std::size_t>(v)];
    if (before >= 0) next_[static_cast<std::size_t>(before)] = after;
    else heads_[bucket(v)] = after;
    if (after >= 0) previous_[static_cast<std::size_t>(after)] = before;
  }
  std::vector<std::int32_t> key_, next_, previous_, heads_;
  std::int32_t least_ = 0;
};

}  // namespace

ApproximateCholesky::ApproximateCholesky(const BipartiteGraph& graph, std::uint64_t seed) {
  const std::int32_t count = graph.n + graph.m, ground = count;
  const auto size = static_cast<std::size_t>(count);
  Random random(seed);
  struct Half {
    std::int32_t to, next;
    double weight;
  };
  std::vector<Half> halves;
  std::vector<std::int32_t> first(size, -1), degrees(size, 0);
  const auto link = [&](std::int32_t from, std::int32_t to, double weight) {
    halves.push_back({to, first[static_cast<std::size_t>(from)], weight});
    first[static_cast<std::size_t>(from)] = static_cast<std::int32_t>(halves.size()) - 1;
  };
  {
    const auto edges = sparsified(graph, weighted_degrees(graph), random);
    halves.reserve(4 * edges.size() + 2 * size);
    for (const auto& edge : edges) {
      link(edge.row, edge.column, edge.weight);
      link(edge.column, edge.row, edge.weight);
      ++degrees[static_cast<std::size_t>(edge.row)];
      ++degrees[static_cast<std::size_t>(edge.column)];
    }
  }
  for (std::size_t v = 0; v < size; ++v) {
    if (graph.ground[v] > 0) link(static_cast<std::int32_t>(v), ground, graph.ground[v]);
  }

  Queue queue(degrees);
  std::vector<bool> gone(size + 1, false);
  std::vector<std::int32_t> place(size + 1, -1);
  struct Neighbour {
    double weight;
    std::int32_t to;
  };
  std::vector<Neighbour> around;
  std::vector<double> running;
  order_.reserve(size);
  pivots_.reserve(size);
  starts_.reserve(size + 1);
  starts_.push_back(0);
  for (std::int32_t step = 0; step < count; ++step) {
    const auto v = queue.pop();
    gone[static_cast<std::size_t>(v)] = true;
    around.clear();
    for (auto h = first[static_cast<std::size_t>(v)]; h >= 0; h = halves[static_cast<std::size_t>(h)].next) {
      const auto [to, next, weight] = halves[static_cast<std::size_t>(h)];
      const auto u = static_cast<std::size_t>(to);
      if (gone[u]) continue;
      if (place[u] < 0) {
        place[u] = static_cast<std::int32_t>(around.size());
        around.push_back({weight, to});
      } else {
        around[static_cast<std::size_t>(place[u])].weight += weight;
        if (to != ground) queue.change(to, -1);  // two edges have become one
      }
    }
    std::sort(around.begin(), around.end(),
              [](const Neighbour& p, const Neighbour& q) { return p.weight < q.weight; });
    running.resize(around.size() + 1);
    running[0] = 0;
    for (std::size_t k = 0; k < around.size(); ++k) running[k + 1] = running[k] + around[k].weight;
    const double total = running[around.size()];
    for (std::size_t k = 0; k < around.size(); ++k) {
      const auto [weight, to] = around[k];
      place[static_cast<std::size_t>(to)] = -1;
      if (to != ground) {
        targets_.push_back(to);
        shares_.push_back(weight / total);
      }
      if (k + 1 < around.size()) {
        const double left = total - running[k + 1];
        const double at = running[k + 1] + left * random();
        auto j = static_cast<std::size_t>(std::upper_bound(running.begin(), running.end(), at) - running.begin()) - 1;
        j = std::clamp(j, k + 1, around.size() - 1);
        const auto other = around[j].to;
        const double fresh = weight * left / total;
        if (fresh > 0) {
          if (to != ground) link(to, other, fresh);
          if (other != ground) link(other, to, fresh);
          // `to` has this edge for the one to v; `other` has one more
          if (to != ground && other != ground) queue.change(other, 1);
          if (to != ground && other == ground) queue.change(to, -1);
        } else if (to != ground) {
          queue.change(to, -1);
        }
      } else if (to != ground) {
        queue.change(to, -1);
      }
    }
    order_.push_back(v);
    pivots_.push_back(total);
    starts_.push_back(static_cast<std::int64_t>(targets_.size()));
  }
}

void ApproximateCholesky::solve(double* x) const {
  for (std::size_t k = 0; k < order_.size(); ++k) {
    auto& own = x[order_[k]];
    for (auto e = starts_[k]; e < starts_[k + 1]; ++e)
      x[targets_[static_cast<std::size_t>(e)]] += shares_[static_cast<std::size_t>(e)] * own;
    own = pivots_[k] > 0 ? own / pivots_[k] : 0.0;
  }
  for (std::size_t k = order_.size(); k-- > 0;) {
    double sum = 0;
    for (auto e = starts_[k]; e < starts_[k + 1]; ++e)
      sum += shares_[static_cast<std::size_t>(e)] * x[targets_[static_cast<std::size_t>(e)]];
    x[order_[k]] += sum;
  }
}

namespace {

void multiply(const BipartiteGraph& graph, const double* x, double* y) {
  const auto n = graph.n, count = graph.n + graph.m;
  for (std::int32_t v = 0; v < count; ++v) y[v] = graph.ground[v] * x[v];
  for (std::int32_t i = 0; i < n; ++i) {
    const double own = x[i];
    double sum = 0;
    for (std::int64_t e = graph.starts[i]; e < graph.starts[i + 1]; ++e) {
      const auto j = n + graph.columns[e];
      const double flow = graph.weights[e] * (own - x[j]);
      sum += flow;
      y[j] -= flow;
    }
    y[i] += sum;
  }
}

}  // namespace

LaplacianResult solve_laplacian(const BipartiteGraph& graph, const ApproximateCholesky& factor, const double* rhs,
                                double* x, double rtol, std::int32_t max_iter) {
  const auto size = static_cast<std::size_t>(graph.n + graph.m);
  const auto degrees = weighted_degrees(graph);
  const auto norm = [&](const std::vector<double>& r) {
    double sum = 0;
    for (std::size_t v = 0; v < size; ++v) sum += degrees[v] > 0 ? r[v] * r[v] / degrees[v] : 0;
    return std::sqrt(sum);
  };
  const auto dot = [size](const std::vector<double>& p, const std::vector<double>& q) {
    double sum = 0;
    for (std::size_t v = 0; v < size; ++v) sum += p[v] * q[v];
    return sum;
  };
  std::vector<double> r(rhs, rhs + size), z(r), p, q(size);
  std::fill(x, x + size, 0.0);
  const double whole = norm(r);
  if (!(whole > 0)) return {0.0, 0};
  factor.solve(z.data());
  p = z;
  double rz = dot(r, z), residual = 1, least = 1;
  std::vector<double> best(size, 0.0);
  std::int32_t iteration = 0;
  while (iteration < max_iter && residual > rtol && residual < kLost * least) {
    multiply(graph, p.data(), q.data());
    const double curvature = dot(p, q);
    if (!(curvature > 0) || !std::isfinite(rz)) break;
    ++iteration;
    const double t = rz / curvature;
    for (std::size_t v = 0; v < size; ++v) x[v] += t * p[v], r[v] -= t * q[v];
    residual = norm(r) / whole;
    if (residual < least || iteration == 1) least = residual, std::copy(x, x + size, best.begin());
    z = r;
    factor.solve(z.data());
    const double before = rz;
    rz = dot(r, z);
    const double beta = rz / before;
    for (std::size_t v = 0; v < size; ++v) p[v] = z[v] + beta * p[v];
  }
  std::copy(best.begin(), best.end(), x);
  return {least, iteration};
}

}  // namespace brenier
