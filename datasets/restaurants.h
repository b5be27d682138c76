// Meaning representation to sentence, in the manner of the E2E task but with words and a grammar of
// its own. A document is one line, `name[The Olive Grove], food[French], ... => SENTENCE`.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.h"
#include "data/dataset.h"

namespace lte {

enum Slot { kName, kEatType, kFood, kPrice, kRating, kArea, kFamilySlot, kNearSlot, kSlots };
inline constexpr std::string_view kSlotNames[kSlots] = {"name",   "eatType", "food",   "price",
                                                        "rating", "area",    "family", "near"};

struct Meaning {
  std::array<int, kSlots> value;  // an index into the slot's values; -1: the slot is absent
  Meaning() { value.fill(-1); }
  bool operator==(const Meaning&) const = default;
};

int value_count(Slot);
std::string value_text(Slot, int value);  // as in the meaning representation
// Every phrase that expresses the value; the grammar uses no other.
std::vector<std::string> realisations(Slot, int value);

// Reads "slot[value], ... =>", in any order; what follows "=>" is ignored. Throws Error on an
// unknown slot or value.
Meaning parse_meaning(std::string_view prompt);

// One to three sentences that express every slot but those in `omit`.
std::string write_sentence(const Meaning&, Rng&, Slot omit = kSlots);

// 30,000 / 500 / 1,000 documents, always the same; no meaning of the test or the validation split
// occurs in training. The meaning and "=>" are not scored; the sentence, with the space before it
// and the newline after it, is. Examples: 200 test meanings with 5 references each.
Dataset load_restaurants(const std::string& name, const std::string& tokenizer, const DataPaths&);

}  // namespace lte
