#include "bench/ceilings.h"

#include <algorithm>
#include <optional>

#include "core/device.h"

namespace lte {
namespace {

// Whole numbers of one digit: products of them are exact in f32, and in bf16 too.
void put(const Tensor& t, int64_t i, float value) {
  if (t.dtype == DType::bf16) {
    t.as<Bf16>()[i] = to_bf16(value);
  } else {
    t.as<float>()[i] = value;
  }
}

}  // namespace

StreamBlock::StreamBlock(int64_t bytes) {
  memory.reserve(static_cast<size_t>(bytes));
  auto* p = reinterpret_cast<uint64_t*>(memory.base());
  std::fill_n(p, bytes / static_cast<int64_t>(sizeof(uint64_t)), 1);
  numbers = {p, static_cast<size_t>(bytes) / sizeof(uint64_t)};
}

double stream_rate(ThreadPool& pool, const StreamBlock& block) {
  const auto n = static_cast<int64_t>(block.numbers.size()),
             pieces = static_cast<int64_t>(pool.size());
  std::vector<uint64_t> sums(static_cast<size_t>(pieces));
  const double start = wall_seconds();
  pool.run(pieces, [&](int64_t piece, int) {
    constexpr int64_t kLanes = 32;  // four vectors of 64 bytes
    const uint64_t* p = block.numbers.data() + n * piece / pieces / kLanes * kLanes;
    const uint64_t* end = block.numbers.data() + n * (piece + 1) / pieces / kLanes * kLanes;
    uint64_t sum[kLanes] = {};
    for (; p < end; p += kLanes) {
      for (int64_t k = 0; k < kLanes; ++k) sum[k] += p[k];
    }
    for (uint64_t s : sum) sums[static_cast<size_t>(piece)] += s;
  });
  const double seconds = wall_seconds() - start;
  uint64_t all = 0;
  for (uint64_t s : sums) all += s;
  LTE_CHECK(all == sums[0] || pieces > 1, "stream: sums differ");  // keeps the reads
  return static_cast<double>(block.numbers.size_bytes()) / seconds;
}

GemmProbe::GemmProbe(const Backend& be, int64_t m, int64_t n, int64_t k, DType weights, bool t)
    : out(shape(DType::f32, {m, n})),
      x(shape(DType::f32, {m, k})),
      w(t ? shape(weights, {n, k}) : shape(weights, {k, n})),
      transposed(t),
      memory{.where = be.memory} {
  memory.reserve(Arena::padded(out.bytes()) + Arena::padded(x.bytes()) + Arena::padded(w.bytes()));
  for (Tensor* t : {&out, &x, &w}) memory.carve(*t);
  for (int64_t i = 0; i < x.size(); ++i) put(x, i, static_cast<float>(i % 5) - 2);
  for (int64_t i = 0; i < w.size(); ++i) put(w, i, static_cast<float>(i % 7) - 3);
}

double GemmProbe::seconds(Backend& be, double (*now)()) {
  const double start = now();
  be.ops.gemm(*be.ctx, out, x, false, w, transposed);
  be.finish();
  return now() - start;
}

bool has_bf16(Backend& be) {
  GemmProbe got(be, 16, 16, 16, DType::bf16, true), want(be, 16, 16, 16, DType::f32, true);
  try {
    got.seconds(be);  // small enough for one piece of work, so that its error arrives here
  } catch (const Error&) {
    return false;
  }
  want.seconds(be);
  return std::equal(want.out.as<float>(), want.out.as<float>() + want.out.size(),
                    got.out.as<float>());
}

Ceilings measure_ceilings(Backend& be, int threads, const StreamBlock& block, int passes) {
  Ceilings c;
  ThreadPool one(1), all(threads);
  GemmProbe f32(be, kGemmSide, kGemmSide, kGemmSide, DType::f32, false);
  const bool bf16 = has_bf16(be);
  const int64_t side = bf16 ? kGemmSide : 1;
  GemmProbe half(be, side, side, side, DType::bf16, true);
  // The best products of this build beside the backend's own: floats, and floats rounded to bf16 where it can.
  Backend best = open_backend("auto", threads);
  std::optional<Backend> rounding;
  try {
    rounding = open_backend(fastest_backend() + "+bf16", threads);
  } catch (const Error&) {  // not in this build
  }
  const double flops = 2.0 * kGemmSide * kGemmSide * kGemmSide;
  for (int i = 0; i < passes; ++i) {
    c.stream_one = std::max(c.stream_one, stream_rate(one, block));
    c.stream_all = std::max(c.stream_all, stream_rate(all, block));
    c.gemm_f32 = std::max({c.gemm_f32, flops / f32.seconds(be), flops / f32.seconds(best)});
    if (bf16) c.gemm_bf16 = std::max(c.gemm_bf16, flops / half.seconds(be));
    if (bf16 && rounding) c.gemm_bf16 = std::max(c.gemm_bf16, flops / f32.seconds(*rounding));
  }
  return c;
}

Ceilings measure_device(Backend& be, size_t bytes, int side) {
  LTE_CHECK(be.device, "backend " + be.name + " has no device");
  const DeviceRates r = be.device->rates(*be.ctx, bytes, side);
  const double products = has_variant(be, "bf16")   ? r.bf16
                          : has_variant(be, "tf32") ? r.tf32
                                                    : r.f32;
  Ceilings c{.stream_all = r.read, .gemm_f32 = products, .gemm_bf16 = r.bf16};
  c.copy = r.copy, c.gemm_tf32 = r.tf32, c.clock = r.clock;
  return c;
}

}  // namespace lte
