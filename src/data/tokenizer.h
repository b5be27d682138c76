// Text to token ids and back: bytes, characters (Unicode code points), and a byte-level BPE
// (Sennrich et al., 2016; bytes as in GPT-2) that the suite trains itself.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lte {

struct Tokenizer {
  std::string spec;                                 // "bytes", "chars" or "bpe:N"
  std::vector<std::string> vocab;                   // id -> the bytes it stands for
  std::vector<std::pair<int32_t, int32_t>> merges;  // bpe: merge i makes id 256 + i
  std::unordered_map<std::string, int32_t> ids;     // the inverse of vocab
};

// Builds the vocabulary of `spec` from the training text (valid UTF-8 for "chars"). Deterministic.
// "bpe:N" has N ids, or fewer where no pair occurs twice any more. Unknown specs throw Error.
Tokenizer train_tokenizer(std::string_view spec, std::string_view text);
// Throws Error naming the first character that "chars" does not know. "bytes" and "bpe" know all.
std::vector<int32_t> encode(const Tokenizer&, std::string_view text);
std::string decode(const Tokenizer&, std::span<const int32_t> tokens);  // Error: an id out of range

std::string to_json(const Tokenizer&);
Tokenizer tokenizer_from_json(std::string_view json);  // throws Error on malformed input

// Throws Error with the byte offset of the first invalid sequence; `what` names the text.
void check_utf8(std::string_view text, std::string_view what);

// The length of the well-formed UTF-8 sequence at `at` (1 to 4), or 0 where there is none.
int utf8_length(std::string_view text, size_t at);

// Where the piece that starts at `at` ends. BPE never merges across pieces: a newline; a run of
// letters (bytes from 128 up are letters), of digits or of other marks, each with the one space
// before it; a run of other white space. At most 64 bytes.
size_t piece_end(std::string_view text, size_t at);

}  // namespace lte
