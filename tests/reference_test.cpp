// The reference of the benchmark programs: it takes over which experts were open, and says where they should not
// have been.
#include "reference.h"

#include "testing.h"

namespace lte::testing {
namespace {

struct Replayed {
  ModelConfig c = tiny(kGpt, 16);
  Plan plan = routed(c, 4);
  Params p = test_params(c, plan);
  std::vector<int32_t> text = random_tokens(5, 16, 3).tokens;
  Tensor tokens = shape(DType::i32, {5});
  Session session{.options = {}, .backend = open_backend("cpu", 1)};
  State seen;

  Replayed() {
    randomise(p, 4);
    set_routers(p, 0.5, 0);
    tokens.data = text.data();
    seen = run_forward(session.backend, p, plan, tokens, 1, {Gate::hard, Exec::gathered});
  }
  float& gate(int64_t row, int64_t e) {
    const Tensor& g = seen.layer[1].gates;
    return g.as<float>()[row * g.cols() + e];
  }
  double off_cut(int64_t row, int64_t e) const {
    const Tensor& s = seen.layer[1].scores;
    return std::abs(static_cast<double>(s.as<float>()[row * s.cols() + e]) - 0.5);
  }
  // The logits of the last three rows, and what was wrong.
  std::pair<Values, std::string> replayed(double slack) {
    const State all = run_forward(session.backend, p, plan, tokens, 1, {Gate::hard, Exec::masked});
    Replay r = replay(session, DType::f32, seen, 2, slack);
    State s = make_state(p, plan, 1, 3, 5, Keep::one_layer);
    for (size_t i = 0; i < s.layer.size(); ++i) {
      std::memcpy(s.layer[i].k.data, all.layer[i].k.data, s.layer[i].k.bytes());
      std::memcpy(s.layer[i].v.data, all.layer[i].v.data, s.layer[i].v.bytes());
    }
    Tensor last = shape(DType::i32, {3});
    last.data = text.data() + 2;
    forward(r.backend, p, plan, last, {1, 3, 2}, {Gate::hard, Exec::masked}, s);
    return {values(s.logits), *r.wrong};
  }
};

TEST(Reference, TakesOverTheGatesOfTheRowsThatItComputes) {
  Replayed q;
  const auto [logits, wrong] = q.replayed(0);
  EXPECT_EQ(wrong, "");
  expect_close(some_rows(q.seen.logits, 2, 3), logits,
               tolerance_of(DType::f32, 96, largest(logits)), "as it was");
}

TEST(Reference, SaysWhichExpertShouldNotHaveBeenOpen) {
  Replayed q;
  const Values before = q.replayed(0).first;
  q.gate(3, 2) = 1 - q.gate(3, 2);
  const double off = q.off_cut(3, 2);
  const auto [logits, wrong] = q.replayed(0.5 * off);
  EXPECT_NE(wrong.find("layer 1, expert 2 of row 3"), std::string::npos) << wrong;
  EXPECT_NE(logits, before) << "the gate was not taken over";
  EXPECT_EQ(q.replayed(10 * off).second, "") << "a score so near the cut may choose either way";
}

TEST(Reference, RoundingOfBf16IsAllowedOnADeviceAlone) {
  const Session cpu{.options = {}, .backend = open_backend("cpu", 1)};
  EXPECT_EQ(allowed(cpu, DType::bf16, 100, 4, 2), tolerance_of(DType::f32, 100, 2));
}

}  // namespace
}  // namespace lte::testing
