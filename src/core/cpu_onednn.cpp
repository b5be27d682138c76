// Matrix products by oneDNN, cut into the same pieces as Eigen's, each computed by the thread that claims
// it: the bits do not depend on the number of threads.
#include <dnnl.h>

#include <cstring>
#include <limits>

#include "core/cpu.h"

extern "C" void omp_set_num_threads(int);  // of the OpenMP runtime that oneDNN is built on

namespace lte {
namespace {

// Rows a page apart meet in the same sets of the cache, which costs a product by their transpose a fifth of
// its time.
constexpr int64_t kPage = 1024;  // floats

// The first `width` numbers of `rows` rows of a, as rows of `stride`.
const float* packed(float* memory, const float* a, int64_t lda, int64_t rows, int64_t width,
                    int64_t stride) {
  for (int64_t k = 0; k < rows; ++k)
    std::memcpy(memory + k * stride, a + k * lda, static_cast<size_t>(width) * sizeof(float));
  return memory;
}

template <bool kAdd>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  if (out.dtype != DType::f32) return eigen_gemm(ctx, out, a, ta, b, tb, kAdd);
  const float *x = a.as<float>(), *w = b.as<float>();  // here, where another type may still throw
  const int64_t inner = ta ? a.rows() : a.cols(), lda = a.cols(), ldb = b.cols(), ldc = out.cols();
  const auto tile = [&](int64_t r, int64_t nr, int64_t c, int64_t nc, int thread) {
    thread_local const bool alone =
        (omp_set_num_threads(1), true);  // our threads are the parallel ones
    (void)alone;
    const float* left = x + (ta ? r : r * lda);
    const bool packs = ta && lda % kPage == 0 && nr < lda;
    const int64_t stride = packs ? nr + 16 : lda;
    if (packs)
      left =
          packed(cpu(ctx).workspace<float>(thread, inner * stride), left, lda, inner, nr, stride);
    const float* right = w + (tb ? c * ldb : c);
    float* o = out.as<float>() + r * ldc + c;
    const dnnl_status_t status = dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', nr, nc, inner, 1, left,
                                            stride, right, ldb, kAdd ? 1 : 0, o, ldc);
    if (status != dnnl_success) std::fill_n(o, nc, std::numeric_limits<float>::quiet_NaN());
  };
  for_gemm_tiles(ctx, out, a, ta, b, tb, tile);
}

void patch(Ops& ops) { ops.gemm = gemm<false>, ops.gemm_add = gemm<true>, ops.linear = nullptr; }

}  // namespace

void (*const kOnednnPatch)(Ops&) = patch;

}  // namespace lte
