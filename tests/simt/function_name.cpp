// Names of functions of this program, static ones too, from the symbol table of its own file: only
// an error asks for them.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "simt.h"

namespace lte::simt {
namespace {

// "void lte::(anonymous namespace)::kernel<float>(float*)" without "void " and "(float*)".
std::string without_parameters(const std::string& name) {
  const size_t begin = name.rfind("void ", 0) == 0 ? 5 : 0;
  int depth = 0;  // of template arguments
  for (size_t i = begin; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (depth == 0 && name[i] == '(' && name.compare(i, 10, "(anonymous") != 0) {
      return name.substr(begin, i - begin);
    }
  }
  return name.substr(begin);
}

}  // namespace

std::string function_name(const void* function) {
  Dl_info where;
  if (!dladdr(function, &where) || !where.dli_fbase) return "?";
  std::ifstream file(where.dli_fname[0] == '/' ? where.dli_fname : "/proc/self/exe",
                     std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  Elf64_Ehdr head;
  if (bytes.size() < sizeof head) return "?";
  std::memcpy(&head, bytes.data(), sizeof head);
  if (std::memcmp(head.e_ident, ELFMAG, SELFMAG) != 0) return "?";
  const auto base = reinterpret_cast<uintptr_t>(head.e_type == ET_DYN ? where.dli_fbase : nullptr);
  const uintptr_t wanted = reinterpret_cast<uintptr_t>(function) - base;
  std::vector<Elf64_Shdr> sections(head.e_shnum);
  std::memcpy(sections.data(), bytes.data() + head.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& s : sections) {
    if (s.sh_type != SHT_SYMTAB) continue;
    for (uint64_t i = 0; i < s.sh_size / sizeof(Elf64_Sym); ++i) {
      Elf64_Sym symbol;
      std::memcpy(&symbol, bytes.data() + s.sh_offset + i * sizeof symbol, sizeof symbol);
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_value != wanted) continue;
      const char* mangled = bytes.data() + sections[s.sh_link].sh_offset + symbol.st_name;
      char* plain = abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr);
      std::string name = plain ? plain : mangled;
      std::free(plain);
      return without_parameters(name);
    }
  }
  return "?";
}

}  // namespace lte::simt
