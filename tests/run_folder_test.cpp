// Run folders: what is saved is loaded bit by bit, what is damaged is one clear line, and what was
// interrupted goes on to the same bits.
#include "bench/run_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <set>

#include "bench/labels.h"
#include "bench/runner.h"
#include "core/files.h"
#include "data/text_data.h"
#include "errors.h"
#include "fitting.h"
#include "io/safetensors.h"
#include "testing.h"

namespace lte::testing {
namespace {

namespace fs = std::filesystem;

struct Stop {};  // what an interruption throws

Dataset small_text(const std::string& letters = "abcdefgh \xc3\xa9") {
  const Tokenizer all = train_tokenizer("chars", letters);
  const auto vocab = static_cast<int>(all.vocab.size());
  return make_text_dataset("text:small", "chars",
                           split_text(decode(all, patterned_tokens(4000, vocab, 1).tokens)));
}

struct Folder : ::testing::Test {
  std::string root = ::testing::TempDir() + "lte_run_folder_test_" + std::to_string(getpid());
  Dataset data = small_text();
  Backend be = open_backend("cpu", 2);

  void SetUp() override { fs::remove_all(root), make_folder(root); }
  void TearDown() override { fs::remove_all(root); }
  std::string at(const std::string& name) const { return root + "/" + name; }

  LoadedRun base(const std::string& name, uint64_t seed = 0, const char* model = kGpt) {
    const BaseSpec spec{
        .model = model, .dataset = data.name, .steps = 12, .batch = 4, .lr = 1e-2, .seed = seed};
    const TrainSpec training = base_training(spec, data.default_seq, parse_model(model).max_seq);
    return train_base(be, model, training, data, at(name), {});
  }
  LoadedRun fitted(const LoadedRun& from, const std::string& method, const std::string& name,
                   const std::function<void(const std::string&, const StepLog&)>& watch = {}) {
    return fit_method(be, from, data, method, small_knobs(find_method(method), "10"), 3, at(name),
                      watch);
  }
  std::string load_error(const std::string& name) const {
    return error_of([&] { load_run(at(name)); });
  }
};

void expect_same_plan(const Plan& a, const Plan& b) {
  EXPECT_EQ(a.method, b.method);
  EXPECT_EQ(a.knobs, b.knobs);
  ASSERT_EQ(a.layer.size(), b.layer.size());
  for (size_t i = 0; i < a.layer.size(); ++i) {
    const FfnPlan &x = a.layer[i], &y = b.layer[i];
    EXPECT_EQ(x.group, y.group);
    EXPECT_EQ(x.order, y.order);
    EXPECT_EQ(x.router, y.router);
    EXPECT_EQ(x.router_bias, y.router_bias);
    EXPECT_EQ(x.input, y.input);
    EXPECT_EQ(x.rule, y.rule);
    EXPECT_EQ(x.cut, y.cut);
    EXPECT_EQ(x.width, y.width);
    EXPECT_EQ(x.inner, y.inner);
    EXPECT_EQ(x.squash, y.squash);
    EXPECT_EQ(x.measure, y.measure);
    EXPECT_EQ(x.scaled, y.scaled);
    EXPECT_EQ(x.weighted, y.weighted);
    EXPECT_EQ(x.down_bias, y.down_bias);
  }
}

void expect_same_run(const LoadedRun& a, const LoadedRun& b) {
  expect_same_bits(a.params.flat(), b.params.flat(), "parameters");
  EXPECT_EQ(a.params.cfg.name, b.params.cfg.name);
  EXPECT_EQ(a.params.cfg.vocab, b.params.cfg.vocab);
  expect_same_plan(a.plan, b.plan);
  EXPECT_EQ(a.tokenizer.vocab, b.tokenizer.vocab);
  EXPECT_EQ(a.tokenizer.spec, b.tokenizer.spec);
  const RunInfo &x = a.info, &y = b.info;
  EXPECT_EQ(x.kind + x.dataset + x.data_sha256 + x.base_of,
            y.kind + y.dataset + y.data_sha256 + y.base_of);
  EXPECT_EQ(x.seed, y.seed);
  EXPECT_EQ(x.seq, y.seq);
  EXPECT_EQ(x.train_tokens, y.train_tokens);
  EXPECT_EQ(x.calibration_tokens, y.calibration_tokens);
  EXPECT_EQ(x.train_flops, y.train_flops);
  ASSERT_EQ(x.histograms.size(), y.histograms.size());
  for (size_t i = 0; i < x.histograms.size(); ++i) {
    EXPECT_EQ(x.histograms[i].stage, y.histograms[i].stage);
    EXPECT_EQ(x.histograms[i].layer, y.histograms[i].layer);
  }
  ASSERT_EQ(x.predictors.size(), y.predictors.size());
  for (size_t i = 0; i < x.predictors.size(); ++i) {
    EXPECT_EQ(x.predictors[i].recall, y.predictors[i].recall);
    EXPECT_EQ(x.predictors[i].precision, y.predictors[i].precision);
    EXPECT_EQ(x.predictors[i].density, y.predictors[i].density);
  }
}

// ---- round trips

TEST_F(Folder, EveryMethodIsLoadedBitByBit) {
  const LoadedRun dense = base("base");
  expect_same_run(load_run(at("base")), dense);
  const LoadedRun gated = base("gated", 0, kLlama);
  for (const Method* each : methods()) {
    const Method& m = *each;
    SCOPED_TRACE(m.name);
    const LoadedRun& from = m.gated_only ? gated : dense;
    const LoadedRun made = fitted(from, m.name, m.name), again = load_run(at(m.name));
    expect_same_run(again, made);
    EXPECT_EQ(again.info.train_seconds, made.info.train_seconds);
    EXPECT_EQ(again.info.base_of, weights_sha256(from.params));
    EXPECT_EQ(again.info.kind, "fit");
    std::set<std::string> files;
    for (const auto& f : fs::directory_iterator(at(m.name)))
      files.insert(f.path().filename().string());
    EXPECT_EQ(files, (std::set<std::string>{"log.jsonl", "model.safetensors", "run.json",
                                            "tokenizer.json"}));
    // Saving what was loaded gives the same files.
    save_run(at("copy"), again.params, again.plan, again.tokenizer, again.info);
    for (const char* name : {"model.safetensors", "run.json", "tokenizer.json"})
      EXPECT_EQ(read_file(at("copy/") + name), read_file(at(m.name) + "/" + name)) << name;
  }
}

TEST_F(Folder, HandMadePlansSurvive) {
  ModelConfig c = tiny(kLlama, static_cast<int>(data.tokenizer.vocab.size()));
  Plan plan = routed(c, 8, false, 1.0 / 3);
  plan.method = "lte", plan.knobs = {{"a", "\xc3\xa9\"\\"}, {"b", ""}};
  plan.layer[1].order = {40, 1, 2, 3, 4, 5, 6, 7}, plan.layer[1].input = RouterInput::residual;
  plan.layer[0].rule = Rule::top_k, plan.layer[0].cut = 2, plan.layer[0].router_bias = true;
  plan.layer[1].router = RouterKind::two_layer, plan.layer[1].width = 3;
  plan.layer[1].scaled = true, plan.layer[1].inner = Inner::tanh,
  plan.layer[1].squash = Squash::kept_softmax;
  plan.layer[1].measure = Measure::positive, plan.layer[1].weighted = true;
  plan.layer[0].squash = Squash::absolute, plan.layer[0].inner = Inner::relu;
  plan.layer[0].input = RouterInput::unit, plan.layer[0].down_bias = true;
  Params p = make_params(c, plan);
  randomise(p, 3);
  RunInfo info;
  info.dataset = "text:\"/\\x", info.seed = ~uint64_t{0}, info.seq = 32;
  info.predictors = {{1.0 / 3, 0.5, 1e-9}};
  save_run(at("h"), p, plan, data.tokenizer, info);
  const LoadedRun back = load_run(at("h"));
  expect_same_bits(back.params.flat(), p.flat(), "parameters");
  expect_same_plan(back.plan, plan);
  EXPECT_EQ(back.info.seed, ~uint64_t{0});
  ASSERT_EQ(back.info.predictors.size(), 1u);
  EXPECT_EQ(back.info.predictors[0].recall, 1.0 / 3);
  EXPECT_EQ(back.info.predictors[0].density, 1e-9);
}

// ---- damage

// Recall, precision and density can be counted again from a run's labels.
TEST_F(Folder, LabelsGiveTheRecordedFigures) {
  const LoadedRun dense = base("base");
  for (const char* method : {"deja-vu", "moefication", "d2dmoe", "prune-path"}) {
    fitted(dense, method, method);
    const LoadedRun run = load_run(at(method));
    save_labels(at("labels"), be, run, data);
    const TensorFile file = load_safetensors(at("labels"));
    ASSERT_EQ(run.info.predictors.size(), run.params.layer.size()) << method;
    for (size_t i = 0; i < run.info.predictors.size(); ++i) {
      const Tensor open = find_tensor(file, fmt::format("layer{}.open", i));
      const Tensor matters = find_tensor(file, fmt::format("layer{}.matters", i));
      double both = 0, opened = 0, wanted = 0;
      for (int64_t k = 0; k < open.size(); ++k) {
        const float a = open.as<float>()[k], b = matters.as<float>()[k];
        ASSERT_TRUE((a == 0 || a == 1) && (b == 0 || b == 1));
        both += a * b, opened += a, wanted += b;
      }
      const Prediction& p = run.info.predictors[i];
      EXPECT_NEAR(p.recall, wanted > 0 ? both / wanted : 1, 1e-12) << method;
      EXPECT_NEAR(p.precision, opened > 0 ? both / opened : 1, 1e-12) << method;
      EXPECT_NEAR(p.density, opened / static_cast<double>(open.size()), 1e-12) << method;
      EXPECT_GT(opened, 0) << method;
    }
  }
  EXPECT_NE(error_of([&] { save_labels(at("none"), be, dense, data); }), "no error");
  for (size_t entries : {size_t{1}, size_t{3}}) {  // of a model of two layers
    LoadedRun damaged = load_run(at("d2dmoe"));
    damaged.info.predictors.resize(entries);
    const std::string e = error_of([&] { save_labels(at("none"), be, damaged, data); });
    EXPECT_NE(e.find("run.predictors has"), std::string::npos) << e;
  }
}

TEST_F(Folder, TruncatedWeightsAreOneLine) {
  base("b");
  const std::string path = at("b/model.safetensors"), whole = read_file(path);
  for (size_t size : {size_t{0}, size_t{1}, size_t{7}, size_t{8}, size_t{9}, size_t{100},
                      whole.size() / 2, whole.size() - 4, whole.size() - 1}) {
    write_file(path, whole.substr(0, size));
    EXPECT_NE(load_error("b").find(path), std::string::npos) << size << ": " << load_error("b");
  }
  write_file(path, whole + "x");
  EXPECT_NE(load_error("b"), "no error");
  std::string flipped = whole;
  flipped[whole.size() - 30] ^= 1;
  write_file(path, flipped);
  EXPECT_NE(load_error("b").find("not those that run.json names"), std::string::npos);
  write_file(path, whole);
  EXPECT_EQ(load_error("b"), "no error");
  fs::remove(path);
  EXPECT_NE(load_error("b").find(path), std::string::npos);
}

TEST_F(Folder, FilesOfAnotherRunAreNoticed) {
  const LoadedRun dense = base("b");
  base("other", 1), fitted(dense, "prune", "pruned"), fitted(dense, "lte", "routed");
  for (const char* other : {"other", "pruned", "routed"}) {
    fs::copy(at("b"), at("mix"));
    fs::copy_file(at(other) + "/model.safetensors", at("mix/model.safetensors"),
                  fs::copy_options::overwrite_existing);
    EXPECT_NE(load_error("mix").find("mix/model.safetensors: "), std::string::npos) << other;
    fs::remove_all(at("mix"));
  }
}

TEST_F(Folder, DamagedTokenizerIsOneLine) {
  base("b");
  const std::string path = at("b/tokenizer.json"), whole = read_file(path);
  for (const std::string& bad : {std::string(), whole.substr(0, whole.size() / 2),
                                 std::string("{}"), std::string("{\"spec\":\"bytes\"}")}) {
    write_file(path, bad);
    EXPECT_NE(load_error("b"), "no error") << bad;
  }
  fs::remove(path);
  EXPECT_NE(load_error("b").find(path), std::string::npos);
}

// Its ids would be read beyond the embedding's end.
TEST_F(Folder, TokenizerOfAnotherVocabularyIsNoticed) {
  base("b");
  for (const char* letters : {"abcdefghijklmnop \xc3\xa9", "abc"}) {
    write_file(at("b/tokenizer.json"), to_json(small_text(letters).tokenizer));
    EXPECT_NE(load_error("b"), "no error") << letters;
  }
}

TEST_F(Folder, ExpertsOfTopKAreThoseThatThereAre) {
  fitted(base("b"), "moefication", "m");
  const std::string path = at("m/run.json"), whole = read_file(path);
  const std::string said = "\"cut\": 1.0";  // of 4 experts
  ASSERT_NE(whole.find(said), std::string::npos);
  for (const char* bad : {"0", "-5", "1e30", "1.5", "5"}) {
    std::string text = whole;
    write_file(path, text.replace(text.find(said), said.size(), std::string("\"cut\": ") + bad));
    EXPECT_NE(load_error("m").find("top_k wants a whole number"), std::string::npos) << bad;
  }
}

TEST_F(Folder, DamagedRunJsonIsOneLine) {
  fitted(base("b"), "lte", "l");
  const std::string path = at("l/run.json"), whole = read_file(path);
  const auto swapped = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    EXPECT_NE(text.find(from), std::string::npos) << from;
    return text.replace(text.find(from), from.size(), to);
  };
  for (const std::string& bad : {std::string(),
                                 std::string("{"),
                                 std::string("[]"),
                                 std::string("null"),
                                 whole.substr(0, whole.size() / 2),
                                 whole.substr(0, whole.size() - 3),
                                 swapped("\"format\": 1", "\"format\": 2"),
                                 swapped("\"format\": 1", "\"format\": \"1\""),
                                 swapped("gpt2-nano", "gpt3"),
                                 swapped("layers=2", "layers=3"),
                                 swapped("layers=2", "layers=0"),

                                 swapped("heads=2", "heads=3"),
                                 swapped("\"vocab\": ", "\"vocab\": 1"),
                                 swapped("\"vocab\": ", "\"vocab\": -"),
                                 swapped("threshold", "maybe"),
                                 swapped("linear", "none"),
                                 swapped("\"group\": 8", "\"group\": 5"),
                                 swapped("\"group\": 8", "\"group\": 0"),
                                 swapped("\"group\": 8", "\"group\": -8"),
                                 swapped("\"group\": 8", "\"group\": null"),
                                 swapped("\"order\": [", "\"order\": [32,"),
                                 swapped("\"order\": [", "\"order\": [-1,"),
                                 swapped("\"order\": [", "\"order\": [0,0,0,0,0,0,0,0,"),
                                 swapped("\"eta\": \"", "\"eta\": 5, \"x\": \""),
                                 swapped("\"seed\"", "\"sead\""),
                                 swapped("\"weights_sha256\": \"", "\"weights_sha256\": \"0")}) {
    write_file(path, bad);
    EXPECT_NE(load_error("l"), "no error") << bad.substr(0, 200);
  }
  fs::remove(path);
  EXPECT_FALSE(is_run(at("l")));
  EXPECT_NE(load_error("l").find("not a finished run"), std::string::npos);
  EXPECT_NE(load_error("nowhere").find("not a finished run"), std::string::npos);
}

// The window length is what loops and buffers are made by.
TEST_F(Folder, WindowLengthFitsTheModel) {
  const LoadedRun dense = base("b");
  const std::string path = at("b/run.json"), whole = read_file(path);
  const std::string key = "\"seq\": ", said = key + std::to_string(dense.info.seq);
  ASSERT_NE(whole.find(said), std::string::npos);
  const auto with = [&](const std::string& value) {
    std::string text = whole;
    write_file(path, text.replace(text.find(said), said.size(), key + value));
    return load_error("b");
  };
  for (const char* good : {"1", "32"}) EXPECT_EQ(with(good), "no error") << good;
  for (const char* bad :
       {"0", "-5", "33", "4294967297", "18446744073709551615", "1e30", "16.5", "null"}) {
    const std::string e = with(bad);
    EXPECT_NE(e.find(path), std::string::npos) << bad << ": " << e;
    EXPECT_NE(e.find("run.seq"), std::string::npos) << bad << ": " << e;
  }
}

// ---- interruption

// One stage of training as cmd_train runs it, stopped after `stop` steps (0: not).
struct Stage {
  ModelConfig c;
  Params params;
  Plan plan;
  Stage(const Dataset& d, bool routes) : c(tiny(kGpt, static_cast<int>(d.tokenizer.vocab.size()))) {
    plan = routes ? routed(c, 8) : dense_plan(c);
    params = make_params(c, plan);
    init_params(params, 4);
    set_routers(params, 0.2, 0);
  }
  void run(Backend& be, const Dataset& d, const std::string& folder, int64_t stop,
           double save_seconds = 0, const std::string& key = "key") {
    TrainSpec s{.steps = 14, .batch = 4, .seq = 16, .lr = 1e-2, .terms = {}};
    s.terms = {.train_routers = plan.routed(), .straight_through = plan.routed()};
    if (plan.routed()) s.steer_to = 0.3;
    const auto watch = [stop](const StepLog& l) {
      if (l.step == stop) throw Stop{};
    };
    train(be, params, plan, d.train, d.valid, s,
          run_hooks(folder, "train", key, watch, save_seconds));
  }
};

TEST_F(Folder, InterruptedTrainingGoesOnToTheSameBits) {
  for (bool routes : {false, true}) {
    Stage whole(data, routes);
    whole.run(be, data, at(fmt::format("whole{}", routes)), 0);
    for (int64_t stop : {1, 2, 7, 14}) {
      const std::string folder = at(fmt::format("stopped{}{}", routes, stop));
      Stage first(data, routes), second(data, routes), third(data, routes);
      EXPECT_THROW(first.run(be, data, folder, stop), Stop);
      EXPECT_THROW(second.run(be, data, folder, std::max<int64_t>(stop, 13)), Stop);
      third.run(be, data, folder, 0);
      expect_same_bits(third.params.flat(), whole.params.flat(), fmt::format("stop {}", stop));
    }
  }
}

TEST_F(Folder, WithoutACheckpointTrainingBeginsAgain) {
  Stage whole(data, true), first(data, true), second(data, true);
  whole.run(be, data, at("whole"), 0);
  EXPECT_THROW(first.run(be, data, at("s"), 9, 1e9), Stop);
  EXPECT_FALSE(fs::exists(at("s/stage-train.safetensors")));
  second.run(be, data, at("s"), 0, 1e9);
  expect_same_bits(second.params.flat(), whole.params.flat(), "from the start");
}

TEST_F(Folder, CheckpointOfAnotherKeyIsNotTakenUp) {
  Stage whole(data, false), first(data, false), second(data, false);
  whole.run(be, data, at("whole"), 0);
  EXPECT_THROW(first.run(be, data, at("s"), 9, 0, "other settings"), Stop);
  ASSERT_TRUE(fs::exists(at("s/stage-train.safetensors")));
  int64_t steps = 0;
  TrainHooks hooks = run_hooks(at("s"), "train", "key", [&](const StepLog&) { ++steps; });
  train(be, second.params, second.plan, data.train, data.valid,
        {.steps = 14, .batch = 4, .seq = 16, .lr = 1e-2, .terms = {}}, hooks);
  EXPECT_EQ(steps, 14);
  expect_same_bits(second.params.flat(), whole.params.flat(), "from the start");
}

TEST_F(Folder, DamagedCheckpointIsOneLine) {
  Stage first(data, false);
  EXPECT_THROW(first.run(be, data, at("s"), 9), Stop);
  const std::string path = at("s/stage-train.safetensors"), whole = read_file(path);
  for (size_t size : {size_t{0}, size_t{5}, size_t{60}, whole.size() / 2, whole.size() - 1}) {
    write_file(path, whole.substr(0, size));
    Stage again(data, false);
    EXPECT_NE(error_of([&] { again.run(be, data, at("s"), 0); }).find(path), std::string::npos);
  }
  // The same key, another model.
  write_file(path, whole);
  Stage routes(data, true);
  EXPECT_NE(error_of([&] { routes.run(be, data, at("s"), 0); }).find(path), std::string::npos);
}

TEST_F(Folder, InterruptedFitGoesOnToTheSameBits) {
  const LoadedRun dense = base("b");
  const LoadedRun whole = fitted(dense, "lte", "whole");
  const std::pair<const char*, int64_t> stops[] = {
      {"stage1", 2}, {"stage1", 5}, {"stage2", 1}, {"stage2", 3}, {"stage2", 5}};
  for (const auto& stop : stops) {
    const std::string stage = stop.first;
    const int64_t step = stop.second;
    const std::string name = fmt::format("{}-{}", stage, step);
    SCOPED_TRACE(name);
    EXPECT_THROW(fitted(dense, "lte", name,
                        [&](const std::string& s, const StepLog& l) {
                          if (s == stage && l.step == step) throw Stop{};
                        }),
                 Stop);
    EXPECT_FALSE(is_run(at(name)));
    EXPECT_EQ(fs::exists(at(name + "/stage-stage1.safetensors")), stage == std::string("stage2"));
    std::map<std::string, int> steps;
    expect_same_run(
        fitted(dense, "lte", name, [&](const std::string& s, const StepLog&) { ++steps[s]; }),
        whole);
    EXPECT_EQ(steps["stage1"], stage == std::string("stage2") ? 0 : 5) << "stage 1 was finished";
    for (const char* file : {"stage-stage1.safetensors", "stage-stage2.safetensors"})
      EXPECT_FALSE(fs::exists(at(name) + "/" + file)) << file;
  }
}

TEST_F(Folder, AFitIsNoBase) {
  const LoadedRun dense = base("b"), pruned = fitted(dense, "prune", "p");
  EXPECT_NE(error_of([&] { fitted(pruned, "lte", "q"); }), "no error");
  EXPECT_FALSE(is_run(at("q")));
}

// The README: log.jsonl has every step. A reader that plots it wants none of them twice.
TEST_F(Folder, ResumedLogHasEveryStepOnce) {
  Stage first(data, false), second(data, false);
  EXPECT_THROW(first.run(be, data, at("s"), 9), Stop);
  second.run(be, data, at("s"), 0);
  const std::string log = read_file(at("s/log.jsonl"));
  for (int step = 1; step <= 14; ++step) {
    const std::string key = fmt::format("\"step\":{},", step);
    const size_t found = log.find(key);
    ASSERT_NE(found, std::string::npos) << key;
    EXPECT_EQ(log.find(key, found + 1), std::string::npos) << key << " twice";
  }
}

}  // namespace
}  // namespace lte::testing
