// Loaders of plain text: what is split, encoded and streamed without any structure.
#pragma once

#include <string>

#include "data/dataset.h"

namespace lte {

struct TextSplits {
  std::string train, valid, test;
};

// 90, 5 and 5 % of the bytes, in order. A cut is behind the next newline if one is within 1 % of
// the text, else at the next bound of a character.
TextSplits split_text(const std::string& text);

// The vocabulary of "chars" is that of all splits, so that none holds an unknown character; "bpe"
// is trained on the training split. Throws Error if there are fewer than 64 tokens in all or 2 a
// split.
Dataset make_text_dataset(const std::string& name, const std::string& tokenizer, const TextSplits&);

// "text:PATH", a UTF-8 file. Without `tokenizer`: "chars" for up to 256 distinct characters, else
// "bpe:1024".
Dataset load_text_file(const std::string& name, const std::string& tokenizer, const DataPaths&);

Dataset load_tinyshakespeare(const std::string& name, const std::string& tokenizer,
                             const DataPaths&);
Dataset load_wikitext2(const std::string& name, const std::string& tokenizer, const DataPaths&);

}  // namespace lte
