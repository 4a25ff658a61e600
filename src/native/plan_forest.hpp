// A plan without cycles: its arcs come one by one, and each cycle that one closes is cancelled.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "spanning_tree.hpp"

namespace brenier {

// Nodes 0..n-1 are rows, the rest are columns. The arc between a node and its parent belongs to the node. Mass moves
// around a cycle the way that costs no more, until an arc is empty. Time is that of climbing the cycles, and of turning
// the smaller of two trees that an arc joins.
class PlanForest {
 public:
  PlanForest(Index n, Index nodes)
      : n_(n), parent_(nodes, none), component_(nodes), size_(nodes, 1), seen_(nodes, none), flow_(nodes, 0),
        cost_(nodes, 0) {
    std::iota(component_.begin(), component_.end(), 0);
  }

  bool ships(Index row, Index col) const { return belongs(row, col) || belongs(col, row); }

  // Let flow in along an arc row -> col that it does not have.
  void ship(Index row, Index col, double cost, Mass flow) {
    const Index at = component(row), to = component(col);
    if (at == to) return cancel(row, col, cost, flow);
    const bool row_side = size_[at] < size_[to];
    const auto [small, large] = row_side ? std::pair(at, to) : std::pair(to, at);
    component_[small] = large;
    size_[large] += size_[small];
    turn(row_side ? row : col, row_side ? col : row, none, cost, flow);
  }

 private:
  bool is_row(Index u) const { return u < n_; }
  bool belongs(Index u, Index parent) const { return parent_[u] == parent && flow_[u] > 0; }

  void cancel(Index row, Index col, double cost, Mass flow) {
    const Index join = meet(row, col);
    double change = cost;  // of one unit more along the new arc
    for (Index u = row; u != join; u = parent_[u]) change += is_row(u) ? -cost_[u] : cost_[u];
    for (Index u = col; u != join; u = parent_[u]) change += is_row(u) ? cost_[u] : -cost_[u];
    const bool more = change <= 0;

    Mass moved = more ? std::numeric_limits<Mass>::max() : flow;
    Index out = none;
    bool row_side = false;
    const auto limit = [&](Index start, bool rows_lose) {
      for (Index u = start; u != join; u = parent_[u])
        if (is_row(u) == rows_lose && flow_[u] < moved) moved = flow_[u], out = u, row_side = start == row;
    };
    limit(row, more);
    limit(col, !more);
    const auto move = [&](Index start, bool rows_lose) {
      for (Index u = start; u != join; u = parent_[u]) flow_[u] += is_row(u) == rows_lose ? -moved : moved;
    };
    move(row, more);
    move(col, !more);
    if (out == none) return;  // the new arc is the one that emptied
    turn(row_side ? row : col, row_side ? col : row, out, cost, more ? flow + moved : flow - moved);
  }

  // Hang a node on a new parent, and what was above it, up to the arc of `last`, on it.
  void turn(Index u, Index parent, Index last, double cost, Mass flow) {
    for (Index up = none;; parent = u, u = up) {
      up = parent_[u];
      parent_[u] = parent;
      std::swap(cost_[u], cost);
      std::swap(flow_[u], flow);
      if (u == last || up == none) return;
    }
  }

  // The lowest node above both, of one tree.
  Index meet(Index u, Index v) {
    for (++stamp_;; std::swap(u, v)) {
      if (u == none) continue;
      if (seen_[u] == stamp_) return u;
      seen_[u] = stamp_;
      u = parent_[u];
    }
  }

  // Of the nodes of a tree, the same one for all.
  Index component(Index u) {
    while (component_[u] != u) u = component_[u] = component_[component_[u]];
    return u;
  }

  Index n_, stamp_ = none;
  std::vector<Index> parent_, component_, size_, seen_;
  std::vector<Mass> flow_;
  std::vector<double> cost_;
};

}  // namespace brenier
