// Between the scheduler (fibers.cpp) and what is built on it (simt.cpp).
#pragma once

#include "simt.h"

namespace lte::simt {

struct Thread {
  enum State : uint8_t { running, at_barrier, at_warp, done };
  State state = running;
  bool awaited = false;
  uint3 index = {};
  // While it waits: for what, where, and with which lanes and data.
  const char* waits_for = "";
  Site site = {};
  unsigned mask = 0;
  Meet meet = nullptr;
  void* data = nullptr;
  int result = 0;
};

struct Block {
  const void* kernel = nullptr;
  const std::function<void()>* body = nullptr;
  int threads = 0, done = 0, arrived = 0, votes = 0;
  unsigned waiting[32] = {};  // of each warp: the lanes that wait at a warp function
  void* shared = nullptr;
  size_t dynamic_bytes = 0, static_bytes = 0;
  bool asked = false;   // for more than 48 KiB of both
  uint64_t serial = 0;  // counts the blocks that were run
};

Block& block();
Thread& thread(int t);
int current();
// Gives way to other threads until `wake` names this one.
void wait_here();
void wake(int thread);
// The next block begins before `work` is done: that is done when no thread can go on without it.
void begin_before(std::function<void()> work);
bool by_chance();
// Counts a launch; throws inside a kernel.
void start_launch();
std::vector<int64_t> block_order(int64_t blocks);
// Runs the block that block(), blockIdx and the threads' indices describe; the error, or "".
std::string run_block();
std::string describe_thread(int t);
std::string describe_deadlock();

}  // namespace lte::simt
