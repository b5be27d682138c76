// Names of functions of this program, static ones too, from the symbol table of its own file: only
// an error asks for them.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
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

// The name of `function` in the symbol table of an ELF file of `bytes` bytes, loaded at base_address.
std::string name_in(const char* file, size_t bytes, const void* function, void* base_address) {
  Elf64_Ehdr head;
  if (bytes < sizeof head) return "?";
  std::memcpy(&head, file, sizeof head);
  if (std::memcmp(head.e_ident, ELFMAG, SELFMAG) != 0) return "?";
  const auto base = reinterpret_cast<uintptr_t>(head.e_type == ET_DYN ? base_address : nullptr);
  const uintptr_t wanted = reinterpret_cast<uintptr_t>(function) - base;
  std::vector<Elf64_Shdr> sections(head.e_shnum);
  std::memcpy(sections.data(), file + head.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& s : sections) {
    if (s.sh_type != SHT_SYMTAB) continue;
    for (uint64_t i = 0; i < s.sh_size / sizeof(Elf64_Sym); ++i) {
      Elf64_Sym symbol;
      std::memcpy(&symbol, file + s.sh_offset + i * sizeof symbol, sizeof symbol);
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_value != wanted) continue;
      const char* mangled = file + sections[s.sh_link].sh_offset + symbol.st_name;
      char* plain = abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr);
      std::string name = plain ? plain : mangled;
      std::free(plain);
      return without_parameters(name);
    }
  }
  return "?";
}

}  // namespace

std::string function_name(const void* function) {
  Dl_info where;
  if (!dladdr(function, &where) || !where.dli_fbase) return "?";
  const char* path = where.dli_fname[0] == '/' ? where.dli_fname : "/proc/self/exe";
  const int file = open(path, O_RDONLY);
  struct stat size = {};
  if (file < 0 || fstat(file, &size) != 0) return "?";
  void* mapped = mmap(nullptr, static_cast<size_t>(size.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return "?";
  const std::string name = name_in(static_cast<const char*>(mapped),
                                   static_cast<size_t>(size.st_size), function, where.dli_fbase);
  munmap(mapped, static_cast<size_t>(size.st_size));
  return name;
}

}  // namespace lte::simt
