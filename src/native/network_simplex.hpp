// The exact transportation problem by the primal network simplex: on a cost matrix, or on arcs that the caller brings;
// on many cost matrices at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace brenier {

struct TransportProblem {
  const double* cost;          // (n, m), row-major; read in place
  std::int32_t n, m;
  std::int64_t stride;         // from one row to the next
  const std::int64_t* supply;  // (n,) units of mass; a row without any takes no part
  const std::int64_t* demand;  // (m,) likewise, of the same total
  const double* f = nullptr;   // (n,) duals to start from
  const double* g = nullptr;   // (m,) duals to start from; -inf where unknown
  const std::int32_t* tree = nullptr;  // (n + m,) a tree to start from, where it is one of these masses
};

struct TransportBasis {
  std::vector<std::int32_t> rows, cols;  // the arcs of the spanning tree
  std::vector<std::int64_t> flow;        // units of mass on each
  std::vector<std::int32_t> tree;        // the parent of each line, of rows, then columns; -1 at the root and off it
  std::vector<double> f, g;              // feasible duals; -inf where there is no mass
  std::int64_t n_iter = 0;               // pivots
  bool optimal = false;
};

// `stop` is polled now and then; once true it must stay so, and the basis so far is returned, which is feasible. It
// may throw.
TransportBasis network_simplex(const TransportProblem& problem, std::int64_t max_iter,
                               const std::function<bool()>& stop);

// `count` problems, dense and row-major, one after the other.
struct TransportBatch {
  std::int64_t count;
  std::int32_t n, m;
  const double* cost;          // (count, n, m)
  const std::int64_t* supply;  // (count, n)
  const std::int64_t* demand;  // (count, m)

  std::int32_t* tree;          // (count, n + m) trees to start from, then those found, between the lines up to
                               // the last with mass; -1 throughout for none
  std::int64_t *rows, *cols, *flow;  // (count, n + m - 1) the arcs of the trees, then zeros
  double *f_out, *g_out;       // (count, n) and (count, m) feasible duals, also where there is no mass
  std::int64_t* n_iter;        // (count,)
  std::uint8_t* optimal;       // (count,) 0 or 1
};

// `stop` is polled by the calling thread only.
void network_simplex(const TransportBatch& batch, int threads, const std::function<bool()>& stop);

// Duals g to start another method from: those of the problem, -inf off a sample, completed and smoothed.
std::vector<double> smoothed_duals(const TransportProblem& problem, const std::function<bool()>& stop);

struct Arcs {
  const std::int64_t *rows, *cols;  // (count,) all pairs distinct
  const double* cost;               // (count,)
  std::size_t count;
};

// The same problem where nobody holds all costs. The caller plants a tree with the arcs of a first list, then lets it
// pivot and adds the arcs that violate its duals, until there are none; tree and duals stay in between. All masses are
// positive. The list drops its worse half when it grows long.
class ListedTransport {
 public:
  ListedTransport(std::int32_t n, std::int32_t m, const std::int64_t* supply, const std::int64_t* demand);
  ~ListedTransport();

  // Grow the first tree, greedy for the reduced costs of the arcs under the duals f and g; true once it spans all.
  // Until then, call again with arcs between the leftovers; all of them will do. With the flow of a feasible plan on
  // arcs of the first offer, the tree carries that plan, but for its cycles.
  bool plant(const Arcs& offer, const double* f, const double* g, const std::int64_t* flow = nullptr);
  std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>> leftovers() const;  // rows and columns

  // Pivot until the list is optimal; false when stopped or after `max_iter` pivots in all.
  bool pivot(std::int64_t max_iter, const std::function<bool()>& stop);

  // List the arcs that violate the duals and are not there yet; returns their number.
  std::int64_t add(const Arcs& offer);

  TransportBasis basis() const;  // its duals are feasible on the list only
  std::int64_t size() const;     // arcs on the list
  double tolerance() const;      // reduced costs above minus this count as zero

 private:
  class Simplex;
  std::unique_ptr<Simplex> simplex_;
};

}  // namespace brenier
