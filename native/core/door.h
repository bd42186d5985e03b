// What the C door shares: checks of single values, and the config out of its plain C form.
// Not for: what a config may hold (model/config.cc). Read next: core/miudo.cc.
#pragma once

#include <cstdint>
#include <string>

#include "core/miudo.h"
#include "model/config.h"
#include "util/status.h"

namespace miudo {

template <typename T>
void need(const T* pointer, const char* name) {
  if (pointer == nullptr) fail(Code::kRequest, std::string(name) + " is missing");
}

inline std::size_t size_of(std::int64_t value, const char* name) {
  if (value < 0) fail(Code::kModelFile, std::string(name) + " is " + std::to_string(value));
  return static_cast<std::size_t>(value);
}

template <typename Enum>
Enum choice(std::int32_t value, std::int32_t count, const char* name) {
  if (value < 0 || value >= count) {
    fail(Code::kModelFile, std::string(name) + " is " + std::to_string(value));
  }
  return static_cast<Enum>(value);
}

inline CacheType cache_type_of(const miudo_options& options) {
  if (options.cache_type < 0 || options.cache_type >= kCacheTypes) {
    fail(Code::kRequest, "cache_type is " + std::to_string(options.cache_type) + ", allowed 0 to " +
                             std::to_string(kCacheTypes - 1));
  }
  return static_cast<CacheType>(options.cache_type);
}

// Throws Failure for values that are no config; copies what pointers lead to.
ModelConfig config_of(const miudo_config& from);

}  // namespace miudo
