#include "bench/labels.h"

#include <fmt/format.h>

#include "io/safetensors.h"
#include "methods/predictor.h"

namespace lte {

void save_labels(const std::string& path, Backend& be, const LoadedRun& run, const Dataset& data) {
  const std::vector<Prediction>& known = run.info.predictors;
  LTE_CHECK(!known.empty(),
            fmt::format("method {} has no trained predictors to label", run.plan.method));
  LTE_CHECK(known.size() == run.params.layer.size(),
            fmt::format("run.json: run.predictors has {} entries for a model of {} layers",
                        known.size(), run.params.layer.size()));
  const FitInput in{.backend = be,
                    .dense = run.params,
                    .train = data.train,
                    .valid = data.valid,
                    .seq = run.info.seq,
                    .seed = run.info.seed,
                    .hooks = {}};
  const Observed seen =
      observe_apart(in, run.params, run.plan,
                    known[0].output_norm ? Contribution::output_norm : Contribution::measured);
  std::vector<Labelled> layers;
  for (size_t i = 0; i < known.size(); ++i) {
    layers.push_back(label_predictions(be, run.params.layer[i], run.plan.layer[i], seen.layer[i],
                                       known[i].label));
  }
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < layers.size(); ++i) {
    Labelled& l = layers[i];
    tensors.push_back({fmt::format("layer{}.open", i), view(l.open, {l.n, l.E})});
    tensors.push_back({fmt::format("layer{}.matters", i), view(l.matters, {l.n, l.E})});
  }
  save_safetensors(path, tensors);
}

}  // namespace lte
