// What a GPU has beside the operations: its clock, its memory, its ceilings.
#include "core/device.h"

#include "bench/ceilings.h"
#include "errors.h"
#include "testing.h"

namespace lte::testing {
namespace {

struct Adding {
  Backend be = test_backend();
  Store s;
  Tensor a = s.of(DType::f32, {3}, {1, 2, 3}), out = s.blank(DType::f32, {3});

  std::function<void()> call() {
    return [this] { be.ops.add(*be.ctx, out, a, a); };
  }
};

TEST(Device, TimesWhatACallEnqueues) {
  Adding x;
  ASSERT_NE(x.be.device, nullptr);
  for (bool cold : {false, true}) {
    x.be.ops.fill(*x.be.ctx, x.out, 0);
    const double seconds = x.be.device->seconds(*x.be.ctx, x.call(), cold);
    EXPECT_GT(seconds, 0);
    EXPECT_LT(seconds, 10);
    expect_close(x.out, Values{2, 4, 6}, 0, "done when its time is known");
  }
}

TEST(Device, FetchWantsItsOwnMemory) {
  Adding x;
  const std::string before = bits(x.a);
  x.be.device->fetch(*x.be.ctx, x.a.data, x.a.bytes());
  EXPECT_TRUE(bits(x.a) == before);
  std::vector<float> host(16);
  const std::string error = error_of([&] { x.be.device->fetch(*x.be.ctx, host.data(), 64); });
  EXPECT_NE(error.find("host memory"), std::string::npos) << error;
}

TEST(Device, CopiesFromTheHostAndBack) {
  Adding x;
  const std::vector<float> from = {7, 8, 9};
  std::vector<float> to(3);
  x.be.device->copy(*x.be.ctx, x.a.data, from.data(), 12);
  expect_close(x.a, Values{7, 8, 9}, 0, "there");
  x.be.device->copy(*x.be.ctx, to.data(), x.a.data, 12);
  EXPECT_EQ(to, from);
}

TEST(Device, HasCeilings) {
  Backend be = test_backend();
  const Ceilings c = measure_device(be, 1 << 16, 16);
  for (double rate : {c.stream_all, c.copy, c.gemm_f32, c.gemm_tf32, c.gemm_bf16})
    EXPECT_GT(rate, 0);
  EXPECT_GE(c.clock, 0);
  EXPECT_GT(be.device->free_bytes(*be.ctx), 0);
  const auto about = be.device->describe();
  for (const char* key : {"gpu_driver", "gpu_multiprocessors", "gpu_memory_MiB", "gpu_l2_KiB"})
    EXPECT_FALSE(about.at(key).empty()) << key;
}

TEST(Device, ACpuHasNone) {
  Backend cpu = open_backend("cpu", 1);
  EXPECT_EQ(cpu.device, nullptr);
  const std::string error = error_of([&] { measure_device(cpu); });
  EXPECT_NE(error.find("has no device"), std::string::npos) << error;
}

}  // namespace
}  // namespace lte::testing
