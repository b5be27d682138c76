// Copies from global to shared memory that run beside the thread's other work (cp.async, sm_80).
#pragma once

#include "device.h"

#ifdef LTE_SIMT
#include <cstring>
#include <deque>
#include <vector>
#endif

namespace lte {

// copy16_async(to, from);  16 bytes, both aligned to that, zeros where not `there`; copy4_async: 4 bytes; the thread's copies since its last
// copy16_group() are one group;  copy16_wait<n>() returns when all but the n latest groups are there, for
// this thread: others see them after a barrier.
#ifdef LTE_SIMT
// As late as a device may be: at the wait. What is read before it is NaN.
struct PendingCopies {
  struct Copy {
    void* to;
    uint4 value;
    size_t bytes;
  };
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
inline PendingCopies& pending_copies() {
  static std::vector<PendingCopies> all(1024);
  return all[static_cast<size_t>(thread_rank())];
}
inline void copy16_async(void* to, const void* from, bool there = true) {
  simt::check_aligned(to, 16), simt::check_aligned(from, 16);
  pending_copies().open.push_back(
      {to, there ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0}, 16});
  simt::unset(to, 16);
}
inline void copy4_async(void* to, const void* from) {
  simt::check_aligned(to, 4), simt::check_aligned(from, 4);
  pending_copies().open.push_back({to, {*static_cast<const unsigned*>(from), 0, 0, 0}, 4});
  simt::unset(to, 4);
}
inline void copy16_group() {
  PendingCopies& p = pending_copies();
  p.groups.push_back(std::move(p.open)), p.open.clear();
}
template <int kLeft>
void copy16_wait() {
  for (auto& groups = pending_copies().groups; groups.size() > kLeft; groups.pop_front()) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, &copy.value, copy.bytes);
  }
}
#else
__device__ __forceinline__ void copy16_async(void* to, const void* from) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool there) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy4_async(void* to, const void* from) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(from) : "memory");
}
__device__ __forceinline__ void copy16_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void copy16_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
#endif

}  // namespace lte
