// Matrix products by oneDNN, cut into the same pieces as Eigen's, each computed by the thread that claims
// it: the bits do not depend on the number of threads.
#include <dnnl.h>

#include <limits>

#include "core/cpu.h"

extern "C" void omp_set_num_threads(int);  // of the OpenMP runtime that oneDNN is built on

namespace lte {
namespace {

template <bool kAdd>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  if (out.dtype != DType::f32) return eigen_gemm(ctx, out, a, ta, b, tb, kAdd);
  const float *x = a.as<float>(), *w = b.as<float>();  // here, where another type may still throw
  const int64_t inner = ta ? a.rows() : a.cols(), lda = a.cols(), ldb = b.cols(), ldc = out.cols();
  for_gemm_tiles(ctx, out, a, ta, b, tb, [&](int64_t r, int64_t nr, int64_t c, int64_t nc) {
    thread_local const bool alone =
        (omp_set_num_threads(1), true);  // our threads are the parallel ones
    (void)alone;
    const float* left = x + (ta ? r : r * lda);
    const float* right = w + (tb ? c * ldb : c);
    float* o = out.as<float>() + r * ldc + c;
    const dnnl_status_t status = dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', nr, nc, inner, 1, left,
                                            lda, right, ldb, kAdd ? 1 : 0, o, ldc);
    if (status != dnnl_success) std::fill_n(o, nc, std::numeric_limits<float>::quiet_NaN());
  });
}

void patch(Ops& ops) { ops.gemm = gemm<false>, ops.gemm_add = gemm<true>; }

}  // namespace

void (*const kOnednnPatch)(Ops&) = patch;

}  // namespace lte
