// Reads checkpoints of the GPT-2 and LLaMA families in the layouts of Hugging Face transformers.
#pragma once

#include <string>

#include "model/params.h"

namespace lte {

// The shape that folder/config.json describes. Throws Error, one line that begins with the path, for
// another family and for what this decoder does not compute (rope scaling, biases in LLaMA, ...).
ModelConfig huggingface_config(const std::string& folder);

// The weights of folder/FILE, or with the name "model.safetensors" and a sharded checkpoint those of
// all files in folder/model.safetensors.index.json, as f32. A file of gradients has the same layout
// and is read the same way. Throws Error for a tensor that is missing, not known, or of another shape.
Params import_huggingface(const std::string& folder, const std::string& file = "model.safetensors");

}  // namespace lte
