// How the core says what went wrong: one exception type, caught at the C door (core/miudo.cc).
// For: every layer of native/. Not for: messages to users, which Python completes with a remedy.
// Read next: core/miudo.h, whose status codes these are.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace miudo {

enum class Code : int {
  kOk = 0,
  kRequest = 1,      // ids, sampling settings, a conversation, a full cache
  kModelFile = 2,    // tensors or a config that do not fit together
  kResource = 3,     // memory
  kInterrupted = 4,  // the caller asked to stop
  kInternal = 5,     // a bug of ours
};

class Failure : public std::exception {
 public:
  Failure(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  Code code() const noexcept { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  Code code_;
  std::string message_;
};

[[noreturn]] inline void fail(Code code, std::string message) {
  throw Failure(code, std::move(message));
}

}  // namespace miudo
