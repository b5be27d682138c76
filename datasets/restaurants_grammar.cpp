// The grammar: slots are dealt to one to three sentences; a sentence puts a slot before its noun,
// behind it, into a verb phrase or into a clause, and each place has many wordings.
// One draw of the generator an expression: C++ leaves the order of operands open, and the text must
// not depend on the compiler.
#include <algorithm>
#include <cctype>

#include "datasets/restaurants.h"
#include "datasets/restaurants_words.h"

namespace lte {
namespace {

using Slots = std::vector<Slot>;

// "{}" in the chosen alternative is replaced by `what`. Alternatives are separated by '|'.
std::string pick(std::string_view alternatives, Rng& rng, std::string_view what = "") {
  const auto count = 1 + std::count(alternatives.begin(), alternatives.end(), '|');
  for (uint64_t skip = rng.below(static_cast<uint64_t>(count)); skip > 0; --skip) {
    alternatives.remove_prefix(alternatives.find('|') + 1);
  }
  std::string text(alternatives.substr(0, alternatives.find('|')));
  if (const size_t at = text.find("{}"); at != std::string::npos) text.replace(at, 2, what);
  return text;
}

const SlotValue& value_of(const Meaning& m, Slot slot) {
  const auto v = static_cast<size_t>(m.value[slot]);
  switch (slot) {
    case kEatType:
      return kEatTypes[v];
    case kFood:
      return kFoods[v];
    case kPrice:
      return kPrices[v];
    case kRating:
      return kRatings[v];
    case kArea:
      return kAreas[v];
    case kFamilySlot:
      return kFamily[v];
    default:
      return kNear[v];
  }
}

bool coin(Rng& rng, double p) { return rng.uniform() < p; }

std::string capitalised(std::string text) {
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

std::string with_article(const std::string& phrase) {
  const bool vowel = std::string_view("aeiouAEIOU").find(phrase[0]) != std::string_view::npos;
  return (vowel && !phrase.starts_with("one-") ? "an " : "a ") + phrase;
}

constexpr std::string_view kBeside =
    "near {}|close to {}|next to {}|not far from {}|beside {}|a short walk from {}|across from "
    "{}|around the corner from {}|opposite {}|a few steps from {}";

std::string where(const Meaning& m, Slot slot, Rng& rng) {
  const SlotValue& v = value_of(m, slot);
  return slot == kArea ? pick(v.where, rng) : pick(kBeside, rng, v.thing);
}

std::string meals(const SlotValue& food, Rng& rng) {
  if (coin(rng, 0.3)) return pick(food.thing, rng);
  return pick("{} food|{} dishes|{} cuisine|{} meals|{} cooking|good {} food|{} classics", rng,
              pick(food.before, rng));
}

// Behind the noun: "a pub [serving French food]".
std::string behind(const Meaning& m, Slot slot, Rng& rng) {
  const SlotValue& v = value_of(m, slot);
  switch (slot) {
    case kFood:
      return pick("serving {}|offering {}|with {}|that serves {}|known for {}|that offers {}", rng,
                  meals(v, rng));
    case kPrice:
      return pick("with {}|that has {}|offering {}", rng, pick(v.thing, rng));
    case kRating:
      return pick("with {}|that has {}|that has earned {}", rng, pick(v.thing, rng));
    case kFamilySlot:
      return "that " + pick(v.does, rng);
    default:
      return where(m, slot, rng);
  }
}

// Behind a subject: "It [serves French food]".
std::string verb(const Meaning& m, Slot slot, Rng& rng) {
  const SlotValue& v = value_of(m, slot);
  const bool adjective = !v.before.empty() && coin(rng, 0.4);
  switch (slot) {
    case kEatType:
      return "is " + with_article(pick(v.thing, rng));
    case kFood:
      if (coin(rng, 0.2)) {
        return pick("has {} menu|runs {} kitchen|has {} chef", rng,
                    with_article(pick(v.before, rng)));
      }
      return pick(
          "serves {}|offers {}|specialises in {}|is known for its {}|has {} on the menu|is famous "
          "for "
          "its {}|prepares {}|provides {}",
          rng, meals(v, rng));
    case kPrice:
      if (adjective) return pick("is {}|is {} for what it offers", rng, pick(v.before, rng));
      return pick("has {}|offers {}|is a place with {}|is known for {}", rng, pick(v.thing, rng));
    case kRating:
      if (adjective) return "is " + with_article(pick(v.before, rng)) + " place";
      return pick(
          "has {}|has received {}|holds {}|gets {} from its guests|was given {} by customers|has "
          "earned "
          "{}",
          rng, pick(v.thing, rng));
    case kFamilySlot:
      return adjective ? "is " + pick(v.before, rng) : pick(v.does, rng);
    default:
      return pick("is {}|is located {}|can be found {}|lies {}|sits {}|stands {}|is situated {}",
                  rng, where(m, slot, rng));
  }
}

// A sentence of its own, without the full stop.
std::string clause(const Meaning& m, Slot slot, Rng& rng) {
  const SlotValue& v = value_of(m, slot);
  switch (slot) {
    case kEatType:
      return pick("this {} is worth knowing|it is the kind of {} that locals know", rng,
                  pick(v.thing, rng));
    case kFood:
      if (coin(rng, 0.4)) {
        return pick("the food is {}|the menu is {}|the kitchen is {}|the chef cooks {} recipes",
                    rng, pick(v.before, rng));
      }
      return pick("expect {}|you can order {}|guests come for the {}|the menu offers {}", rng,
                  meals(v, rng));
    case kPrice:
      return pick("expect {}|you can expect {}|guests will find {}|the menu has {}", rng,
                  pick(v.thing, rng));
    case kRating:
      return pick(
          "customers have given it {}|guests gave it {}|it has been given {}|visitors left it "
          "{}",
          rng, pick(v.thing, rng));
    case kFamilySlot:
      return pick(v.clause, rng);
    default:
      return pick(
          "you can find it {}|you will find it {}|it is {}|look for it {}|its address is {}", rng,
          where(m, slot, rng));
  }
}

// +1 for what guests like, -1 for what they do not, 0 for neither.
int mood(const Meaning& m, Slot slot) {
  const int v = m.value[slot];
  if (slot == kPrice) return v == 0 || v == 3 ? 1 : v == 2 || v == 5 ? -1 : 0;
  if (slot == kRating) return v == 0 || v == 3 ? -1 : v == 2 || v >= 5 ? 1 : 0;
  return slot == kFamilySlot ? (v == 0 ? 1 : -1) : 0;
}

std::string verbs(const Meaning& m, const Slots& slots, Rng& rng) {
  std::string text = verb(m, slots[0], rng);
  for (size_t i = 1; i < slots.size(); ++i) {
    const bool last = i + 1 == slots.size();
    const bool turns = mood(m, slots[i - 1]) * mood(m, slots[i]) < 0;
    text += !last   ? ", "
            : turns ? pick(" but | but |, though it ", rng)
                    : pick(" and | and |, and it ", rng);
    text += verb(m, slots[i], rng);
  }
  return text;
}

bool is_participle(std::string_view word) {
  return word == "serving" || word == "offering" || word == "known";
}

// The phrases behind a noun, joined: "with low prices and mixed reviews".
std::string join_behind(const Meaning& m, Slots slots, Rng& rng) {
  // What is short and binds closely stands first; "that" binds to all of it.
  constexpr int kPlace[kSlots] = {0, 0, 2, 3, 4, 0, 5, 1};
  std::sort(slots.begin(), slots.end(), [&](Slot a, Slot b) { return kPlace[a] < kPlace[b]; });
  std::string text, last;
  for (Slot slot : slots) {
    const std::string phrase = behind(m, slot, rng), head = phrase.substr(0, phrase.find(' '));
    const bool same = head == last && (head == "with" || head == "that");
    const bool alike = is_participle(head) && is_participle(last);
    text += same ? " and" + phrase.substr(head.size()) : (alike ? " and " : " ") + phrase;
    last = head;
  }
  return text;
}

// "cheap French pub": by `slots`, ordered, the noun last.
std::string join_before(const Meaning& m, Slots slots, const std::string& noun, Rng& rng) {
  constexpr int kPlace[kSlots] = {0, 0, 3, 1, 0, 0, 2, 0};
  std::sort(slots.begin(), slots.end(), [&](Slot a, Slot b) { return kPlace[a] < kPlace[b]; });
  std::string text;
  for (size_t i = 0; i < slots.size(); ++i) {
    text += (i == 0              ? ""
             : slots[i] == kFood ? " "
                                 : ", ") +
            pick(value_of(m, slots[i]).before, rng);
  }
  return text.empty() ? noun : text + " " + noun;
}

// "a cheap pub by the river": up to two adjectives, the noun and up to three phrases behind it.
// What does not fit stays in `slots`. `called` follows the noun.
std::string noun_phrase(const Meaning& m, Slots& slots, Rng& rng, const std::string& called = "") {
  std::string noun = pick("place|venue|spot|eatery|establishment", rng);
  Slots before, after, rest;
  for (Slot slot : slots) {
    if (slot == kEatType) {
      noun = pick(value_of(m, slot).thing, rng);
    } else if (!value_of(m, slot).before.empty() && before.size() < 2 && coin(rng, 0.55)) {
      before.push_back(slot);
    } else {
      (after.size() < 3 ? after : rest).push_back(slot);
    }
  }
  slots = rest;
  const std::string front = join_before(m, before, noun, rng);
  return with_article(front) + called + join_behind(m, after, rng);
}

// The sentence that gives the name. Slots that it leaves over stay in `slots`.
std::string first_sentence(const Meaning& m, Slots& slots, Rng& rng) {
  const std::string name = value_text(kName, m.value[kName]);
  std::string opener;
  const auto place =
      std::find_if(slots.begin(), slots.end(), [](Slot s) { return s == kArea || s == kNearSlot; });
  if (place != slots.end() && slots.size() > 1 && coin(rng, 0.3)) {
    opener = capitalised(where(m, *place, rng)) + ", ";
    slots.erase(place);
  }
  const auto form = rng.below(opener.empty() ? 7 : 3);
  const auto take_all_verbs = [&] {
    const Slots all(slots.begin(),
                    slots.begin() + static_cast<long>(std::min<size_t>(3, slots.size())));
    slots.erase(slots.begin(), slots.begin() + static_cast<long>(all.size()));
    return verbs(m, all, rng);
  };
  if (form == 0) {
    const std::string called = pick(" called {}| named {}| by the name of {}", rng, name);
    const auto there = pick("there is |you will find |you can find ", rng);
    return (opener.empty() ? capitalised(there) : opener + there) +
           noun_phrase(m, slots, rng, called) + ".";
  }
  if (form == 1) return opener + name + " is " + noun_phrase(m, slots, rng) + ".";
  if (form == 2) return opener + name + " " + take_all_verbs() + ".";
  if (form == 3 && slots.size() >= 2) {
    const size_t half = slots.size() / 2;
    Slots front(slots.begin(), slots.begin() + static_cast<long>(half));
    slots.erase(slots.begin(), slots.begin() + static_cast<long>(half));
    const std::string what = noun_phrase(m, front, rng);
    const std::string does = take_all_verbs();
    slots.insert(slots.end(), front.begin(), front.end());
    return name + ", " + what + ", " + does + ".";
  }
  if (form == 4) {
    std::string text = pick("If you want |If you are looking for |For those who want ", rng);
    text += noun_phrase(m, slots, rng);
    return text + ", " + pick("try {}.|visit {}.|go to {}.|consider {}.", rng, name);
  }
  if (form == 5) {
    const std::string text = "Looking for " + noun_phrase(m, slots, rng) + "? ";
    return text + pick("Try {}.|{} is for you.|{} is one.", rng, name);
  }
  return name + " " + take_all_verbs() + ".";
}

std::string later_sentence(const Meaning& m, const Slots& slots, bool type_known, Rng& rng) {
  if (coin(rng, 0.3)) {
    std::string text = capitalised(clause(m, slots[0], rng));
    const Slots rest(slots.begin() + 1, slots.end());
    if (!rest.empty()) text += ", and it " + verbs(m, rest, rng);
    return text + ".";
  }
  std::string subject = pick("It|It|It|The place|The venue", rng);
  if (type_known && coin(rng, 0.25)) {
    subject = pick("The {}|This {}", rng, value_of(m, kEatType).mr);
  }
  return subject + " " + verbs(m, slots, rng) + ".";
}

}  // namespace

std::string write_sentence(const Meaning& m, Rng& rng, Slot omit) {
  Slots slots;
  for (int s = kEatType; s < kSlots; ++s) {
    if (m.value[s] >= 0 && s != omit) slots.push_back(static_cast<Slot>(s));
  }
  shuffle(slots, rng);
  const auto type = std::find(slots.begin(), slots.end(), kEatType);
  if (type != slots.end() && coin(rng, 0.85)) std::rotate(slots.begin(), type, type + 1);
  const size_t n = slots.size(), share = n <= 2 ? n : 2 + rng.below(std::min<size_t>(n - 1, 4));
  Slots first(slots.begin(), slots.begin() + static_cast<long>(std::min(share, n)));
  Slots rest(slots.begin() + static_cast<long>(first.size()), slots.end());
  const bool type_first = std::find(first.begin(), first.end(), kEatType) != first.end();
  std::string text = first_sentence(m, first, rng);
  const bool type_known =
      type_first && std::find(first.begin(), first.end(), kEatType) == first.end();
  rest.insert(rest.begin(), first.begin(), first.end());
  while (!rest.empty()) {
    const size_t most = rest.size() == 4 ? 2 : std::min<size_t>(3, rest.size());
    const size_t take = rest.size() > 3 ? most : 1 + rng.below(most);
    const Slots now(rest.begin(), rest.begin() + static_cast<long>(take));
    rest.erase(rest.begin(), rest.begin() + static_cast<long>(take));
    text += ' ';
    text += later_sentence(m, now, type_known, rng);
  }
  return text;
}

}  // namespace lte
