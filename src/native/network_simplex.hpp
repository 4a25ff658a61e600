// The exact transportation problem on a dense cost matrix, by the primal network simplex.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace brenier {

struct TransportProblem {
  const double* cost;          // (n, m), row-major; read in place
  std::int32_t n, m;
  const std::int64_t* supply;  // (n,) units of mass; a row without any takes no part
  const std::int64_t* demand;  // (m,) likewise, of the same total
  const double* f = nullptr;   // (n,) duals to start from
  const double* g = nullptr;   // (m,) duals to start from; -inf where unknown
};

struct TransportBasis {
  std::vector<std::int32_t> rows, cols;  // the arcs of the spanning tree
  std::vector<std::int64_t> flow;        // units of mass on each
  std::vector<double> f, g;              // feasible duals; -inf where there is no mass
  std::int64_t n_iter = 0;               // pivots
  bool optimal = false;
};

// `stop` is polled now and then; once true it must stay so, and the basis so far is returned, which is feasible. It
// may throw.
TransportBasis network_simplex(const TransportProblem& problem, std::int64_t max_iter,
                               const std::function<bool()>& stop);

}  // namespace brenier
