// Logits, loss and gradients equal those of an independent implementation (Hugging Face
// transformers; golden/huggingface/make.py) on checkpoints in its own layout.
#include "bench/import.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/files.h"
#include "errors.h"
#include "io/safetensors.h"
#include "testing.h"

namespace lte::testing {
namespace {

namespace fs = std::filesystem;
const std::string kGolden = std::string(LTE_SOURCE_DIR) + "/tests/golden/huggingface/";

// Float rounding through two layers whose sums have up to 48 terms, on both sides.
void expect_rounding(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_GT(largest(values(want)), 0) << what;
  expect_close(got, want, tolerance_of(DType::f32, 48 * 10, largest(values(want))), what.c_str());
}

class Import : public ::testing::TestWithParam<const char*> {
 protected:
  std::string folder = kGolden + GetParam();
  TensorFile golden = load_safetensors(folder + "/expected.safetensors");
};

TEST_P(Import, LogitsLossAndGradients) {
  Params p = import_huggingface(folder);
  const Plan plan = dense_plan(p.cfg);
  const Tensor& text = find_tensor(golden, "tokens");  // [B, T + 1]
  const int64_t B = text.dim[0], T = text.dim[1] - 1;
  Store store;
  Tensor in = store.blank(DType::i32, {B * T}), want = store.blank(DType::i32, {B * T});
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < T; ++t) {
      in.as<int32_t>()[b * T + t] = text.as<int32_t>()[b * (T + 1) + t];
      want.as<int32_t>()[b * T + t] = text.as<int32_t>()[b * (T + 1) + t + 1];
    }
  }
  Backend be = open_backend("cpu", 2);
  const lte::Run run{Gate::hard, Exec::masked};
  State state = run_forward(be, p, plan, in, B, run);
  Tensor logits = shape(DType::f32, {B * T, p.cfg.vocab});
  logits.data = find_tensor(golden, "logits").data;
  expect_rounding(state.logits, logits, "logits");

  Gradients grads = make_gradients(p, plan, state);
  be.ops.fill(*be.ctx, grads.d.flat(), 0);
  backward(be, p, plan, in, want, {B, T, 0}, run, {}, 1.0 / static_cast<double>(B * T), {}, state,
           grads);
  double loss = 0;
  for (double l : values(state.losses)) loss += l / static_cast<double>(B * T);
  EXPECT_NEAR(loss, *find_tensor(golden, "loss").as<float>(), 1e-5);
  Params expected = import_huggingface(folder, "gradients.safetensors");
  std::vector<Tensor> want_grads;
  visit_params(expected, [&](Tensor& t, const ParamInfo&) { want_grads.push_back(t); });
  size_t i = 0;
  visit_params(grads.d, [&](Tensor& t, const ParamInfo& info) {
    expect_rounding(t, want_grads[i++], info.name);
  });
}

// Shards, and the prefix that some files have, change nothing.
TEST_P(Import, ShardsAndPrefix) {
  const fs::path to = fs::temp_directory_path() / (std::string("lte_import_") + GetParam());
  fs::remove_all(to), fs::create_directories(to);
  fs::copy(folder + "/config.json", to / "config.json");
  const TensorFile whole = load_safetensors(folder + "/model.safetensors");
  std::vector<NamedTensor> parts[2];
  std::string map;
  for (size_t i = 0; i < whole.tensors.size(); ++i) {
    NamedTensor t = whole.tensors[i];
    if (t.name.starts_with("transformer.")) t.name = t.name.substr(12);
    parts[i % 2].push_back(t);
    map += (map.empty() ? "\"" : ",\"") + t.name + "\":\"part" + std::to_string(i % 2) + "\"";
  }
  save_safetensors((to / "part0").string(), parts[0]);
  save_safetensors((to / "part1").string(), parts[1]);
  write_file((to / "model.safetensors.index.json").string(), "{\"weight_map\":{" + map + "}}");
  const Params a = import_huggingface(folder), b = import_huggingface(to.string());
  EXPECT_EQ(values(a.flat()), values(b.flat()));
  fs::remove(to / "part1");
  EXPECT_THROW(import_huggingface(to.string()), Error);
  fs::remove_all(to);
}

TEST_P(Import, RefusesWhatItDoesNotCompute) {
  const fs::path to = fs::temp_directory_path() / (std::string("lte_refuse_") + GetParam());
  fs::remove_all(to), fs::create_directories(to);
  fs::copy(folder + "/model.safetensors", to / "model.safetensors");
  const std::string config = read_file(folder + "/config.json");
  const auto with = [&](const std::string& from, const std::string& into) {
    std::string text = config;
    const size_t at = text.find(from);
    ASSERT_NE(at, text.npos) << from;
    text.replace(at, from.size(), into);
    write_file((to / "config.json").string(), text);
    EXPECT_THROW(import_huggingface(to.string()), Error) << into;
  };
  const bool llama = std::string(GetParam()) == "llama";
  with(llama ? "\"model_type\": \"llama\"" : "\"model_type\": \"gpt2\"",
       "\"model_type\": \"bloom\"");
  with("\"vocab_size\": 37", "\"vocab_size\": 38");
  with("\"vocab_size\": 37", "\"vocab_size\": \"many\"");
  if (llama) {
    with("\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"linear\"}");
    with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");  // leaves tensors over
    with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  } else {
    with("\"scale_attn_weights\": true", "\"scale_attn_weights\": false");
    with("\"gelu_new\"", "\"quick_gelu\"");
    with("\"n_layer\": 2", "\"n_layer\": 0");
  }
  write_file((to / "config.json").string(), "{");
  EXPECT_THROW(import_huggingface(to.string()), Error);
  fs::remove_all(to);
}

INSTANTIATE_TEST_SUITE_P(Families, Import, ::testing::Values("gpt2", "llama"));

}  // namespace
}  // namespace lte::testing
