// Warp functions on the simulated device against their definitions.
#include <cmath>

#include "cuda/copy.h"
#include "cuda/mma.h"
#include "simt_testing.h"

namespace lte {
namespace {

enum Kind { kIdx, kUp, kDown, kXor };

template <class T>
__global__ void shuffle(T* out, const T* in, int kind, int by, int width) {
  const T x = in[threadIdx.x];
  T y = x;
  if (kind == kIdx) y = __shfl_sync(kAllLanes, x, by, width);
  if (kind == kUp) y = __shfl_up_sync(kAllLanes, x, static_cast<unsigned>(by), width);
  if (kind == kDown) y = __shfl_down_sync(kAllLanes, x, static_cast<unsigned>(by), width);
  if (kind == kXor) y = __shfl_xor_sync(kAllLanes, x, by, width);
  out[threadIdx.x] = y;
}

// The programming guide's words: lanes are numbered inside segments of `width`; who would read
// beyond its segment keeps its own value (xor may reach earlier segments); an index is taken modulo
// the width.
int source(int kind, int lane, int by, int width) {
  const int segment = lane / width, place = lane % width;
  if (kind == kIdx) return segment * width + ((by % width) + width) % width;
  if (kind == kUp) return place - by >= 0 ? lane - by : lane;
  if (kind == kDown) return place + by < width ? lane + by : lane;
  return (lane ^ by) / width <= segment ? lane ^ by : lane;
}

template <class T>
void check_shuffles() {
  std::vector<T> in(64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<T>(static_cast<int>(i) * 3 + 1);
  Array<T> a(in), out(64);
  for (const int kind : {kIdx, kUp, kDown, kXor}) {
    for (const int width : {1, 2, 4, 8, 16, 32}) {
      for (int by = 0; by < 32; ++by) {
        launch(shuffle<T>, 1, 64, 0, nullptr, out.data, a.data, kind, by, width);
        const auto got = out.host();
        for (int t = 0; t < 64; ++t) {
          const int from = t / 32 * 32 + source(kind, t % 32, by, width);
          ASSERT_EQ(got[static_cast<size_t>(t)], in[static_cast<size_t>(from)])
              << "kind " << kind << " width " << width << " by " << by << " thread " << t;
        }
      }
    }
  }
}

TEST(SimtWarp, EveryShuffleReadsTheLaneThatItsDefinitionNames) {
  under_all_schedules([] {
    check_shuffles<int>();
    check_shuffles<double>();
    check_shuffles<unsigned long long>();
  });
}

__global__ void votes(unsigned* out) {
  const int t = static_cast<int>(threadIdx.x);
  unsigned* o = out + t * 8;
  o[0] = __ballot_sync(kAllLanes, t % 3 == 0);
  o[1] = static_cast<unsigned>(__any_sync(kAllLanes, t % 32 == 7));
  o[2] = static_cast<unsigned>(__any_sync(kAllLanes, 0));
  o[3] = static_cast<unsigned>(__all_sync(kAllLanes, 1));
  o[4] = static_cast<unsigned>(__all_sync(kAllLanes, t != 40));
  o[5] = __reduce_add_sync(kAllLanes, static_cast<unsigned>(t));
  o[6] = static_cast<unsigned>(__reduce_max_sync(kAllLanes, t - 50));
  o[7] = static_cast<unsigned>(__reduce_min_sync(kAllLanes, t - 50));
}

TEST(SimtWarp, VotesAndReductionsAreOfOneWarp) {
  under_all_schedules([] {
    Array<unsigned> out(64 * 8);
    launch(votes, 1, 64, 0, nullptr, out.data);
    const auto got = out.host();
    for (int t = 0; t < 64; ++t) {
      const int w = t / 32;
      unsigned ballot = 0;
      for (int l = 0; l < 32; ++l) ballot |= unsigned{(w * 32 + l) % 3 == 0} << l;
      const unsigned want[8] = {ballot,
                                1,
                                0,
                                1,
                                w == 0,
                                w ? 1520u : 496u,
                                static_cast<unsigned>(w * 32 + 31 - 50),
                                static_cast<unsigned>(w * 32 - 50)};
      for (int i = 0; i < 8; ++i) EXPECT_EQ(got[static_cast<size_t>(t * 8 + i)], want[i]) << t << i;
    }
  });
}

// Parts of a warp go different ways, meet there among themselves, and all meet again.
__global__ void part_ways(int* out) {
  const int l = lane_of_thread();
  int x = l;
  if (l < 10) {
    for (int i = 0; i < 3; ++i) x = __shfl_sync(0x3ffu, x, (l + 1) % 10);
  } else if (l % 2) {
    const unsigned odd = 0xaaaaa800u;
    x = __popc(__ballot_sync(odd, l > 20));
    __syncwarp(odd);
  }
  out[threadIdx.x] = x + 100 * __shfl_sync(kAllLanes, x, 0);
}

TEST(SimtWarp, LanesMayPartAndMeetAgain) {
  under_all_schedules([] {
    Array<int> out(96);
    launch(part_ways, 1, 96, 0, nullptr, out.data);
    const auto got = out.host();
    for (int t = 0; t < 96; ++t) {
      const int l = t % 32, mine = l < 10 ? (l + 3) % 10 : l % 2 ? 6 : l;
      EXPECT_EQ(got[static_cast<size_t>(t)], mine + 300) << t;
    }
  });
}

// A block of 20 threads: lanes that do not exist take no part.
__global__ void short_warp(unsigned* out) {
  out[threadIdx.x] =
      __ballot_sync(kAllLanes, 1) +
      static_cast<unsigned>(__shfl_sync(kAllLanes, static_cast<int>(threadIdx.x), 3));
}

TEST(SimtWarp, LanesThatDoNotExistAreNotWaitedFor) {
  Array<unsigned> out(20);
  launch(short_warp, 1, 20, 0, nullptr, out.data);
  EXPECT_EQ(out.host(), std::vector<unsigned>(20, 0xfffffu + 3));
}

__global__ void warp_reductions(float* sum, float* top) {
  const float x = static_cast<float>((threadIdx.x * 5) % 32) - 7;
  sum[threadIdx.x] = warp_sum(x), top[threadIdx.x] = warp_max(x);
}

TEST(SimtWarp, SumsAndMaximaOfAWarpReachEveryLane) {
  under_all_schedules([] {
    Array<float> sum(64), top(64);
    launch(warp_reductions, 1, 64, 0, nullptr, sum.data, top.data);
    EXPECT_EQ(sum.host(), std::vector<float>(64, 496 - 7 * 32));
    EXPECT_EQ(top.host(), std::vector<float>(64, 24));
  });
}

// d += a b by one warp, with the fragments filled as mma.h says.
__global__ void tile_product(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b) {
  const int g = lane_of_thread() / 4, t = lane_of_thread() % 4;
  const auto pair = [](__nv_bfloat16 low, __nv_bfloat16 high) {
    return static_cast<uint32_t>(__bfloat16_as_ushort(low)) |
           static_cast<uint32_t>(__bfloat16_as_ushort(high)) << 16;
  };
  const auto A = [&](int row, int col) { return pair(a[row * 16 + col], a[row * 16 + col + 1]); };
  const auto B = [&](int row, int col) { return pair(b[row * 8 + col], b[(row + 1) * 8 + col]); };
  const uint32_t fa[4] = {A(g, 2 * t), A(g + 8, 2 * t), A(g, 2 * t + 8), A(g + 8, 2 * t + 8)};
  const uint32_t fb[2] = {B(2 * t, g), B(2 * t + 8, g)};
  float* rows[2] = {d + g * 8 + 2 * t, d + (g + 8) * 8 + 2 * t};
  float fd[4] = {rows[0][0], rows[0][1], rows[1][0], rows[1][1]};
  mma_bf16(fd, fa, fb);
  rows[0][0] = fd[0], rows[0][1] = fd[1], rows[1][0] = fd[2], rows[1][1] = fd[3];
}

TEST(SimtWarp, TensorCoreTilesAreMatrixProducts) {
  std::vector<__nv_bfloat16> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8), want(16 * 8);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 23) - 11.0f;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 19) - 9.0f;
  for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>(i);
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 8; ++j) {
      want[i * 8 + j] = d[i * 8 + j];
      for (size_t k = 0; k < 16; ++k) {
        want[i * 8 + j] += __bfloat162float(a[i * 16 + k]) * __bfloat162float(b[k * 8 + j]);
      }
    }
  }
  under_all_schedules([&] {
    Array<__nv_bfloat16> da(a), db(b);
    Array<float> dd(d);
    launch(tile_product, 1, 32, 0, nullptr, dd.data, da.data, db.data);
    EXPECT_EQ(dd.host(), want);  // exact: whole numbers below 2^24
  });
}

// A tile of [16, 40] bf16, read as load_matrices says.
template <bool kTurned>
__global__ void load_kernel(uint32_t* out, const uint16_t* from) {
  LTE_SHARED(__nv_bfloat16, tile[16 * 40]);
  const int lane = lane_of_thread();
  for (int i = lane; i < 16 * 40; i += kWarp) tile[i] = __ushort_as_bfloat16(from[i]);
  __syncwarp();
  uint32_t r[4];
  load_matrices<kTurned>(r, tile + (lane % 16) * 40 + lane / 16 * 8);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = r[i];
}

TEST(SimtWarp, LoadMatrices) {
  std::vector<uint16_t> tile(16 * 40);
  for (size_t i = 0; i < tile.size(); ++i) tile[i] = static_cast<uint16_t>(i);
  const Array<uint16_t> from(tile);
  under_all_schedules([&] {
    for (const bool turned : {false, true}) {
      Array<uint32_t> out(128);
      launch(turned ? load_kernel<true> : load_kernel<false>, 1, kWarp, 0, nullptr, out.data,
             from.data);
      const std::vector<uint32_t> got = out.host();
      for (int lane = 0; lane < 32; ++lane) {
        for (int m = 0; m < 4; ++m) {  // rows 0-7 and 8-15 of columns 0-7, then of columns 8-15
          for (int half = 0; half < 2; ++half) {
            const int one = lane / 4, two = lane % 4 * 2 + half;
            const int row = m % 2 * 8 + (turned ? two : one),
                      col = m / 2 * 8 + (turned ? one : two);
            EXPECT_EQ(got[static_cast<size_t>(lane * 4 + m)] >> 16 * half & 0xffff,
                      static_cast<uint32_t>(row * 40 + col))
                << lane << ' ' << m << ' ' << half;
          }
        }
      }
    }
  });
}

// Each thread copies 16 bytes in each of two groups, in the first 4 as well, and 16 that are not there; it looks before and
// after it waited.
__global__ void copies_kernel(float* out, const float* from) {
  LTE_SHARED(float, tile[2][kWarp * 4]);
  LTE_SHARED(float, few[kWarp]);
  LTE_SHARED(float, none[kWarp * 4]);
  const int lane = lane_of_thread();
  for (int g = 0; g < 2; ++g) {
    if (g == 0) copy4_async(few + lane, from + lane);
    if (g == 0) copy16_async(none + lane * 4, nullptr, false);
    copy16_async(tile[g] + lane * 4, from + (g * kWarp + lane) * 4);
    copy16_group();
  }
  float* mine = out + lane * 10;
  mine[6] = few[lane], mine[8] = none[lane * 4 + 2];
  mine[0] = tile[0][lane * 4], mine[1] = tile[1][lane * 4];
  copy16_wait<1>();
  mine[7] = few[lane], mine[9] = none[lane * 4 + 2];
  mine[2] = tile[0][lane * 4], mine[3] = tile[1][lane * 4 + 1];
  copy16_wait<0>();
  __syncwarp();
  mine[4] = tile[0][(lane ^ 1) * 4], mine[5] = tile[1][(lane ^ 1) * 4 + 3];
}

TEST(SimtWarp, CopiesAreThereOnceWaitedFor) {
  std::vector<float> numbers(2 * 32 * 4);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  const Array<float> from(numbers);
  under_all_schedules([&] {
    Array<float> out(32 * 10);
    launch(copies_kernel, 1, kWarp, 0, nullptr, out.data, from.data);
    const std::vector<float> got = out.host();
    for (int lane = 0; lane < 32; ++lane) {
      const float* mine = &got[static_cast<size_t>(lane * 10)];
      EXPECT_TRUE(std::isnan(mine[0]) && std::isnan(mine[1]) && std::isnan(mine[3])) << lane;
      EXPECT_TRUE(std::isnan(mine[6]) && std::isnan(mine[8])) << lane;
      EXPECT_EQ(mine[9], 0.0f);
      EXPECT_EQ(mine[7], static_cast<float>(lane));
      EXPECT_EQ(mine[2], static_cast<float>(lane * 4));
      EXPECT_EQ(mine[4], static_cast<float>((lane ^ 1) * 4));
      EXPECT_EQ(mine[5], static_cast<float>((32 + (lane ^ 1)) * 4 + 3));
    }
  });
}

}  // namespace
}  // namespace lte
