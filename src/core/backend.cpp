// The tables of backends and variants, and the plain-loop variant that tests hold Eigen against.
#include <fmt/format.h>

#include <cstring>

#include "core/cpu_fused.h"
#include "core/gpu.h"
#include "core/threads.h"

namespace lte {
namespace {

template <bool kAdd>
void gemm_naive(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  with_type(out, [&]<class T>() {
    const int64_t inner = ta ? a.rows() : a.cols(), ac = a.cols(), bc = b.cols();
    const bool half = b.dtype == DType::bf16;  // weights
    const auto right = [&](int64_t i) {
      return half ? static_cast<double>(to_float(b.as<Bf16>()[i]))
                  : static_cast<double>(b.as<T>()[i]);
    };
    for_ranges(ctx, out.size(), row_grain(inner), [&](int64_t begin, int64_t end, int) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t i = at / out.cols(), j = at % out.cols();
        double sum = 0;
        for (int64_t k = 0; k < inner; ++k) {
          sum += static_cast<double>(a.as<T>()[ta ? k * ac + i : i * ac + k]) *
                 right(tb ? j * bc + k : k * bc + j);
        }
        T& o = out.as<T>()[at];
        o = static_cast<T>(kAdd ? static_cast<double>(o) + sum : sum);
      }
    });
  });
}

void patch_naive(Ops& ops) {
  ops.gemm = gemm_naive<false>;
  ops.gemm_add = gemm_naive<true>;
  ops.linear = nullptr;
}

const Variant kVariants[] = {
    {"cpu", "naive", "matrix products as plain loops with sums in double: the reference",
     patch_naive},
    {"cpu", "onednn", "matrix products of floats by oneDNN where Eigen's are the default",
     kOnednnPatch},
    {"cpu", "fused",
     "training: own products, attention without a score matrix, one pass where it can",
     patch_fused},
    {"cpu", "bf16", "training: factors of products rounded to bf16, sums and weights in f32",
     fused::kBf16Patch},
    {"cpu", "simd",
     "few tokens, gathered experts and bf16 weights by kernels of our own on Highway", kSimdPatch},
    {"cuda", "tf32", "matrix products of floats on tensor cores with TF32: 10 bits of fraction",
     kCudaTf32},
    {"cuda", "atomic", "the gathered FFN of few tokens adds by atomics: in any order, other bits",
     kCudaAtomic},
    {"cuda", "bf16", "training: factors of products rounded to bf16, sums and weights in f32",
     kCudaBf16},
    {"cuda", "fused", "training: attention without a score matrix", kCudaFused},
};

Backend open_cpu(int threads) {
  Backend b{.name = "cpu", .ops = {}, .ctx = std::make_shared<CpuCtx>(threads)};
  b.ops.finish = [](Ctx&) {};
  b.ops.copy_list = [](Ctx&, Tensor to, Tensor from) {
    std::memcpy(to.data, from.data, to.bytes());
  };
  fill_linear(b.ops);
  fill_norm(b.ops);
  fill_attention(b.ops);
  fill_ffn(b.ops);
  fill_experts(b.ops);
  fill_gathered(b.ops);
  fill_gathered_training(b.ops);
  fill_sample(b.ops);
  fill_loss(b.ops);
  return b;
}

}  // namespace

std::span<const Variant> variants() { return kVariants; }

std::string fastest_backend() { return kOnednnPatch ? "cpu+onednn+fused" : "cpu+fused"; }

std::string fastest_inference() {
  if (!kSimdPatch) return fastest_backend();
  return kOnednnPatch ? "cpu+onednn+simd+fused" : "cpu+simd+fused";
}

bool has_variant(const Backend& be, std::string_view name) {
  return fmt::format("{}+", be.name).find(fmt::format("+{}+", name)) != std::string::npos;
}

Backend open_backend(std::string_view named, int threads) {
  const std::string fastest = fastest_backend();
  const std::string_view spec = named == "auto" ? std::string_view(fastest) : named;
  const size_t plus = std::min(spec.find('+'), spec.size());
  const std::string_view base = spec.substr(0, plus);
  const bool gpu = base == "cuda" || base == "cuda-simt";
  LTE_CHECK(base == "cpu" || gpu, fmt::format("unknown backend '{}'; known: cpu, cuda", base));
  const std::string_view kind = gpu ? "cuda" : base;  // whose variants there are
  Backend backend = gpu ? open_cuda(base) : open_cpu(threads);
  for (size_t at = plus; at < spec.size();) {
    const size_t end = std::min(spec.find('+', at + 1), spec.size());
    const std::string_view name = spec.substr(at + 1, end - at - 1);
    std::string known;
    bool found = false;
    for (const Variant& v : kVariants) {
      known += fmt::format(" {}+{}", v.backend, v.name);
      if (v.backend != kind || v.name != name) continue;
      LTE_CHECK(v.patch, fmt::format("variant '{}' of backend {} is not in this build: its library "
                                     "was not found, or the processor lacks its instructions",
                                     name, base));
      v.patch(backend.ops), found = true;
    }
    LTE_CHECK(found,
              fmt::format("unknown variant '{}' of backend {}; known:{}", name, base, known));
    at = end;
  }
  backend.name = spec, backend.threads = thread_count(threads);
  return backend;
}

Backend on_host(const Backend& be, int threads) {
  return be.device ? open_backend("auto", threads) : be;
}

}  // namespace lte
