// A dump to replay: a model, ids, and what another engine made of them, in one GGUF container
// (version 3) as miudo/formats/gguf_writer.py writes it: uint32 and float32 keys, text, arrays
// of int32 and float32, tensors. scripts/replay_dump.py says which keys there are.
// Every size is checked against the file's end before anything is read or reserved.
// Not for: models as users have them, which Python reads. Read next: replay/replay.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/miudo.h"

namespace miudo::replay {

// A file that is no dump; the text says where and why.
struct BadDump : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tensor {
  miudo_dtype type = MIUDO_F32;
  std::vector<std::int64_t> shape;  // the row last
  const std::uint8_t* bytes = nullptr;
  std::size_t size_bytes = 0;
};

struct Dump {
  std::vector<std::uint8_t> file;  // tensors point into it
  std::map<std::string, double> numbers;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::vector<std::int32_t>> ints;
  std::map<std::string, std::vector<float>> floats;
  std::map<std::string, Tensor> tensors;
};

// Throws BadDump.
Dump parse_dump(std::vector<std::uint8_t> file);
Dump read_dump(const std::string& path);

}  // namespace miudo::replay
