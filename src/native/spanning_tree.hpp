// The basis of the network simplex: a rooted spanning tree that carries flow.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace brenier {

using Index = std::int32_t;
using Mass = std::int64_t;
constexpr Index none = -1;

// Nodes 0..n-1 are rows, the rest are columns; mass flows from rows to columns. The arc between a node and its
// parent belongs to the node. Children hang in doubly linked lists.
class SpanningTree {
 public:
  SpanningTree(Index n, Index nodes)
      : n_(n), nodes_(nodes), links_(nodes), previous_(nodes, none), flow_(nodes, 0), queue_(nodes + 2) {}

  Index root() const { return root_; }
  Index parent(Index u) const { return nodes_[u].parent; }
  Mass flow(Index u) const { return flow_[u]; }

  // To build: hang every node but one on another, then name that one the root.
  void hang(Index u, Index parent, Mass flow) {
    flow_[u] = flow;
    link(u, parent);
  }

  void set_root(Index root) {
    root_ = root;
    count_ = 0;
    walk_down([this](Index u) { nodes_[u].size = 1, ++count_; });
    for (Index k = count_; --k > 0;) nodes_[nodes_[queue_[k]].parent].size += nodes_[queue_[k]].size;
  }

  // Visit every node after its parent.
  template <class Visit>
  void walk_down(Visit visit) { sweep(root_, visit); }

  // Let the arc row -> col in, whose reduced cost is negative, and move the potentials p so that it becomes zero.
  void pivot(Index row, Index col, double reduced, double* p) {
    // Climb to the join; the smaller of two subtrees cannot contain the other node. The arc that empties first
    // goes out. Among equals take the last one met when the cycle is read from the join along the new arc.
    Mass row_limit = std::numeric_limits<Mass>::max(), col_limit = row_limit;
    Index row_out = none, col_out = none;
    Index u = row, v = col;
    while (u != v) {
      if (nodes_[u].size <= nodes_[v].size) {
        if (is_row(u) && flow_[u] < row_limit) row_limit = flow_[u], row_out = u;
        u = nodes_[u].parent;
      } else {
        if (!is_row(v) && flow_[v] <= col_limit) col_limit = flow_[v], col_out = v;
        v = nodes_[v].parent;
      }
    }
    const Index join = u;
    const bool cut_row = row_limit < col_limit;  // is it the row that is cut off?
    const Mass moved = cut_row ? row_limit : col_limit;
    const Index out = cut_row ? row_out : col_out;
    const Index below = cut_row ? row : col;
    const Index above = cut_row ? col : row;

    if (moved > 0) {
      for (u = row; u != join; u = nodes_[u].parent) flow_[u] += is_row(u) ? -moved : moved;
      for (v = col; v != join; v = nodes_[v].parent) flow_[v] += is_row(v) ? moved : -moved;
    }
    const Index cut = nodes_[out].size;
    for (u = nodes_[out].parent; u != join; u = nodes_[u].parent) nodes_[u].size -= cut;
    for (u = above; u != join; u = nodes_[u].parent) nodes_[u].size += cut;

    // Only a difference of potentials matters: move the smaller side.
    unlink(out);
    const double shift = cut_row ? reduced : -reduced;
    if (2 * cut <= count_) {
      sweep(out, [p, shift](Index w) { p[w] += shift; });
    } else {
      sweep(root_, [p, shift](Index w) { p[w] -= shift; });
    }

    // Turn the path from the new arc up to the cut upside down.
    Index child = below, parent = above, turned = 0;
    Mass flow = moved;
    for (;;) {
      const Index up = nodes_[child].parent, size = nodes_[child].size;
      if (child != out) unlink(child);
      link(child, parent);
      std::swap(flow_[child], flow);
      nodes_[child].size = cut - turned;
      if (child == out) break;
      turned = size;
      parent = child;
      child = up;
    }
  }

 private:
  struct Node {
    Index parent = none, size = 1;
  };
  struct Links {
    Index child = none, next = none;
  };

  bool is_row(Index u) const { return u < n_; }

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

  // Visit a subtree from the top down, by a queue and without branches: each node offers its first child and its
  // next sibling. Most of the time of a large solve is spent here.
  template <class Visit>
  void sweep(Index top, Visit visit) {
    Index* queue = queue_.data();
    queue[0] = top;
    visit(top);
    queue[1] = links_[top].child;
    Index end = 1 + (queue[1] != none);
    for (Index k = 1; k < end; ++k) {
      const Index u = queue[k];
      visit(u);
      queue[end] = links_[u].child;
      end += queue[end] != none;
      queue[end] = links_[u].next;
      end += queue[end] != none;
    }
  }

  Index n_, root_ = none, count_ = 0;
  std::vector<Node> nodes_;
  std::vector<Links> links_;
  std::vector<Index> previous_;
  std::vector<Mass> flow_;
  std::vector<Index> queue_;
};

}  // namespace brenier
