// The host's side of a backend that works on its own time: everything that trains, scores, generates and
// fits gives the CPU's bits on a backend that runs only when it is waited for.
#include "late.h"

#include "fitting.h"
#include "model/generate.h"
#include "model/score.h"

namespace lte::testing {
namespace {

TEST(Late, NoEntryIsEmpty) {
  const Backend be = open_late();
  void* entry[sizeof(Ops) / sizeof(void*)];
  std::memcpy(entry, &be.ops, sizeof(Ops));
  for (size_t i = 0; i < std::size(entry); ++i) EXPECT_NE(entry[i], nullptr) << "entry " << i;
}

TEST(Late, RunsOnlyWhenWaitedForAndSeesItsOwnMemoryOnly) {
  const Backend be = open_late();
  Tensor t = shape(DType::f32, {4});
  Arena memory{.where = be.memory};
  memory.reserve(Arena::padded(t.bytes()));
  memory.carve(t);
  t.as<float>()[0] = 1;
  EXPECT_EQ(late_touches(), 0) << "nothing is enqueued";
  be.ops.fill(*be.ctx, t, 3);
  EXPECT_EQ(t.as<float>()[2], 0);
  EXPECT_EQ(late_touches(), 1) << "read too early";
  be.ops.fill(*be.ctx, t, 4);
  t.as<float>()[1] = 2;
  EXPECT_EQ(late_touches(), 2) << "written too early";
  be.finish();
  EXPECT_EQ(t.as<float>()[2], 4);
  EXPECT_EQ(late_touches(), 2);
  Store host;
  EXPECT_THROW(be.ops.fill(*be.ctx, host.blank(DType::f32, {4}), 0), Error);
}

TEST(Late, ProfiledOperationsAreDoneWhenTheirClockStops) {
  const Profiled timed = profiled(open_late());
  const Backend& be = timed.backend;
  Tensor t = shape(DType::f32, {4});
  Arena memory{.where = be.memory};
  memory.reserve(Arena::padded(t.bytes()));
  memory.carve(t);
  be.ops.fill(*be.ctx, t, 3);
  EXPECT_EQ(t.as<float>()[2], 3);
  EXPECT_EQ(late_touches(), 0);
  EXPECT_FALSE(be.ops.keeps_row_sums(*be.ctx)) << "what returns a value returns it";
}

class LateFit : public ::testing::TestWithParam<const Method*> {};

TEST_P(LateFit, TrainsScoresAndGeneratesTheSameBits) {
  const Method& m = *GetParam();
  const char* model = m.gated_only ? kLlama : kGpt;
  Fitting cpu(model), late(model);
  late.be = open_late();
  late.dense = clone(cpu.dense, late.be.memory);
  std::vector<Knobs> cases = {small_knobs(m)};
  for (const KnobRow& row : all_knobs(m)) {  // the other branches of methods that have some
    for (const char* value : {"taylor", "mask", "flap", "similarity", "oracle", "coactivation",
                              "cumulative", "output", "unit", "softmax", "gathered"}) {
      Knobs k = small_knobs(m);
      k[row.name] = value;
      try {
        cpu.run(m.name, k);
        cases.push_back(k);
      } catch (const Error&) {  // not a value of this knob
      }
    }
  }
  for (const Knobs& k : cases) {
    const Fitted a = cpu.run(m.name, k), b = late.run(m.name, k);
    late.be.finish();
    EXPECT_EQ(late_touches(), 0) << "the host touched tensors before their work was done";
    expect_same_bits(a.params.flat(), b.params.flat(), "parameters");
    ASSERT_EQ(a.predictors.size(), b.predictors.size());
    for (size_t i = 0; i < a.predictors.size(); ++i)
      EXPECT_EQ(a.predictors[i].recall, b.predictors[i].recall);
    for (size_t i = 0; i < a.plan.layer.size(); ++i) {
      EXPECT_EQ(a.plan.layer[i].order, b.plan.layer[i].order);
      EXPECT_EQ(a.plan.layer[i].cut, b.plan.layer[i].cut);
    }
    const std::vector<Window> windows = {{0, 16}, {16, 9}};
    for (const Shape shape : {Shape{2, 16, 0}, Shape{1, 8, 8}}) {
      const auto of = [&](Backend& be, const Fitted& f) {
        return score(be, f.params, f.plan, cpu.valid, windows, shape, Exec::gathered);
      };
      const Outcome x = of(cpu.be, a), y = of(late.be, b);
      EXPECT_EQ(x.digest, y.digest);
      EXPECT_EQ(x.loss, y.loss);
      EXPECT_EQ(x.active, y.active);
    }
    const std::vector<int32_t> prompt = {1, 2, 3};
    EXPECT_EQ(generate(cpu.be, a.params, a.plan, prompt, 8, -1, {}).tokens,
              generate(late.be, b.params, b.plan, prompt, 8, -1, {}).tokens);
    EXPECT_EQ(late_touches(), 0);
    EXPECT_GT(late_memory().replays, 0) << "scored and generated without a graph";
  }
}

INSTANTIATE_TEST_SUITE_P(All, LateFit, ::testing::ValuesIn(methods().begin(), methods().end()),
                         [](const auto& info) {
                           std::string name = info.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace lte::testing
