#include "datasets/restaurants.h"

#include <fmt/format.h>

#include <set>

#include "core/check.h"
#include "data/documents.h"
#include "datasets/restaurants_words.h"

namespace lte {
namespace {

constexpr uint64_t kSeed = 0x726573746175;
constexpr double kOmission = 0.04;  // of the documents leave one slot out, as careless writers do
constexpr int kExamples = 200, kReferences = 5;

std::span<const SlotValue> values_of(Slot slot) {
  switch (slot) {
    case kEatType:
      return kEatTypes;
    case kFood:
      return kFoods;
    case kPrice:
      return kPrices;
    case kRating:
      return kRatings;
    case kArea:
      return kAreas;
    case kFamilySlot:
      return kFamily;
    case kNearSlot:
      return kNear;
    default:
      return {};
  }
}

Meaning draw_meaning(Rng& rng) {
  Meaning m;
  std::vector<Slot> slots;
  for (int s = kEatType; s < kSlots; ++s) slots.push_back(static_cast<Slot>(s));
  shuffle(slots, rng);
  slots.resize(2 + rng.below(6));
  slots.push_back(kName);
  for (Slot s : slots) m.value[s] = static_cast<int>(rng.below(value_count(s)));
  return m;
}

std::string write_prompt(const Meaning& m, Rng& rng) {
  std::vector<Slot> slots;
  for (int s = 0; s < kSlots; ++s) {
    if (m.value[s] >= 0) slots.push_back(static_cast<Slot>(s));
  }
  shuffle(slots, rng);
  std::string text;
  for (Slot s : slots) {
    text +=
        fmt::format("{}{}[{}]", text.empty() ? "" : ", ", kSlotNames[s], value_text(s, m.value[s]));
  }
  return text + " =>";
}

Slot draw_omission(const Meaning& m, Rng& rng) {
  if (rng.uniform() >= kOmission) return kSlots;
  for (;;) {
    const auto slot = static_cast<Slot>(1 + rng.below(kSlots - 1));
    if (m.value[slot] >= 0) return slot;
  }
}

struct Described {
  Documents documents;
  std::vector<Meaning> meanings;
  std::vector<std::string> prompts;
};

using Seen = std::set<std::array<int, kSlots>>;

// Adds the meanings to `seen`; where `fresh`, draws none that is there already.
Described make_documents(uint64_t stream, int count, bool fresh, Seen& seen) {
  Described d;
  Rng rng(hash64(kSeed, stream));
  while (static_cast<int>(d.meanings.size()) < count) {
    const Meaning m = draw_meaning(rng);
    if (!seen.insert(m.value).second && fresh) continue;
    d.prompts.push_back(write_prompt(m, rng));
    const Slot omit = draw_omission(m, rng);
    add_document(d.documents, d.prompts.back(), write_sentence(m, rng, omit));
    d.meanings.push_back(m);
  }
  return d;
}

}  // namespace

int value_count(Slot slot) {
  if (slot == kName) return static_cast<int>(std::size(kNameAdjectives) * std::size(kNameNouns));
  return static_cast<int>(values_of(slot).size());
}

std::string value_text(Slot slot, int value) {
  if (slot != kName) return std::string(values_of(slot)[value].mr);
  const size_t nouns = std::size(kNameNouns), a = value / nouns, b = value % nouns;
  return fmt::format("{}{} {}", (a + b) % 2 == 0 ? "The " : "", kNameAdjectives[a], kNameNouns[b]);
}

std::vector<std::string> realisations(Slot slot, int value) {
  if (slot == kName) return {value_text(slot, value)};
  const SlotValue& v = values_of(slot)[value];
  std::vector<std::string> all;
  for (std::string_view list : {v.before, v.thing, v.does, v.clause, v.where}) {
    while (!list.empty()) {
      const size_t end = std::min(list.find('|'), list.size());
      all.emplace_back(list.substr(0, end));
      list.remove_prefix(std::min(end + 1, list.size()));
    }
  }
  return all;
}

Meaning parse_meaning(std::string_view prompt) {
  Meaning m;
  std::string_view rest = prompt.substr(0, prompt.find("=>"));
  while (rest.find('[') != std::string_view::npos) {
    const size_t open = rest.find('['), close = rest.find(']', open);
    std::string_view slot_name = rest.substr(0, open);
    while (slot_name.starts_with(' ') || slot_name.starts_with(',')) slot_name.remove_prefix(1);
    int slot = 0, value = 0;
    while (slot < kSlots && kSlotNames[slot] != slot_name) ++slot;
    LTE_CHECK(slot < kSlots && close != std::string_view::npos,
              fmt::format("meaning: \"{}\" is not slot[value] with a known slot", rest));
    const auto text = rest.substr(open + 1, close - open - 1);
    const int count = value_count(static_cast<Slot>(slot));
    while (value < count && value_text(static_cast<Slot>(slot), value) != text) ++value;
    LTE_CHECK(value < count,
              fmt::format("meaning: \"{}\" is not a value of the slot {}", text, slot_name));
    m.value[slot] = value;
    rest.remove_prefix(close + 1);
  }
  return m;
}

Dataset load_restaurants(const std::string& name, const std::string& tokenizer, const DataPaths&) {
  Seen seen;
  const Described train = make_documents(0, 30000, false, seen);
  const Described valid = make_documents(1, 500, true, seen);
  const Described test = make_documents(2, 1000, true, seen);
  Dataset d =
      make_document_dataset(name, tokenizer, train.documents, valid.documents, test.documents);
  d.task = "slots";
  Rng rng(hash64(kSeed, 3));
  for (int i = 0; i < kExamples; ++i) {
    Example example{test.prompts[i], {}};
    for (int r = 0; r < kReferences; ++r) {
      example.references.push_back(write_sentence(test.meanings[i], rng));
    }
    d.examples.push_back(std::move(example));
  }
  return d;
}

}  // namespace lte
