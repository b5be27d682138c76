// Reads suites/*.toml, experiments as data.
#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <map>
#include <set>

#include "bench/experiment.h"
#include "core/files.h"
#include "methods/methods.h"

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

int64_t whole(const Reader& r, const toml::table& t, const char* key,
              std::optional<int64_t> otherwise, int64_t low, int64_t high) {
  const auto value = r.get<int64_t>(t, key, otherwise);
  const toml::node* n = t.get(key);
  LTE_CHECK(value >= low && value <= high && (!n || n->is_integer()),
            fmt::format("{}:{}: '{}' wants a whole number from {} to {}", r.path,
                        (n ? n->source() : t.source()).begin.line, key, low, high));
  return value;
}
constexpr int64_t kMost = 1'000'000'000;

// The table or the list under `key`; null where the key is absent, an error where it is something
// else or empty.
const toml::table* table_at(const Reader& r, const toml::table& t, const char* key) {
  const toml::node* n = t.get(key);
  LTE_CHECK(!n || n->is_table(), fmt::format("{}:{}: '{}' wants a table, {{ knob = value }}",
                                             r.path, n->source().begin.line, key));
  return n ? n->as_table() : nullptr;
}
const toml::array& list_of(const Reader& r, const toml::node& n, const std::string& key) {
  const toml::array* list = n.as_array();
  LTE_CHECK(list && !list->empty(),
            fmt::format("{}:{}: '{}' wants a list of values", r.path, n.source().begin.line, key));
  return *list;
}

struct Base {
  BaseSpec spec;
  bool own_seed = false;  // the base takes the experiment's seed
  Knobs knobs;            // of every experiment on it whose method has them, laid below its own
  Knobs budget;           // the same, of equal-budget experiments alone
  std::map<std::string, std::string> rates;     // method -> learning rate at equal budget
  std::map<std::string, std::string> borrowed;  // the same, found for another method: nothing tried
  std::map<std::string, std::string> trials;    // method, or "" for all -> settings tried
};

// The table under `key` as knobs; none where it is absent.
Knobs knobs_at(const Reader& r, const toml::table& t, const char* key) {
  Knobs knobs;
  const toml::table* table = table_at(r, t, key);
  for (const auto& [name, value] : table ? *table : toml::table{})
    knobs[std::string(name.str())] = r.text(value, std::string(name.str()));
  return knobs;
}

// rates = { "1e-3" = ["dense", "relu"] }: what each method has.
std::map<std::string, std::string> by_method(const Reader& r, const toml::table& t,
                                             const char* key) {
  std::map<std::string, std::string> found;
  const toml::table* table = table_at(r, t, key);
  for (const auto& [value, list] : table ? *table : toml::table{}) {
    for (const toml::node& n : list_of(r, list, fmt::format("{}.{}", key, value.str()))) {
      const std::string method = r.text(n, key);
      find_method(method);
      LTE_CHECK(
          found.try_emplace(method, value.str()).second,
          fmt::format("{}:{}: '{}' names '{}' twice", r.path, n.source().begin.line, key, method));
    }
  }
  return found;
}

Base read_base(const Reader& r, const toml::table& t) {
  r.known_keys(t, "[[base]]",
               {"id", "model", "dataset", "steps", "batch", "lr", "seed", "own_seed", "trials",
                "knobs", "budget", "rates", "borrowed"});
  BaseSpec b{.model = r.get<std::string>(t, "model"), .dataset = r.get<std::string>(t, "dataset")};
  b.steps = whole(r, t, "steps", {}, 1, kMost);
  b.batch = static_cast<int>(whole(r, t, "batch", 32, 1, 65536));
  b.lr = r.get<double>(t, "lr", 3e-3);
  b.seed = static_cast<uint64_t>(whole(r, t, "seed", 0, 0, kMost));
  LTE_CHECK(b.lr > 0,
            fmt::format("{}:{}: 'lr' wants a positive number", r.path, t.source().begin.line));
  std::map<std::string, std::string> trials;
  if (t["trials"].is_table()) {
    trials = by_method(r, t, "trials");
  } else {
    trials[""] = fmt::format("{}", whole(r, t, "trials", 1, 1, kMost));
  }
  return {.spec = b,
          .own_seed = r.get<bool>(t, "own_seed", false),
          .knobs = knobs_at(r, t, "knobs"),
          .budget = knobs_at(r, t, "budget"),
          .rates = by_method(r, t, "rates"),
          .borrowed = by_method(r, t, "borrowed"),
          .trials = trials};
}

// How many settings were tried for an equal-budget experiment of `method`.
int64_t trials_of(const Base& base, const std::string& method) {
  for (const std::string& key : {method, std::string()}) {
    const auto found = base.trials.find(key);
    if (found != base.trials.end())
      return get_whole({{"trials", found->second}}, "trials", 1, kMost);
  }
  return 1;
}

// Every combination of the sweep's values, laid over the fixed knobs.
std::vector<Knobs> combinations(const Reader& r, const toml::table& t) {
  std::vector<Knobs> all = {knobs_at(r, t, "knobs")};
  const toml::table* sweep = table_at(r, t, "sweep");
  if (!sweep) return all;
  for (const auto& [key, values] : *sweep) {
    std::vector<Knobs> next;
    for (const Knobs& k : all) {
      for (const toml::node& v : list_of(r, values, "sweep." + std::string(key.str()))) {
        next.push_back(k);
        next.back()[std::string(key.str())] = r.text(v, std::string(key.str()));
      }
    }
    all = std::move(next);
  }
  return all;
}

// Lays the base's settings below the experiment's own: those that the method has.
Knobs on_base(const Base& base, const Experiment& e) {
  const std::vector<KnobRow> rows = all_knobs(find_method(e.method));
  const auto has = [&](const std::string& name) {
    return std::any_of(rows.begin(), rows.end(), [&](const KnobRow& k) { return name == k.name; });
  };
  Knobs knobs = e.knobs;
  const auto lay = [&](const Knobs& below) {
    for (const auto& [name, value] : below) {
      if (has(name)) knobs.try_emplace(name, value);
    }
  };
  lay(base.knobs);
  if (e.protocol == "paper") return knobs;
  lay(base.budget);
  for (const auto* rates : {&base.rates, &base.borrowed}) {
    if (const auto rate = rates->find(e.method); rate != rates->end()) lay({{"lr", rate->second}});
  }
  return knobs;
}

// `base`: the id of one base, or a list of ids.
std::vector<std::string> bases_of(const Reader& r, const toml::table& t) {
  const toml::node* n = t.get("base");
  if (!n || !n->is_array()) return {r.get<std::string>(t, "base")};
  std::vector<std::string> ids;
  for (const toml::node& id : list_of(r, *n, "base")) ids.push_back(r.text(id, "base"));
  return ids;
}

std::vector<uint64_t> seeds_of(const Reader& r, const toml::table& t) {
  const toml::node* n = t.get("seeds");
  if (!n) return {0};
  std::vector<uint64_t> seeds;
  for (const toml::node& seed : list_of(r, *n, "seeds")) {
    LTE_CHECK(seed.is_integer() && *seed.value<int64_t>() >= 0,
              fmt::format("{}:{}: 'seeds' wants whole numbers", r.path, seed.source().begin.line));
    seeds.push_back(static_cast<uint64_t>(*seed.value<int64_t>()));
  }
  return seeds;
}

void read_experiment(const Reader& r, const toml::table& t,
                     const std::map<std::string, Base>& bases, SuiteSpec& suite) {
  r.known_keys(t, "[[experiment]]",
               {"base", "method", "protocol", "knobs", "sweep", "seeds", "trials"});
  const auto protocol = r.get<std::string>(t, "protocol", "equal budget");
  LTE_CHECK(protocol == "paper" || protocol == "equal budget",
            fmt::format("{}:{}: protocol '{}' is neither 'paper' nor 'equal budget'", r.path,
                        t.source().begin.line, protocol));
  const std::vector<uint64_t> seeds = seeds_of(r, t);
  for (const std::string& id : bases_of(r, t)) {
    LTE_CHECK(bases.contains(id),
              fmt::format("{}:{}: no [[base]] has the id '{}'", r.path, t.source().begin.line, id));
    const Base& base = bases.at(id);
    for (const Knobs& knobs : combinations(r, t)) {
      for (uint64_t seed : seeds) {
        Experiment e;
        e.suite = suite.name, e.base = base.spec, e.method = r.get<std::string>(t, "method");
        e.seed = seed, e.protocol = protocol, e.knobs = knobs;
        e.knobs = on_base(base, e);
        const bool tried = protocol != "paper" && !base.borrowed.contains(e.method);
        const int64_t trials = tried ? trials_of(base, e.method) : 1;
        e.trials = static_cast<int>(whole(r, t, "trials", trials, 1, kMost));
        if (base.own_seed) e.base.seed = e.seed;
        suite.experiments.push_back(std::move(e));
      }
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
  r.known_keys(root, "the suite",
               {"suite", "about", "split", "score_windows", "time_windows", "repetitions", "base",
                "experiment"});
  SuiteSpec s;
  s.name = r.get<std::string>(root, "suite"), s.about = r.get<std::string>(root, "about", "");
  s.score_windows = whole(r, root, "score_windows", 0, 0, kMost);
  s.time_windows = whole(r, root, "time_windows", 4, 1, kMost);
  s.repetitions = static_cast<int>(whole(r, root, "repetitions", 9, 0, 1000));
  s.split = r.get<std::string>(root, "split", "test");
  LTE_CHECK(s.split == "test" || s.split == "valid",
            fmt::format("{}: split '{}' is neither 'test' nor 'valid'", path, s.split));
  std::map<std::string, Base> bases;
  each_table(r, root, "base", [&](const toml::table& t) {
    const auto id = r.get<std::string>(t, "id");
    LTE_CHECK(
        bases.try_emplace(id, read_base(r, t)).second,
        fmt::format("{}:{}: a second [[base]] has the id '{}'", path, t.source().begin.line, id));
  });
  each_table(r, root, "experiment", [&](const toml::table& t) { read_experiment(r, t, bases, s); });
  return s;
}

}  // namespace lte
