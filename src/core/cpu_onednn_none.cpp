// In a build without oneDNN.
#include "core/cpu.h"

namespace lte {

void (*const kOnednnPatch)(Ops&) = nullptr;

}  // namespace lte
