// Reads suites/*.toml, experiments as data.
#include <fmt/format.h>
#include <toml++/toml.h>

#include <map>
#include <set>

#include "bench/experiment.h"
#include "core/files.h"

namespace lte {
namespace {

struct Reader {
  const std::string& path;

  void known_keys(const toml::table& t, const std::string& where,
                  const std::set<std::string>& keys) const {
    for (const auto& [key, value] : t) {
      const std::string name(key.str());
      LTE_CHECK(keys.contains(name), fmt::format("{}:{}: unknown key '{}' in {}", path,
                                                 value.source().begin.line, name, where));
    }
  }
  std::string text(const toml::node& n, const std::string& key) const {
    if (const auto s = n.value<std::string>(); s && n.is_string()) return *s;
    if (n.is_integer()) return fmt::format("{}", *n.value<int64_t>());
    if (n.is_floating_point()) return fmt::format("{}", *n.value<double>());
    fail(fmt::format("{}:{}: {} wants a string or a number", path, n.source().begin.line, key));
  }
  template <class T>
  T get(const toml::table& t, const std::string& key, std::optional<T> otherwise = {}) const {
    const toml::node* n = t.get(key);
    if (!n && otherwise) return *otherwise;
    LTE_CHECK(n, fmt::format("{}:{}: '{}' is missing", path, t.source().begin.line, key));
    const auto value = n->value<T>();
    LTE_CHECK(value,
              fmt::format("{}:{}: '{}' has the wrong type", path, n->source().begin.line, key));
    return *value;
  }
};

struct Base {
  BaseSpec spec;
  bool own_seed = false;  // the base takes the experiment's seed
};

Base read_base(const Reader& r, const toml::table& t) {
  r.known_keys(t, "[[base]]",
               {"id", "model", "dataset", "steps", "batch", "lr", "seed", "own_seed"});
  return {.spec = {.model = r.get<std::string>(t, "model"),
                   .dataset = r.get<std::string>(t, "dataset"),
                   .steps = r.get<int64_t>(t, "steps"),
                   .batch = static_cast<int>(r.get<int64_t>(t, "batch", 32)),
                   .lr = r.get<double>(t, "lr", 3e-3),
                   .seed = static_cast<uint64_t>(r.get<int64_t>(t, "seed", 0))},
          .own_seed = r.get<bool>(t, "own_seed", false)};
}

// Every combination of the sweep's values, laid over the fixed knobs.
std::vector<Knobs> combinations(const Reader& r, const toml::table& t) {
  std::vector<Knobs> all(1);
  if (const toml::table* fixed = t["knobs"].as_table()) {
    for (const auto& [key, value] : *fixed)
      all[0][std::string(key.str())] = r.text(value, std::string(key.str()));
  }
  const toml::table* sweep = t["sweep"].as_table();
  if (!sweep) return all;
  for (const auto& [key, values] : *sweep) {
    const toml::array* list = values.as_array();
    LTE_CHECK(list, fmt::format("{}:{}: sweep.{} wants a list", r.path, values.source().begin.line,
                                key.str()));
    std::vector<Knobs> next;
    for (const Knobs& k : all) {
      for (const toml::node& v : *list) {
        next.push_back(k);
        next.back()[std::string(key.str())] = r.text(v, std::string(key.str()));
      }
    }
    all = std::move(next);
  }
  return all;
}

void read_experiment(const Reader& r, const toml::table& t,
                     const std::map<std::string, Base>& bases, SuiteSpec& suite) {
  r.known_keys(t, "[[experiment]]",
               {"base", "method", "protocol", "knobs", "sweep", "seeds", "trials"});
  const auto id = r.get<std::string>(t, "base");
  LTE_CHECK(bases.contains(id),
            fmt::format("{}:{}: no [[base]] has the id '{}'", r.path, t.source().begin.line, id));
  std::vector<int64_t> seeds;
  if (const toml::array* list = t["seeds"].as_array()) {
    for (const toml::node& n : *list) seeds.push_back(n.value<int64_t>().value_or(0));
  } else {
    seeds.push_back(0);
  }
  const auto protocol = r.get<std::string>(t, "protocol", "equal budget");
  LTE_CHECK(protocol == "paper" || protocol == "equal budget",
            fmt::format("{}:{}: protocol '{}' is neither 'paper' nor 'equal budget'", r.path,
                        t.source().begin.line, protocol));
  for (const Knobs& knobs : combinations(r, t)) {
    for (int64_t seed : seeds) {
      Experiment e;
      e.suite = suite.name, e.base = bases.at(id).spec, e.method = r.get<std::string>(t, "method");
      e.knobs = knobs, e.seed = static_cast<uint64_t>(seed), e.protocol = protocol;
      e.trials = static_cast<int>(r.get<int64_t>(t, "trials", 1));
      if (bases.at(id).own_seed) e.base.seed = e.seed;
      suite.experiments.push_back(std::move(e));
    }
  }
}

template <class F>
void each_table(const Reader& r, const toml::table& root, const char* key, F&& f) {
  const toml::array* list = root[key].as_array();
  LTE_CHECK(list, fmt::format("{}: has no [[{}]]", r.path, key));
  for (const toml::node& n : *list) {
    LTE_CHECK(n.is_table(), fmt::format("{}:{}: {} wants [[{}]] tables", r.path,
                                        n.source().begin.line, key, key));
    f(*n.as_table());
  }
}

}  // namespace

SuiteSpec load_suite(const std::string& path) {
  toml::table root;
  try {
    root = toml::parse(read_file(path), path);
  } catch (const toml::parse_error& e) {
    fail(fmt::format("{}:{}: {}", path, e.source().begin.line, e.description()));
  }
  const Reader r{path};
  r.known_keys(
      root, "the suite",
      {"suite", "about", "score_windows", "time_windows", "repetitions", "base", "experiment"});
  SuiteSpec s;
  s.name = r.get<std::string>(root, "suite"), s.about = r.get<std::string>(root, "about", "");
  s.score_windows = r.get<int64_t>(root, "score_windows", 0);
  s.time_windows = r.get<int64_t>(root, "time_windows", 4);
  s.repetitions = static_cast<int>(r.get<int64_t>(root, "repetitions", 9));
  std::map<std::string, Base> bases;
  each_table(r, root, "base",
             [&](const toml::table& t) { bases[r.get<std::string>(t, "id")] = read_base(r, t); });
  each_table(r, root, "experiment", [&](const toml::table& t) { read_experiment(r, t, bases, s); });
  return s;
}

}  // namespace lte
