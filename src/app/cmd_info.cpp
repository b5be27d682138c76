#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "core/gpu.h"

namespace lte {
namespace {

using Json = nlohmann::ordered_json;

Json info_json(int threads) {
  Json methods_list = Json::array(), datasets_list = Json::array(), models = Json::array(),
       backends = Json::array();
  for (const Method* each : methods()) {
    const Method& m = *each;
    Json knobs = Json::array();
    for (const KnobRow& k : all_knobs(m))
      knobs.push_back({{"name", k.name}, {"default", k.value}, {"about", k.about}});
    methods_list.push_back(
        {{"name", m.name}, {"about", m.about}, {"source", m.source}, {"knobs", knobs}});
  }
  for (const DatasetRow& d : datasets()) {
    datasets_list.push_back({{"name", d.name}, {"about", d.about}, {"tokenizer", d.tokenizer}});
  }
  for (const ModelPreset& m : model_presets()) {
    models.push_back({{"name", m.config.name},
                      {"about", m.about},
                      {"layers", m.config.layers},
                      {"dim", m.config.dim},
                      {"ffn", m.config.ffn}});
  }
  for (const std::string name : {"cpu", "cuda"}) {
    Json list = Json::array();
    for (const Variant& v : variants()) {
      if (v.backend != name) continue;
      list.push_back({{"name", fmt::format("{}+{}", v.backend, v.name)},
                      {"about", v.about},
                      {"available", v.patch != nullptr}});
    }
    const std::string missing = name == "cuda" ? gpu_missing(name) : "";
    backends.push_back(
        {{"name", name}, {"available", missing.empty()}, {"why_not", missing}, {"variants", list}});
  }
  return {{"methods", methods_list},   {"datasets", datasets_list},
          {"models", models},          {"backends", backends},
          {"auto", fastest_backend()}, {"machine", describe_machine(threads)}};
}

Json ceilings_json(const CommonArgs& args) {
  Json out = Json::array();
  const StreamBlock block;
  const int all = ThreadPool(args.threads).size();
  const auto row = [&](const char* what, int threads, double rate, const char* unit) {
    out.push_back({{"what", what}, {"threads", threads}, {"rate", rate}, {"unit", unit}});
  };
  for (int threads : {1, all}) {
    if (threads == 1 && out.size() > 0) break;  // one core
    Backend be = open_backend(args.backend, threads);
    const Ceilings c = measure_ceilings(be, threads, block);
    row("gemm f32", threads, c.gemm_f32, "FLOP/s");
    if (c.gemm_bf16 > 0) row("gemm with bf16 weights", threads, c.gemm_bf16, "FLOP/s");
    row("stream read", threads, c.stream_all, "B/s");
  }
  return out;
}

}  // namespace

int cmd_info(const CommonArgs& c, bool ceilings) {
  Json j = info_json(c.threads);
  if (ceilings) j["ceilings"] = ceilings_json(c);
  if (c.json) {
    fmt::print("{}\n", j.dump());
    return 0;
  }
  for (const Json& m : j["methods"]) {
    fmt::print("method {}: {} ({})\n", m["name"].get<std::string>(), m["about"].get<std::string>(),
               m["source"].get<std::string>());
    for (const Json& k : m["knobs"]) {
      fmt::print("    {:<14} {:<8} {}\n", k["name"].get<std::string>(),
                 k["default"].get<std::string>(), k["about"].get<std::string>());
    }
  }
  for (const Json& d : j["datasets"])
    fmt::print("dataset {}: {}\n", d["name"].get<std::string>(), d["about"].get<std::string>());
  for (const Json& m : j["models"])
    fmt::print("model {}: {}\n", m["name"].get<std::string>(), m["about"].get<std::string>());
  for (const Json& b : j["backends"]) {
    const auto why = b["why_not"].get<std::string>();
    fmt::print("backend {}{}\n", b["name"].get<std::string>(),
               why.empty() ? "" : " (not here: " + why + ")");
    for (const Json& v : b["variants"])
      fmt::print("backend {}: {}{}\n", v["name"].get<std::string>(), v["about"].get<std::string>(),
                 v["available"].get<bool>() ? "" : " (not in this build)");
  }
  fmt::print("backend auto: {}\n", j["auto"].get<std::string>());
  for (const auto& [key, value] : j["machine"].items())
    fmt::print("{}: {}\n", key, value.get<std::string>());
  for (const Json& k : j.value("ceilings", Json::array()))
    fmt::print("ceiling {}, threads {}: {:.1f} G{}\n", k["what"].get<std::string>(),
               k["threads"].get<int>(), k["rate"].get<double>() * 1e-9,
               k["unit"].get<std::string>());
  return 0;
}

}  // namespace lte
