// What the benchmark programs share: `main`, its flags and context, and the one order in which every
// row is run. A program is a list of cases; the order is
//   prepare -> one checked run -> warm-up -> timed loop -> check of the last output -> counters.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bench/traffic.h"
#include "core/compare.h"

namespace lte {

struct Options {
  std::string backend = "auto";
  int threads = 0;      // 0: one for each core
  bool smoke = false;   // every case once on tiny shapes; nothing is claimed about time
  std::string run;      // folder of a trained and fitted model; "": one is trained at the start
  bool device = false;  // the backend has one
};

// What the last call computed and read.
struct Seen {
  double active = 1, loaded = 1;  // see ffn_traffic
  Traffic traffic;
};

// How an output compares with the reference's.
struct Checked {
  Comparison comparison;
  int64_t rows = 0;     // that the reference computed
  bool decided = true;  // false: a score lay within rounding of its cut, so that other experts ran
};

// One row, prepared. Empty functions are left out.
struct Work {
  int64_t inputs = 1;                      // different ones that the calls walk over, in order
  std::function<void(int64_t)> load;       // puts input i in place; not timed
  std::function<void()> call;              // what is timed
  std::function<void()> beside;            // timed in turn with it, before each call
  const char* beside_counter = "x_dense";  // time of `beside` over time of `call`
  std::function<uint64_t()> output;        // digest of what the last call wrote
  std::function<Checked()> check;          // holds what the last call wrote against the reference
  std::function<Seen()> look;              // averaged over the inputs
  Traffic dense;                           // of `beside`, where that is the dense model
  int64_t tokens = 0;                      // of one call
  std::function<std::map<std::string, double>()> counters;  // what else there is to say
  std::vector<const Arena*> memory;  // what the calls use: brought to a device before it is timed
};

// Thrown by `prepare` where a row cannot be run here: it appears as "skipped: why".
struct Skip {
  std::string why;
};

struct Session {
  Options options;
  Backend backend;
};
// How a row is timed. wall: by the host's clock, with one wait at the end. The others are for calls without a
// host's part in them: by the device's own events, the L2 cache holding what the last call left there (warm),
// or nothing of use (cold). Without a device they are wall.
enum class Timer : uint8_t { wall, warm, cold };
struct Case {
  std::string name;  // family/synthetic or trained/model/...; key:value for numbers
  std::function<Work(Session&)> prepare;
  bool kernels = false;  // on a device two rows, warm and cold: "NAME/l2:warm"
};

// Defined by every program: its rows, and whether they only infer.
std::vector<Case> cases(const Options&);
extern const bool kInference;

// Keeps the last thing that was made, for cases that follow each other and share it.
template <class T>
struct Latest {
  std::string key;
  std::shared_ptr<T> value;

  template <class Make>
  std::shared_ptr<T> get(const std::string& wanted, Make&& make) {
    if (!value || key != wanted) {
      value.reset();  // the old one goes before the new one comes
      value = std::make_shared<T>(make());
      key = wanted;
    }
    return value;
  }
};

// Seconds that one call takes. A backend whose calls return early is waited for, or timed by its own
// events, here and nowhere else.
double seconds_of(Backend&, Timer, const std::function<void()>& call);

// Tensors and the memory that they lie in, as one value.
struct Block {
  std::vector<Tensor> tensor;
  Arena memory;
};
Block make_block(std::initializer_list<Tensor> shapes, Memory = {});

// "density_permille:500", names of other numbers alike.
int permille(double share);

}  // namespace lte
