// Numbers on the simulated device: atomics, bits, mathematical functions, bf16, vector types.
#include <cmath>

#include "simt_testing.h"

namespace lte {
namespace {

__global__ void atomics(int* i, unsigned* u, float* f, double* d, int* old) {
  const int t = static_cast<int>(threadIdx.x);
  old[t] = atomicAdd(&i[0], 1);
  atomicMax(&i[1], (t * 37) % 100), atomicMin(&i[2], -((t * 37) % 100)), atomicSub(&i[3], 2);
  atomicAdd(&u[0], 3u), atomicOr(&u[1], 1u << (t % 32)), atomicAnd(&u[2], ~(1u << (t % 8)));
  atomicXor(&u[3], 5u), atomicInc(&u[4], 9u);
  atomicAdd(&f[0], 0.5f), atomicAdd(&d[0], 0.25);
  for (float seen = f[1]; seen < static_cast<float>(t);) {  // a maximum of floats by atomicCAS
    const int was = atomicCAS(reinterpret_cast<int*>(&f[1]), __float_as_int(seen),
                              __float_as_int(static_cast<float>(t)));
    if (was == __float_as_int(seen)) break;
    seen = __int_as_float(was);
  }
}

TEST(SimtNumbers, AtomicsGiveTheOldValueAndLoseNothing) {
  under_all_schedules([] {
    Array<int> i(std::vector<int>(4, 0)), old(101);
    Array<unsigned> u(std::vector<unsigned>{0, 0, ~0u, 0, 0});
    Array<float> f(std::vector<float>(2, 0));
    Array<double> d(std::vector<double>(1, 0));
    launch(atomics, 1, 101, 0, nullptr, i.data, u.data, f.data, d.data, old.data);
    EXPECT_EQ(i.host(), (std::vector<int>{101, 99, -99, -202}));
    EXPECT_EQ(u.host(), (std::vector<unsigned>{303, ~0u, ~0xffu, 5, 1}));
    EXPECT_EQ(f.host(), (std::vector<float>{50.5f, 100}));
    EXPECT_EQ(d.host()[0], 25.25);
    auto seen = old.host();
    std::sort(seen.begin(), seen.end());
    for (int t = 0; t < 101; ++t) EXPECT_EQ(seen[static_cast<size_t>(t)], t);
  });
}

TEST(SimtNumbers, BitsAreCountedAsTheGuideSays) {
  for (const unsigned x : {0u, 1u, 2u, 0x80000000u, 0xffffffffu, 0x00f01000u, 12345u}) {
    int count = 0, first = 0, leading = 32;
    unsigned reversed = 0;
    for (int i = 31; i >= 0; --i) {
      if (!(x >> i & 1)) continue;
      ++count, first = i + 1, reversed |= 1u << (31 - i), leading = std::min(leading, 31 - i);
    }
    EXPECT_EQ(__popc(x), count);
    EXPECT_EQ(__ffs(static_cast<int>(x)), first);
    EXPECT_EQ(__clz(static_cast<int>(x)), leading);
    EXPECT_EQ(__brev(x), reversed);
    EXPECT_EQ(__popcll(uint64_t{x} << 32 | x), 2 * count);
    EXPECT_EQ(__ffsll(static_cast<long long>(uint64_t{x} << 32)), first ? first + 32 : 0);
    EXPECT_EQ(__umulhi(x, 0x10001u), static_cast<unsigned>(uint64_t{x} * 0x10001u >> 32));
    EXPECT_EQ(__float_as_uint(__uint_as_float(0x3f800000u)), 0x3f800000u);
  }
}

TEST(SimtNumbers, MathematicalFunctions) {
  for (const float x : {0.25f, 1.0f, 3.5f, 20.0f}) {
    EXPECT_FLOAT_EQ(__expf(x), std::exp(x));
    EXPECT_FLOAT_EQ(__logf(x), std::log(x));
    EXPECT_FLOAT_EQ(__powf(x, 1.5f), std::pow(x, 1.5f));
    EXPECT_FLOAT_EQ(rsqrtf(x), 1 / std::sqrt(x));
    EXPECT_FLOAT_EQ(__frcp_rn(x), 1 / x);
    EXPECT_FLOAT_EQ(__fdividef(2.0f, x), 2 / x);
    EXPECT_FLOAT_EQ(__saturatef(x), std::min(x, 1.0f));
    float s = 0, c = 0;
    __sincosf(x, &s, &c);
    EXPECT_FLOAT_EQ(s, std::sin(x));
    EXPECT_FLOAT_EQ(c, std::cos(x));
  }
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rd(-2.5f), -3);
  EXPECT_EQ(max(3, 2), 3);
  EXPECT_EQ(min(2u, 3u), 2u);
  EXPECT_EQ(max(1.0f, __int_as_float(0x7fc00000)), 1.0f);  // as fmaxf: a NaN loses
}

// The nearest bf16 by search among its two neighbours: ties go to the even one.
unsigned short nearest_bf16(float x) {
  const unsigned u = __float_as_uint(x);
  const unsigned low = u & 0xffff0000u, high = low + 0x10000u;
  const double a = std::fabs(double{x} - double{__uint_as_float(low)});
  // Beyond the largest finite value the next step counts as 2^128.
  const double top = std::isinf(__uint_as_float(high)) ? std::copysign(std::ldexp(1.0, 128), x)
                                                       : double{__uint_as_float(high)};
  const double b = std::fabs(double{x} - top);
  const bool up = b < a || (a == b && (low >> 16 & 1));
  return static_cast<unsigned short>((up ? high : low) >> 16);
}

TEST(SimtNumbers, Bf16RoundsToNearestWithTiesToEven) {
  uint64_t state = 1;
  for (int i = 0; i < 200000; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    unsigned u = static_cast<unsigned>(state >> 32);
    if (i % 4 == 0) u = (u & 0xffff0000u) | 0x8000u;  // a tie
    const float x = __uint_as_float(u);
    if (!std::isfinite(x)) continue;
    ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(x)), nearest_bf16(x)) << x;
  }
  for (unsigned b = 0; b < 0x10000u; ++b) {  // what is a bf16 stays as it is
    const __nv_bfloat16 x = __ushort_as_bfloat16(static_cast<unsigned short>(b));
    if (__hisnan(x)) {
      EXPECT_TRUE(std::isnan(__bfloat162float(x)));
      EXPECT_TRUE(__hisnan(__float2bfloat16(__bfloat162float(x))));
    } else {
      ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16(__bfloat162float(x))), b);
    }
  }
  EXPECT_TRUE(std::isinf(__bfloat162float(__float2bfloat16(3.4e38f))));
  // 1 + 2^-8 + 2^-40 lies above the tie; by way of float it would fall on it and go to 1.
  EXPECT_EQ(__bfloat162float(__double2bfloat16(1 + 0x1p-8 + 0x1p-40)), 1.0078125f);
}

TEST(SimtNumbers, Bf16ArithmeticRoundsAfterEveryOperation) {
  const __nv_bfloat16 a = 1.0f, b = 0x1p-8f, c = 3.0f;
  EXPECT_EQ(__bfloat162float(a + b), 1.0f);
  EXPECT_EQ(__bfloat162float(a / c), __bfloat162float(__float2bfloat16(1.0f / 3.0f)));
  EXPECT_EQ(__bfloat162float(__hfma(b, c, a)), __bfloat162float(__float2bfloat16(1 + 3 * 0x1p-8f)));
  const __nv_bfloat162 two = __floats2bfloat162_rn(1.5f, -2.0f);
  EXPECT_EQ(__low2float(two), 1.5f);
  EXPECT_EQ(__high2float(two), -2.0f);
  EXPECT_EQ(__bfloat1622float2(__hmul2(two, two)).y, 4.0f);
  EXPECT_EQ(sizeof(__nv_bfloat162), 4u);
}

TEST(SimtNumbers, VectorTypesHaveTheDevicesSizesAndAlignments) {
  EXPECT_EQ(sizeof(float3), 12u);
  EXPECT_EQ(alignof(float3), 4u);
  EXPECT_EQ(alignof(float2), 8u);
  EXPECT_EQ(alignof(float4), 16u);
  EXPECT_EQ(alignof(uint4), 16u);
  EXPECT_EQ(alignof(double2), 16u);
  EXPECT_EQ(sizeof(double4), 32u);
  EXPECT_EQ(alignof(double4), 16u);
  EXPECT_EQ(sizeof(ushort4), 8u);
  EXPECT_EQ(alignof(ushort4), 8u);
  EXPECT_EQ(alignof(uchar4), 4u);
  EXPECT_EQ(make_float4(1, 2, 3, 4).w, 4);
}

template <class T>
__global__ void copy16(T* out, const T* in, bool once) {
  const unsigned at = (blockIdx.x * blockDim.x + threadIdx.x) * Pack<T>::kSize;
  store16(out + at, once ? load16_once(in + at) : load16(in + at));
}

TEST(SimtNumbers, SixteenBytesAtATime) {
  std::vector<float> in(256);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i) / 3;
  for (const bool once : {false, true}) {
    Array<float> a(in), out(256);
    launch(copy16<float>, 2, 32, 0, nullptr, out.data, a.data, once);
    EXPECT_EQ(out.host(), in);
    Array<float> out16(256);  // the same bytes as 512 bf16
    launch(copy16<__nv_bfloat16>, 2, 32, 0, nullptr, reinterpret_cast<__nv_bfloat16*>(out16.data),
           reinterpret_cast<const __nv_bfloat16*>(a.data), once);
    EXPECT_EQ(out16.host(), in);
  }
}

TEST(SimtNumbers, BytePermute) {
  const unsigned x = 0x33221100u, y = 0x77665544u;
  EXPECT_EQ(__byte_perm(x, y, 0x3210), x);
  EXPECT_EQ(__byte_perm(x, y, 0x7654), y);
  EXPECT_EQ(__byte_perm(x, y, 0x5410), 0x55441100u);
  EXPECT_EQ(__byte_perm(x, y, 0x7632), 0x77663322u);
}

}  // namespace
}  // namespace lte
