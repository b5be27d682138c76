// What the samplers of all backends share: whole numbers, whose order and sums are those of Ops::sample.
// Plain constexpr functions, which kernels may call too.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace lte {

constexpr int64_t kMostVocab = int64_t{1} << 20;  // so that a sum of weights fits in 63 bits

constexpr float sampled_logit(float logit) {
  return logit == logit ? logit : -std::numeric_limits<float>::infinity();
}
// Falls as the logit rises; -0 counts as 0.
constexpr uint32_t falling_rank(float logit) {
  logit = sampled_logit(logit);
  const uint32_t bits = logit == 0 ? 0 : std::bit_cast<uint32_t>(logit);
  return bits >> 31 ? bits : ~(bits | 1u << 31);
}
// 2^43 share, rounded down; share = exp((logit - top) / temperature), which is 1 for the top itself.
constexpr uint64_t whole_weight(double share) {
  return share > 0 ? static_cast<uint64_t>(share * 0x1.0p43) : 0;
}
// The least sum of weights that holds the share top_p of `all`: from 1 to all.
constexpr uint64_t least_sum(double top_p, uint64_t all) {
  if (!(top_p < 1)) return all;
  const double want = top_p > 0 ? top_p * static_cast<double>(all) : 0;
  const auto whole = static_cast<uint64_t>(want);
  const uint64_t up = static_cast<double>(whole) < want ? whole + 1 : whole;
  return up < 1 ? 1 : up < all ? up : all;
}
// The sum of weights that the drawn token is the first to exceed.
constexpr uint64_t drawn_sum(double uniform, uint64_t kept) {
  const auto sum = static_cast<uint64_t>(uniform * static_cast<double>(kept));
  return sum < kept ? sum : kept - 1;
}

}  // namespace lte
