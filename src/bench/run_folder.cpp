#include "bench/run_folder.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bench/fit_json.h"
#include "core/files.h"
#include "core/hash.h"
#include "io/safetensors.h"

namespace lte {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr int kFormat = 1;
constexpr const char *kRules[] = {"all", "threshold", "top_k", "cumulative", "relative_max"},
                     *kRouters[] = {"none", "linear", "two_layer", "activation", "gate"},
                     *kInputs[] = {"normed", "residual", "unit", "ahead"},
                     *kSquashes[] = {"sigmoid", "softmax", "absolute", "none", "kept_softmax"},
                     *kInners[] = {"none", "relu", "tanh"},
                     *kMeasures[] = {"magnitude", "norm", "positive"};

template <size_t N>
size_t index_of(const char* const (&names)[N], const std::string& name) {
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return i;
  }
  fail(fmt::format("run.json: unknown value '{}'", name));
}

Json plan_json(const Plan& plan) {
  Json layers = Json::array();
  for (const FfnPlan& p : plan.layer) {
    layers.push_back({{"group", p.group},
                      {"router", kRouters[static_cast<size_t>(p.router)]},
                      {"router_bias", p.router_bias},
                      {"input", kInputs[static_cast<size_t>(p.input)]},
                      {"rule", kRules[static_cast<size_t>(p.rule)]},
                      {"cut", p.cut},
                      {"width", p.width},
                      {"inner", kInners[static_cast<size_t>(p.inner)]},
                      {"squash", kSquashes[static_cast<size_t>(p.squash)]},
                      {"measure", kMeasures[static_cast<size_t>(p.measure)]},
                      {"weighted", p.weighted},
                      {"scaled", p.scaled},
                      {"in_cut", p.in_cut},
                      {"down_bias", p.down_bias},
                      {"order", p.order}});
  }
  return {{"method", plan.method}, {"knobs", plan.knobs}, {"layers", layers}};
}

Plan plan_from(const Json& j) {
  Plan plan{.method = j.at("method"), .knobs = j.at("knobs").get<Knobs>(), .layer = {}};
  for (const Json& l : j.at("layers")) {
    plan.layer.push_back(
        {.group = l.at("group"),
         .order = l.at("order").get<std::vector<int>>(),
         .router = static_cast<RouterKind>(index_of(kRouters, l.at("router"))),
         .router_bias = l.at("router_bias"),
         .input = static_cast<RouterInput>(index_of(kInputs, l.at("input"))),
         .rule = static_cast<Rule>(index_of(kRules, l.at("rule"))),
         .cut = l.at("cut"),
         .width = l.value("width", 0),
         .inner = static_cast<Inner>(index_of(kInners, l.value("inner", "none"))),
         .squash = static_cast<Squash>(index_of(kSquashes, l.value("squash", "sigmoid"))),
         .measure = static_cast<Measure>(index_of(kMeasures, l.value("measure", "magnitude"))),
         .weighted = l.value("weighted", false),
         .in_cut = l.value("in_cut", -1.0),
         .scaled = l.value("scaled", false),
         .down_bias = l.value("down_bias", false)});
  }
  return plan;
}

Json info_json(const RunInfo& i) {
  return {{"kind", i.kind},
          {"backend", i.backend},
          {"dataset", i.dataset},
          {"data_sha256", i.data_sha256},
          {"base_of", i.base_of},
          {"seed", i.seed},
          {"base_steps", i.base_steps},
          {"base_batch", i.base_batch},
          {"base_lr", i.base_lr},
          {"base_seed", i.base_seed},
          {"seq", i.seq},
          {"train_tokens", i.train_tokens},
          {"calibration_tokens", i.calibration_tokens},
          {"train_flops", i.train_flops},
          {"train_seconds", i.train_seconds},
          {"histograms", histograms_json(i.histograms)},
          {"predictors", predictors_json(i.predictors)}};
}

RunInfo info_from(const Json& j) {
  RunInfo i{.kind = j.at("kind"),
            .backend = j.value("backend", "cpu"),
            .dataset = j.at("dataset"),
            .data_sha256 = j.at("data_sha256"),
            .base_of = j.at("base_of"),
            .seed = j.at("seed"),
            .base_steps = j.at("base_steps"),
            .base_batch = j.at("base_batch"),
            .base_lr = j.at("base_lr"),
            .base_seed = j.at("base_seed"),
            .seq = j.at("seq"),
            .train_tokens = j.at("train_tokens"),
            .calibration_tokens = j.at("calibration_tokens"),
            .train_flops = j.at("train_flops"),
            .train_seconds = j.at("train_seconds"),
            .histograms = {},
            .predictors = {}};
  i.predictors = predictors_from(j.value("predictors", Json::array()));
  i.histograms = histograms_from(j.at("histograms"));
  return i;
}

std::vector<NamedTensor> named(const Params& p) {
  std::vector<NamedTensor> list;
  visit_params(const_cast<Params&>(p), [&](Tensor& t, const ParamInfo& info) {
    list.push_back({info.name, t});
  });
  return list;
}

void copy_named(Params& p, const TensorFile& file, const std::string& path) {
  size_t found = 0;
  visit_params(p, [&](Tensor& t, const ParamInfo& info) {
    const Tensor& from = find_tensor(file, info.name);
    LTE_CHECK(
        from.dtype == t.dtype && from.rank == t.rank && std::equal(t.dim, t.dim + 4, from.dim),
        fmt::format("{}: tensor {} has another shape or type than run.json says", path, info.name));
    std::memcpy(t.data, from.data, t.bytes());
    ++found;
  });
  LTE_CHECK(found == file.tensors.size(), fmt::format("{}: holds {} tensors, run.json says {}",
                                                      path, file.tensors.size(), found));
}

std::string stage_path(const std::string& folder, const std::string& stage) {
  return fmt::format("{}/stage-{}.safetensors", folder, stage);
}

// Drops the lines of steps that are about to be done again: all of the stage beyond `step`.
void cut_log(const std::string& path, const std::string& stage, int64_t step) {
  if (!fs::is_regular_file(path)) return;
  const std::string text = read_file(path);
  std::string kept;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const Json line = Json::parse(text.substr(at, end - at), nullptr, false);
    const bool whole = line.is_object() && line.contains("stage") && line.contains("step");
    if (whole && (line["stage"] != stage || line["step"] <= step))
      kept += text.substr(at, end - at) + "\n";
    at = end + 1;
  }
  if (kept != text) write_file(path, kept);
}

bool restore_stage(const std::string& path, const std::string& key, const TrainState& s) {
  if (!fs::exists(path)) return false;
  const TensorFile file = load_safetensors(path);
  const auto found = file.metadata.find("key");
  if (found == file.metadata.end() || found->second != key) return false;
  const auto take = [&](const char* name, Params& to) {
    const Tensor& from = find_tensor(file, name);
    LTE_CHECK(from.bytes() == to.flat().bytes(),
              fmt::format("{}: {} has another size than the model", path, name));
    std::memcpy(to.flat().data, from.data, from.bytes());
  };
  take("params", s.params), take("m", s.m), take("v", s.v);
  const auto step = file.metadata.find("step"), eta = file.metadata.find("eta");
  LTE_CHECK(step != file.metadata.end() && eta != file.metadata.end(),
            fmt::format("{}: holds no step; remove it to start this stage again", path));
  s.step = std::strtoll(step->second.c_str(), nullptr, 10);
  s.eta = std::strtod(eta->second.c_str(), nullptr);
  return true;
}

void save_stage(const std::string& path, const std::string& key, const TrainState& s) {
  const std::vector<NamedTensor> list = {
      {"params", s.params.flat()}, {"m", s.m.flat()}, {"v", s.v.flat()}};
  save_safetensors(
      path, list,
      {{"key", key}, {"step", fmt::format("{}", s.step)}, {"eta", fmt::format("{:a}", s.eta)}});
}

}  // namespace

std::string weights_sha256(const Params& p) {
  const Tensor flat = p.flat();
  return sha256_hex({static_cast<const char*>(flat.data), flat.bytes()});
}

bool is_run(const std::string& folder) { return fs::exists(folder + "/run.json"); }

void save_run(const std::string& folder, const Params& p, const Plan& plan,
              const Tokenizer& tokenizer, const RunInfo& info) {
  make_folder(folder);
  save_safetensors(folder + "/model.safetensors", named(p));
  write_file(folder + "/tokenizer.json", to_json(tokenizer));
  const Json j = {{"format", kFormat},
                  {"model", p.cfg.name},
                  {"vocab", p.cfg.vocab},
                  {"tokenizer_sha256", sha256_hex(to_json(tokenizer))},
                  {"weights_sha256", weights_sha256(p)},
                  {"plan", plan_json(plan)},
                  {"run", info_json(info)}};
  write_file(folder + "/run.json",
             j.dump(1) + "\n");  // last: its presence says that the run is complete
}

LoadedRun load_run(const std::string& folder, Memory where) {
  const std::string path = folder + "/run.json";
  LTE_CHECK(fs::exists(path),
            fmt::format("{}: is not a finished run folder (it has no run.json)", folder));
  const std::string text = read_file(path);
  try {
    const Json j = Json::parse(text);
    LTE_CHECK(j.at("format") == kFormat,
              fmt::format("{}: is of another format than this program's", path));
    ModelConfig cfg = parse_model(j.at("model").get<std::string>());
    cfg.vocab = j.at("vocab");
    const Json& seq = j.at("run").at("seq");
    LTE_CHECK(
        seq.is_number_integer() && seq >= 1 && seq <= cfg.max_seq,
        fmt::format("{}: run.seq is {}, wants a whole number from 1 to the model's max_seq {}",
                    path, seq.dump(), cfg.max_seq));
    Plan plan = plan_from(j.at("plan"));
    LoadedRun run{.params = make_params(cfg, plan, DType::f32, where),
                  .plan = plan,
                  .tokenizer = tokenizer_from_json(read_file(folder + "/tokenizer.json")),
                  .info = info_from(j.at("run"))};
    LTE_CHECK(j.at("tokenizer_sha256") == sha256_hex(to_json(run.tokenizer)) &&
                  static_cast<int>(run.tokenizer.vocab.size()) == cfg.vocab,
              fmt::format("{}/tokenizer.json: is not the tokenizer that run.json names", folder));
    const std::string weights = folder + "/model.safetensors";
    copy_named(run.params, load_safetensors(weights), weights);
    LTE_CHECK(j.at("weights_sha256") == weights_sha256(run.params),
              fmt::format("{}: the weights are not those that run.json names", weights));
    return run;
  } catch (const nlohmann::json::exception& e) {
    fail(fmt::format("{}: damaged: {}", path, e.what()));
  }
}

TrainHooks run_hooks(const std::string& folder, const std::string& stage, const std::string& key,
                     std::function<void(const StepLog&)> watch, double save_seconds) {
  make_folder(folder);
  const std::string path = stage_path(folder, stage), log = folder + "/log.jsonl";
  TrainHooks hooks;
  hooks.save_seconds = save_seconds;
  hooks.restore = [=](const TrainState& s) {
    const bool found = restore_stage(path, key, s);
    cut_log(log, stage, s.step);
    return found;
  };
  hooks.save = [=](const TrainState& s) { save_stage(path, key, s); };
  hooks.log = [=](const StepLog& l) {
    append_line(
        log,
        fmt::format("{{\"stage\":\"{}\",\"step\":{},\"loss\":{:.6g},\"efficiency\":{:.6g},"
                    "\"separability\":{:.6g},\"active\":{:.6g},\"crossings\":{:.6g},\"eta\":{:.6g},"
                    "\"lambda\":{:.6g},\"lr\":{:.6g},\"grad_norm\":{:.6g},\"tokens_per_s\":{:.6g},"
                    "\"seconds\":{:.6g},\"exec\":\"{}\",\"gathered_gain\":{:.4g}}}",
                    stage, l.step, l.loss, l.efficiency, l.separability, l.active, l.crossings,
                    l.eta, l.lambda, l.lr, l.grad_norm, l.tokens_per_s, l.seconds,
                    l.exec == Exec::masked ? "masked" : "gathered", l.gathered_gain));
    if (watch) watch(l);
  };
  return hooks;
}

double logged_seconds(const std::string& folder) {
  const std::string path = folder + "/log.jsonl";
  if (!fs::exists(path)) return 0;
  const std::string text = read_file(path);
  double sum = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const Json line = Json::parse(text.substr(at, end - at), nullptr, false);
    if (line.is_object() && line.contains("seconds")) sum += line["seconds"].get<double>();
    at = end + 1;
  }
  return sum;
}

void clear_checkpoints(const std::string& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("stage-") && name.ends_with(".safetensors")) fs::remove(entry.path());
  }
}

}  // namespace lte
