// What a GPU has beside the operations: a clock of its own, memory that the host can move, and ceilings. Programs
// that time ask for it; the model does not.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "core/ops.h"

namespace lte {

struct DeviceRates {
  double read = 0;  // bytes/s of a kernel that only reads
  double copy = 0;  // bytes/s of a copy inside the device: read and written, both counted
  double f32 = 0, tf32 = 0, bf16 = 0;  // FLOP/s of the vendor's square products, on random numbers
  double clock = 0;                    // Hz of the multiprocessors just after them; 0: not known
};

// Functions of a backend's context.
struct Device {
  // Seconds between two events around what `call` enqueues; returns when that is done. The device is held up
  // until the host has enqueued it, so that launches do not count. `cold`: the L2 cache is overwritten first.
  double (*seconds)(Ctx&, const std::function<void()>& call, bool cold);
  // Brings memory that the host has touched back to the device, and waits. Throws Error where that is plain
  // host memory.
  void (*fetch)(Ctx&, const void* data, size_t bytes);
  // Copies between any two memories, and waits; pages of the backend's memory stay where they are.
  void (*copy)(Ctx&, void* to, const void* from, size_t bytes);
  double (*free_bytes)(Ctx&);
  // The best of three passes over `bytes` of memory and of three products of side `side`.
  DeviceRates (*rates)(Ctx&, size_t bytes, int side);
  // For the context of a result: driver, multiprocessors, memory, L2 cache.
  std::map<std::string, std::string> (*describe)();
};

}  // namespace lte
