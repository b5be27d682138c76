// Sampling: against the rule of Ops::sample in plain loops, and against the softmax.
#include <fmt/format.h>

#include <map>
#include <numeric>

#include "testing.h"

namespace lte::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Draws on one backend, one token for each uniform number.
std::vector<int32_t> draw(const std::string& spec, const std::vector<float>& logits,
                          const Sampling& how, const std::vector<double>& uniform) {
  static std::map<std::string, Backend> opened;
  if (!opened.contains(spec)) opened.emplace(spec, open_backend(spec, 1));
  Backend& be = opened.at(spec);
  Store s{.where = be.memory};
  const auto n = static_cast<int64_t>(uniform.size());
  Draws d{.token = s.ints({-1}),
          .step = s.ints({0}),
          .tokens = s.ints(std::vector<int32_t>(uniform.size(), -1)),
          .uniform = s.of(DType::f64, {n}, uniform)};
  const Tensor row =
      s.of(DType::f32, {static_cast<int64_t>(logits.size())}, Values(logits.begin(), logits.end()));
  for (int64_t i = 0; i < n; ++i) be.ops.sample(*be.ctx, d, row, how);
  be.finish();
  EXPECT_TRUE(s.intact());
  EXPECT_EQ(d.step.as<int32_t>()[0], n);
  const int32_t* t = d.tokens.as<int32_t>();
  EXPECT_EQ(d.token.as<int32_t>()[0], n > 0 ? t[n - 1] : -1);
  return {t, t + n};
}

// The rule, one token after another.
int32_t rule(std::vector<float> z, const Sampling& how, double uniform) {
  for (float& x : z) x = std::isnan(x) ? -kInf : x;
  std::vector<int32_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return z[static_cast<size_t>(a)] > z[static_cast<size_t>(b)];
  });
  if (how.temperature <= 0) return order[0];
  const auto k = static_cast<size_t>(how.top_k);
  if (k > 0 && k < order.size()) order.resize(k);
  const double top = z[static_cast<size_t>(order[0])];
  std::vector<uint64_t> w;
  for (int32_t t : order) {
    const double x = z[static_cast<size_t>(t)];
    w.push_back(static_cast<uint64_t>((x == top ? 1 : std::exp((x - top) / how.temperature)) *
                                      std::pow(2.0, 43)));
  }
  const auto all = static_cast<double>(std::accumulate(w.begin(), w.end(), uint64_t{0}));
  uint64_t kept = 0;
  size_t n = 0;
  while (n < w.size() && (n == 0 || static_cast<double>(kept) < how.top_p * all)) kept += w[n++];
  const double target = uniform * static_cast<double>(kept);
  uint64_t sum = 0;
  for (size_t i = 0; i < n; ++i) {
    sum += w[i];
    if (static_cast<double>(sum) > target) return order[i];
  }
  return -1;
}

const Sampling kHow[] = {{},
                         {.temperature = 1},
                         {.temperature = 0.3},
                         {.temperature = 20},
                         {.temperature = 1e-9},
                         {.temperature = 1, .top_k = 1},
                         {.temperature = 2, .top_k = 3},
                         {.temperature = 1, .top_k = 17},
                         {.temperature = 1, .top_k = 1'000'000},
                         {.temperature = 1, .top_p = 1e-12},
                         {.temperature = 1, .top_p = 0.3},
                         {.temperature = 2, .top_p = 0.9},
                         {.temperature = 1, .top_p = 1 - 1e-9},
                         {.temperature = 1.5, .top_k = 9, .top_p = 0.5},
                         {.temperature = 1, .top_k = 2, .top_p = 0.99}};

// Rows of many kinds: smooth, with ties, all equal, with what is no number.
std::vector<float> row_of(const std::string& kind, int64_t V, Rng& rng) {
  std::vector<float> z;
  for (int64_t v = 0; v < V; ++v) {
    const auto x = static_cast<float>(3 * rng.normal());
    const bool odd = rng.below(3) == 0;
    if (kind == "smooth") z.push_back(x);
    if (kind == "ties") z.push_back(std::round(x));
    if (kind == "equal") z.push_back(-2.5f);
    if (kind == "zeros") z.push_back(odd ? 0.f : -0.f);
    if (kind == "peak") z.push_back(v == V / 2 ? 30.f : x);
    if (kind == "holes") z.push_back(odd ? kNan : rng.below(3) ? x : -kInf);
    if (kind == "nothing") z.push_back(odd ? kNan : -kInf);
    if (kind == "wide") z.push_back(x * 1e37f);
    if (kind == "infinite") z.push_back(odd ? kInf : x);
  }
  return z;
}

TEST(Sample, FollowsTheRule) {
  const std::vector<int64_t> sizes =
      kSlow ? std::vector<int64_t>{1, 31, 100} : std::vector<int64_t>{1, 2, 31, 33, 1000, 50257};
  for (const char* spec : kTestBackends) {
    if (std::string_view(spec).find('+') != std::string_view::npos || !missing(spec).empty())
      continue;  // variants have no sampling of their own
    for (int64_t V : sizes) {
      Rng rng(static_cast<uint64_t>(V));
      for (const char* kind :
           {"smooth", "ties", "equal", "zeros", "peak", "holes", "nothing", "wide", "infinite"}) {
        const std::vector<float> z = row_of(kind, V, rng);
        for (const Sampling& how : kHow) {
          const std::vector<double> uniform = {0, rng.uniform(), rng.uniform(), 1 - 0x1.0p-53};
          const std::vector<int32_t> got = draw(spec, z, how, uniform);
          for (size_t i = 0; i < uniform.size(); ++i) {
            ASSERT_EQ(got[i], rule(z, how, uniform[i]))
                << spec << " V=" << V << " " << kind << " T=" << how.temperature
                << " k=" << how.top_k << " p=" << how.top_p << " u=" << uniform[i];
          }
        }
      }
    }
  }
}

constexpr float kLogits[] = {0.5f, -1, 2, 1.25f, -4, 2, 0, 1};

// What is allowed comes as often as its softmax says (chi-square, fixed seed).
void expect_softmax(const Sampling& how, const std::vector<int>& allowed) {
  const int draws = kSlow ? 500 : 40000;
  Rng rng(how.seed);
  std::vector<double> uniform;
  for (int i = 0; i < draws; ++i) uniform.push_back(rng.uniform());
  std::vector<int> count(std::size(kLogits));
  for (int32_t t : draw(kTestBackend, {std::begin(kLogits), std::end(kLogits)}, how, uniform))
    ++count[static_cast<size_t>(t)];
  std::vector<double> share(std::size(kLogits));
  double all = 0;
  for (int t : allowed)
    all += share[static_cast<size_t>(t)] = std::exp(kLogits[t] / how.temperature);
  double chi = 0;
  for (size_t t = 0; t < count.size(); ++t) {
    const double expected = draws * share[t] / all;
    if (expected == 0) {
      EXPECT_EQ(count[t], 0) << "token " << t;
    } else {
      chi += (count[t] - expected) * (count[t] - expected) / expected;
    }
  }
  EXPECT_LT(chi, 24.3) << "0.1 % of chi-square with 7 degrees of freedom";
}

TEST(Sample, FollowsTheSoftmax) {
  const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6, 7};
  for (double temperature : {0.5, 1.0, 3.0}) {
    for (uint64_t seed : {1, 2}) expect_softmax({.temperature = temperature, .seed = seed}, all);
  }
  expect_softmax({.temperature = 1, .top_k = 100}, all);
  expect_softmax({.temperature = 1, .top_k = 8}, all);
}

// The tokens 2 and 5 tie; of ties the smaller comes first.
TEST(Sample, NarrowsToTheLikeliest) {
  expect_softmax({.temperature = 1, .top_k = 1}, {2});
  expect_softmax({.temperature = 1, .top_k = 2}, {2, 5});
  expect_softmax({.temperature = 2, .top_k = 3}, {2, 5, 3});
  // At temperature 1 the shares are .335 .335 .158 .123 .075 ...
  expect_softmax({.temperature = 1, .top_p = 0.3}, {2});
  expect_softmax({.temperature = 1, .top_p = 0.6}, {2, 5});
  expect_softmax({.temperature = 1, .top_p = 0.7}, {2, 5, 3});
  expect_softmax({.temperature = 1, .top_k = 4, .top_p = 0.5}, {2, 5});
}

TEST(Sample, AddsSumsOfListsAndNumbers) {
  for (const char* spec : kTestBackends) {
    if (!missing(spec).empty()) continue;
    Backend be = open_backend(spec, 1);
    Store s{.where = be.memory};
    Rng rng(3);
    Values want;
    std::vector<Tensor> parts;
    for (int i = 0; i < 150; ++i) {  // more than one launch takes
      if (i % 3 == 0) {
        parts.push_back(s.ints(1 + i % 7, 1000, rng));
      } else {
        parts.push_back(i % 3 == 1 ? s.normal(DType::f32, {2, 1 + i}, rng) : Tensor{});
      }
      double sum = i;
      const Tensor& t = parts.back();
      for (int64_t k = 0; t && k < t.size(); ++k)
        sum += t.dtype == DType::i32 ? t.as<int32_t>()[k] : at(t, k);
      want.push_back(sum);
    }
    const Tensor sums = s.blank(DType::f64, {150});
    for (int i = 0; i < 150; ++i) put(sums, i, i);
    be.ops.sums_add(*be.ctx, sums, parts);
    be.finish();
    expect_close(sums, want, 1e-9, spec);
    EXPECT_TRUE(s.intact());
  }
}

}  // namespace
}  // namespace lte::testing
