// Primal network simplex for the transshipment problem
//
//   min sum_e c_e |x_e|  over flows x that send what each node supplies,   with the dual
//   max <p, supply>  over  |p_u - p_v| <= c_uv for all edges.
//
// A basis is a spanning tree. As no edge has a limit, every spanning tree carries a feasible flow in one way. A pivot
// lets in an edge along which the potentials differ by more than its cost, pushes mass around the cycle that it closes,
// and lets out an edge that this empties. The tree stays strongly feasible (an empty edge points to the root), so
// degenerate pivots cannot cycle. Masses are integers, so ties are exact.

#include "graph_flow.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

namespace brenier {
namespace {

using Index = std::int32_t;
using Mass = std::int64_t;

constexpr Index none = -1;
constexpr double rounding = 64 * std::numeric_limits<double>::epsilon();
constexpr Index least_block = 64;  // edges that are priced for a pivot, at least
constexpr Index poll_every = 16;   // pivots between two polls

class FlowSimplex {
 public:
  FlowSimplex(const Graph& graph, const Mass* supply, const Index* tree)
      : graph_(graph), nodes_(graph.nodes), links_(graph.nodes), previous_(graph.nodes, none), branch_(graph.nodes),
        p_(graph.nodes, 0.0), queue_(static_cast<std::size_t>(graph.nodes) + 2) {
    plant(supply, tree);
    refresh();
  }

  GraphFlow solve(std::int64_t max_iter, const std::function<bool()>& stop) {
    GraphFlow out;
    // potentials gather rounding on the way: those that prove are fresh
    while (pivot_all(max_iter, stop)) {
      refresh();
      if ((out.optimal = !violated())) break;
    }
    if (!out.optimal) refresh();
    out.flow.assign(graph_.edges, 0);
    for (Index u = 0; u < graph_.nodes; ++u) {
      if (u == root_) continue;
      const Branch& b = branch_[u];
      out.flow[b.edge] = (graph_.tails[b.edge] == u) == static_cast<bool>(b.up) ? b.flow : -b.flow;
      out.tree.push_back(b.edge);
    }
    out.potential = std::move(p_);
    out.n_iter = n_iter_;
    return out;
  }

 private:
  struct Node {
    Index parent = none, size = 1;
  };
  struct Links {
    Index child = none, next = none;
  };
  struct Branch {  // the edge between a node and its parent
    Mass flow = 0;
    Index edge = none;
    bool up = true;  // whether mass flows to the parent
  };

  // Hang the tree on node 0, and give it the one flow that it can carry.
  void plant(const Mass* supply, const Index* tree) {
    const Index n = graph_.nodes;
    std::vector<Index> start(static_cast<std::size_t>(n) + 1, 0), near(2 * static_cast<std::size_t>(n - 1));
    for (Index k = 0; k + 1 < n; ++k) ++start[graph_.tails[tree[k]] + 1], ++start[graph_.heads[tree[k]] + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    std::vector<Index> next(start.begin(), start.end() - 1);
    for (Index k = 0; k + 1 < n; ++k) {
      near[next[graph_.tails[tree[k]]]++] = tree[k];
      near[next[graph_.heads[tree[k]]]++] = tree[k];
    }
    std::vector<Index> order{root_};
    order.reserve(n);
    for (std::size_t k = 0; k < order.size(); ++k) {
      const Index u = order[k];
      for (Index at = start[u]; at < start[u + 1]; ++at) {
        const Index e = near[at], v = graph_.tails[e] == u ? graph_.heads[e] : graph_.tails[e];
        if (e == branch_[u].edge) continue;
        branch_[v].edge = e;
        link(v, u);
        order.push_back(v);
      }
    }
    std::vector<Mass> rest(supply, supply + n);
    for (std::size_t k = order.size(); --k > 0;) {
      const Index u = order[k], parent = nodes_[u].parent;
      branch_[u].flow = std::abs(rest[u]);
      branch_[u].up = rest[u] >= 0;
      rest[parent] += rest[u];
      nodes_[parent].size += nodes_[u].size;
    }
  }

  // Potentials afresh from the tree, free of accumulated rounding.
  void refresh() {
    p_[root_] = 0;
    double low = 0, high = 0;
    sweep(root_, [&](Index u) {
      if (u == root_) return;
      const double c = graph_.cost[branch_[u].edge];
      p_[u] = p_[nodes_[u].parent] + (branch_[u].up ? c : -c);
      low = std::min(low, p_[u]);
      high = std::max(high, p_[u]);
    });
    tolerance_ = rounding * (high - low);
  }

  double excess(Index e) const {
    return std::abs(p_[graph_.tails[e]] - p_[graph_.heads[e]]) - graph_.cost[e];
  }

  bool violated() const {
    for (Index e = 0; e < graph_.edges; ++e)
      if (excess(e) > tolerance_) return true;
    return false;
  }

  // Pivot on the worst edge of each block until no block has any; false when stopped.
  bool pivot_all(std::int64_t max_iter, const std::function<bool()>& stop) {
    const Index m = graph_.edges;
    const Index block = std::max(least_block, static_cast<Index>(std::sqrt(static_cast<double>(m))));
    for (Index idle = 0; idle < m;) {
      const Index end = std::min(m, cursor_ + block);
      double worst = tolerance_;
      Index enters = none;
      for (Index e = cursor_; e < end; ++e)
        if (const double x = excess(e); x > worst) worst = x, enters = e;
      idle += end - cursor_;
      cursor_ = end == m ? 0 : end;
      if (enters == none) continue;
      if (n_iter_ >= max_iter || (n_iter_ % poll_every == 0 && stop())) return false;
      pivot(enters);
      ++n_iter_;
      idle = 0;
    }
    return true;
  }

  void pivot(Index e) {
    Index tail = graph_.tails[e], head = graph_.heads[e];
    if (p_[tail] < p_[head]) std::swap(tail, head);  // mass flows down the potential
    const double shift = p_[tail] - p_[head] - graph_.cost[e];
    // Climb to the join; the smaller of two subtrees cannot contain the other node. The edge that empties first goes
    // out. Among equals take the last one met when the cycle is read from the join along the new edge.
    Mass tail_limit = std::numeric_limits<Mass>::max(), head_limit = tail_limit;
    Index tail_out = none, head_out = none, u = tail, v = head;
    while (u != v) {
      if (nodes_[u].size <= nodes_[v].size) {
        if (branch_[u].up && branch_[u].flow < tail_limit) tail_limit = branch_[u].flow, tail_out = u;
        u = nodes_[u].parent;
      } else {
        if (!branch_[v].up && branch_[v].flow <= head_limit) head_limit = branch_[v].flow, head_out = v;
        v = nodes_[v].parent;
      }
    }
    if (tail_out == none && head_out == none) return refresh();  // a cycle of no cost, which only rounding shows
    const Index join = u;
    const bool cut_tail = tail_limit < head_limit;
    const Mass moved = cut_tail ? tail_limit : head_limit;
    const Index out = cut_tail ? tail_out : head_out;
    const Index below = cut_tail ? tail : head, above = cut_tail ? head : tail;
    if (moved > 0) {
      for (u = tail; u != join; u = nodes_[u].parent) branch_[u].flow += branch_[u].up ? -moved : moved;
      for (v = head; v != join; v = nodes_[v].parent) branch_[v].flow += branch_[v].up ? moved : -moved;
    }
    const Index cut = nodes_[out].size;
    for (u = nodes_[out].parent; u != join; u = nodes_[u].parent) nodes_[u].size -= cut;
    for (u = above; u != join; u = nodes_[u].parent) nodes_[u].size += cut;

    // Only a difference of potentials matters: move the smaller side.
    unlink(out);
    const double move = cut_tail ? -shift : shift;
    if (2 * cut <= graph_.nodes) {
      sweep(out, [this, move](Index w) { p_[w] += move; });
    } else {
      sweep(root_, [this, move](Index w) { p_[w] -= move; });
    }

    // Turn the path from the new edge up to the cut upside down.
    Branch carried{moved, e, cut_tail};
    Index child = below, parent = above, turned = 0;
    for (;;) {
      const Index up = nodes_[child].parent, size = nodes_[child].size;
      if (child != out) unlink(child);
      link(child, parent);
      std::swap(branch_[child], carried);
      carried.up = !carried.up;
      nodes_[child].size = cut - turned;
      if (child == out) break;
      turned = size;
      parent = child;
      child = up;
    }
  }

  void link(Index u, Index parent) {
    const Index next = links_[parent].child;
    nodes_[u].parent = parent;
    links_[u].next = next;
    previous_[u] = none;
    if (next != none) previous_[next] = u;
    links_[parent].child = u;
  }

  void unlink(Index u) {
    const Index next = links_[u].next, previous = previous_[u];
    if (next != none) previous_[next] = previous;
    if (previous != none) links_[previous].next = next;
    else links_[nodes_[u].parent].child = next;
  }

  // Visit a subtree from the top down, by a queue and without branches.
  template <class Visit>
  void sweep(Index top, Visit visit) {
    Index* queue = queue_.data();
    visit(top);
    queue[0] = links_[top].child;
    Index end = queue[0] != none;
    for (Index k = 0; k < end; ++k) {
      const Index u = queue[k];
      visit(u);
      queue[end] = links_[u].child;
      end += queue[end] != none;
      queue[end] = links_[u].next;
      end += queue[end] != none;
    }
  }

  const Graph graph_;
  const Index root_ = 0;
  std::vector<Node> nodes_;
  std::vector<Links> links_;
  std::vector<Index> previous_;
  std::vector<Branch> branch_;
  std::vector<double> p_;
  std::vector<Index> queue_;
  double tolerance_ = 0;  // differences beyond the cost by no more than this count as none
  Index cursor_ = 0;
  std::int64_t n_iter_ = 0;
};

}  // namespace

GraphFlow graph_flow(const Graph& graph, const std::int64_t* supply, const std::int32_t* tree, std::int64_t max_iter,
                     const std::function<bool()>& stop) {
  return FlowSimplex(graph, supply, tree).solve(max_iter, stop);
}

Shipments shipments(const Graph& graph, const std::int64_t* supply, const std::int64_t* flow) {
  struct Parcel {
    Index from;
    Mass mass;
  };
  const Index n = graph.nodes;
  // edges by the node that they leave, and how many a node still waits for
  std::vector<Index> start(static_cast<std::size_t>(n) + 1, 0), waits(n, 0);
  const auto from = [&](Index e) { return flow[e] > 0 ? graph.tails[e] : graph.heads[e]; };
  const auto to = [&](Index e) { return flow[e] > 0 ? graph.heads[e] : graph.tails[e]; };
  for (Index e = 0; e < graph.edges; ++e)
    if (flow[e] != 0) ++start[from(e) + 1], ++waits[to(e)];
  std::partial_sum(start.begin(), start.end(), start.begin());
  std::vector<Index> next(start.begin(), start.end() - 1), leaving(start[n]);
  for (Index e = 0; e < graph.edges; ++e)
    if (flow[e] != 0) leaving[next[from(e)]++] = e;

  Shipments out;
  std::vector<std::vector<Parcel>> stock(n);
  // take so much mass out of the stock of a node, from its end
  const auto take = [&stock](Index u, Mass mass, auto&& give) {
    std::vector<Parcel>& parcels = stock[u];
    while (mass > 0) {
      Parcel& last = parcels.back();
      const Mass part = std::min(mass, last.mass);
      give(Parcel{last.from, part});
      mass -= part;
      last.mass -= part;
      if (last.mass == 0) parcels.pop_back();
    }
  };
  std::vector<Index> ready;
  for (Index u = 0; u < n; ++u)
    if (waits[u] == 0) ready.push_back(u);
  while (!ready.empty()) {
    const Index u = ready.back();
    ready.pop_back();
    if (supply[u] > 0) stock[u].push_back({u, supply[u]});
    take(u, -supply[u], [&](Parcel parcel) {
      out.from.push_back(parcel.from);
      out.to.push_back(u);
      out.mass.push_back(parcel.mass);
    });
    for (Index k = start[u]; k < start[u + 1]; ++k) {
      const Index e = leaving[k], v = to(e);
      take(u, std::abs(flow[e]), [&](Parcel parcel) { stock[v].push_back(parcel); });
      if (--waits[v] == 0) ready.push_back(v);
    }
    std::vector<Parcel>().swap(stock[u]);
  }
  return out;
}

}  // namespace brenier
