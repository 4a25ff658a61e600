// Linear systems with the Laplacian of a weighted bipartite graph: those of Newton's method for entropic transport.
#pragma once

#include <cstdint>
#include <vector>

namespace brenier {

// Edges between n rows and m columns by rows, as in a CSR matrix, and edges to the ground, where the solution is zero.
struct BipartiteGraph {
  std::int32_t n, m;
  const std::int64_t* starts;   // (n + 1,)
  const std::int32_t* columns;  // (edges,)
  const double* weights;        // (edges,) nonnegative
  const double* ground;         // (n + m,) nonnegative, rows first
};

struct LaplacianResult {
  double residual;  // sqrt(sum r^2 / degree), relative to that of the right-hand side
  std::int32_t iterations;
};

// An approximate Cholesky factor of the Laplacian (Kyng & Sachdeva 2016; Gao, Kyng & Spielman 2023): vertices are
// eliminated by growing degree, and of the clique that each leaves behind, one edge for each neighbour is drawn, with
// the right expectation. A factor of O(edges log edges) entries is expected, whatever the graph.
class ApproximateCholesky {
 public:
  ApproximateCholesky(const BipartiteGraph& graph, std::uint64_t seed);
  void solve(double* x) const;  // (n + m,) in place

 private:
  std::vector<std::int32_t> order_;     // of elimination
  std::vector<std::int64_t> starts_;    // of their entries
  std::vector<std::int32_t> targets_;   // the ground is left out
  std::vector<double> shares_;          // weight of the edge over the weights of all edges
  std::vector<double> pivots_;          // these weights
};

// Conjugate gradients on [[D_r, -W], [-W^T, D_c]] x = rhs, preconditioned by an approximate factor; D holds the weights
// of all edges of a vertex. Products go by differences along edges, so that weights of any range keep their digits.
LaplacianResult solve_laplacian(const BipartiteGraph& graph, const ApproximateCholesky& factor, const double* rhs,
                                double* x, double rtol, std::int32_t max_iter);

}  // namespace brenier
