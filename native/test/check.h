// As much of a test framework as these tests need: cases register themselves, checks count.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace miudo::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registered {
  Registered(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

void check(bool ok, const char* what, const char* file, int line);

// Reproducible noise in [-1, 1).
class Noise {
 public:
  explicit Noise(std::uint64_t seed) : state_(seed * 2 + 1) {}
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<std::int32_t>(state_ >> 32)) * 0x1.0p-31f;
  }
  std::vector<float> floats(std::size_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = next();
    return out;
  }

 private:
  std::uint64_t state_;
};

}  // namespace miudo::test

#define MIUDO_JOIN_(a, b) a##b
#define MIUDO_JOIN(a, b) MIUDO_JOIN_(a, b)
#define TEST(name)                                                                  \
  static void name();                                                               \
  static const miudo::test::Registered MIUDO_JOIN(registered_, name)(#name, &name); \
  static void name()
#define CHECK(condition) miudo::test::check((condition), #condition, __FILE__, __LINE__)
