// The basis of the network simplex: a rooted spanning tree that carries flow.
#pragma once

#include <algorithm>
#include <cmath>
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
//
// A pivot shifts the potentials of a whole subtree, which in a large tree holds every tenth node or so. A large tree is
// therefore cut into connected clusters of about sqrt(nodes) nodes, each with a shift that its potentials share: a pivot
// shifts the clusters of its subtree, and splits the one that the subtree cuts.
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

  // Cut a large tree into clusters; until `settle`, the potential of u is p[u] + shift(u). False for a small tree.
  bool cluster() {
    if (count_ < least_clustered) return false;
    cluster_.resize(nodes_.size());
    least_ = static_cast<Index>(std::sqrt(static_cast<double>(count_)));
    walk_down([this](Index u) { cluster_[u] = 1; });
    for (Index k = count_; --k > 0;) {  // from the leaves up, nodes that no cluster holds yet
      const Index u = queue_[k];
      if (cluster_[u] < least_) cluster_[nodes_[u].parent] += cluster_[u];
    }
    shifts_.clear();
    clusters_.clear();
    free_.clear();
    for (Index k = 0; k < count_; ++k) {
      const Index u = queue_[k], parent = nodes_[u].parent;
      if (u != root_ && cluster_[u] < least_) cluster_[u] = cluster_[parent];
      else cluster_[u] = found(u, u == root_ ? none : cluster_[parent]);
    }
    swept_ = 0;
    return true;
  }

  double shift(Index u) const { return shifts_[cluster_[u]]; }
  const Index* cluster_of() const { return cluster_.data(); }
  const double* shifts() const { return shifts_.data(); }

  // Give the nodes the shifts of their clusters, which are no more.
  void settle(double* p) {
    walk_down([this, p](Index u) { p[u] += shift(u); });
    clusters_.clear();
  }

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
    if (!clusters_.empty()) {
      if (cut <= least_) absorb(out, cluster_[above], shift, p);
      else shift_clusters(split(out), shift);
    } else if (2 * cut <= count_) {
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
      if (!clusters_.empty() && cluster_[child] != cluster_[parent]) clusters_[cluster_[child]] = {child, cluster_[parent], none};
      if (child == out) break;
      turned = size;
      parent = child;
      child = up;
    }
    if (swept_ > 2 * static_cast<std::int64_t>(count_)) {
      settle(p);
      cluster();
    }
  }

 private:
  struct Node {
    Index parent = none, size = 1;
  };
  struct Links {
    Index child = none, next = none;
  };

  struct Cluster {
    Index top = none, above = none;  // its highest node, and the cluster of that node's parent
    Index mark = none;               // of the last shift that looked at it, plus one where it was shifted
  };

  static constexpr Index least_clustered = 1 << 12;  // nodes

  bool is_row(Index u) const { return u < n_; }

  // ------------------------------------------------------------------------------------------------- clusters

  // The number of a new cluster.
  Index found(Index top, Index above) {
    if (free_.empty()) {
      clusters_.push_back({top, above, none});
      shifts_.push_back(0);
      return static_cast<Index>(clusters_.size()) - 1;
    }
    const Index fresh = free_.back();
    free_.pop_back();
    clusters_[fresh] = {top, above, none};
    shifts_[fresh] = 0;
    return fresh;
  }

  // Shift a small subtree, which joins the cluster that it will hang on.
  void absorb(Index top, Index target, double shift, double* p) {
    sweep(top, [&](Index u) {
      const Index c = cluster_[u];
      p[u] += shift + shifts_[c] - shifts_[target];
      if (c == target) return;
      cluster_[u] = target;
      if (clusters_[c].top == u) free_.push_back(c), clusters_[c].top = none;
      ++swept_;
    });
  }

  // The cluster whose highest node is `top`: what hangs on it in its cluster gets one of its own.
  Index split(Index top) {
    const Index from = cluster_[top];
    if (clusters_[from].top == top) return from;
    const Index fresh = found(top, from);
    shifts_[fresh] = shifts_[from];
    Index* queue = queue_.data();
    queue[0] = top;
    cluster_[top] = fresh;
    for (Index k = 0, end = 1; k < end; ++k) {
      for (Index v = links_[queue[k]].child; v != none; v = links_[v].next) {
        if (cluster_[v] == from) cluster_[v] = fresh, queue[end++] = v;
        else clusters_[cluster_[v]].above = fresh;
      }
      ++swept_;
    }
    return fresh;
  }

  // Shift a cluster and all that hang on it.
  void shift_clusters(Index top, double shift) {
    const Index outside = mark_ += 2, inside = outside + 1;
    clusters_[top].mark = inside;
    clusters_[cluster_[root_]].mark = outside;
    const Index count = static_cast<Index>(clusters_.size());
    for (Index c = 0; c < count; ++c) {
      if (clusters_[c].top == none) continue;
      Index end = 0, at = c;
      for (; clusters_[at].mark < outside; at = clusters_[at].above) queue_[end++] = at;
      const Index mark = clusters_[at].mark;
      while (end > 0) clusters_[queue_[--end]].mark = mark;
      if (mark == inside) shifts_[c] += shift;
    }
    swept_ += count;
  }

  // ---------------------------------------------------------------------------------------------------- links

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

  std::vector<Cluster> clusters_;  // none while potentials are those of the nodes alone
  std::vector<double> shifts_;     // of each cluster
  std::vector<Index> cluster_;     // of each node
  std::vector<Index> free_;        // numbers of clusters that are no more
  Index least_ = 0, mark_ = 0;     // nodes of a cluster, at first; mark of the last shift, even
  std::int64_t swept_ = 0;         // nodes and clusters touched since the tree was cut up
};

}  // namespace brenier
