#include "util/cpu.h"

#include <cstdlib>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "util/status.h"

namespace miudo {
namespace {

constexpr int kMaxThreads = 256;

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

}  // namespace

bool isa_available(Isa isa) {
  if (isa == Isa::kPortable) return true;
#if defined(MIUDO_HAVE_AVX2)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

const char* isa_name(Isa isa) { return isa == Isa::kAvx2 ? "avx2" : "portable"; }

Isa choose_isa() {
  const char* forced = std::getenv("MIUDO_ISA");
  if (forced == nullptr || *forced == '\0') {
    return isa_available(Isa::kAvx2) ? Isa::kAvx2 : Isa::kPortable;
  }
  const std::string name = forced;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2}) {
    if (name == isa_name(isa) && isa_available(isa)) return isa;
  }
  fail(Code::kRequest, "MIUDO_ISA is '" + name + "', this machine and build have portable" +
                           (isa_available(Isa::kAvx2) ? " and avx2" : ""));
}

int choose_threads(int wanted) {
  if (wanted <= 0) {
    const char* text = std::getenv("MIUDO_THREADS");
    if (text != nullptr && *text != '\0') {
      char* end = nullptr;
      const long value = std::strtol(text, &end, 10);
      if (*end != '\0' || value < 1 || value > kMaxThreads) {
        fail(Code::kRequest,
             "MIUDO_THREADS is '" + std::string(text) + "', allowed a number from 1 to 256");
      }
      return static_cast<int>(value);
    }
    wanted = available_cores();
  }
  return wanted < kMaxThreads ? wanted : kMaxThreads;
}

}  // namespace miudo
