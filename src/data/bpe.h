// The byte-pair part of the tokenizer; use it through data/tokenizer.h.
#pragma once

#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace lte {

// Fills vocab, merges and ids: 256 bytes, then merges until `size` ids. Ties go to smaller ids.
void train_bpe(Tokenizer&, std::string_view text, int size);
std::vector<int32_t> encode_bpe(const Tokenizer&, std::string_view text);

}  // namespace lte
