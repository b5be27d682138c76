// Blocks on the simulated device: indices, shared memory, barriers, launches.
#include "simt_testing.h"

namespace lte {
namespace {

__global__ void write_indices(uint3* thread, uint3* block, int* seen) {
  const unsigned in_block = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned at = b * blockDim.x * blockDim.y * blockDim.z + in_block;
  thread[at] = threadIdx, block[at] = blockIdx;
  atomicAdd(&seen[at], thread_rank() == static_cast<int>(in_block) ? 1 : 100);
}

TEST(SimtBlock, EveryThreadOfEveryBlockRunsOnceWithItsIndices) {
  const std::pair<dim3, dim3> shapes[] = {
      {1, 1},    {3, 7},  {dim3(2, 3), dim3(5, 4)}, {dim3(2, 2, 3), dim3(3, 2, 4)},
      {1, 1024}, {65, 33}};
  under_all_schedules([&] {
    for (const auto& [grid, block] : shapes) {
      const unsigned n = block.x * block.y * block.z, all = grid.x * grid.y * grid.z * n;
      Array<uint3> thread(all), where(all);
      Array<int> seen(std::vector<int>(all, 0));
      launch(write_indices, grid, block, 0, nullptr, thread.data, where.data, seen.data);
      const auto t = thread.host(), b = where.host();
      EXPECT_EQ(seen.host(), std::vector<int>(all, 1));
      for (unsigned i = 0; i < all; ++i) {
        EXPECT_EQ((t[i].z * block.y + t[i].y) * block.x + t[i].x, i % n);
        EXPECT_EQ((b[i].z * grid.y + b[i].y) * grid.x + b[i].x, i / n);
        EXPECT_TRUE(t[i].x < block.x && t[i].y < block.y && b[i].x < grid.x && b[i].y < grid.y);
      }
    }
  });
}

// out = in reversed within each block, by static and by dynamic shared memory
__global__ void reverse_block(int* out, const int* in, bool dynamic) {
  LTE_SHARED(int, fixed[8][32]);
  int* tile = dynamic ? dynamic_shared<int>() : &fixed[0][0];
  const unsigned n = blockDim.x, t = threadIdx.x;
  tile[t] = in[blockIdx.x * n + t];
  __syncthreads();
  out[blockIdx.x * n + t] = tile[n - 1 - t];
}

TEST(SimtBlock, SharedMemoryIsOneForTheBlock) {
  std::vector<int> in(3 * 256), want(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i * i);
  for (size_t i = 0; i < in.size(); ++i) want[i] = in[i / 256 * 256 + 255 - i % 256];
  under_all_schedules([&] {
    for (const bool dynamic : {false, true}) {
      Array<int> a(in), out(in.size());
      launch(reverse_block, 3, 256, dynamic ? 1024 : 0, nullptr, out.data, a.data, dynamic);
      EXPECT_EQ(out.host(), want);
    }
  });
}

template <class T>
__global__ void read_unset(uint32_t* out, T*) {
  LTE_SHARED(T, grid[3][5][2]);
  LTE_SHARED(T, line[7]);
  LTE_SHARED(T, one);
  const auto* g = reinterpret_cast<const unsigned char*>(grid);
  uint32_t fresh = 1;
  for (size_t i = 0; i < sizeof grid; ++i) fresh &= g[i] == 0xff;
  for (size_t i = 0; i < sizeof line; ++i) {
    fresh &= reinterpret_cast<const unsigned char*>(line)[i] == 0xff;
  }
  fresh &= *reinterpret_cast<const unsigned char*>(&one) == 0xff;
  const auto* d = dynamic_shared<unsigned char>();
  for (int i = 0; i < 13; ++i) fresh &= d[i] == 0xff;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (auto& plane : grid) {
      for (auto& row : plane) row[0] = row[1] = T(1);
    }
    for (T& x : line) x = T(2);
    one = T(3);
    dynamic_shared<unsigned char>()[0] = 4;
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = fresh;
}

TEST(SimtBlock, SharedMemoryBeginsUnsetInEveryBlock) {
  under_all_schedules([] {
    Array<uint32_t> out(3 * 40);
    launch(read_unset<float>, 3, 40, 13, nullptr, out.data, nullptr);
    EXPECT_EQ(out.host(), std::vector<uint32_t>(120, 1));
    launch(read_unset<char>, 3, 40, 13, nullptr, out.data, nullptr);
    EXPECT_EQ(out.host(), std::vector<uint32_t>(120, 1));
  });
}

__global__ void global_unset(uint32_t* out, const uint32_t* in) { out[0] = in[0]; }

TEST(SimtBlock, DeviceMemoryBeginsUnset) {
  Array<uint32_t> in(1), out(1);
  launch(global_unset, 1, 1, 0, nullptr, out.data, in.data);
  EXPECT_EQ(out.host()[0], 0xffffffffu);
}

// Tree sum in shared memory, blockDim a power of 2.
__global__ void tree_sum(float* out, const float* in) {
  float* part = dynamic_shared<float>();
  const unsigned t = threadIdx.x;
  part[t] = in[blockIdx.x * blockDim.x + t];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) part[t] += part[t + half];
  }
  if (t == 0) out[blockIdx.x] = part[0];
}

TEST(SimtBlock, BarriersInALoopHoldATreeOfSumsTogether) {
  for (const unsigned n : {1u, 2u, 64u, 1024u}) {
    std::vector<float> in(n * 5), want(5, 0);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 17);
    for (size_t i = 0; i < in.size(); ++i) want[i / n] += in[i];  // exact: small whole numbers
    under_all_schedules([&] {
      Array<float> a(in), out(5);
      launch(tree_sum, 5, n, n * sizeof(float), nullptr, out.data, a.data);
      EXPECT_EQ(out.host(), want);
    });
  }
}

// Every thread passes on a value to its neighbour, many times.
__global__ void pass_round(int* out, int rounds) {
  LTE_SHARED(int, ring[96]);
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  int mine = t;
  for (int r = 0; r < rounds; ++r) {
    ring[t] = mine;
    __syncthreads();
    mine = ring[(t + 1) % n];
    __syncthreads();
  }
  out[t] = mine;
}

TEST(SimtBlock, ABarrierIsPassedAsOftenAsItIsMet) {
  under_all_schedules([] {
    Array<int> out(96);
    launch(pass_round, 1, 96, 0, nullptr, out.data, 1000);
    const auto got = out.host();
    for (int t = 0; t < 96; ++t) EXPECT_EQ(got[static_cast<size_t>(t)], (t + 1000) % 96);
  });
}

__global__ void votes(int* out) {
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  int* o = out + t * 7;
  o[0] = __syncthreads_count(t % 3 == 0);
  o[1] = __syncthreads_or(t == n - 1);
  o[2] = __syncthreads_or(0);
  o[3] = __syncthreads_and(t >= 0);
  o[4] = __syncthreads_and(t != 5);
  o[5] = __syncthreads_count(2);
  o[6] = __syncthreads_count(0);
}

TEST(SimtBlock, BarriersThatVote) {
  under_all_schedules([] {
    Array<int> out(50 * 7);
    launch(votes, 1, 50, 0, nullptr, out.data);
    const auto got = out.host();
    const int want[7] = {17, 1, 0, 1, 0, 50, 0};
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], want[i % 7]) << i;
  });
}

__global__ void block_reductions(float* sum, float* top, const float* in) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float s = block_sum(in[i]), m = block_max(in[i]), twice = block_sum(2.0f * in[i]);
  sum[i] = s + (twice - 2 * s), top[i] = m;
}

TEST(SimtBlock, SumsAndMaximaOfABlockReachEveryThread) {
  for (const unsigned n : {32u, 96u, 1024u}) {
    std::vector<float> in(2 * n), sum(2 * n, 0), top(2 * n, -1e9f);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i * 7 % 31) - 40;
    for (size_t i = 0; i < in.size(); ++i) {
      for (size_t j = i / n * n; j < i / n * n + n; ++j)
        sum[i] += in[j], top[i] = max(top[i], in[j]);
    }
    under_all_schedules([&] {
      Array<float> a(in), s(in.size()), m(in.size());
      launch(block_reductions, 2, n, 0, nullptr, s.data, m.data, a.data);
      EXPECT_EQ(s.host(), sum);
      EXPECT_EQ(m.host(), top);
    });
  }
}

// The block that comes last adds up what the others left (a counter in global memory).
__global__ void last_block_sums(int* total, int* parts, unsigned* arrived) {
  LTE_SHARED(bool, last);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) {
    *total = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) *total += parts[i];
  }
}

TEST(SimtBlock, TheLastBlockSeesTheOthersWork) {
  under_all_schedules([] {
    Array<int> total(1), parts(20);
    Array<unsigned> arrived(std::vector<unsigned>{0});
    for (int again = 0; again < 2; ++again) {
      launch(last_block_sums, 20, 64, 0, nullptr, total.data, parts.data, arrived.data);
      EXPECT_EQ(total.host()[0], 210);
    }
  });
}

__global__ void take_turns(int* lock, int* count) {
  while (atomicCAS(lock, static_cast<int>(threadIdx.x), -1) != static_cast<int>(threadIdx.x)) {
  }
  ++*count;
  atomicExch(lock, static_cast<int>(threadIdx.x) + 1);
}

TEST(SimtBlock, ALoopThatWaitsByCompareAndSwapLetsTheOthersRun) {
  under_all_schedules([] {
    Array<int> lock(std::vector<int>{0}), count(std::vector<int>{0});
    launch(take_turns, 1, 64, 0, nullptr, lock.data, count.data);
    EXPECT_EQ(count.host()[0], 64);
  });
}

__global__ void nothing() {}
__global__ void add_up(double* out, float a, int64_t b, const double* c) {
  *out = static_cast<double>(a) + static_cast<double>(b) + (c ? 1000.0 : 0.0);
}

TEST(SimtBlock, ArgumentsAreConvertedToTheParametersAndCopied) {
  Array<double> out(1);
  int b = 3;
  launch(add_up, 1, 1, 0, nullptr, out.data, 1.5, b, nullptr);
  b = 50;
  EXPECT_EQ(out.host()[0], 4.5);
  launch(nothing, 1, 1, 0, nullptr);
}

TEST(SimtBlock, LaunchesThatNoDeviceTakesAreRefusedByName) {
  const auto refused = [](dim3 grid, dim3 block, size_t bytes) {
    return error_of([&] { launch(nothing, grid, block, bytes, nullptr); });
  };
  EXPECT_EQ(refused(1, 1, 227 * 1024), "");
  EXPECT_HAS(refused(0, 1, 0), "nothing: invalid configuration: grid (0,1,1)");
  EXPECT_HAS(refused(1, 0, 0), "invalid configuration");
  EXPECT_HAS(refused(1, 1025, 0), "block (1025,1,1)");
  EXPECT_HAS(refused(1, dim3(1, 1, 65), 0), "invalid configuration");
  EXPECT_HAS(refused(dim3(1, 65536), 1, 0), "invalid configuration");
  EXPECT_HAS(refused(1, 1, 227 * 1024 + 1), "invalid configuration");
}

TEST(SimtBlock, ThreadsThatNeverWaitShareOneFiber) {
  const simt::Schedule before = simt::schedule();
  simt::set_schedule({});
  const simt::Counts a = simt::counts();
  launch(nothing, 10, 1024, 0, nullptr);
  const simt::Counts b = simt::counts();
  EXPECT_EQ(b.launches - a.launches, 1);
  EXPECT_EQ(b.blocks - a.blocks, 10);
  EXPECT_EQ(b.threads - a.threads, 10240);
  EXPECT_EQ(b.switches - a.switches, 10);
  simt::set_schedule(before);
}

TEST(SimtBlock, SchedulesHaveNames) {
  for (const simt::Schedule s : simt::schedules()) {
    EXPECT_EQ(simt::to_string(simt::parse_schedule(simt::to_string(s))), simt::to_string(s));
  }
  for (const char* bad : {"", "random", "random:", "random:x", "Forward", "random:-1"}) {
    EXPECT_HAS(error_of([&] { simt::parse_schedule(bad); }), "unknown schedule");
  }
}

}  // namespace
}  // namespace lte
