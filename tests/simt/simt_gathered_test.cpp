// Products of few tokens with a grid of one's choice: what a block lays out at once, and what is left over
// at every end, at sizes that a whole operation would take long to reach on the CPU.
#include "core/rng.h"
#include "cuda/few_cores.h"
#include "simt_testing.h"

namespace lte {
namespace {

template <class W>
W weight_of(double x) {
  return from_float<W>(static_cast<float>(x));
}

// out[N,D] by the kernels, and by loops in double; rows of experts that are not active are NaN. kCols > 0:
// those on tensor cores, for 8 kCols tokens.
template <int kTokens, int kPack, bool kAtomic, class T, class W, int kCols = 0>
void check_down(int64_t N, int64_t D, int64_t E, int64_t G, unsigned splits, double tolerance) {
  Rng rng(static_cast<uint64_t>(N * 31 + D));
  std::vector<int32_t> active;
  for (int64_t e = 0; e < E; ++e) {
    if (e % 3 != 1) active.push_back(static_cast<int32_t>(e));
  }
  const int64_t rows = static_cast<int64_t>(active.size()) * G;
  std::vector<W> down(static_cast<size_t>(E * G * D), weight_of<W>(NAN));
  for (int32_t e : active) {
    for (int64_t i = e * G * D; i < (e + 1) * G * D; ++i)
      down[static_cast<size_t>(i)] = weight_of<W>(rng.normal());
  }
  std::vector<T> h(static_cast<size_t>(rows * N));
  for (T& x : h) x = rng.uniform() < 0.2 ? T(0) : static_cast<T>(rng.normal());
  std::vector<double> want(static_cast<size_t>(N * D));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = active[static_cast<size_t>(r / G)] * G + r % G;
    for (int64_t i = 0; i < N * D; ++i) {
      want[static_cast<size_t>(i)] +=
          static_cast<double>(h[static_cast<size_t>(r * N + i / D)]) *
          static_cast<double>(to_float(down[static_cast<size_t>(row * D + i % D)]));
    }
  }
  const Array<int32_t> list(active),
      total(std::vector<int32_t>{static_cast<int32_t>(active.size())});
  const Array<W> weights(down);
  if constexpr (kCols > 0) {  // by tiles of 16 rows; tokens that there are not are NaN
    std::vector<T> tiled(static_cast<size_t>(rows * kCoreTokens<kCols>), NAN);
    for (int64_t i = 0; i < rows * N; ++i) {
      const int64_t r = i / N, at = (r / 16 * kCoreTokens<kCols> + i % N) * 16 + r % 16;
      tiled[static_cast<size_t>(at)] = h[static_cast<size_t>(i)];
    }
    h = tiled;
  }
  // One token: h and the counts of all experts, of which those not active have h of NaN.
  std::vector<T> own(static_cast<size_t>(E * G), NAN);
  std::vector<int32_t> open(static_cast<size_t>(E));
  for (int64_t r = 0; kTokens == 1 && r < rows; ++r) {
    const int64_t e = active[static_cast<size_t>(r / G)];
    open[static_cast<size_t>(e)] = 1;
    own[static_cast<size_t>(e * G + r % G)] = h[static_cast<size_t>(r)];
  }
  const Array<int32_t> count(open);
  const Array<T> values(kTokens == 1 ? own : h);
  Gathered<T, W> f{};
  f.down = weights.data, f.N = N, f.D = D, f.E = E, f.G = G;
  const int64_t width = kCols > 0 ? kCoreCols : kWarp * kPack;
  const dim3 grid(static_cast<unsigned>(pieces(D, width)), splits);
  under_all_schedules([&] {
    Array<T> out(static_cast<size_t>(N * D)), parts(static_cast<size_t>(splits * N * D));
    check_cuda(cudaMemset(out.data, 0, out.size * sizeof(T)), "memset");
    T* to = kAtomic ? out.data : parts.data;
    if constexpr (kCols > 0) {
      launch(core_down_kernel<kCols, kAtomic>, grid, kCoreThreads, 0, nullptr, to, values.data,
             list.data, total.data, f);
    } else if constexpr (kTokens == 1) {
      launch(column_sums_kernel<kPack, kAtomic, T, W, OpenRows>, grid, kColumnWarps * kWarp,
             static_cast<size_t>(row_list_size(E * G, G, splits)) * sizeof(int32_t), nullptr, to,
             values.data, weights.data,
             OpenRows{count.data, static_cast<int>(E), static_cast<int>(G)}, static_cast<int>(D));
    } else {
      launch(few_down_kernel<kTokens, kPack, kAtomic, T, W>, grid, kColumnWarps * kWarp, 0, nullptr,
             to, values.data, list.data, total.data, f);
    }
    if (!kAtomic) {
      launch(join_parts_kernel<false, T>, static_cast<unsigned>(pieces(N * D, kWarp)),
             dim3(kWarp, kJoinWarps), 0, nullptr, out.data, parts.data, N * D,
             static_cast<int>(splits));
    }
    const std::vector<T> got = out.host();
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << i;
  });
}

TEST(SimtGathered, DownProductOfOneToken) {
  // 2 of 3 experts are active: 6, 20, 26, 132, 134, 300 and 400 rows, in one split, two and twelve.
  struct {
    int64_t E, G;
  } const shapes[] = {{9, 1}, {30, 1}, {3, 13}, {6, 33}, {3, 67}, {15, 30}, {600, 1}};
  for (const auto& [E, G] : shapes) {
    for (unsigned splits : {1u, 2u, 12u}) {
      SCOPED_TRACE(std::to_string(E) + " x " + std::to_string(G) + ", " + std::to_string(splits));
      check_down<1, 8, false, float, bf16>(1, 264, E, G, splits, 1e-3);
      check_down<1, 4, false, float, float>(1, 136, E, G, splits, 1e-3);
      check_down<1, 1, false, float, bf16>(1, 35, E, G, splits, 1e-3);
    }
  }
}

TEST(SimtGathered, DownProductOfSeveralTokens) {
  for (unsigned splits : {1u, 3u}) {
    check_down<4, 8, false, float, bf16>(3, 264, 6, 33, splits, 1e-3);
    check_down<16, 4, false, float, float>(16, 40, 6, 33, splits, 1e-3);
    check_down<16, 2, false, double, double>(13, 70, 3, 67, splits, 1e-11);
    check_down<4, 1, true, float, float>(2, 33, 6, 33, splits, 1e-3);
  }
}

TEST(SimtGathered, DownProductOnTensorCores) {
  // 2, 4, 12 and 42 tiles of rows for 8 warps, two at a time; columns that end inside a group or before one.
  struct {
    int64_t D, E, G;
  } const shapes[] = {{32, 3, 16}, {96, 3, 32}, {160, 6, 48}, {64, 9, 112}};
  for (const auto& [D, E, G] : shapes) {
    for (unsigned splits : {1u, 3u}) {
      SCOPED_TRACE(std::to_string(D) + ", " + std::to_string(E) + " x " + std::to_string(G));
      check_down<8, 8, false, float, bf16, 1>(3, D, E, G, splits, 1e-3);
      check_down<16, 8, false, float, bf16, 2>(13, D, E, G, splits, 1e-3);
      check_down<16, 8, true, float, bf16, 2>(16, D, E, G, splits, 1e-3);
    }
  }
}

// out[N,M] = x[N,D] w[M,D]' in blocks of 32 kGroups rows of w.
template <int kCols, int kGroups>
void check_rows(int64_t N, int64_t M, int64_t D) {
  Rng rng(static_cast<uint64_t>(N * 31 + M));
  std::vector<float> x(static_cast<size_t>(N * D));
  std::vector<bf16> w(static_cast<size_t>(M * D));
  for (float& v : x) v = static_cast<float>(rng.normal());
  for (bf16& v : w) v = weight_of<bf16>(rng.normal());
  const Array<float> in(x), out(static_cast<size_t>(N * M));
  const Array<bf16> weights(w);
  launch(core_rows_kernel<kCols, kGroups, false>, static_cast<unsigned>(pieces(M, 32 * kGroups)),
         kCoreThreads, 0, nullptr, out.data, in.data, weights.data, N, M, D);
  const std::vector<float> got = out.host();
  for (int64_t i = 0; i < N * M; ++i) {
    double want = 0;
    for (int64_t d = 0; d < D; ++d) {
      want += static_cast<double>(x[static_cast<size_t>(i / M * D + d)]) *
              static_cast<double>(to_float(w[static_cast<size_t>(i % M * D + d)]));
    }
    ASSERT_NEAR(got[static_cast<size_t>(i)], want, 1e-4) << i;
  }
}

TEST(SimtGathered, RowsOnTensorCores) {
  for (const int64_t M : {16, 33, 64, 79, 128}) {
    for (const int64_t D : {32, 96, 1120}) {
      SCOPED_TRACE(std::to_string(M) + " x " + std::to_string(D));
      check_rows<1, 1>(5, M, D);
      check_rows<2, 1>(16, M, D);
      check_rows<2, 2>(11, M, D);
    }
  }
}

TEST(SimtGathered, PartsOfAFloatAreAllOfIt) {
  for (const float x : {1.0f, -3.1415927f, 16777215.0f, 0.0f, 3.4028235e38f, 1e-30f, -65537.0f}) {
    uint32_t part[kParts];
    split(part, x, -x);
    double low = 0, high = 0;
    for (uint32_t p : part) {
      low += static_cast<double>(__uint_as_float(p << 16));
      high += static_cast<double>(__uint_as_float(p & 0xffff0000u));
    }
    EXPECT_EQ(low, static_cast<double>(x));
    EXPECT_EQ(high, -static_cast<double>(x));
  }
}

}  // namespace
}  // namespace lte
