#include "probe/probe.h"

#include <array>
#include <vector>

#include "core/miudo.h"
#include "test/check.h"
#include "util/buffer.h"

namespace miudo {
namespace {

TEST(reading_touches_every_byte) {
  for (const ProbeLoops* loops : probe_loops()) {
    Buffer<std::uint8_t> data(1024);
    CHECK(loops->read(data.data(), data.size()) == 0);
    bool seen = true;
    for (std::size_t i = 0; i < data.size(); ++i) {
      data[i] = 1;
      seen = seen && loops->read(data.data(), data.size()) != 0;
      data[i] = 0;
    }
    CHECK(seen);
  }
}

TEST(products_are_made_in_every_round) {
  for (const ProbeLoops* loops : probe_loops()) {
    CHECK(loops->int8(1) != loops->int8(2));
    CHECK(loops->floats(1) != loops->floats(3));
  }
}

TEST(a_rate_is_what_a_processor_can_have) {
  // 6 GHz, four units, two operations a lane: a loop that the compiler took out is beyond it.
  for (const ProbeLoops* loops : probe_loops()) {
    for (const ProbeKind kind : {ProbeKind::kRead, ProbeKind::kInt8, ProbeKind::kFloat}) {
      std::array<double, 3> rates = {};
      probe({kind, loops, 2, std::size_t{1} << 20, 0.002}, rates);
      const double most = 2 * 6e9 * 4 * (kind == ProbeKind::kInt8 ? 128 : 64);
      for (const double rate : rates) CHECK(rate > 1e6 && rate < most);
    }
  }
}

TEST(the_door_refuses_what_is_no_probe) {
  double rate = 0.0;
  miudo_error error = {};
  const auto status = [&](int kind, const char* isa, double seconds) {
    return miudo_probe(static_cast<miudo_probe_kind>(kind), isa, 1, 4096, seconds, &rate, 1, &error);
  };
  CHECK(status(0, nullptr, 0.001) == MIUDO_OK && rate > 0.0);
  CHECK(status(0, "mmx", 0.001) == MIUDO_REQUEST);
  CHECK(status(0, nullptr, 0.0) == MIUDO_REQUEST);
  CHECK(miudo_probe(MIUDO_PROBE_READ, nullptr, 1, ~std::uint64_t{0}, 0.001, &rate, 1, &error) ==
        MIUDO_RESOURCE);
  CHECK(miudo_probe_isa(1000) == nullptr);
}

}  // namespace
}  // namespace miudo
