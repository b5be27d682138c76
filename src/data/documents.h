// Documents of a prompt, which is not scored, and an answer, which is: what the tasks share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"

namespace lte {

struct Documents {
  std::string text;
  std::vector<size_t> starts, answers;  // byte offsets: of the line, and behind its prompt
};

// One line "PROMPT ANSWER\n". The prompt must end in a mark (neither letter, digit nor space), so
// that no token crosses its end, whatever the tokenizer: see piece_end.
void add_document(Documents&, std::string_view prompt, std::string_view answer);

// Everything but the task. The answer is scored, with the space before it and the newline after
// it. The vocabulary of "chars" is that of all splits; "bpe" is trained on the training split.
Dataset make_document_dataset(const std::string& name, const std::string& tokenizer,
                              const Documents& train, const Documents& valid,
                              const Documents& test);

}  // namespace lte
