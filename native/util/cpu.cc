#include "util/cpu.h"

#include <cstdlib>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(MIUDO_HAVE_X86)
#include <cpuid.h>
#endif
#if defined(MIUDO_HAVE_ARM)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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

#if defined(MIUDO_HAVE_X86)
// Clang 14 has no name for it in __builtin_cpu_supports.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

}  // namespace

bool isa_available(Isa isa) {
#if defined(MIUDO_HAVE_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
  }
#endif
#if defined(MIUDO_HAVE_ARM)
  if (isa == Isa::kNeon) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
  return isa == Isa::kPortable;
}

bool spreads_bytes() {
#if defined(MIUDO_HAVE_X86)
  return isa_available(Isa::kAvx512) && __builtin_cpu_supports("avx512vbmi2");
#else
  return false;
#endif
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kNeon: return "neon";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    case Isa::kPortable: return "portable";
  }
  return "portable";
}

Isa choose_isa() {
  const char* forced = std::getenv("MIUDO_ISA");
  const std::string name = forced == nullptr ? "" : forced;
  Isa best = Isa::kPortable;
  std::string here;
  for (const Isa isa : kIsas) {
    if (!isa_available(isa)) continue;
    if (name == isa_name(isa)) return isa;
    best = isa;
    here += (here.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  if (name.empty()) return best;
  fail(Code::kRequest, "MIUDO_ISA is '" + name + "', this machine and build have " + here);
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
