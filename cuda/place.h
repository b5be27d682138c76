// Compaction inside a block: where each thread that says yes comes in the order of the threads.
#pragma once

#include "context.h"

namespace lte {

// How many threads of lower rank in the block, and in all, say yes. Met by all threads of a block of
// whole warps.
struct Place {
  int before, all;
};
__device__ __forceinline__ Place block_place(bool yes) {
  LTE_SHARED(int, count[kWarp]);
  const unsigned votes = __ballot_sync(kAllLanes, yes);
  __syncthreads();
  if (lane_of_thread() == 0) count[warp_of_thread()] = __popc(votes);
  __syncthreads();
  Place p{__popc(votes & ((1u << lane_of_thread()) - 1)), 0};
  for (int w = 0; w < threads_of_block() / kWarp; ++w) {
    p.before += w < warp_of_thread() ? count[w] : 0;
    p.all += count[w];
  }
  return p;
}

// The ordinal-th (from 0) expert e < E with count[e] > 0; -1 if there are not so many. Met by whole warps, all
// lanes with one ordinal.
__device__ __forceinline__ int open_expert(const int32_t* count, int E, int ordinal) {
  constexpr int kWords = 16;
  for (int from = 0; from < E; from += kWords * kWarp) {
    int open[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int e = from + w * kWarp + lane_of_thread();
      open[w] = e < E ? count[e] : 0;
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const unsigned votes = __ballot_sync(kAllLanes, open[w] > 0);
      if (ordinal < __popc(votes)) {
        const unsigned lower = votes & ((1u << lane_of_thread()) - 1);
        const bool mine = open[w] > 0 && __popc(lower) == ordinal;
        const unsigned found = __ballot_sync(kAllLanes, mine);
        return from + w * kWarp + __popc(found - 1);
      }
      ordinal -= __popc(votes);
    }
  }
  return -1;
}

}  // namespace lte
