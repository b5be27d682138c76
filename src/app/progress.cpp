#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>

#include "app/commands.h"

namespace lte {

std::string duration(double seconds) {
  if (seconds < 0) return "?";
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} m {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} m", s / 3600, s / 60 % 60);
}

ProgressLine::ProgressLine() : terminal(isatty(STDERR_FILENO) != 0) {}

void ProgressLine::show(const Progress& p) {
  const double every = terminal ? 0.2 : 5;
  if (!p.finished && p.elapsed >= last && p.elapsed - last < every) return;
  if (!terminal && !p.finished && p.step == 0)
    return;  // a stage that has just begun has nothing to say
  last = p.elapsed;
  std::string line;
  if (p.stages > 0) line += fmt::format("[{}/{}] ", p.stage, p.stages);
  line += p.what;
  if (p.cached) {
    line += " | done before";
  } else if (p.steps > 0) {
    line += fmt::format(" | step {}/{}", p.step, p.steps);
    if (p.loss > 0) line += fmt::format(" | loss {:.4f}", p.loss);
    if (p.tokens_per_s > 0) line += fmt::format(" | {:.1f} k tokens/s", p.tokens_per_s / 1000);
  }
  line += fmt::format(" | {} elapsed", duration(p.elapsed));
  if (p.remaining >= 0) line += fmt::format(", {} to go", duration(p.remaining));
  if (terminal) {
    fmt::print(stderr, "\r\033[K{}", line);
    open = true;
    if (p.finished) close();
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

void ProgressLine::close() {
  if (open) fmt::print(stderr, "\n");
  open = false;
}

}  // namespace lte
