#include "model/decode.h"

namespace lte {

void repeat(Backend& be, Repeat& r, const std::function<void()>& work) {
  if (!be.ops.record || r.times++ == 0) return work();
  if (!r.graph) r.graph = be.ops.record(*be.ctx, work);
  be.ops.replay(*be.ctx, r.graph.get());
}

DecodeStep make_decode_step(const Backend& be, int64_t B) {
  DecodeStep s{.list = shape(DType::i32, {1 + B}), .memory = {.where = be.memory}};
  s.memory.reserve(Arena::padded(s.list.bytes()));
  s.memory.carve(s.list);
  return s;
}

void decode(Backend& be, const Params& p, const Plan& plan, std::span<const int32_t> tokens,
            int64_t pos, Run run, State& state, DecodeStep& step) {
  const auto B = static_cast<int64_t>(tokens.size());
  LTE_CHECK(step.list.size() == 1 + B, "decode: the step was made for another number of sequences");
  LTE_CHECK(pos < state.S, "decode: the position lies behind the cache");
  std::vector<int32_t> now = {static_cast<int32_t>(pos)};
  now.insert(now.end(), tokens.begin(), tokens.end());
  Tensor from = step.list;
  from.data = now.data();
  be.ops.copy_list(*be.ctx, step.list, from);
  const Chunk chunk{B, 1, 0, step.list.as<int32_t>()};
  Tensor in = shape(DType::i32, {B});
  in.data = step.list.as<int32_t>() + 1;
  repeat(be, step.again, [&] { forward(be, p, plan, in, chunk, run, state); });
}

}  // namespace lte
