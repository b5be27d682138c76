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

}  // namespace lte
