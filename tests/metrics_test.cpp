#include "data/metrics.h"

#include <gtest/gtest.h>

#include <map>

#include "core/check.h"
#include "datasets/restaurants.h"

namespace lte {
namespace {

double rouge(const std::string& candidate, std::vector<std::string> references) {
  return rouge_l(candidate, references);
}

TEST(RougeL, ByHand) {
  EXPECT_DOUBLE_EQ(rouge("the cat sat", {"the cat sat"}), 1.0);
  EXPECT_DOUBLE_EQ(rouge("The CAT sat.", {"the cat sat ."}), 1.0);
  EXPECT_DOUBLE_EQ(rouge("a b", {"c d"}), 0.0);
  EXPECT_DOUBLE_EQ(rouge("", {"a"}), 0.0);
  EXPECT_DOUBLE_EQ(rouge("a", {}), 0.0);
  // LCS "police the gunman" = 3 of 4 and 3 of 4: P = R = F.
  EXPECT_DOUBLE_EQ(rouge("police kill the gunman", {"police killed the gunman"}), 0.75);
  // LCS 2; P = 2/2, R = 2/4: F = 2.44 * 0.5 / (0.5 + 1.44) = 1.22 / 1.94.
  EXPECT_NEAR(rouge("a c", {"a b c d"}), 1.22 / 1.94, 1e-12);
  // The other way round: P = 2/4, R = 1: F = 1.22 / (1 + 0.72).
  EXPECT_NEAR(rouge("a b c d", {"a c"}), 1.22 / 1.72, 1e-12);
}

TEST(RougeL, MaximaOfPrecisionAndRecallAreTakenApart) {
  // To "a b x y z w": P = 2/3, R = 2/6. To "c": P = 1/3, R = 1. So P = 2/3 and R = 1.
  EXPECT_NEAR(rouge("a b c", {"a b x y z w", "c"}), 2.44 * (2.0 / 3) / (1 + 1.44 * 2.0 / 3), 1e-12);
}

TEST(SlotErrors, CountsMissingAndAdded) {
  const std::string mr = "name[The Olive Grove], food[French], area[riverside], family[no] =>";
  const auto check = [&](const std::string& text, int missing, int added) {
    const SlotErrors e = slot_errors(mr, text);
    EXPECT_EQ(e.slots, 4);
    EXPECT_EQ(e.missing, missing) << text;
    EXPECT_EQ(e.added, added) << text;
  };
  check("The Olive Grove serves French food by the river. It is not family-friendly.", 0, 0);
  check("the olive grove serves FRENCH food by the river. children are not welcome.", 0, 0);
  check("The Olive Grove serves Thai food by the river. It is not family-friendly.", 1, 1);
  check("The Olive Grove serves French food by the river. It is family-friendly.", 1, 1);
  check("The Olive Grove serves French food by the river.", 1, 0);
  check("The Olive Grove is a pub that is for adults only. It is by the river. Expect low prices.",
        1, 2);
  check("Golden Heron serves Frenchfood.", 4, 0);
  check("", 4, 0);
}

TEST(SlotErrors, RefusesWhatIsNoMeaning) {
  EXPECT_THROW(slot_errors("colour[red] =>", "x"), Error);
  EXPECT_THROW(slot_errors("food[Martian] =>", "x"), Error);
  EXPECT_THROW(slot_errors("food[French", "x"), Error);
}

// No phrase may express two values: the metric could not tell them apart.
TEST(SlotErrors, RealisationsAreUnique) {
  std::map<std::string, std::pair<int, int>> owner;
  for (int s = 0; s < kSlots; ++s) {
    for (int v = 0; v < value_count(static_cast<Slot>(s)); ++v) {
      const auto phrases = realisations(static_cast<Slot>(s), v);
      EXPECT_FALSE(phrases.empty());
      for (const std::string& phrase : phrases) {
        EXPECT_FALSE(phrase.empty());
        const auto [it, is_new] = owner.try_emplace(phrase, s, v);
        EXPECT_TRUE(is_new) << phrase;
      }
    }
  }
}

TEST(SlotErrors, GrammarAndMetricAgree) {
  const Dataset d = load_restaurants("restaurants", "bytes", {});
  Rng rng(5);
  int wrong = 0, found_omissions = 0, omissions = 0;
  for (int i = 0; i < 5000; ++i) {
    const std::string& prompt = d.examples[i % d.examples.size()].prompt;
    const Meaning m = parse_meaning(prompt);
    const SlotErrors e = slot_errors(prompt, write_sentence(m, rng));
    wrong += e.missing + e.added > 0;
    if (i % 10 != 0 || m.value[kFood] < 0) continue;
    const SlotErrors without = slot_errors(prompt, write_sentence(m, rng, kFood));
    ++omissions;
    found_omissions += without.missing == 1 && without.added == 0;
  }
  EXPECT_LE(wrong, 5);
  EXPECT_EQ(found_omissions, omissions);
}

TEST(SlotErrors, AWrongValueIsMissingAndAdded) {
  Rng rng(6);
  for (int s = 0; s < kSlots; ++s) {
    for (int v = 0; v < value_count(static_cast<Slot>(s)); v += s == kName ? 37 : 1) {
      Meaning asked = parse_meaning("name[The Olive Grove], food[Thai], near[Mill Lane] =>");
      Meaning said = asked;
      asked.value[s] = v;
      said.value[s] = (v + 1) % value_count(static_cast<Slot>(s));
      std::string prompt;
      for (int k = 0; k < kSlots; ++k) {
        if (asked.value[k] < 0) continue;
        prompt += std::string(prompt.empty() ? "" : ", ") + std::string(kSlotNames[k]) + "[" +
                  value_text(static_cast<Slot>(k), asked.value[k]) + "]";
      }
      const std::string text = write_sentence(said, rng);
      const SlotErrors e = slot_errors(prompt + " =>", text);
      EXPECT_EQ(e.missing, 1) << prompt << text;
      EXPECT_EQ(e.added, 1) << prompt << text;
    }
  }
}

}  // namespace
}  // namespace lte
