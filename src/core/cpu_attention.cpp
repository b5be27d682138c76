// Rotary positions, key-value cache and causal attention on the CPU. One piece of work is one query
// head of one sequence forward, one key-value head of one sequence backward.
#include "core/cpu.h"

namespace lte {
namespace {

void rope(Ctx& ctx, Tensor x, Chunk chunk, int64_t heads, int64_t C, double theta, bool inverse) {
  chunk = placed(chunk);
  with_type(x, [&]<class T>() {
    auto m = matrix<T>(x);
    const int64_t half = C / 2;
    for_ranges(
        ctx, chunk.T, row_grain(heads * C * chunk.B), [&](int64_t begin, int64_t end, int thread) {
          auto* frequency = cpu(ctx).workspace<double>(thread, half + C);
          VecMap<T> cosine(reinterpret_cast<T*>(frequency + half), half),
              sine(cosine.data() + half, half);
          for (int64_t i = 0; i < half; ++i) {
            frequency[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(C));
          }
          for (int64_t t = begin; t < end; ++t) {
            for (int64_t i = 0; i < half; ++i) {
              const double angle = static_cast<double>(chunk.pos + t) * frequency[i];
              cosine[i] = static_cast<T>(std::cos(angle));
              sine[i] = static_cast<T>(inverse ? -std::sin(angle) : std::sin(angle));
            }
            for (int64_t b = 0; b < chunk.B; ++b) {
              for (int64_t h = 0; h < heads; ++h) {
                T* head = m.data() + (b * chunk.T + t) * m.cols() + h * C;
                for (int64_t i = 0; i < half; ++i) {
                  const T first = head[i], second = head[i + half];
                  head[i] = first * cosine[i] - second * sine[i];
                  head[i + half] = first * sine[i] + second * cosine[i];
                }
              }
            }
          }
        });
  });
}

void store_kv(Ctx& ctx, Tensor k, Tensor v, Tensor qkv, Chunk chunk, HeadShape s) {
  chunk = placed(chunk);
  const int64_t S = k.dim[2], width = qkv.cols();
  LTE_CHECK(chunk.pos + chunk.T <= S, "store_kv: the key-value cache is full");
  with_type(k, [&]<class T>() {
    for_ranges(ctx, chunk.B * s.K, row_grain(chunk.T * s.C), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / s.K, head = i % s.K, to = (i * S + chunk.pos) * s.C;
        const T* from = qkv.as<T>() + b * chunk.T * width + (s.H + head) * s.C;
        matrix(k.as<T>() + to, chunk.T, s.C, s.C) =
            matrix(const_cast<T*>(from), chunk.T, s.C, width);
        matrix(v.as<T>() + to, chunk.T, s.C, s.C) =
            matrix(const_cast<T*>(from) + s.K * s.C, chunk.T, s.C, width);
      }
    });
  });
}

// Rows of p become softmax(scale p) over the first pos + t + 1 columns and 0 beyond.
template <class T, class M>
void causal_softmax(M& p, int64_t pos, T scale) {
  for (int64_t t = 0; t < p.rows(); ++t) {
    const int64_t length = pos + t + 1;
    auto row = p.row(t).head(length).array();
    const T top = row.maxCoeff();
    row = ((row - top) * scale).exp();
    row *= T(1) / row.sum();
    p.row(t).tail(p.cols() - length).setZero();
  }
}

void attention(Ctx& ctx, Tensor out, Tensor probs, Tensor qkv, Tensor k, Tensor v, Chunk chunk,
               HeadShape s) {
  chunk = placed(chunk);
  const int64_t S = k.dim[2], reach = chunk.pos + chunk.T, width = qkv.cols();
  with_type(out, [&]<class T>() {
    const T scale = T(1) / std::sqrt(static_cast<T>(s.C));
    auto one_head = [&](int64_t i, int thread) {
      const int64_t b = i / s.H, h = i % s.H, kv = (b * s.K + h * s.K / s.H) * S * s.C;
      const auto q = matrix(qkv.as<T>() + b * chunk.T * width + h * s.C, chunk.T, s.C, width);
      const auto keys = matrix(k.as<T>() + kv, reach, s.C, s.C);
      const auto values = matrix(v.as<T>() + kv, reach, s.C, s.C);
      T* memory = probs ? probs.as<T>() + i * chunk.T * reach
                        : cpu(ctx).workspace<T>(thread, chunk.T * reach);
      auto p = matrix(memory, chunk.T, reach, reach);
      p.noalias() = q * keys.transpose();
      causal_softmax<T>(p, chunk.pos, scale);
      auto o = matrix(out.as<T>() + b * chunk.T * s.H * s.C + h * s.C, chunk.T, s.C, s.H * s.C);
      o.noalias() = p * values;
    };
    const int64_t grain = std::max<int64_t>(1, 16384 / (chunk.T * reach));
    for_ranges(ctx, chunk.B * s.H, grain, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) one_head(i, thread);
    });
  });
}

// With P the probabilities and dP = dO V':  dV = P' dO;  dS = P (dP - rowsum(P dP));
// dQ = dS K / sqrt(C);  dK = dS' Q / sqrt(C), summed over the query heads that share a key-value
// head.
void attention_backward(Ctx& ctx, Tensor dqkv, Tensor dout, Tensor, Tensor qkv, Tensor k, Tensor v,
                        Tensor probs, Chunk chunk, HeadShape s) {
  LTE_CHECK(chunk.pos == 0, "attention_backward: wants a whole prompt");
  const int64_t S = k.dim[2], T_ = chunk.T, width = qkv.cols(), group = s.H / s.K;
  with_type(dqkv, [&]<class T>() {
    const T scale = T(1) / std::sqrt(static_cast<T>(s.C));
    for_ranges(ctx, chunk.B * s.K, 1, [&](int64_t i, int64_t, int thread) {
      const int64_t b = i / s.K, kv = i % s.K, row = b * T_ * width;
      const auto keys = matrix(k.as<T>() + i * S * s.C, T_, s.C, s.C);
      const auto values = matrix(v.as<T>() + i * S * s.C, T_, s.C, s.C);
      auto dk = matrix(dqkv.as<T>() + row + (s.H + kv) * s.C, T_, s.C, width);
      auto dv = matrix(dqkv.as<T>() + row + (s.H + s.K + kv) * s.C, T_, s.C, width);
      auto dp = matrix(cpu(ctx).workspace<T>(thread, T_ * T_), T_, T_, T_);
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        const auto p = matrix(probs.as<T>() + (b * s.H + h) * T_ * T_, T_, T_, T_);
        const auto d = matrix(dout.as<T>() + b * T_ * s.H * s.C + h * s.C, T_, s.C, s.H * s.C);
        const auto q = matrix(qkv.as<T>() + row + h * s.C, T_, s.C, width);
        auto dq = matrix(dqkv.as<T>() + row + h * s.C, T_, s.C, width);
        dp.noalias() = d * values.transpose();
        for (int64_t t = 0; t < T_; ++t) {
          const T mean = p.row(t).dot(dp.row(t));
          dp.row(t).array() = p.row(t).array() * (dp.row(t).array() - mean) * scale;
        }
        dq.noalias() = dp * keys;
        if (h == kv * group) {
          dk.noalias() = dp.transpose() * q;
          dv.noalias() = p.transpose() * d;
        } else {
          dk.noalias() += dp.transpose() * q;
          dv.noalias() += p.transpose() * d;
        }
      }
    });
  });
}

}  // namespace

void plain_attention(Ctx& c, Tensor out, Tensor probs, Tensor qkv, Tensor k, Tensor v, Chunk chunk,
                     HeadShape s) {
  attention(c, out, probs, qkv, k, v, chunk, s);
}
void plain_attention_backward(Ctx& c, Tensor dqkv, Tensor dout, Tensor qkv, Tensor k, Tensor v,
                              Tensor probs, Chunk chunk, HeadShape s) {
  attention_backward(c, dqkv, dout, {}, qkv, k, v, probs, chunk, s);
}

void fill_attention(Ops& ops) {
  ops.rope = rope;
  ops.store_kv = store_kv;
  ops.attention = attention;
  ops.attention_backward = attention_backward;
  ops.keeps_row_sums = [](Ctx&) { return false; };
  ops.kept_type = [](Ctx&) { return DType::f32; };
}

}  // namespace lte
