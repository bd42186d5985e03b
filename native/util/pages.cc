#include "util/pages.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace miudo {

#if defined(__linux__)

void let_go(const void* bytes, std::size_t size) {
  const auto address = reinterpret_cast<std::uintptr_t>(bytes);
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = address / page * page;
  madvise(reinterpret_cast<void*>(begin), address + size - begin, MADV_DONTNEED);
}

void want_large_pages(void* memory, std::size_t size) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + kLargePage - 1) / kLargePage * kLargePage;
  const std::uintptr_t end = (address + size) / kLargePage * kLargePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

#else

void let_go(const void*, std::size_t) {}
void want_large_pages(void*, std::size_t) {}

#endif

}  // namespace miudo
