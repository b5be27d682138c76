// What run folders and records both say of a fit, as JSON.
#pragma once

#include <nlohmann/json.hpp>

#include "methods/methods.h"

namespace lte {

inline nlohmann::ordered_json histograms_json(const std::vector<Histogram>& all) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Histogram& h : all) list.push_back({{"stage", h.stage}, {"layers", h.layer}});
  return list;
}
inline std::vector<Histogram> histograms_from(const nlohmann::ordered_json& list) {
  std::vector<Histogram> all;
  for (const auto& h : list) {
    all.push_back({h.at("stage"), h.at("layers").get<std::vector<std::vector<int64_t>>>()});
  }
  return all;
}

inline nlohmann::ordered_json predictors_json(const std::vector<Prediction>& all) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Prediction& p : all) {
    list.push_back({{"recall", p.recall},
                    {"precision", p.precision},
                    {"density", p.density},
                    {"label", p.label},
                    {"output_norm", p.output_norm}});
  }
  return list;
}
// Older ones lack the last two.
inline std::vector<Prediction> predictors_from(const nlohmann::ordered_json& list) {
  std::vector<Prediction> all;
  for (const auto& p : list) {
    all.push_back({p.at("recall"), p.at("precision"), p.at("density"), p.value("label", -1.0),
                   p.value("output_norm", false)});
  }
  return all;
}

}  // namespace lte
