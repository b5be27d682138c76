#include "data/documents.h"

#include "core/hash.h"

namespace lte {
namespace {

// No token crosses the bounds of documents or prompts, so that each begins with a token.
TokenSet to_tokens(const Documents& d, const Tokenizer& tokenizer) {
  TokenSet set;
  set.tokens = encode(tokenizer, d.text);
  size_t document = 0, at = 0;
  for (size_t i = 0; i < set.tokens.size(); ++i) {
    if (document < d.starts.size() && at == d.starts[document]) {
      set.starts.push_back(static_cast<int64_t>(i));
      ++document;
    }
    set.scored.push_back(at >= d.answers[document - 1]);
    at += tokenizer.vocab[set.tokens[i]].size();
  }
  return set;
}

}  // namespace

void add_document(Documents& d, std::string_view prompt, std::string_view answer) {
  d.starts.push_back(d.text.size());
  d.text += prompt;
  d.answers.push_back(d.text.size());
  d.text += ' ';
  d.text += answer;
  d.text += '\n';
}

Dataset make_document_dataset(const std::string& name, const std::string& tokenizer,
                              const Documents& train, const Documents& valid,
                              const Documents& test) {
  const std::string all = train.text + valid.text + test.text;
  Dataset d;
  d.name = name;
  d.sha256 = sha256_hex(all);
  d.tokenizer = train_tokenizer(tokenizer, tokenizer == "chars" ? all : train.text);
  d.train = to_tokens(train, d.tokenizer);
  d.valid = to_tokens(valid, d.tokenizer);
  d.test = to_tokens(test, d.tokenizer);
  return d;
}

}  // namespace lte
