// What the files of the CUDA backend share: its context, the choice of types, element-wise kernels.
#pragma once

#include <cublas_v2.h>

#include <algorithm>

#include "core/ops.h"
#include "device.h"
#include "launch.h"

namespace lte {

struct CudaCtx : Ctx {
  cudaStream_t stream = nullptr;
  cublasHandle_t blas = nullptr;
  // Scratch of one operation at a time, and lists that came from the host. Both grow where a larger
  // shape is met for the first time, never while a graph is recorded; graphs keep what they were recorded with.
  struct Buffer {
    std::shared_ptr<char> data;
    size_t capacity = 0;
  };
  Buffer scratch, lists, blas_space;
  Buffer sweep;  // as large as two L2 caches, where a cold cache was asked for (gauge.cu)
  int multiprocessors = 1;

  CudaCtx();
  ~CudaCtx();
  CudaCtx(const CudaCtx&) = delete;
  CudaCtx& operator=(const CudaCtx&) = delete;

  void grow(Buffer&, size_t bytes);
  // Overwrites what the last call gave.
  template <class T>
  T* workspace(int64_t count) {
    grow(scratch, static_cast<size_t>(count) * sizeof(T));
    return reinterpret_cast<T*>(scratch.data.get());
  }
};

inline CudaCtx& cuda(Ctx& ctx) { return static_cast<CudaCtx&>(ctx); }

void check_blas(cublasStatus_t, const char* what);  // throws if not "success"
bool recording(CudaCtx&);                           // a graph
bool on_device(const Tensor&);                      // or in memory that it shares with the host
// The list on the device: itself where it lies there, else copied there, in the stream's order.
const int32_t* device_list(CudaCtx&, const Tensor& list);

using bf16 = __nv_bfloat16;

// The elements as the kernels know them; absent: null.
template <class T>
T* ptr(const Tensor& t) {
  return static_cast<T*>(t.data);
}

// Calls f.template operator()<float> or <double>.
template <class F>
void with_type(const Tensor& t, F&& f) {
  if (t.dtype == DType::f64) {
    f.template operator()<double>();
  } else {
    LTE_CHECK(t.dtype == DType::f32, "an operation was given a type that it does not compute in");
    f.template operator()<float>();
  }
}
// Calls f.template operator()<T, W> for numbers of type T and weights of type W: the same, or bf16
// where T is float.
template <class F>
void with_types(const Tensor& t, const Tensor& weight, F&& f) {
  if (weight.dtype == DType::bf16) {
    LTE_CHECK(t.dtype == DType::f32, "weights of bf16 go with f32");
    f.template operator()<float, bf16>();
  } else {
    LTE_CHECK(t.dtype == weight.dtype, "an operation was given two types");
    with_type(t, [&]<class T>() { f.template operator()<T, T>(); });
  }
}

// Calls f.template operator()<T, S> for numbers of type T that are kept as S (Ops::kept_type): the same, or bf16 for
// float.
template <class F>
void with_kept(const Tensor& t, F&& f) {
  if (t.dtype == DType::bf16) return f.template operator()<float, bf16>();
  with_type(t, [&]<class T>() { f.template operator()<T, T>(); });
}

// The position of a chunk as kernels have it.
struct Position {
  int64_t pos;
  const int32_t* at;
  explicit Position(const Chunk& c) : pos(c.pos), at(c.at) {}
  __device__ operator int64_t() const { return at ? pos + *at : pos; }
};

inline int64_t pieces(int64_t n, int64_t grain) { return (n + grain - 1) / grain; }
// Blocks of a grid whose threads walk on by the grid's size.
inline unsigned grid_for(int64_t n, int64_t grain) {
  return static_cast<unsigned>(std::clamp<int64_t>(pieces(n, grain), 1, 65535));
}

// This thread's number in the grid, and how many threads there are (one dimension).
__device__ __forceinline__ int64_t thread_in_grid() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t threads_of_grid() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

template <class F>
__global__ void each_kernel(int64_t n, F f) {
  let_next_begin();
  await_inputs();
  for (int64_t i = thread_in_grid(); i < n; i += threads_of_grid()) f(i);
}
// f(i) for every i in [0, n); f is a struct of pointers and numbers with a __device__ operator().
template <class F>
void each(Ctx& ctx, int64_t n, F f) {
  if (n == 0) return;
  launch_early(each_kernel<F>, grid_for(n, 256), 256, 0, cuda(ctx).stream, n, f);
}

// n neighbouring numbers, moved by one instruction for each 16 bytes, where they begin at a multiple of their size
// or of 16 bytes.
template <int n, class T>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Few {
  T at[n];
};
template <int n, class T>
__device__ __forceinline__ Few<n, T> load_few(const T* p) {
#ifdef LTE_SIMT
  simt::check_aligned(p, alignof(Few<n, T>));
#endif
  return *reinterpret_cast<const Few<n, T>*>(p);
}
template <int n, class T>
__device__ __forceinline__ void store_few(T* p, const Few<n, T>& few) {
#ifdef LTE_SIMT
  simt::check_aligned(p, alignof(Few<n, T>));
#endif
  *reinterpret_cast<Few<n, T>*>(p) = few;
}
template <class... P>
bool aligned16(const P*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

template <int kFew, class F>
__global__ void each_few_kernel(int64_t n, F f) {
  let_next_begin();
  await_inputs();
  const int64_t whole = n / kFew * kFew;
  for (int64_t i = thread_in_grid() * kFew; i < whole; i += threads_of_grid() * kFew) {
    f.template operator()<kFew>(i);
  }
  const int64_t i = whole + thread_in_grid();
  if (i < n) f.template operator()<1>(i);
}
// Like each, where f.operator()<k>(i) does all of [i, i + k), reading before it writes: k is as many T as 16
// bytes hold if `vector` says that the arrays are aligned to that, and 1 for what is left or if not.
template <class T, class F>
void each_few(Ctx& ctx, int64_t n, bool vector, F f) {
  if (n == 0) return;
  constexpr int kFew = Pack<T>::kSize;
  launch_early(vector ? each_few_kernel<kFew, F> : each_few_kernel<1, F>,
               grid_for(n, vector ? 256 * kFew : 256), 256, 0, cuda(ctx).stream, n, f);
}
// i % cols, without the long division of 64 bits where 32 hold both.
__device__ __forceinline__ int64_t column_of(int64_t i, int64_t cols) {
  return (i | cols) >> 32 == 0 ? static_cast<uint32_t>(i) % static_cast<uint32_t>(cols) : i % cols;
}

// parts[piece, c] = sum over the rows r of a piece of x[r, c]: a thread adds kFew neighbouring columns of every
// eighth row, and the eight are added in order.
template <int kFew, class T, class S>
__global__ void column_parts_kernel(T* parts, const S* x, int64_t rows, int64_t cols,
                                    int64_t grain) {
  let_next_begin();
  await_inputs();
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x) * kFew;
  const int64_t first = blockIdx.y * grain + threadIdx.y;
  const int64_t stop = rows < (blockIdx.y + 1) * grain ? rows : (blockIdx.y + 1) * grain;
  LTE_SHARED(T, part[8][kWarp * kFew]);
  T sum[kFew] = {};
#pragma unroll 8
  for (int64_t r = c < cols ? first : stop; r < stop; r += 8) {
    const Few<kFew, S> few = load_few<kFew>(x + r * cols + c);
    for (int j = 0; j < kFew; ++j) sum[j] += to_float(few.at[j]);
  }
  for (int j = 0; j < kFew; ++j) part[threadIdx.y][threadIdx.x * kFew + j] = sum[j];
  __syncthreads();
  for (int i = thread_rank(); i < kWarp * kFew; i += 8 * kWarp) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarp * kFew + i;
    if (at >= cols) break;
    T all = part[0][i];
    for (int y = 1; y < 8; ++y) all += part[y][i];
    parts[blockIdx.y * cols + at] = all;
  }
}
// out[c] += the sum of parts[i, c] over i in order; columns from `half` on go to `other`, or nowhere.
template <class T>
struct SumParts {
  T *out, *other;
  const T* parts;
  int64_t cols, half;
  int count;
  __device__ void operator()(int64_t c) const {
    constexpr int kTogether = 16;  // are asked for before the first is added
    T sum = 0;
    for (int first = 0; first < count; first += kTogether) {
      T x[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        x[i] = first + i < count ? parts[(first + i) * cols + c] : T(0);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) sum += x[i];
    }
    if (c < half) out[c] += sum;
    if (c >= half && other) other[c - half] += sum;
  }
};
// out[c] += sum over rows r of x[r, c], in a fixed order; columns from `half` on go to `other`, or nowhere. Scratch
// from `begin` on is used, at most kColumnParts numbers a column.
constexpr int64_t kColumnParts = 64;
template <class T, class S>
void add_column_sums(Ctx& ctx, T* out, const S* x, int64_t rows, int64_t cols, int64_t half,
                     T* other = nullptr, int64_t begin = 0) {
  constexpr int kFew = 8 / sizeof(S);
  const int64_t grain = std::max<int64_t>(64, pieces(rows, kColumnParts));
  const int64_t count = pieces(rows, grain);
  T* parts = cuda(ctx).workspace<T>(begin + count * cols) + begin;
  const bool vector = cols % kFew == 0 && aligned16(x);
  const dim3 grid(static_cast<unsigned>(pieces(cols, vector ? kWarp * kFew : kWarp)),
                  static_cast<unsigned>(count));
  launch_early(vector ? column_parts_kernel<kFew, T, S> : column_parts_kernel<1, T, S>, grid,
               dim3(kWarp, 8), 0, cuda(ctx).stream, parts, x, rows, cols, grain);
  each(ctx, cols, SumParts<T>{out, other, parts, cols, half, static_cast<int>(count)});
}

// total[K] = sum over i of f(i, sum), which adds K numbers in double to `sum`: at most 1024 blocks,
// added up in order by one.
template <int K, class F>
__global__ void sum_parts_kernel(double* parts, int64_t n, F f) {
  double sum[K] = {};
#pragma unroll 4
  for (int64_t i = thread_in_grid(); i < n; i += threads_of_grid()) f(i, sum);
  for (int k = 0; k < K; ++k) {
    const double all = block_sum(sum[k]);
    if (threadIdx.x == 0) parts[blockIdx.x * K + k] = all;
  }
}
template <int K>
__global__ void sum_total_kernel(double* total, const double* parts, int count) {
  for (int k = 0; k < K; ++k) {
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      sum += parts[i * K + k];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) total[k] = sum;
  }
}
template <int K, class F>
void sum_all(Ctx& ctx, double* total, int64_t n, F f) {
  const auto count = static_cast<unsigned>(std::clamp<int64_t>(pieces(n, 1024), 1, 1024));
  double* parts = cuda(ctx).workspace<double>(int64_t{count} * K);
  launch(sum_parts_kernel<K, F>, count, 256, 0, cuda(ctx).stream, parts, n, f);
  launch(sum_total_kernel<K>, 1, 256, 0, cuda(ctx).stream, total, parts, static_cast<int>(count));
}

// Threads of a block that works on one row: whole warps, no more than there is work for.
inline unsigned row_threads(int64_t cols) {
  return static_cast<unsigned>(std::clamp<int64_t>(pieces(cols, kWarp) * kWarp, kWarp, 256));
}
// One block a row, kernel(args...): rows is the grid.
template <class... P, class... A>
void launch_rows(Ctx& ctx, void (*kernel)(P...), int64_t rows, int64_t cols, A&&... args) {
  if (rows == 0) return;
  launch(kernel, static_cast<unsigned>(rows), row_threads(cols), 0, cuda(ctx).stream,
         std::forward<A>(args)...);
}

__device__ __forceinline__ float max_of(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double max_of(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float sqrt_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_of(double x) { return sqrt(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float erf_of(float x) { return erff(x); }
__device__ __forceinline__ double erf_of(double x) { return erf(x); }
__device__ __forceinline__ float abs_of(float x) { return fabsf(x); }
__device__ __forceinline__ double abs_of(double x) { return fabs(x); }
template <class T>
constexpr T kLowest = static_cast<T>(-INFINITY);

const Device* cuda_device();     // gauge.cu
void fill_cuda_linear(Ops&);     // linear.cu
void fill_cuda_embed(Ops&);      // embed.cu
void fill_cuda_norm(Ops&);       // norm.cu
void fill_cuda_attention(Ops&);  // attention.cu
void fill_cuda_ffn(Ops&);        // ffn.cu
void fill_cuda_experts(Ops&);    // experts.cu
void fill_cuda_gates(Ops&);      // gates.cu
void fill_cuda_gathered(Ops&);   // gathered.cu
void fill_cuda_graph(Ops&);      // graph.cu
void fill_cuda_router(Ops&);     // router.cu
void fill_cuda_sample(Ops&);     // sample.cu
void fill_cuda_loss(Ops&);       // loss.cu
void fill_cuda_grouped(Ops&);    // grouped.cu
// to[i] = from[i] rounded for i < n, and 0 up to `all`, which may exceed n where n is a multiple of 4; to begins
// at a multiple of 16 bytes.  (rounded.cu)
void round_to_bf16(Ctx&, bf16* to, const float* from, int64_t n, int64_t all = 0);
// Variant bf16: factors of products of floats are rounded to it.
void round_cuda_products(Ops&);   // rounded.cu
void round_cuda_attention(Ops&);  // attention.cu

}  // namespace lte
