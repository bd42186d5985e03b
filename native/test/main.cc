// Runs every registered case; exits with 1 if a check failed.
#include <cstdio>

#include "test/check.h"

namespace {
int checks = 0, failures = 0;
}

namespace miudo::test {

void check(bool ok, const char* what, const char* file, int line) {
  ++checks;
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
}

}  // namespace miudo::test

int main() {
  for (const miudo::test::Case& c : miudo::test::cases()) {
    const int before = failures;
    c.run();
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", c.name);
  }
  std::printf("%zu cases, %d checks, %d failed\n", miudo::test::cases().size(), checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}
