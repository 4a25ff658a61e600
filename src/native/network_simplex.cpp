// Primal network simplex for the transportation problem
//
//   min <P, C>  over  P >= 0, P 1 = a, P^T 1 = b,    with the dual  max <f, a> + <g, b>  over  f_i + g_j <= c_ij.
//
// A basis is a spanning tree on rows and columns. A pivot lets in one arc of negative reduced cost c_ij - f_i - g_j,
// pushes mass around the cycle that it closes, and lets out an arc that this empties.
//
// - Masses are integers, so ties are exact, and the tree stays strongly feasible (Cunningham, 1976: an empty arc
//   points to the root), so degenerate pivots cannot cycle.
// - Pivots look at a short list of promising arcs. When it is optimal all arcs are priced, what violates joins the
//   list, and so on until nothing does.
// - On a cost matrix the first duals are those of a smaller problem on a sample of the rows and columns, solved in
//   the same way, then smoothed as by Sinkhorn (1967) on the list, and the first tree is greedy for them. Without a
//   matrix the caller brings duals and arcs. Who solves for other costs of the same masses brings the last tree.

#include "network_simplex.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

#include "inline.hpp"
#include "plan_forest.hpp"
#include "spanning_tree.hpp"
#include "threads.hpp"

namespace brenier {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double rounding = 64 * std::numeric_limits<double>::epsilon();

constexpr Index first_width = 24;     // arcs per line on the first list
constexpr int smooth_stages = 3;      // temperatures at which the first duals are smoothed, each half of the other
constexpr int smooth_sweeps = 8;      // scalings of rows and columns at each
constexpr double smooth_start = 0.25; // first temperature, over the reduced cost at which a row's list ends
constexpr Index extra_width = 16;     // violators per line that one pricing may add
constexpr Index list_limit = 128;     // arcs per line above which the list drops its worse half
constexpr int bisections = 16;        // in the search for what the least `width` values of a row reach
constexpr Index tie_limit = 8;        // times its width that a row may list
constexpr Index block_rows = 256;     // rows of the list that are priced between pivots
constexpr Index poll_every = 16;      // pivots, or dense rows, between two polls
constexpr Index sample_share = 4;     // lines of the problem per line of its sample
constexpr Index sample_least = 512;   // lines below which no sample is taken
constexpr std::int64_t work_per_thread = 1 << 14;  // costs whose problems cost as much as waking a thread

// The potential p is f on rows and -g on columns, so the nodes of a subtree move by the same amount. The reduced cost
// is always computed as (c_ij + p_j) - p_i, so that all who ask get the same number. Rows without mass are skipped,
// columns without mass have p = inf.

// Least c_ij + p_j of a dense row in each class of columns modulo `classes`.
BRENIER_SIMD_CLONES
void class_minima(const double* cost, const double* p, Index m, double* minima, Index classes) {
  std::fill(minima, minima + classes, infinity);
  for (Index start = 0; start < m; start += classes) {
    const Index count = std::min(classes, m - start);
#pragma omp simd
    for (Index k = 0; k < count; ++k) minima[k] = std::min(minima[k], cost[start + k] + p[start + k]);
  }
}

// Least c_ij + p_j of a dense row.
BRENIER_SIMD_CLONES
double least_sum(const double* cost, const double* p, Index m) {
  double least = infinity;
#pragma omp simd reduction(min : least)
  for (Index j = 0; j < m; ++j) least = std::min(least, cost[j] + p[j]);
  return least;
}

// Least c_ij + p_j of the listed arcs of a row; the second where columns share the shifts of their clusters.
BRENIER_SIMD_CLONES
double list_minimum(const double* cost, const Index* cols, Index count, const double* p) {
  double least = infinity;
#pragma omp simd reduction(min : least)
  for (Index k = 0; k < count; ++k) least = std::min(least, cost[k] + p[cols[k]]);
  return least;
}

BRENIER_SIMD_CLONES
double list_minimum(const double* cost, const Index* cols, Index count, const double* p, const Index* cluster,
                    const double* shifts) {
  double least = infinity;
#pragma omp simd reduction(min : least)
  for (Index k = 0; k < count; ++k) least = std::min(least, cost[k] + (p[cols[k]] + shifts[cluster[cols[k]]]));
  return least;
}

BRENIER_SIMD_CLONES
void lower_columns(const double* cost, double f, Index m, double* g) {
#pragma omp simd
  for (Index j = 0; j < m; ++j) g[j] = std::min(g[j], cost[j] - f);
}

// How many columns of a dense row have c_ij + p_j up to `limit`.
BRENIER_SIMD_CLONES
Index count_sums_up_to(const double* cost, const double* p, Index m, double limit) {
  double count = 0;
#pragma omp simd reduction(+ : count)
  for (Index j = 0; j < m; ++j) count += cost[j] + p[j] <= limit ? 1.0 : 0.0;
  return static_cast<Index>(count);
}

// How many of the values are at most `limit`.
BRENIER_SIMD_CLONES
Index count_up_to(const double* values, Index size, double limit) {
  double count = 0;
#pragma omp simd reduction(+ : count)
  for (Index k = 0; k < size; ++k) count += values[k] <= limit ? 1.0 : 0.0;
  return static_cast<Index>(count);
}

// The columns of a dense row with c_ij + p_j up to `limit`; returns their number.
BRENIER_SIMD_CLONES
Index columns_up_to(const double* cost, const double* p, Index m, double limit, Index* cols) {
  Index count = 0;
  for (Index j = 0; j < m; ++j) {
    cols[count] = j;
    count += cost[j] + p[j] <= limit;
  }
  return count;
}

struct Arc {
  Index row, col;
  double cost;
  double reduced;  // its reduced cost when it was listed
};

// Builds a strongly feasible tree. Each step ships all that one arc can carry, and the line that this exhausts hangs
// itself on the other. When it exhausts both, the column does, and the row waits: a row may hang on a column by an
// empty arc, a column may not. The last column stays as the root. A waiting row may hang on any column of another
// component, so a problem of equal masses, whose rows all wait, still finds near ones.
class GreedyTree {
 public:
  GreedyTree(SpanningTree& tree, const std::vector<Index>& rows, const std::vector<Index>& cols,
             const Mass* supply, const Mass* demand, Index n, Index m)
      : tree_(tree), n_(n), lines_(n + m), rows_(static_cast<Index>(rows.size())),
        cols_(static_cast<Index>(cols.size())), left_(n + m, 0), alive_(n + m, 0), waits_(n, 0), above_(n + m) {
    for (Index i : rows) left_[i] = supply[i], alive_[i] = 1;
    for (Index j : cols) left_[n + j] = demand[j], alive_[n + j] = 1;
    std::iota(above_.begin(), above_.end(), 0);
  }

  bool row_alive(Index i) const { return alive_[i]; }
  bool row_waits(Index i) const { return waits_[i]; }
  bool col_alive(Index j) const { return alive_[n_ + j]; }
  bool complete() const { return rows_ == 0 && cols_ == 1 && waiting_ == 0; }

  // Ship along row i -> column j, both alive.
  void ship(Index i, Index j) {
    const Index column = n_ + j;
    const Mass flow = std::min(left_[i], left_[column]);
    left_[i] -= flow;
    left_[column] -= flow;
    const bool column_leaves = left_[column] == 0 && cols_ > 1;
    if (column_leaves) {
      alive_[column] = 0;
      --cols_;
      hang(column, i, flow);
    }
    if (left_[i] > 0) return;
    alive_[i] = 0;
    --rows_;
    if (column_leaves) {
      waits_[i] = 1;
      ++waiting_;
    } else {
      hang(i, column, flow);
    }
  }

  // Hang a waiting row on column j, unless they are of one component.
  bool settle(Index i, Index j) {
    if (component(i) == component(n_ + j)) return false;
    hang(i, n_ + j, 0);
    waits_[i] = 0;
    --waiting_;
    return true;
  }

  // Arcs in order of reduced cost; but where a line has one live tight arc left, that one first: from optimal duals
  // this finds an optimal plan. Then the waiting rows, in the same order.
  void ship_in_order(std::vector<Arc> arcs, double tight) {
    std::sort(arcs.begin(), arcs.end(), [](const Arc& s, const Arc& t) { return s.reduced < t.reduced; });
    std::size_t count = 0;
    while (count < arcs.size() && arcs[count].reduced <= tight) ++count;

    std::vector<Index> degree(lines_, 0), start(lines_ + 1, 0), near(2 * count), leaves;
    for (std::size_t k = 0; k < count; ++k) ++degree[arcs[k].row], ++degree[n_ + arcs[k].col];
    std::partial_sum(degree.begin(), degree.end(), start.begin() + 1);
    std::vector<Index> next(start.begin(), start.end() - 1);
    for (std::size_t k = 0; k < count; ++k) {
      near[next[arcs[k].row]++] = n_ + arcs[k].col;
      near[next[n_ + arcs[k].col]++] = arcs[k].row;
    }
    for (Index u = 0; u < lines_; ++u)
      if (degree[u] == 1) leaves.push_back(u);

    auto ship_and_update = [&](Index i, Index j) {
      ship(i, j);
      for (Index gone : {i, n_ + j}) {
        if (alive_[gone]) continue;
        for (Index k = start[gone]; k < start[gone + 1]; ++k)
          if (alive_[near[k]] && --degree[near[k]] == 1) leaves.push_back(near[k]);
      }
    };
    auto strip_leaves = [&] {
      while (!leaves.empty()) {
        const Index u = leaves.back();
        leaves.pop_back();
        for (Index k = start[u]; alive_[u] && k < start[u + 1]; ++k) {
          if (!alive_[near[k]]) continue;
          ship_and_update(std::min(u, near[k]), std::max(u, near[k]) - n_);
          break;
        }
      }
    };
    strip_leaves();
    for (const Arc& arc : arcs) {
      if (!row_alive(arc.row) || !col_alive(arc.col)) continue;
      ship_and_update(arc.row, arc.col);
      strip_leaves();
    }
    for (const Arc& arc : arcs)
      if (row_waits(arc.row)) settle(arc.row, arc.col);
  }

 private:
  void hang(Index u, Index parent, Mass flow) {
    tree_.hang(u, parent, flow);
    above_[component(u)] = component(parent);
  }

  // Of the lines that hang together, the same one for all.
  Index component(Index u) {
    while (above_[u] != u) u = above_[u] = above_[above_[u]];
    return u;
  }

  SpanningTree& tree_;
  Index n_, lines_, rows_, cols_, waiting_ = 0;  // the last three: lines alive, and rows that wait
  std::vector<Mass> left_;
  std::vector<char> alive_, waits_;
  std::vector<Index> above_;
};

// The tree, its potentials, and the list of arcs that pivots look at.
class PivotList {
 protected:
  PivotList(Index n, Index m, const Mass* supply, const Mass* demand)
      : n_(n), m_(m), p_(static_cast<std::size_t>(n) + m, infinity), tree_(n, n + m) {
    for (Index i = 0; i < n; ++i)
      if (supply[i] > 0) rows_.push_back(i);
    for (Index j = 0; j < m; ++j)
      if (demand[j] > 0) cols_.push_back(j);
    lines_ = static_cast<Index>(std::max(rows_.size(), cols_.size()));
  }

  double* p_cols() { return p_.data() + n_; }
  double reduced(Index i, Index j, double cost) const { return cost + p_[n_ + j] - p_[i]; }

  // Potentials afresh from the tree, free of accumulated rounding and centred.
  template <class Cost>
  void refresh_potentials(Cost cost) {
    double low = infinity, high = -infinity;
    tree_.walk_down([&](Index u) {
      const Index parent = tree_.parent(u);
      p_[u] = u == tree_.root() ? 0.0
              : u < n_          ? p_[parent] + cost(u, parent - n_)
                                : p_[parent] - cost(parent, u - n_);
      low = std::min(low, p_[u]);
      high = std::max(high, p_[u]);
    });
    const double middle = low + (high - low) / 2;
    for (Index i : rows_) p_[i] -= middle;
    for (Index j : cols_) p_cols()[j] -= middle;
    tolerance_ = rounding * (high - middle);
  }

  void list(const std::vector<Arc>& arcs) {
    list_start_.assign(n_ + 1, 0);
    for (const Arc& arc : arcs) ++list_start_[arc.row + 1];
    std::partial_sum(list_start_.begin(), list_start_.end(), list_start_.begin());
    std::vector<std::size_t> next(list_start_.begin(), list_start_.end() - 1);
    list_cols_.resize(arcs.size());
    list_cost_.resize(arcs.size());
    for (const Arc& arc : arcs) {
      const std::size_t k = next[arc.row]++;
      list_cols_[k] = arc.col;
      list_cost_[k] = arc.cost;
    }
  }

  // Append the arcs on the list, or the better of them when the list has grown long; those of the tree stay.
  void keep_list(std::vector<Arc>& arcs) {
    const std::size_t fresh = arcs.size();
    double sum = 0;
    for (Index i : rows_)
      for (std::size_t k = list_start_[i]; k < list_start_[i + 1]; ++k) {
        arcs.push_back({i, list_cols_[k], list_cost_[k], reduced(i, list_cols_[k], list_cost_[k])});
        sum += arcs.back().reduced;
      }
    const std::size_t old = arcs.size() - fresh;
    if (old < static_cast<std::size_t>(list_limit) * lines_) return;
    const double mean = std::max(tolerance_, sum / static_cast<double>(old));
    const auto worse = [mean](const Arc& arc) { return arc.reduced > mean; };
    arcs.erase(std::remove_if(arcs.begin() + fresh, arcs.end(), worse), arcs.end());
  }

  // Pivot until no listed arc has a negative reduced cost; false when stopped. Each block of rows offers its best
  // arc per row, and the best of these pivots until none is left. As potentials only ever move, they drift away from
  // zero; were they left to, their rounding would outgrow the tolerance, and an arc could enter for ever.
  template <class Refresh>
  bool pivot_list(std::int64_t max_iter, const std::function<bool()>& stop, Refresh refresh) {
    for (Index cursor = 0;; refresh()) {
      const std::int64_t stale = n_iter_ + n_ + m_;
      const bool clustered = tree_.cluster();
      const Pause pause = clustered ? pivot_until<true>(stale, max_iter, stop, cursor)
                                    : pivot_until<false>(stale, max_iter, stop, cursor);
      if (clustered) tree_.settle(p_.data());
      if (pause != Pause::stale) return pause == Pause::optimal;
    }
  }

  enum class Pause { optimal, stopped, stale };

  template <bool clustered>
  Pause pivot_until(std::int64_t stale, std::int64_t max_iter, const std::function<bool()>& stop, Index& cursor) {
    const auto potential = [this](Index u) { return clustered ? p_[u] + tree_.shift(u) : p_[u]; };
    struct Candidate {
      Index row, col;
      double cost;
    };
    std::vector<Candidate> candidates;
    const Index count = static_cast<Index>(rows_.size());
    for (Index idle = 0; idle < count;) {
      if (stop()) return Pause::stopped;
      candidates.clear();
      const Index end = std::min(count, cursor + block_rows);
      for (Index r = cursor; r < end; ++r) {
        const Index i = rows_[r];
        const double* cost = list_cost_.data() + list_start_[i];
        const Index* cols = list_cols_.data() + list_start_[i];
        const Index size = static_cast<Index>(list_start_[i + 1] - list_start_[i]);
        const double least = clustered ? list_minimum(cost, cols, size, p_cols(), tree_.cluster_of() + n_, tree_.shifts())
                                       : list_minimum(cost, cols, size, p_cols());
        if (!(least - potential(i) < -tolerance_)) continue;
        Index k = 0;
        while (k + 1 < size && cost[k] + potential(n_ + cols[k]) > least) ++k;
        candidates.push_back({i, cols[k], cost[k]});
      }
      idle += end - cursor;
      cursor = end == count ? 0 : end;
      for (;;) {
        double least = -tolerance_;
        std::size_t best = 0, kept = 0;
        for (const Candidate& c : candidates) {
          const double reduced_cost = (c.cost + potential(n_ + c.col)) - potential(c.row);
          if (!(reduced_cost < -tolerance_)) continue;
          if (reduced_cost < least) least = reduced_cost, best = kept;
          candidates[kept++] = c;
        }
        candidates.resize(kept);
        if (kept == 0) break;
        if (n_iter_ >= max_iter) return Pause::stopped;
        if (n_iter_ >= stale) return Pause::stale;
        if (n_iter_ >= next_poll_) {
          if (stop()) return Pause::stopped;
          next_poll_ = n_iter_ + poll_every;
        }
        tree_.pivot(candidates[best].row, n_ + candidates[best].col, least, p_.data());
        candidates[best] = candidates.back();
        candidates.pop_back();
        ++n_iter_;
        idle = 0;
      }
    }
    return Pause::optimal;
  }

  // The arcs of the tree and their flow.
  TransportBasis basis() const {
    TransportBasis basis;
    basis.n_iter = n_iter_;
    auto add = [&](Index u) {
      if (u == tree_.root()) return;
      const Index row = std::min(u, tree_.parent(u)), column = std::max(u, tree_.parent(u));
      basis.rows.push_back(row);
      basis.cols.push_back(column - n_);
      basis.flow.push_back(tree_.flow(u));
    };
    for (Index i : rows_) add(i);
    for (Index j : cols_) add(n_ + j);
    basis.tree.resize(p_.size());
    for (std::size_t u = 0; u < p_.size(); ++u) basis.tree[u] = tree_.parent(static_cast<Index>(u));
    basis.f.assign(n_, -infinity);
    basis.g.assign(m_, -infinity);
    for (Index i : rows_) basis.f[i] = p_[i];
    for (Index j : cols_) basis.g[j] = -p_[n_ + j];
    return basis;
  }

  const Index n_, m_;
  std::vector<Index> rows_, cols_;   // the lines that have mass
  Index lines_;
  std::vector<double> p_;            // potentials of rows, then columns
  SpanningTree tree_;
  std::vector<std::size_t> list_start_;  // the list, row by row
  std::vector<Index> list_cols_;
  std::vector<double> list_cost_;
  double tolerance_ = 0;             // reduced costs above minus this count as zero
  std::int64_t n_iter_ = 0, next_poll_ = 0;
};

// The problem on a cost matrix.
class DenseSimplex : PivotList {
 public:
  DenseSimplex(const TransportProblem& problem, std::int64_t max_iter, const std::function<bool()>& stop)
      : PivotList(problem.n, problem.m, problem.supply, problem.demand), problem_(problem), max_iter_(max_iter),
        stop_(stop), least_(problem.n) {
    const double per_row = static_cast<double>(lines_) / static_cast<double>(rows_.size());
    first_ = static_cast<Index>(std::min<double>(m_, std::ceil(first_width * per_row)));
    extra_ = static_cast<Index>(std::min<double>(m_, std::ceil(extra_width * per_row)));
    classes_ = std::min(m_, std::max(128, 4 * first_));
    minima_.resize(classes_);
    near_.resize(static_cast<std::size_t>(m_) + 1);
  }

  std::vector<double> smoothed() {
    start_duals(problem_.f, problem_.g);
    std::vector<Arc> arcs = first_list();
    smooth_duals(arcs);
    std::vector<double> g(m_, 0.0);
    for (Index j : cols_) g[j] = -p_cols()[j];
    return g;
  }

  TransportBasis solve() {
    start();
    bool optimal = false;
    for (std::vector<Arc> arcs; pivot_list(max_iter_, stop_, [this] { refresh(); }); list(arcs)) {
      refresh();
      arcs.clear();
      if (!price_all(arcs)) break;
      keep_duals();
      if ((optimal = arcs.empty())) break;
      keep_list(arcs);
    }
    return result(optimal);
  }

 private:
  const double* row_cost(Index i) const { return problem_.cost + i * problem_.stride; }

  void refresh() {
    refresh_potentials([this](Index i, Index j) { return row_cost(i)[j]; });
  }

  // ------------------------------------------------------------------------------------------------------ start

  void start() {
    if (problem_.tree && plant(problem_.tree)) {
      refresh();
      list({});
      return;
    }
    bool sampled = false;
    if (problem_.f || problem_.g) {
      start_duals(problem_.f, problem_.g);
    } else if (static_cast<Index>(rows_.size() + cols_.size()) < sample_least || stop_()) {
      start_duals(nullptr, nullptr);
    } else {
      start_duals(nullptr, sample_duals().data());
      sampled = true;
    }
    std::vector<Arc> arcs = first_list();
    if (sampled && !stop_()) smooth_duals(arcs);
    keep_duals();
    double scale = 0;
    for (Index i : rows_) scale = std::max(scale, std::abs(p_[i]));
    GreedyTree greedy(tree_, rows_, cols_, problem_.supply, problem_.demand, n_, m_);
    greedy.ship_in_order(arcs, rounding * scale);

    // What the list could not place: row by row, the cheapest columns that are left.
    std::vector<Arc> open;
    for (Index i : rows_) {
      if (!greedy.row_alive(i)) continue;
      poll(i);
      open.clear();
      for (Index j : cols_)
        if (greedy.col_alive(j)) open.push_back({i, j, row_cost(i)[j], reduced(i, j, row_cost(i)[j])});
      const auto dearer = [](const Arc& s, const Arc& t) { return s.reduced > t.reduced; };
      std::make_heap(open.begin(), open.end(), dearer);
      while (greedy.row_alive(i)) {
        std::pop_heap(open.begin(), open.end(), dearer);
        greedy.ship(i, open.back().col);
        open.pop_back();
      }
    }
    for (Index i : rows_)
      for (std::size_t k = 0; k < cols_.size() && greedy.row_waits(i); ++k)
        if (greedy.col_alive(cols_[k])) greedy.settle(i, cols_[k]);
    for (Index j : cols_)
      if (greedy.col_alive(j)) tree_.set_root(n_ + j);
    refresh();
    list(arcs);
  }

  // Take a tree of the caller for the first, unless it is no feasible one of these masses, or has an empty arc that
  // points away from its root.
  bool plant(const Index* parent) {
    const std::size_t lines = rows_.size() + cols_.size();
    std::vector<Mass> flow(problem_.supply, problem_.supply + n_);  // between a line and its parent
    flow.insert(flow.end(), problem_.demand, problem_.demand + m_);
    std::vector<Index> children(flow.size(), 0), order;  // leaves first
    const auto lives = [&](Index u, Index first, Index last) { return first <= u && u < last && flow[u] > 0; };
    Index root = none;
    for (Index u = 0; u < n_ + m_; ++u) {
      const Index v = parent[u];
      if (flow[u] == 0) continue;
      if (v == none && root == none) root = u;
      else if (u < n_ ? lives(v, n_, n_ + m_) : lives(v, 0, n_)) ++children[v];
      else return false;
    }
    for (Index u = 0; u < n_ + m_; ++u)
      if (flow[u] > 0 && children[u] == 0 && u != root) order.push_back(u);
    for (std::size_t k = 0; k < order.size(); ++k) {
      const Index u = order[k], v = parent[u];
      if (flow[u] < (u < n_ ? 0 : 1)) return false;
      flow[v] -= flow[u];
      if (--children[v] == 0 && v != root) order.push_back(v);
    }
    if (root == none || order.size() + 1 != lines) return false;
    for (Index u : order) tree_.hang(u, parent[u], flow[u]);
    tree_.set_root(root);
    return true;
  }

  // Nothing is cut short before there is a feasible plan, but a `stop` that throws is heard.
  void poll(Index i) {
    if (i % poll_every == 0) stop_();
  }

  // Feasible duals by c-transforms, from g, else from f, else from zero: each row and column gets a tight arc.
  void start_duals(const double* f, const double* g) {
    if (f && !g) {
      transform_columns([f](Index i) { return f[i]; });
    } else {
      for (Index j : cols_) p_cols()[j] = g ? -g[j] : 0.0;
    }
    transform_columns([this](Index i) { return row_minimum(i); });
    std::fill(least_.begin(), least_.end(), 0.0);
  }

  // The greatest duals of the columns, for duals f(i) of the rows.
  template <class Dual>
  void transform_columns(Dual f) {
    std::vector<double> g(m_, infinity);
    for (Index i : rows_) p_[i] = f(i), lower_columns(row_cost(i), p_[i], m_, g.data()), poll(i);
    for (Index j : cols_) p_cols()[j] = -g[j];
  }

  // About `first_` arcs of small reduced cost of each row, which gets its greatest dual.
  std::vector<Arc> first_list() {
    std::vector<Arc> arcs;
    arcs.reserve(rows_.size() * static_cast<std::size_t>(first_ + first_ / 2));
    for (Index i : rows_) {
      p_[i] = infinity;
      shortlist(i, first_, infinity, arcs);
      poll(i);
    }
    return arcs;
  }

  // The duals of a sample are wrong where it has few lines. A few scalings of rows and columns, as of an entropic
  // problem on the list, balance near lines with each other. They move no dual by more than the list reaches. Duals and
  // list are kept if their value is less.
  void smooth_duals(std::vector<Arc>& arcs) {
    std::vector<double> weight(arcs.size()), v(m_, 1.0), sum(m_);
    double reach = 0;
    for (std::size_t k = 0, end; k < arcs.size(); k = end) {
      double longest = 0;
      for (end = k; end < arcs.size() && arcs[end].row == arcs[k].row; ++end)
        longest = std::max(longest, arcs[end].reduced);
      reach += longest / static_cast<double>(rows_.size());
    }
    if (!(reach > 0)) return;
    double epsilon = smooth_start * reach;
    for (std::size_t k = 0; k < arcs.size(); ++k) weight[k] = std::exp(-arcs[k].reduced / epsilon);
    for (int stage = 0; stage < smooth_stages; ++stage) {
      if (stage > 0) {  // half the temperature: squares
        epsilon /= 2;
        for (double& w : weight) w *= w;
        for (double& x : v) x *= x;
      }
      const double most = std::exp(reach / epsilon);
      for (int sweep = 0; sweep < smooth_sweeps; ++sweep) {
        std::fill(sum.begin(), sum.end(), 0.0);
        for (std::size_t k = 0, end; k < arcs.size(); k = end) {
          double met = 0;
          for (end = k; end < arcs.size() && arcs[end].row == arcs[k].row; ++end) met += weight[end] * v[arcs[end].col];
          const double scale = static_cast<double>(problem_.supply[arcs[k].row]) / met;
          for (std::size_t t = k; t < end; ++t) sum[arcs[t].col] += weight[t] * scale;
        }
        for (Index j : cols_)
          if (sum[j] > 0) v[j] = std::clamp(static_cast<double>(problem_.demand[j]) / sum[j], 1 / most, most);
      }
    }

    const double value = dual_value();
    std::vector<double> before = p_;
    for (Index j : cols_) p_cols()[j] -= epsilon * std::log(v[j]);
    std::vector<Arc> smoothed = first_list();
    if (dual_value() > value) arcs.swap(smoothed);
    else p_.swap(before);
  }

  double dual_value() const {
    double value = 0;
    for (Index i : rows_) value += p_[i] * static_cast<double>(problem_.supply[i]);
    for (Index j : cols_) value -= p_[n_ + j] * static_cast<double>(problem_.demand[j]);
    return value;
  }

  // Duals g of the problem on a sample of rows and columns, drawn in proportion to mass; -inf off the sample.
  std::vector<double> sample_duals() {
    const Index count = static_cast<Index>(rows_.size() + cols_.size()) / (2 * sample_share);
    std::vector<Index> rows, cols;
    std::vector<Mass> supply, demand;
    sample(rows_, problem_.supply, count, rows, supply);
    sample(cols_, problem_.demand, count, cols, demand);
    std::vector<double> cost;
    cost.reserve(rows.size() * cols.size());
    for (Index i : rows)
      for (Index j : cols) cost.push_back(row_cost(i)[j]);
    const Index m = static_cast<Index>(cols.size());
    const TransportProblem problem{cost.data(), static_cast<Index>(rows.size()), m, m, supply.data(), demand.data()};
    const TransportBasis basis = DenseSimplex(problem, max_iter_, stop_).solve();
    n_iter_ += basis.n_iter;
    std::vector<double> g(m_, -infinity);
    for (std::size_t k = 0; k < cols.size(); ++k) g[cols[k]] = basis.g[k];
    return g;
  }

  // Systematic sampling: a unit falls on a line whenever the running total of mass passes a multiple of the step.
  static void sample(const std::vector<Index>& lines, const Mass* mass, Index count, std::vector<Index>& chosen,
                     std::vector<Mass>& units) {
    double total = 0, passed = 0;
    for (Index u : lines) total += static_cast<double>(mass[u]);
    Index taken = 0;
    for (Index u : lines) {
      passed += static_cast<double>(mass[u]);
      const Index due = u == lines.back() ? count : std::min(count, static_cast<Index>(passed / total * count + 0.5));
      if (due == taken) continue;
      chosen.push_back(u);
      units.push_back(due - taken);
      taken = due;
    }
  }

  // ---------------------------------------------------------------------------------------------------- pricing

  double row_minimum(Index i) { return least_sum(row_cost(i), p_cols(), m_); }

  // Append the arcs of row i with reduced cost up to `limit`, but only about `width` of the least; returns the
  // least of all. What `width` class minima reach, at least as many entries do, and few more.
  double shortlist(Index i, Index width, double limit, std::vector<Arc>& arcs) {
    const double minimum = row_minimum(i);
    if (p_[i] == infinity) p_[i] = minimum;
    const double least = minimum - p_[i];
    if (!(least <= limit)) return least;
    if (!(limit < infinity) || count_sums_up_to(row_cost(i), p_cols(), m_, limit + p_[i]) > width) {
      class_minima(row_cost(i), p_cols(), m_, minima_.data(), classes_);
      limit = std::min({limit, reach_of(width) - p_[i], std::numeric_limits<double>::max()});
    }
    // Rounding may put an entry on the other side of the sum: the reduced cost decides.
    const double bound = limit + p_[i] + rounding * (std::abs(limit) + std::abs(p_[i]));
    const Index found = columns_up_to(row_cost(i), p_cols(), m_, bound, near_.data());
    Index count = 0;
    for (Index k = 0; k < found; ++k) {
      near_[count] = near_[k];
      count += reduced(i, near_[k], row_cost(i)[near_[k]]) <= limit;
    }
    // Ties could make the list as large as the matrix: a row takes some of them, here and there.
    const Index some = std::min(count, tie_limit * width);
    for (Index step = 0; step < some; ++step) {
      const Index j = near_[some == count ? step : (i + static_cast<std::int64_t>(step) * count / some) % count];
      const double cost = row_cost(i)[j];
      arcs.push_back({i, j, cost, reduced(i, j, cost)});
    }
    return least;
  }

  // A value that `width` of the class minima reach, and not many more of them but for ties; by bisection.
  double reach_of(Index width) const {
    double low = infinity, high = -infinity;
    for (double value : minima_)
      if (value < infinity) low = std::min(low, value), high = std::max(high, value);
    for (int step = 0; step < bisections; ++step) {
      const double middle = low + (high - low) / 2;
      const Index count = count_up_to(minima_.data(), classes_, middle);
      (count < width ? low : high) = middle;
      if (count >= width && count <= width + width / 4) break;
    }
    return high;
  }

  // Price the whole matrix; false when stopped.
  bool price_all(std::vector<Arc>& violators) {
    for (std::size_t k = 0; k < rows_.size(); ++k) {
      if (k % poll_every == poll_every - 1 && stop_()) return false;
      // The next number below keeps arcs at the tolerance out, as in pivot_list.
      least_[rows_[k]] = shortlist(rows_[k], extra_, std::nextafter(-tolerance_, -infinity), violators);
    }
    return true;
  }

  // ----------------------------------------------------------------------------------------------------- result

  // Lower f by what violates, rounding when optimal, and keep the duals if they are the best so far.
  void keep_duals() {
    const auto lowered = [this](Index i) { return p_[i] + std::min(0.0, least_[i]); };
    double value = 0;
    for (Index i : rows_) value += lowered(i) * static_cast<double>(problem_.supply[i]);
    for (Index j : cols_) value -= p_cols()[j] * static_cast<double>(problem_.demand[j]);
    if (!best_.empty() && !(value > best_value_)) return;
    best_value_ = value;
    best_ = p_;
    for (Index i : rows_) best_[i] = lowered(i);
  }

  TransportBasis result(bool optimal) {
    if (!optimal) {
      for (Index i : rows_) least_[i] = row_minimum(i) - p_[i], poll(i);
    } else {
      best_.clear();  // these prove the plan, whatever the rounding of their value
    }
    keep_duals();
    TransportBasis out = basis();
    out.optimal = optimal;
    for (Index i : rows_) out.f[i] = best_[i];
    for (Index j : cols_) out.g[j] = -best_[n_ + j];
    return out;
  }

  const TransportProblem problem_;
  const std::int64_t max_iter_;
  const std::function<bool()>& stop_;
  Index first_, extra_, classes_;
  std::vector<double> least_;        // least reduced cost per row, when last priced
  std::vector<double> best_;         // the best feasible duals so far, as potentials
  double best_value_ = 0;
  std::vector<double> minima_;       // of a row, by classes of columns
  std::vector<Index> near_;          // columns of a row that are listed
};

}  // namespace

// The problem on the arcs that the caller brings. The tree's arcs are always on the list, which knows their cost.
class ListedTransport::Simplex : PivotList {
 public:
  Simplex(Index n, Index m, const Mass* supply, const Mass* demand)
      : PivotList(n, m, supply, demand), greedy_(tree_, rows_, cols_, supply, demand, n, m) {}

  bool plant(const Arcs& offer, const double* f, const double* g, const Mass* flow) {
    double scale = 0;
    for (Index i : rows_) p_[i] = f[i], scale = std::max(scale, std::abs(f[i]));
    for (Index j : cols_) p_cols()[j] = -g[j];
    std::vector<Arc> arcs = priced(offer);
    if (flow) {  // leaf after leaf, a plan without cycles ships what it did
      std::vector<Arc> ranked = arcs;
      PlanForest plan(n_, n_ + m_);
      for (std::size_t k = 0; k < arcs.size(); ++k)
        if (flow[k] > 0) plan.ship(arcs[k].row, n_ + arcs[k].col, arcs[k].cost, flow[k]);
      for (Arc& arc : ranked)
        if (plan.ships(arc.row, n_ + arc.col)) arc.reduced = -infinity;
      greedy_.ship_in_order(std::move(ranked), -infinity);
    } else {
      greedy_.ship_in_order(arcs, rounding * scale);
    }
    if (!first_.empty()) {  // later offers are for leftovers: only what the tree took is of use
      const auto unused = [this](const Arc& arc) {
        return tree_.parent(arc.row) != n_ + arc.col && tree_.parent(n_ + arc.col) != arc.row;
      };
      arcs.erase(std::remove_if(arcs.begin(), arcs.end(), unused), arcs.end());
    }
    first_.insert(first_.end(), arcs.begin(), arcs.end());
    if (!greedy_.complete()) return false;
    for (Index j : cols_)
      if (greedy_.col_alive(j)) tree_.set_root(n_ + j);
    list(first_);
    std::vector<Arc>().swap(first_);
    refresh();
    return true;
  }

  std::pair<std::vector<Index>, std::vector<Index>> leftovers() const {
    std::pair<std::vector<Index>, std::vector<Index>> left;
    for (Index i : rows_)
      if (greedy_.row_alive(i) || greedy_.row_waits(i)) left.first.push_back(i);
    for (Index j : cols_)
      if (greedy_.col_alive(j)) left.second.push_back(j);
    return left;
  }

  bool pivot(std::int64_t max_iter, const std::function<bool()>& stop) {
    const bool optimal = pivot_list(max_iter, stop, [this] { refresh(); });
    refresh();
    return optimal;
  }

  std::int64_t add(const Arcs& offer) {
    std::vector<Arc> arcs = priced(offer);
    const auto known = [this](const Arc& arc) { return !(arc.reduced < -tolerance_) || find(arc.row, arc.col); };
    arcs.erase(std::remove_if(arcs.begin(), arcs.end(), known), arcs.end());
    const std::size_t added = arcs.size();
    if (added == 0) return 0;
    keep_list(arcs);
    list(arcs);
    return static_cast<std::int64_t>(added);
  }

  TransportBasis basis() const { return PivotList::basis(); }
  std::int64_t size() const { return static_cast<std::int64_t>(list_cols_.size()); }
  double tolerance() const { return tolerance_; }

 private:
  std::vector<Arc> priced(const Arcs& offer) const {
    std::vector<Arc> arcs(offer.count);
    for (std::size_t k = 0; k < offer.count; ++k) {
      const auto i = static_cast<Index>(offer.rows[k]), j = static_cast<Index>(offer.cols[k]);
      arcs[k] = {i, j, offer.cost[k], reduced(i, j, offer.cost[k])};
    }
    return arcs;
  }

  const double* find(Index i, Index j) const {
    const auto begin = list_cols_.begin() + list_start_[i], end = list_cols_.begin() + list_start_[i + 1];
    const auto at = std::find(begin, end, j);
    return at == end ? nullptr : &list_cost_[at - list_cols_.begin()];
  }

  void refresh() {
    refresh_potentials([this](Index i, Index j) { return *find(i, j); });
  }

  GreedyTree greedy_;
  std::vector<Arc> first_;  // the list to be, until the tree is complete
};

ListedTransport::ListedTransport(Index n, Index m, const Mass* supply, const Mass* demand)
    : simplex_(std::make_unique<Simplex>(n, m, supply, demand)) {}
ListedTransport::~ListedTransport() = default;
bool ListedTransport::plant(const Arcs& offer, const double* f, const double* g, const std::int64_t* flow) {
  return simplex_->plant(offer, f, g, flow);
}
std::pair<std::vector<Index>, std::vector<Index>> ListedTransport::leftovers() const { return simplex_->leftovers(); }
bool ListedTransport::pivot(std::int64_t max_iter, const std::function<bool()>& stop) {
  return simplex_->pivot(max_iter, stop);
}
std::int64_t ListedTransport::add(const Arcs& offer) { return simplex_->add(offer); }
TransportBasis ListedTransport::basis() const { return simplex_->basis(); }
std::int64_t ListedTransport::size() const { return simplex_->size(); }
double ListedTransport::tolerance() const { return simplex_->tolerance(); }

std::vector<double> smoothed_duals(const TransportProblem& problem, const std::function<bool()>& stop) {
  return DenseSimplex(problem, std::numeric_limits<std::int64_t>::max(), stop).smoothed();
}

TransportBasis network_simplex(const TransportProblem& problem, std::int64_t max_iter,
                               const std::function<bool()>& stop) {
  return DenseSimplex(problem, max_iter, stop).solve();
}

void network_simplex(const TransportBatch& batch, int threads, const std::function<bool()>& stop) {
  const Index n = batch.n, m = batch.m;
  const std::int64_t size = static_cast<std::int64_t>(n) * m, arcs = static_cast<std::int64_t>(n) + m - 1;
  std::atomic<bool> stopped{false};
  const std::function<bool()> heard = [&] { return stopped.load(std::memory_order_relaxed); };
  const std::function<bool()> asked = [&] {
    if (stop()) stopped = true;
    return heard();
  };
  threads = static_cast<int>(std::clamp<std::int64_t>(batch.count * size / work_per_thread, 1, std::max(threads, 1)));
  const auto extent = [](const Mass* units, Index lines) {  // up to the last line with mass
    while (lines > 0 && units[lines - 1] == 0) --lines;
    return lines;
  };
  spread(batch.count, threads, [&](int thread, std::int64_t k) {
    const double* cost = batch.cost + k * size;
    const Mass *supply = batch.supply + k * n, *demand = batch.demand + k * m;
    Index* tree = batch.tree + k * (arcs + 1);
    const TransportProblem problem{cost, extent(supply, n), extent(demand, m), m, supply, demand, nullptr,
                                   nullptr, tree};
    TransportBasis basis;
    basis.optimal = true;
    if (problem.n > 0 && problem.m > 0)
      basis = DenseSimplex(problem, std::numeric_limits<std::int64_t>::max(), thread == 0 ? asked : heard).solve();
    const auto padded = [&](const auto& from, std::int64_t* to) {
      std::fill(std::copy(from.begin(), from.end(), to + k * arcs), to + (k + 1) * arcs, 0);
    };
    padded(basis.rows, batch.rows);
    padded(basis.cols, batch.cols);
    padded(basis.flow, batch.flow);
    std::copy(basis.tree.begin(), basis.tree.end(), tree);
    batch.n_iter[k] = basis.n_iter;
    batch.optimal[k] = basis.optimal;

    // Lines without mass get their greatest feasible duals; without any mass, g = 0.
    double *f = batch.f_out + k * n, *g = batch.g_out + k * m;
    std::vector<double> p(m, problem.n > 0 ? infinity : 0.0), least(m, infinity);
    for (std::size_t j = 0; j < basis.g.size(); ++j) p[j] = -basis.g[j];
    const Index dead = static_cast<Index>(std::find(p.begin(), p.end(), infinity) - p.begin());  // the first
    for (Index j = 0; j < m; ++j) g[j] = -p[j];
    for (Index i = 0; i < n; ++i) {
      const double* row = cost + static_cast<std::size_t>(i) * m;
      f[i] = i < problem.n && supply[i] > 0 ? basis.f[i] : least_sum(row, p.data(), m);
      if (dead < m) lower_columns(row + dead, f[i], m - dead, least.data() + dead);
    }
    for (Index j = dead; j < m; ++j)
      if (p[j] == infinity) g[j] = least[j];
  });
}

}  // namespace brenier
