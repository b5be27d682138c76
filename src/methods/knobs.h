// A method's settings: named, documented, checked. Nothing that is not in the table can be set.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/plan.h"

namespace lte {

struct KnobRow {
  const char* name;
  const char* value;  // the default
  const char* about;  // with the paper's behaviour where it is a deviation
};

// Defaults overlaid with `set`. Throws Error on an unknown name, listing the known ones.
Knobs resolve_knobs(std::string_view method, std::span<const KnobRow> rows, const Knobs& set);

// Checked reads; the Error names the knob and what it wants.
double get_number(const Knobs&, const std::string& name, double low, double high);
double get_active(const Knobs&);  // "active": above 0 and at most 1
int64_t get_whole(const Knobs&, const std::string& name, int64_t low, int64_t high);
std::string get_choice(const Knobs&, const std::string& name, std::span<const char* const> choices);

// Shared by every method that trains. `steps` differs by method and is not among them.
inline constexpr KnobRow kTrainingKnobs[] = {
    {"batch", "32", "sequences in a training step"},
    {"seq", "0", "tokens of a training sequence; 0: the dataset's own length"},
    {"lr", "1e-3", "peak learning rate of AdamW; cosine with a warm-up of 6 %"},
    {"clip", "1", "global norm that gradients are clipped to; 0: not clipped"},
    {"decay", "0", "weight decay; the paper uses 0"},
    {"distill", "0",
     "share of the task loss that is KL to the prediction of the dense model that the method "
     "starts from; a third more work a step, which is counted. Not in steps `before` predictors "
     "are fitted, nor in `mask_steps`"},
    {"exec", "masked",
     "how steps under hard gates and frozen routers compute the FFN: masked, all experts and then "
     "zeros; gathered, each expert over its own tokens alone, where the backend can; measured: "
     "takes turns in the first twelve of them and goes on as the faster, which another machine may "
     "choose differently. The two agree to rounding only; other steps are masked"},
};

}  // namespace lte
