#include "model/batches.h"

#include <algorithm>

#include "core/rng.h"

namespace lte {

Window train_window(const TokenSet& set, int seq, uint64_t seed, uint64_t step, uint64_t row) {
  const auto size = static_cast<int64_t>(set.tokens.size());
  LTE_CHECK(size >= 2, "training wants at least 2 tokens");
  const auto length = static_cast<int32_t>(std::min<int64_t>(seq, size - 1));
  const int64_t last = size - 1 - length;  // the last place where a whole window fits
  Rng rng(hash64(seed, 0xba7c4, step, row));
  if (set.starts.empty()) {
    return {static_cast<int64_t>(rng.below(static_cast<uint64_t>(last) + 1)), length};
  }
  const auto usable =
      std::upper_bound(set.starts.begin(), set.starts.end(), last) - set.starts.begin();
  if (usable == 0) return {0, length};
  return {set.starts[rng.below(static_cast<uint64_t>(usable))], length};
}

std::vector<Window> test_windows(const TokenSet& set, int seq, int64_t limit) {
  std::vector<Window> all;
  const auto size = static_cast<int64_t>(set.tokens.size());
  for (int64_t at = 0; at + 1 < size;) {
    int64_t end = std::min(at + seq, size - 1);  // the last predicted token
    if (!set.starts.empty() && end + 1 < size) {
      // The next document start after the window's last whole document.
      const auto next = std::upper_bound(set.starts.begin(), set.starts.end(), end + 1);
      const int64_t start = next == set.starts.begin() ? 0 : *(next - 1);
      if (start > at) {
        all.push_back({at, static_cast<int32_t>(start - 1 - at)});
        at = start;
        continue;
      }
    }
    all.push_back({at, static_cast<int32_t>(end - at)});
    at = end;
  }
  std::erase_if(all, [](const Window& w) { return w.length < 1; });
  if (limit <= 0 || static_cast<int64_t>(all.size()) <= limit) return all;
  std::vector<Window> some;
  for (int64_t i = 0; i < limit; ++i) {
    some.push_back(all[static_cast<size_t>(i * static_cast<int64_t>(all.size()) / limit)]);
  }
  return some;
}

int64_t fill_row(const TokenSet& set, Window w, int64_t row, int64_t T, std::span<int32_t> tokens,
                 std::span<int32_t> targets) {
  int64_t counted = 0;
  for (int64_t t = 0; t < T; ++t) {
    const auto to = static_cast<size_t>(row * T + t), from = static_cast<size_t>(w.start + t);
    tokens[to] = 0, targets[to] = -1;
    if (t >= w.length) continue;
    tokens[to] = set.tokens[from];
    if (!set.scored.empty() && !set.scored[from + 1]) continue;
    targets[to] = set.tokens[from + 1];
    ++counted;
  }
  return counted;
}

}  // namespace lte
