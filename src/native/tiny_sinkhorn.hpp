// Sinkhorn scaling of many small matrices, forward and backward: what one call is, and who can run it.
#pragma once

#include <cstdint>

namespace brenier {

enum class TinyOp {
    forward,   // plan, error, iterations
    implicit,  // the gradient of the fixed point at the plan
    unrolled,  // the gradient of the iterations, which are run again
};

// `count` problems, dense and row-major, one after the other. Steps count numbers from one problem to the next.
template <class T>
struct TinyTask {
    TinyOp op;
    std::int64_t count, n, m;
    const T* scores;   // (count, n, m); absent for the implicit gradient
    const T* epsilon;  // (count,), or one with step 0
    const T* r;        // (count, n) row sums; or none: 1 for each row with a score, and
    const T* c;        // (count, m) column sums, or none: the same total shared by the columns with a score
    std::int64_t epsilon_step, r_step, c_step;
    std::int64_t n_iter;
    T tol;  // 0: all n_iter iterations

    T* plan;                   // (count, n, m)
    T* error;                  // (count,)
    std::int64_t* iterations;  // (count,)

    const T* solved;  // (count, n, m), the plan of the forward pass
    const T* grad;    // (count, n, m), the gradient towards it
    T* d_scores;      // (count, n, m)
    T* d_r;           // (count, n), or absent
    T* d_c;           // (count, m), or absent
};

template <class T>
struct TinyEngine {
    const char* name;
    int width;                                          // problems solved side by side
    std::int64_t (*scratch_size)(const TinyTask<T>&);   // bytes
    void (*run)(const TinyTask<T>&, std::int64_t first, void* scratch);  // problems [first, first + width)
};

template <class T>
TinyEngine<T> tiny_plain_engine();
#ifdef BRENIER_AVX2
template <class T>
TinyEngine<T> tiny_avx2_engine();
#endif
#ifdef BRENIER_AVX512
template <class T>
TinyEngine<T> tiny_avx512_engine();
#endif

template <class T>
void tiny_sinkhorn(const TinyTask<T>& task, int threads, const TinyEngine<T>& engine);

}  // namespace brenier
