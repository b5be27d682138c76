// The down product of few tokens with a grid of one's choice: what a block lays out at once, and what is
// left over at every end, at sizes that a whole operation would take long to reach on the CPU.
#include "core/rng.h"
#include "cuda/gathered.h"
#include "simt_testing.h"

namespace lte {
namespace {

template <class W>
W weight_of(double x) {
  return from_float<W>(static_cast<float>(x));
}

// out[N,D] by the kernels, and by loops in double; rows of experts that are not active are NaN.
template <int kTokens, int kPack, bool kAtomic, class T, class W>
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
  const Array<T> values(h);
  Gathered<T, W> f{};
  f.down = weights.data, f.N = N, f.D = D, f.E = E, f.G = G;
  const dim3 grid(static_cast<unsigned>(pieces(D, kWarp * kPack)), splits);
  under_all_schedules([&] {
    Array<T> out(static_cast<size_t>(N * D)), parts(static_cast<size_t>(splits * N * D));
    check_cuda(cudaMemset(out.data, 0, out.size * sizeof(T)), "memset");
    launch(few_down_kernel<kTokens, kPack, kAtomic, T, W>, grid, kDownWarps * kWarp, 0, nullptr,
           kAtomic ? out.data : parts.data, values.data, list.data, total.data, f);
    if (!kAtomic) {
      launch(join_parts_kernel<T>, static_cast<unsigned>(pieces(N * D, kWarp)),
             dim3(kWarp, kJoinWarps), 0, nullptr, out.data, parts.data, N * D,
             static_cast<int>(splits));
    }
    const std::vector<T> got = out.host();
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << i;
  });
}

TEST(SimtGathered, DownProductOfOneToken) {
  // 2 of 3 experts are active: 6, 20, 26, 132, 134 and 300 rows, in one split, two and twelve.
  struct {
    int64_t E, G;
  } const shapes[] = {{9, 1}, {30, 1}, {3, 13}, {6, 33}, {3, 67}, {15, 30}};
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

}  // namespace
}  // namespace lte
