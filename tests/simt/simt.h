// Runs CUDA kernels on a machine without a GPU: the threads of a block are fibers, which run one
// after another until they wait for each other. The order in which they run is chosen (Schedule),
// so that a missing barrier shows as a changed result; a barrier or a warp function that not all
// threads reach is an error (lte::Error: kernel, block, thread, place). Blocks run one after
// another; a block that spins until a later block has done something never ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#define LTE_SIMT 1
#if defined(__SANITIZE_ADDRESS__)
#define LTE_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LTE_SIMT_ASAN 1
#endif
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  constexpr dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct SimtStream;
using cudaStream_t = SimtStream*;

// Set at every switch of threads; kernels read them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace lte::simt {

// Which of the threads that could run goes next: the lowest, the highest, or any. Blocks likewise.
// With `random` the work of streams is also put off until the host waits for it, so that a host
// that reads too early sees it; and at every other place, by chance, the first block of a kernel that may begin early
// runs up to await_inputs before the work that precedes it is done.
enum class Order { forward, reverse, random };
struct Schedule {
  Order order = Order::forward;
  uint64_t seed = 0;
};
// Work that was put off is done first.
void set_schedule(Schedule);
Schedule schedule();
// "forward", "reverse" or "random:<seed>", and the other way round (throws lte::Error).
std::string to_string(Schedule);
Schedule parse_schedule(const std::string&);

// Forward, reverse, and `seeds` random orders.
std::vector<Schedule> schedules(int seeds = 4);
// Runs `result` under each of these schedules and names the first whose bytes differ from those of
// the first; empty if none does. A kernel without races (and without float atomics) gives "".
std::string unstable(const std::function<std::vector<unsigned char>()>& result, int seeds = 4);
// Launches and blocks since the program began: for reports.
struct Counts {
  int64_t launches = 0, blocks = 0, threads = 0, switches = 0;
};
Counts counts();

// == For cuda/launch.h and the host side

// Runs `thread` as every thread of the grid, or adds that to the stream's graph while it is
// captured. `kernel` is only used to find the kernel's name. Static and dynamic shared memory may pass 48 KiB
// together only where `asked` says that this was asked for. Throws lte::Error.
void launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            std::function<void()> thread, bool asked, bool early);
// What a stream is given; kernel: of a launch, null of anything else.
struct Work {
  std::function<void()> run;
  const void* kernel = nullptr;
  bool early = false;
};
// Does `work` now, puts it off (Order::random), or adds it to the stream's graph while it is captured.
void submit(cudaStream_t, Work work);
inline void submit(cudaStream_t stream, std::function<void()> work) {
  submit(stream, Work{std::move(work)});
}
// Does all work that was put off. Throws what it throws, and drops the rest.
void finish();
// The name of a function of this program, "?" if it has none.
std::string function_name(const void* function);

// == For kernels

// A place in the sources; as a default argument it is the caller's.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Stops the launch with an error that names kernel, block and thread.
[[noreturn]] void fault(const std::string& what);

// As await_inputs of cuda/device.h. A kernel that may begin early must not end, in any thread, without it: the next
// one would no longer wait for what came before.
void await_inputs();
bool& awaited();  // whether the running thread has called it
template <bool kEarly, class F>
void run_thread(F&& thread) {
  awaited() = false;
  thread();
  if (kEarly && !awaited()) fault("a kernel that may begin early ends without await_inputs");
}

// Waits until every thread of the block is at this barrier; the number of threads with `predicate`.
int barrier(const char* name, Site, bool predicate);

// Waits until all lanes of `mask` are at this function; then `meet` runs once with the lanes' data
// (null for lanes outside the mask) and turns them into results.
using Meet = void (*)(void* const data[32], unsigned mask);
void warp_meet(const char* name, Site, unsigned mask, Meet meet, void* data);
int lane();

// Lets other threads run, where the order allows it: for loops that wait for another thread.
void yield();

void* dynamic_memory();

inline void check_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fault("address not aligned to its access");
}

// True for the first thread of a block that asks with this `seen`.
bool first_in_block(uint64_t& seen);
void count_static(size_t bytes);  // of the running block's static shared memory
// Fills memory with what no kernel may rely on: bytes 0xff, a NaN in every float type.
void unset(void* p, size_t bytes);

}  // namespace lte::simt

// Static shared memory is a static variable (blocks run one after another; AddressSanitizer sees its
// exact size), unset when a block begins. Its address is found from the declarator "name[3][4]" read
// as an expression: the element so named lies as far from the start as it does in any such array.
#define LTE_SIMT_SHARED(type, declarator)                                                      \
  static __attribute__((aligned(16))) type declarator;                                         \
  do {                                                                                         \
    _Pragma("GCC diagnostic push")                                                             \
        _Pragma("GCC diagnostic ignored \"-Warray-bounds\"") struct Box {                      \
      type declarator;                                                                         \
    };                                                                                         \
    static uint64_t seen = 0;                                                                  \
    if (::lte::simt::first_in_block(seen)) {                                                   \
      ::lte::simt::count_static(sizeof(Box));                                                  \
      ::lte::simt::unset(                                                                      \
          []() __attribute__((no_sanitize("undefined"))) {                                     \
            Box* box = reinterpret_cast<Box*>(uintptr_t{1} << 20);                             \
            const uintptr_t skip = reinterpret_cast<uintptr_t>(&(box->declarator)) -           \
                                   reinterpret_cast<uintptr_t>(box);                           \
            return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(&(declarator)) - skip); \
          }(),                                                                                 \
          sizeof(Box));                                                                        \
    }                                                                                          \
    _Pragma("GCC diagnostic pop")                                                              \
  } while (0)
