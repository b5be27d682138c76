// Where time goes: a backend whose every operation is timed, made from any backend.
#pragma once

#include <utility>
#include <vector>

#include "core/ops.h"

namespace lte {

// THE list of operations: calls f.operator()<&Ops::entry>("entry") for each, in the table's order.
// A test fails while an entry is missing.
template <class F>
constexpr void visit_ops(F&& f) {
  f.template operator()<&Ops::finish>("finish");
  f.template operator()<&Ops::copy_list>("copy_list");
  f.template operator()<&Ops::record>("record");
  f.template operator()<&Ops::replay>("replay");
  f.template operator()<&Ops::embed>("embed");
  f.template operator()<&Ops::embed_backward_add>("embed_backward_add");
  f.template operator()<&Ops::norm>("norm");
  f.template operator()<&Ops::add_norm>("add_norm");
  f.template operator()<&Ops::norm_backward_add>("norm_backward_add");
  f.template operator()<&Ops::gemm>("gemm");
  f.template operator()<&Ops::gemm_add>("gemm_add");
  f.template operator()<&Ops::linear_backward>("linear_backward");
  f.template operator()<&Ops::linear>("linear");
  f.template operator()<&Ops::linear_activate>("linear_activate");
  f.template operator()<&Ops::linear_activate_backward>("linear_activate_backward");
  f.template operator()<&Ops::bias_add>("bias_add");
  f.template operator()<&Ops::bias_backward_add>("bias_backward_add");
  f.template operator()<&Ops::add>("add");
  f.template operator()<&Ops::fill>("fill");
  f.template operator()<&Ops::sum_squares>("sum_squares");
  f.template operator()<&Ops::sums_add>("sums_add");
  f.template operator()<&Ops::rope>("rope");
  f.template operator()<&Ops::store_kv>("store_kv");
  f.template operator()<&Ops::attention>("attention");
  f.template operator()<&Ops::attend_token>("attend_token");
  f.template operator()<&Ops::attention_backward>("attention_backward");
  f.template operator()<&Ops::keeps_row_sums>("keeps_row_sums");
  f.template operator()<&Ops::kept_type>("kept_type");
  f.template operator()<&Ops::activate>("activate");
  f.template operator()<&Ops::activate_backward>("activate_backward");
  f.template operator()<&Ops::sigmoid>("sigmoid");
  f.template operator()<&Ops::sigmoid_backward>("sigmoid_backward");
  f.template operator()<&Ops::softmax>("softmax");
  f.template operator()<&Ops::absolute>("absolute");
  f.template operator()<&Ops::unit_rows>("unit_rows");
  f.template operator()<&Ops::noise_add>("noise_add");
  f.template operator()<&Ops::measure>("measure");
  f.template operator()<&Ops::gate>("gate");
  f.template operator()<&Ops::gate_softmax>("gate_softmax");
  f.template operator()<&Ops::gate_softmax_backward>("gate_softmax_backward");
  f.template operator()<&Ops::scale_experts>("scale_experts");
  f.template operator()<&Ops::scale_experts_backward>("scale_experts_backward");
  f.template operator()<&Ops::gate_loss_add>("gate_loss_add");
  f.template operator()<&Ops::route>("route");
  f.template operator()<&Ops::route_linear>("route_linear");
  f.template operator()<&Ops::norm_route_linear>("norm_route_linear");
  f.template operator()<&Ops::ffn_gathered>("ffn_gathered");
  f.template operator()<&Ops::ffn_token>("ffn_token");
  f.template operator()<&Ops::norm_ffn_token>("norm_ffn_token");
  f.template operator()<&Ops::ffn_train>("ffn_train");
  f.template operator()<&Ops::ffn_train_backward_add>("ffn_train_backward_add");
  f.template operator()<&Ops::hoyer_add>("hoyer_add");
  f.template operator()<&Ops::keep_large>("keep_large");
  f.template operator()<&Ops::gemm_sparse>("gemm_sparse");
  f.template operator()<&Ops::sample>("sample");
  f.template operator()<&Ops::cross_entropy>("cross_entropy");
  f.template operator()<&Ops::distill_add>("distill_add");
  f.template operator()<&Ops::adamw>("adamw");
}

// Seconds of the wall clock; and of this thread on a processor, which do not count what other programs
// hold it up for: right on a busy machine with one thread.
double wall_seconds();
double thread_seconds();

struct OpTime {
  const char* name;
  double seconds = 0;
  int64_t calls = 0;
};

// The context of a profiled backend: the backend that computes, and a clock for each entry.
struct ProfileCtx : Ctx {
  Backend inner;
  std::vector<OpTime> times;  // in the table's order
  double (*now)() = wall_seconds;

  void reset() {
    for (OpTime& t : times) t.seconds = 0, t.calls = 0;
  }
};

// The same results; two clock reads an operation slower, and each waits until its work is done, so
// that nothing can be recorded. One caller at a time.
struct Profiled {
  Backend backend;  // its ctx is a ProfileCtx
  std::shared_ptr<ProfileCtx> clock;
};
Profiled profiled(const Backend&);

}  // namespace lte
