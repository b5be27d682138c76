// In a build without Highway.
#include "core/cpu.h"
#include "core/cpu_simd.h"

namespace lte {

void (*const kSimdPatch)(Ops&) = nullptr;

namespace simd {
std::vector<std::string> targets() { return {}; }
void use_target(std::string_view) {}
}  // namespace simd

}  // namespace lte
