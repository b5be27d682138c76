#include <fmt/format.h>

#include "app/commands.h"
#include "bench/timings.h"

namespace lte {

int cmd_compare(const CommonArgs& c, const CompareArgs& a) {
  std::vector<RowVersus> rows;
  try {
    rows = compare_timings(load_timings(a.a), load_timings(a.b));
  } catch (const Error& e) {
    fmt::print(stderr, "lte: compare: {}\n", e.what());
    return 2;
  }
  fmt::print("{}", c.json ? versus_json(rows) + "\n" : versus_table(rows));
  for (const RowVersus& r : rows) {
    if (r.verdict == "slower") return 1;
  }
  return 0;
}

}  // namespace lte
