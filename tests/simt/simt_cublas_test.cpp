// The matrix products that stand for cuBLAS, against loops in double.
#include <cublas_v2.h>

#include <cmath>

#include "simt_testing.h"

namespace lte {
namespace {

struct Handle {
  cublasHandle_t get = nullptr;
  Handle() { cublasCreate(&get); }
  ~Handle() { cublasDestroy(get); }
};

struct Case {
  int m, n, k, pad, batch;
  cublasOperation_t ta, tb;
  double alpha, beta;
};

// Column-major operands with `pad` unused rows in each column and a gap between matrices.
template <class T>
struct Operand {
  int rows, cols, ld;
  long long stride;
  std::vector<T> values;
  Operand(int rows, int cols, const Case& c, int salt)
      : rows(rows), cols(cols), ld(rows + c.pad), stride((ld + 1) * (cols + 1)) {
    values.resize(static_cast<size_t>(stride * c.batch));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<T>(
          static_cast<float>((i * 37 + static_cast<size_t>(salt)) % 29) / 8.0f - 1.5f);
    }
  }
  double at(int batch, int i, int j) const {
    return static_cast<double>(values[static_cast<size_t>(batch * stride + j * ld + i)]);
  }
};

template <class In, class Out, class Call>
void check_case(const Case& c, double tolerance, Call call) {
  const bool na = c.ta == CUBLAS_OP_N, nb = c.tb == CUBLAS_OP_N;
  const Operand<In> a(na ? c.m : c.k, na ? c.k : c.m, c, 3),
      b(nb ? c.k : c.n, nb ? c.n : c.k, c, 11);
  Operand<Out> out(c.m, c.n, c, 7);
  if (c.beta == 0) out.values[0] = static_cast<Out>(NAN);  // must not be read
  Array<In> da(a.values), db(b.values);
  Array<Out> dc(out.values);
  ASSERT_EQ(call(da.data, a, db.data, b, dc.data, out), CUBLAS_STATUS_SUCCESS);
  const std::vector<Out> got = dc.host();
  std::vector<bool> written(got.size());
  for (int p = 0; p < c.batch; ++p) {
    for (int i = 0; i < c.m; ++i) {
      for (int j = 0; j < c.n; ++j) {
        double sum = 0;
        for (int k = 0; k < c.k; ++k) {
          sum += (na ? a.at(p, i, k) : a.at(p, k, i)) * (nb ? b.at(p, k, j) : b.at(p, j, k));
        }
        const double want = c.alpha * sum + (c.beta == 0 ? 0 : c.beta * out.at(p, i, j));
        const auto at = static_cast<size_t>(p * out.stride + j * out.ld + i);
        written[at] = true;
        ASSERT_LE(std::fabs(static_cast<double>(got[at]) - want), tolerance * (std::fabs(want) + 1))
            << i << " " << j;
      }
    }
  }
  for (size_t i = 0; i < got.size(); ++i) {
    if (!written[i]) {
      ASSERT_EQ(static_cast<float>(got[i]), static_cast<float>(out.values[i])) << "gap " << i;
    }
  }
}

std::vector<Case> cases(int batch) {
  std::vector<Case> all;
  for (const auto ta : {CUBLAS_OP_N, CUBLAS_OP_T}) {
    for (const auto tb : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      all.push_back({1, 1, 1, 0, batch, ta, tb, 1, 0});
      all.push_back({5, 7, 3, 2, batch, ta, tb, 1, 0});
      all.push_back({16, 3, 33, 0, batch, ta, tb, 0.5, 1});
      all.push_back({4, 9, 0, 1, batch, ta, tb, 1, 2});
    }
  }
  return all;
}

TEST(SimtCublas, SinglePrecisionProducts) {
  Handle h;
  under_all_schedules([&] {
    for (const Case& c : cases(1)) {
      const float alpha = static_cast<float>(c.alpha), beta = static_cast<float>(c.beta);
      check_case<float, float>(c, 1e-5,
                               [&](auto* pa, auto& a, auto* pb, auto& b, auto* pc, auto& o) {
                                 return cublasSgemm(h.get, c.ta, c.tb, c.m, c.n, c.k, &alpha, pa,
                                                    a.ld, pb, b.ld, &beta, pc, o.ld);
                               });
    }
    for (const Case& c : cases(3)) {
      const float alpha = static_cast<float>(c.alpha), beta = static_cast<float>(c.beta);
      check_case<float, float>(
          c, 1e-5, [&](auto* pa, auto& a, auto* pb, auto& b, auto* pc, auto& o) {
            return cublasSgemmStridedBatched(h.get, c.ta, c.tb, c.m, c.n, c.k, &alpha, pa, a.ld,
                                             a.stride, pb, b.ld, b.stride, &beta, pc, o.ld,
                                             o.stride, c.batch);
          });
    }
  });
}

TEST(SimtCublas, DoublePrecisionProducts) {
  Handle h;
  for (const Case& c : cases(2)) {
    check_case<double, double>(
        c, 1e-13, [&](auto* pa, auto& a, auto* pb, auto& b, auto* pc, auto& o) {
          return cublasDgemmStridedBatched(h.get, c.ta, c.tb, c.m, c.n, c.k, &c.alpha, pa, a.ld,
                                           a.stride, pb, b.ld, b.stride, &c.beta, pc, o.ld,
                                           o.stride, c.batch);
        });
  }
  for (const Case& c : cases(1)) {
    check_case<double, double>(c, 1e-13,
                               [&](auto* pa, auto& a, auto* pb, auto& b, auto* pc, auto& o) {
                                 return cublasDgemm(h.get, c.ta, c.tb, c.m, c.n, c.k, &c.alpha, pa,
                                                    a.ld, pb, b.ld, &c.beta, pc, o.ld);
                               });
  }
}

// With bf16 factors the sums are f32: only the result is rounded, once.
template <class Out>
void check_bf16(cudaDataType type, double tolerance) {
  Handle h;
  for (const Case& c : cases(2)) {
    const float alpha = static_cast<float>(c.alpha), beta = static_cast<float>(c.beta);
    check_case<__nv_bfloat16, Out>(
        c, tolerance, [&](auto* pa, auto& a, auto* pb, auto& b, auto* pc, auto& o) {
          return cublasGemmStridedBatchedEx(h.get, c.ta, c.tb, c.m, c.n, c.k, &alpha, pa,
                                            CUDA_R_16BF, a.ld, a.stride, pb, CUDA_R_16BF, b.ld,
                                            b.stride, &beta, pc, type, o.ld, o.stride, c.batch,
                                            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        });
  }
}
TEST(SimtCublas, Bf16FactorsWithSumsInSinglePrecision) {
  check_bf16<float>(CUDA_R_32F, 1e-5);
  check_bf16<__nv_bfloat16>(CUDA_R_16BF, 0x1p-8);
}

TEST(SimtCublas, WhatCublasRefusesIsRefused) {
  Handle h;
  Array<float> x(std::vector<float>(64, 1));
  const float one = 1, zero = 0;
  const auto product = [&](int lda, cudaDataType a, cudaDataType c, cublasComputeType_t compute) {
    return cublasGemmEx(h.get, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 2, &one, x.data, a, lda, x.data, a,
                        2, &zero, x.data + 32, c, 4, compute, CUBLAS_GEMM_DEFAULT);
  };
  EXPECT_EQ(product(4, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(x.host()[32], 2);
  EXPECT_EQ(product(4, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(3, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product(4, CUDA_R_32F, CUDA_R_16BF, CUBLAS_COMPUTE_32F), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(product(4, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32),
            CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(product(4, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_64F), CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST(SimtCublas, AProductIsCapturedWithItsFactors) {
  Handle h;
  cudaStream_t s = nullptr;
  cudaStreamCreate(&s);
  cublasSetStream(h.get, s);
  Array<float> x(std::vector<float>{1, 2}), y(std::vector<float>{0});
  float by = 3, one = 1;
  cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal);
  cublasSgemm(h.get, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 2, &by, x.data, 1, x.data, 2, &one, y.data, 1);
  by = 100;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check_cuda(cudaStreamEndCapture(s, &graph), "end");
  check_cuda(cudaGraphInstantiate(&exec, graph), "instantiate");
  EXPECT_EQ(y.host()[0], 0);
  for (int i = 0; i < 2; ++i) check_cuda(cudaGraphLaunch(exec, s), "launch");
  EXPECT_EQ(y.host()[0], 30);
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(s);
}

}  // namespace
}  // namespace lte
