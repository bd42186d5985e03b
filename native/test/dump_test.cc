// The reader of dumps: what is cut off or changed is refused, or read within the file.
#include <cstring>

#include "replay/dump.h"
#include "test/check.h"

namespace miudo::replay {
namespace {

class Writer {
 public:
  template <typename T>
  Writer& put(const T& value) {
    return add(&value, sizeof(T));
  }
  Writer& text(const std::string& value) {
    put(std::uint64_t{value.size()});
    return add(value.data(), value.size());
  }
  std::vector<std::uint8_t> bytes;

 private:
  Writer& add(const void* from, std::size_t n) {
    const std::size_t at = bytes.size();
    bytes.resize(at + n);
    std::memcpy(bytes.data() + at, from, n);
    return *this;
  }
};

// A number of each kind, a text, an array of each kind, and two tensors: 2 x 3 floats, a Q8_0 row.
std::vector<std::uint8_t> small_dump() {
  Writer w;
  w.put(std::uint32_t{0x46554747}).put(std::uint32_t{3});
  w.put(std::uint64_t{2}).put(std::uint64_t{5});
  w.text("whole").put(std::uint32_t{4}).put(std::uint32_t{7});
  w.text("real").put(std::uint32_t{6}).put(0.5f);
  w.text("name").put(std::uint32_t{8}).text("tiny");
  w.text("ids").put(std::uint32_t{9}).put(std::uint32_t{5}).put(std::uint64_t{2});
  w.put(std::int32_t{3}).put(std::int32_t{-4});
  w.text("slopes").put(std::uint32_t{9}).put(std::uint32_t{6}).put(std::uint64_t{1}).put(0.25f);
  w.text("a").put(std::uint32_t{2}).put(std::uint64_t{3}).put(std::uint64_t{2});
  w.put(std::uint32_t{0}).put(std::uint64_t{0});
  w.text("b").put(std::uint32_t{1}).put(std::uint64_t{32}).put(std::uint32_t{8});
  w.put(std::uint64_t{32});
  w.bytes.resize((w.bytes.size() + 31) / 32 * 32 + 32 + 34);
  return w.bytes;
}

bool inside(const Dump& dump) {
  const std::uint8_t *begin = dump.file.data(), *end = begin + dump.file.size();
  bool all = true;
  for (const auto& [name, t] : dump.tensors) {
    all = all && t.bytes >= begin && t.bytes + t.size_bytes <= end;
  }
  return all;
}

bool refused(const std::vector<std::uint8_t>& bytes) {
  try {
    CHECK(inside(parse_dump(bytes)));
    return false;
  } catch (const BadDump&) {
    return true;
  }
}

TEST(a_dump_is_read) {
  const Dump dump = parse_dump(small_dump());
  CHECK(dump.numbers.at("whole") > 6.0 && dump.numbers.at("whole") < 8.0);
  CHECK(dump.numbers.at("real") > 0.4 && dump.texts.at("name") == "tiny");
  CHECK(dump.ints.at("ids") == std::vector<std::int32_t>({3, -4}));
  CHECK(dump.floats.at("slopes").size() == 1);
  CHECK(dump.tensors.at("a").shape == std::vector<std::int64_t>({2, 3}));
  CHECK(dump.tensors.at("a").size_bytes == 24 && dump.tensors.at("b").size_bytes == 34);
  CHECK(dump.tensors.at("b").type == MIUDO_Q8_0 && inside(dump));
}

TEST(a_dump_cut_anywhere_is_refused) {
  const std::vector<std::uint8_t> whole = small_dump();
  for (std::size_t n = 0; n < whole.size(); ++n) {
    CHECK(refused({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)}));
  }
}

TEST(a_dump_changed_anywhere_is_refused_or_read_within_the_file) {
  const std::vector<std::uint8_t> whole = small_dump();
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const unsigned value : {0u, 1u, 0x7Fu, 0x80u, 0xFFu}) {
      std::vector<std::uint8_t> changed = whole;
      changed[at] = static_cast<std::uint8_t>(value);
      (void)refused(changed);
    }
  }
}

}  // namespace
}  // namespace miudo::replay
