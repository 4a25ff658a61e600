// Sums and minima over all pairs of two clouds, without the n x m matrix: what one call is, and who can run it.
#pragma once

#include <cstdint>
#include <vector>

namespace brenier {

// What is computed for each row i, with c_ij the cost, z_ij = (f_i + g_j - c_ij) / epsilon and P_ij = exp(z_ij).
enum class Op {
    softmin,  // -epsilon log sum_j exp((g_j - c_ij) / epsilon)
    cmin,     // min_j (c_ij - g_j), and the smallest j that attains it
    apply,    // sum_j P_ij w_j, or sum_j P_ij <left_i, right_j> w_j
    moments,  // sum_j P_ij and sum_j P_ij (c_ij + term_j)
    matvec,   // sum_j c_ij w_j
    slope,    // sum_j P_ij dc_ij/dx_i, or sum_j P_ij <left_i, right_j> dc_ij/dx_i; for norms
    support,  // the entries of small reduced cost c_ij - f_i - g_j in a pool of each row
    smallest, // the same in one pool
    gibbs,    // P_ij, all of them; over a matrix only, and row by row
    rescaled  // f_i - epsilon log sum_j P_ij exp(g_j / epsilon), given the matrix P; NaN where it is not to be trusted
};

enum class Kind { dot, l1, l2, linf };  // c = -<x, y>, |x - y|_1, |x - y|_2, |x - y|_inf

// Which pairs there are: row block r, rows row_starts[r] to row_starts[r + 1], meets the column blocks
// cols[indptr[r]], ..., cols[indptr[r + 1] - 1], ascending.
struct Blocks {
    std::int64_t rows, cols;  // row blocks and column blocks
    const std::int64_t *row_starts, *col_starts, *indptr, *listed;
};

// The column blocks that the rows of a task meet; all columns when `starts` is absent.
struct List {
    const std::int64_t* starts;  // of all column blocks
    const std::int64_t *begin, *end;
    std::int64_t columns;  // in sum
};

template <class T>
struct Entry {
    T value;  // the reduced cost
    std::int32_t row, col;
};

// Keeps the `most` smallest of the entries that it is given, and some more until it has to choose. `limit` is what an
// entry must not exceed; it falls as better ones come.
template <class T>
struct Pool {
    T limit;
    std::int64_t most, count, room;
    bool ascending;  // entries come by column, so that one that ties with the last comes too late
    Entry<T>* entries;
    std::vector<Entry<T>> storage;  // of `entries`
};

// For a full pool. These two are compiled once, for every machine.
template <class T>
void make_room(Pool<T>& pool);
template <class T>
T kth_smallest(T* values, std::int64_t count, std::int64_t k);  // or a little more; k from 1, NaN last

// One problem; every array is dense and row-major.
template <class T>
struct Task {
    Op op;
    Kind kind;
    std::int64_t n, m, d;
    std::int64_t k;  // columns of `vectors`
    std::int64_t r;  // coordinates of `left` and `right`; 0 when they are absent
    const T* rows;     // (n, d)
    const T* cols;     // (m, d)
    const T* f;        // (n,)
    const T* g;        // (m,)
    const T* vectors;  // (m, k)
    const T* left;     // (n, r)
    const T* right;    // (m, r)
    const T* term;     // (m,)
    const T* epsilon;  // one number; absent where there is no P
    T* out;            // (n,), (n, k) for `apply`, (n, d) for `slope`
    T* cost;           // (n,), the second result of `moments`
    std::int64_t* index;
    List list;
    Pool<T>* pools;  // of each row of the task from its first on, or one for all of `smallest`
};

// The same over a matrix that is there. Outputs run over i < n, sums over j < m, and
// c_ij = cost[i * row_step + j * col_step] with one of the steps 1.
template <class T>
struct MatrixTask {
    Op op;  // not matvec, not slope
    std::int64_t n, m, k;
    const T* cost;
    std::int64_t row_step, col_step;
    const T* f;        // (n,)
    const T* g;        // (m,); exp(g / epsilon) for `rescaled`
    const T* vectors;  // (m, k)
    double epsilon;
    T* out;     // (n,) or (n, k), for `gibbs` (n, m)
    T* second;  // (n,), the cost of `moments`
    std::int64_t* index;
    float* kernel;  // what `gibbs` writes instead of `out`, and `rescaled` reads instead of `cost`, where it is there
    List list;      // for support and smallest
    Pool<T>* pools;
};

// One translation unit per instruction set fills one of these per number type.
template <class T>
struct Engine {
    const char* name;
    std::int64_t row_tile;                                          // tasks are cut at multiples of this
    std::int64_t (*packed_size)(const Task<T>&);                    // numbers: O(m (d + k + r))
    std::int64_t (*scratch_size)(const Task<T>&, std::int64_t rows);  // bytes: O(rows k), and a block of columns
    void (*pack)(const Task<T>&, T* packed);
    void (*run)(const Task<T>&, const T* packed, std::int64_t begin, std::int64_t end, void* scratch);
    // For the accuracy table and the ceilings of the benchmark: 2^x, and about so many of one operation and no more.
    void (*exp2)(const T* x, T* out, std::int64_t count);
    T (*spin_fma)(std::int64_t count);
    T (*spin_exp2)(std::int64_t count);
    std::int64_t matrix_lines;  // outputs that are taken together
    void (*run_matrix)(const MatrixTask<T>&, std::int64_t begin, std::int64_t end);
};

template <class T>
Engine<T> plain_engine();
#ifdef BRENIER_AVX2
template <class T>
Engine<T> avx2_engine();
#endif
#ifdef BRENIER_AVX512
template <class T>
Engine<T> avx512_engine();
#endif

// `count` problems that differ by the steps, in numbers, from one to the next (0: shared by all).
struct Steps {
    std::int64_t rows, cols, f, g, vectors, left, right, term, epsilon;
};

template <class T>
void pairwise(const Task<T>& first, const Steps& steps, std::int64_t count, int threads, const Engine<T>& engine);

// One problem over some of its pairs. `epsilon_step`: 1 where there is one epsilon for each row block, else 0.
template <class T>
void pairwise(const Task<T>& whole, const Blocks& blocks, std::int64_t epsilon_step, int threads,
              const Engine<T>& engine);

// `count` matrices one after the other, or one that all share.
template <class T>
void over_matrix(MatrixTask<T> first, bool shared, const T* epsilons, std::int64_t count, int threads,
                 const Engine<T>& engine);

// What support and smallest find: the former row by row, each row by value where `most` cuts it and else by column, the
// latter by value. Ties go by row and column.
template <class T>
using Found = std::vector<std::vector<Entry<T>>>;

// The entries of reduced cost up to `limit`, at most the `most` smallest of each row, or of all. `blocks` may be absent.
template <class T>
Found<T> entries(const Task<T>& whole, const Blocks* blocks, T limit, std::int64_t most, int threads,
                 const Engine<T>& engine);
template <class T>
Found<T> entries(const MatrixTask<T>& whole, const Blocks* blocks, T limit, std::int64_t most, int threads,
                 const Engine<T>& engine);

}  // namespace brenier
