// Flows of least cost on a graph whose edges may be used both ways, at one price and without limits.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace brenier {

struct Graph {
  std::int32_t nodes;
  std::int32_t edges;
  const std::int32_t *tails, *heads;  // (edges,)
  const double* cost;                 // (edges,) of a unit either way, nonnegative
};

struct GraphFlow {
  std::vector<std::int64_t> flow;   // (edges,) from tail to head; negative: from head to tail
  std::vector<double> potential;    // (nodes,) that of the tree: |difference| <= cost along all edges when optimal
  std::vector<std::int32_t> tree;   // (nodes - 1,) the edges of the last spanning tree
  std::int64_t n_iter = 0;          // pivots
  bool optimal = false;
};

// Primal network simplex from the spanning tree of the edges `tree` (nodes - 1,); any will do. `supply` (nodes,) of sum
// zero is what a node sends, or takes where it is negative. `stop` is polled now and then; once true it must stay so,
// and the flow so far is returned, which is feasible. It may throw.
GraphFlow graph_flow(const Graph& graph, const std::int64_t* supply, const std::int32_t* tree, std::int64_t max_iter,
                     const std::function<bool()>& stop);

struct Shipments {
  std::vector<std::int32_t> from, to;
  std::vector<std::int64_t> mass;
};

// Which source's mass ends where: an acyclic flow, cut into paths.
Shipments shipments(const Graph& graph, const std::int64_t* supply, const std::int64_t* flow);

}  // namespace brenier
