#include "replay/dump.h"

#include <bit>
#include <cstring>
#include <fstream>
#include <utility>

namespace miudo::replay {
namespace {

static_assert(std::endian::native == std::endian::little);  // numbers are read as they lie

constexpr std::uint32_t kMagic = 0x46554747, kVersion = 3;  // "GGUF"
constexpr std::uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kText = 8, kArray = 9;
constexpr std::size_t kAlignment = 32;

struct Stored {
  std::uint32_t number;  // in the file
  miudo_dtype type;
  std::size_t values, bytes;  // of a block
};

constexpr Stored kStored[] = {
    {0, MIUDO_F32, 1, 4},      {1, MIUDO_F16, 1, 2},       {30, MIUDO_BF16, 1, 2},
    {8, MIUDO_Q8_0, 32, 34},   {2, MIUDO_Q4_0, 32, 18},    {3, MIUDO_Q4_1, 32, 20},
    {6, MIUDO_Q5_0, 32, 22},   {7, MIUDO_Q5_1, 32, 24},    {10, MIUDO_Q2_K, 256, 84},
    {11, MIUDO_Q3_K, 256, 110}, {12, MIUDO_Q4_K, 256, 144}, {13, MIUDO_Q5_K, 256, 176},
    {14, MIUDO_Q6_K, 256, 210}, {20, MIUDO_IQ4_NL, 32, 18}, {23, MIUDO_IQ4_XS, 256, 136},
    {39, MIUDO_MXFP4, 32, 17}, {34, MIUDO_TQ1_0, 256, 54}, {35, MIUDO_TQ2_0, 256, 66}};

class Cursor {
 public:
  explicit Cursor(const std::vector<std::uint8_t>& file) : file_(file) {}

  std::size_t at() const { return at_; }
  std::size_t left() const { return file_.size() - at_; }

  const std::uint8_t* take(std::uint64_t n, const char* what) {
    if (n > left()) {
      throw BadDump(std::string(what) + " at byte " + std::to_string(at_) + " runs past the end");
    }
    const std::uint8_t* from = file_.data() + at_;
    at_ += static_cast<std::size_t>(n);
    return from;
  }

  template <typename T>
  T value(const char* what) {
    T out;
    std::memcpy(&out, take(sizeof(T), what), sizeof(T));
    return out;
  }

  std::string text(const char* what) {
    const auto size = value<std::uint64_t>(what);
    const std::uint8_t* from = take(size, what);
    return {from, from + size};
  }

  template <typename T>
  std::vector<T> array(std::uint64_t n, const char* what) {
    if (n > left() / sizeof(T)) throw BadDump(std::string(what) + " runs past the end");
    std::vector<T> out(static_cast<std::size_t>(n));
    if (n != 0) std::memcpy(out.data(), take(n * sizeof(T), what), out.size() * sizeof(T));
    return out;
  }

 private:
  const std::vector<std::uint8_t>& file_;
  std::size_t at_ = 0;
};

void read_key(Cursor& in, Dump& dump) {
  const std::string key = in.text("a key's name");
  const auto kind = in.value<std::uint32_t>("a key's type");
  switch (kind) {
    case kUint32: dump.numbers[key] = in.value<std::uint32_t>("a number"); return;
    case kFloat32: dump.numbers[key] = static_cast<double>(in.value<float>("a number")); return;
    case kText: dump.texts[key] = in.text("a text"); return;
    default: break;
  }
  const auto element = kind == kArray ? in.value<std::uint32_t>("an array's type") : 0;
  if (element != kInt32 && element != kFloat32) {
    throw BadDump("key " + key + " has a type that no dump has");
  }
  const auto n = in.value<std::uint64_t>("an array's length");
  if (element == kInt32) dump.ints[key] = in.array<std::int32_t>(n, "an array");
  if (element == kFloat32) dump.floats[key] = in.array<float>(n, "an array");
}

const Stored& stored(std::uint32_t number, const std::string& name) {
  for (const Stored& one : kStored) {
    if (one.number == number) return one;
  }
  throw BadDump("tensor " + name + " has type " + std::to_string(number));
}

// Returns a tensor's bytes; the shape is in the file's order, the row first.
std::size_t size_of(const std::vector<std::uint64_t>& shape, const Stored& type,
                    std::size_t most, const std::string& name) {
  if (shape.empty() || shape[0] == 0 || shape[0] % type.values != 0) {
    throw BadDump("tensor " + name + " has rows that are no whole blocks");
  }
  std::uint64_t size = shape[0] / type.values;
  if (size > most) throw BadDump("tensor " + name + " is larger than the file");
  size *= type.bytes;
  for (std::size_t i = 1; i < shape.size(); ++i) {
    // `size` is not 0 as long as no axis is.
    if (shape[i] == 0 || shape[i] > most / size) {
      throw BadDump("tensor " + name + " is empty, or larger than the file");
    }
    size *= shape[i];
  }
  return static_cast<std::size_t>(size);
}

struct Placed {
  std::string name;
  std::uint64_t offset;  // behind the header
  Tensor tensor;
};

Placed read_place(Cursor& in) {
  Placed out;
  out.name = in.text("a tensor's name");
  const auto n = in.value<std::uint32_t>("a tensor's axes");
  if (n < 1 || n > 4) throw BadDump("tensor " + out.name + " has not 1 to 4 axes");
  const std::vector<std::uint64_t> shape = in.array<std::uint64_t>(n, "a tensor's shape");
  const Stored& type = stored(in.value<std::uint32_t>("a tensor's type"), out.name);
  out.offset = in.value<std::uint64_t>("a tensor's offset");
  out.tensor.type = type.type;
  out.tensor.size_bytes = size_of(shape, type, in.left(), out.name);
  for (auto s = shape.rbegin(); s != shape.rend(); ++s) {
    out.tensor.shape.push_back(static_cast<std::int64_t>(*s));
  }
  return out;
}

}  // namespace

Dump parse_dump(std::vector<std::uint8_t> file) {
  Dump dump;
  dump.file = std::move(file);
  Cursor in(dump.file);
  if (in.value<std::uint32_t>("the magic") != kMagic ||
      in.value<std::uint32_t>("the version") != kVersion) {
    throw BadDump("this is no GGUF file of version 3");
  }
  const auto n_tensors = in.value<std::uint64_t>("the number of tensors");
  const auto n_keys = in.value<std::uint64_t>("the number of keys");
  for (std::uint64_t i = 0; i < n_keys; ++i) read_key(in, dump);
  std::vector<Placed> placed;
  for (std::uint64_t i = 0; i < n_tensors; ++i) placed.push_back(read_place(in));
  in.take((kAlignment - in.at() % kAlignment) % kAlignment, "the space before tensors");
  const std::size_t start = in.at(), size = in.left();
  for (Placed& p : placed) {
    if (p.offset > size || p.tensor.size_bytes > size - p.offset) {
      throw BadDump("tensor " + p.name + " runs past the end");
    }
    p.tensor.bytes = dump.file.data() + start + p.offset;
    if (!dump.tensors.emplace(p.name, p.tensor).second) {
      throw BadDump("tensor " + p.name + " comes twice");
    }
  }
  return dump;
}

Dump read_dump(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = in ? static_cast<std::streamoff>(in.tellg()) : -1;
  if (size < 0) throw BadDump("cannot be opened");
  std::vector<std::uint8_t> file(static_cast<std::size_t>(size));
  in.seekg(0);
  if (!in.read(reinterpret_cast<char*>(file.data()), size)) throw BadDump("cannot be read");
  return parse_dump(std::move(file));
}

}  // namespace miudo::replay
