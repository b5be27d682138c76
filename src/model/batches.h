// Which windows of a token set are trained on and scored: pure functions of the set, the seed and
// the step, so that a run can be resumed anywhere.
#pragma once

#include <span>

#include "core/tensor.h"
#include "core/tokens.h"

namespace lte {

// The window of `seq` predictions for one row of one step: it begins at a random document's start,
// or anywhere in a continuous stream.
Window train_window(const TokenSet&, int seq, uint64_t seed, uint64_t step, uint64_t row);

// Windows of up to `seq` predictions that score every token once. A document that does not fit into
// the rest of a window begins the next one, unless it is longer than a window. At most `limit`
// windows, spread evenly (0: all).
std::vector<Window> test_windows(const TokenSet&, int seq, int64_t limit = 0);

// Writes inputs and targets of one window to row `row` of [B, T] tables; positions beyond its
// length, and targets that are not scored, become input 0 and target -1. Returns the number of
// targets.
int64_t fill_row(const TokenSet&, Window, int64_t row, int64_t T, std::span<int32_t> tokens,
                 std::span<int32_t> targets);

}  // namespace lte
