// The C door: checks what comes in, lets no exception out.
#include "core/miudo.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "core/door.h"
#include "core/engine.h"
#include "kernels/sparse.h"
#include "model/linear.h"
#include "probe/probe.h"
#include "util/philox.h"
#include "util/status.h"

struct miudo_engine {
  miudo::Engine engine;
};

namespace miudo {
namespace {

miudo_status report(miudo_error* error, Code code, const char* message) noexcept {
  const auto status = static_cast<miudo_status>(code);
  if (error != nullptr) {
    error->status = status;
    std::strncpy(error->message, message, sizeof(error->message) - 1);
    error->message[sizeof(error->message) - 1] = '\0';
  }
  return status;
}

template <typename Body>
miudo_status guarded(miudo_error* error, const Body& body) noexcept {
  try {
    body();
    return MIUDO_OK;
  } catch (const Failure& failure) {
    return report(error, failure.code(), failure.what());
  } catch (const std::bad_alloc&) {
    return report(error, Code::kResource, "too little memory");
  } catch (const std::exception& other) {
    return report(error, Code::kInternal, other.what());
  } catch (...) {
    return report(error, Code::kInternal, "unknown error");
  }
}

// By reference: to load an enum that holds none of its values is undefined.
DType dtype_of(const miudo_dtype& type) {
  std::int32_t value;
  static_assert(sizeof(value) == sizeof(type));
  std::memcpy(&value, &type, sizeof(value));
  return choice<DType>(value, kDTypes + kSparseTypes, "tensor type");
}

const ProbeLoops& loops_of(const char* isa) {
  for (const ProbeLoops* loops : probe_loops()) {
    if (isa == nullptr || std::strcmp(isa, loops->isa) == 0) return *loops;
  }
  fail(Code::kRequest, "this machine has no instruction set " + std::string(isa));
}

StoredTensor tensor_of(const miudo_tensor& from) {
  need(from.name, "name");
  need(from.shape, "shape");
  need(from.bytes, "bytes");
  if (from.n_dims < 1 || from.n_dims > 4) fail(Code::kModelFile, "a tensor has 1 to 4 axes");
  StoredTensor to = {from.name, dtype_of(from.type), {}, nullptr, from.size_bytes, 0};
  for (const std::int64_t n : std::span(from.shape, from.n_dims)) {
    to.shape.push_back(size_of(n, "shape"));
  }
  to.bytes = static_cast<const std::uint8_t*>(from.bytes);
  to.mapped_before = from.mapped_before;
  return to;
}

}  // namespace
}  // namespace miudo

using miudo::Code;
using miudo::fail;
using miudo::guarded;
using miudo::need;

miudo_status miudo_create(const miudo_config* config, const miudo_options* options,
                          miudo_engine** engine, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    *engine = nullptr;
    need(config, "config");
    need(options, "options");
    *engine = new miudo_engine{{miudo::config_of(*config), *options}};
  });
}

// In a child process there is no worker to join, and what another thread was doing is half done:
// the memory, which the child shares with its parent, is left as it is.
void miudo_destroy(miudo_engine* engine) {
  if (engine == nullptr || engine->engine.elsewhere()) return;
  delete engine;
}

miudo_status miudo_set_tensors(miudo_engine* engine, const miudo_tensor* tensors, size_t n_tensors,
                               miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    if (n_tensors != 0) need(tensors, "tensors");
    std::vector<miudo::StoredTensor> stored;
    for (const miudo_tensor& tensor : std::span(tensors, n_tensors)) {
      stored.push_back(miudo::tensor_of(tensor));
    }
    engine->engine.set_tensors(stored);
  });
}

miudo_status miudo_finalize(miudo_engine* engine, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    engine->engine.finalize();
  });
}

miudo_status miudo_open(miudo_engine* engine, int64_t* conversation, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(conversation, "conversation");
    *conversation = engine->engine.open();
  });
}

miudo_status miudo_fork(miudo_engine* engine, int64_t conversation, size_t length,
                        int64_t* forked, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(forked, "forked");
    *forked = engine->engine.fork(conversation, length);
  });
}

miudo_status miudo_close(miudo_engine* engine, int64_t conversation, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    engine->engine.close(conversation);
  });
}

miudo_status miudo_length(miudo_engine* engine, int64_t conversation, size_t* length,
                          miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(length, "length");
    *length = engine->engine.length(conversation);
  });
}

miudo_status miudo_truncate(miudo_engine* engine, int64_t conversation, size_t length,
                            miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    engine->engine.truncate(conversation, length);
  });
}

miudo_status miudo_step(miudo_engine* engine, miudo_work* works, size_t n_works,
                        miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    if (n_works != 0) need(works, "works");
    engine->engine.step({works, n_works});
  });
}

miudo_status miudo_add_adapter(miudo_engine* engine, const char* name,
                               const miudo_low_rank* parts, size_t n_parts, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(name, "name");
    if (n_parts != 0) need(parts, "parts");
    for (std::size_t i = 0; i < n_parts; ++i) {
      need(parts[i].matrix, "matrix");
      need(parts[i].down, "down");
      need(parts[i].up, "up");
      (void)miudo::size_of(parts[i].rank, "rank");
    }
    engine->engine.add_adapter(name, {parts, n_parts});
  });
}

miudo_status miudo_remove_adapter(miudo_engine* engine, const char* name, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(name, "name");
    engine->engine.remove_adapter(name);
  });
}

miudo_status miudo_score(miudo_engine* engine, const int32_t* ids, size_t n_ids,
                         const char* adapter, const miudo_scores* scores, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(scores, "scores");
    if (n_ids != 0) need(ids, "ids");
    engine->engine.score({ids, n_ids}, adapter, *scores);
  });
}

miudo_status miudo_unembed(miudo_engine* engine, const float* hidden, size_t n_rows, float* logits,
                           miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    if (n_rows == 0) return;
    need(hidden, "hidden");
    need(logits, "logits");
    const miudo::ModelConfig& c = engine->engine.model().config;
    if (n_rows > std::numeric_limits<std::size_t>::max() / sizeof(float) / c.vocab_size ||
        n_rows > std::numeric_limits<std::size_t>::max() / sizeof(float) / c.d_model) {
      fail(Code::kRequest, "n_rows is more than memory can hold");
    }
    engine->engine.unembed({hidden, n_rows * c.d_model}, {logits, n_rows * c.vocab_size});
  });
}

miudo_status miudo_time_phases(miudo_engine* engine, int32_t wanted, miudo_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    engine->engine.time_phases(wanted != 0);
  });
}

miudo_status miudo_phase_seconds(miudo_engine* engine, double* seconds, miudo_error* error) {
  static_assert(miudo::kPhases == MIUDO_PHASES);
  return guarded(error, [&] {
    need(engine, "engine");
    need(seconds, "seconds");
    const auto found = engine->engine.phase_seconds();
    std::copy(found.begin(), found.end(), seconds);
  });
}

const char* miudo_isa(const miudo_engine* engine) {
  return miudo::isa_name(engine->engine.model().kernels.isa);
}

int32_t miudo_threads(const miudo_engine* engine) { return engine->engine.threads(); }

uint64_t miudo_weight_bytes(const miudo_engine* engine) {
  return engine->engine.model().weights.size_bytes();
}

uint64_t miudo_cache_bytes_used(miudo_engine* engine) {
  uint64_t used = 0;
  guarded(nullptr, [&] { used = engine->engine.cache_bytes_used(); });
  return used;
}

size_t miudo_page_positions() { return miudo::kTilePositions; }

uint64_t miudo_page_bytes(const miudo_engine* engine) { return engine->engine.page_bytes(); }

double miudo_uniform(uint64_t seed, uint64_t request, uint64_t position) {
  return miudo::uniform(seed, request, position);
}

miudo_status miudo_sample(const float* logits, size_t vocab_size, const miudo_sampling* sampling,
                          uint64_t position, const int32_t* seen, size_t n_seen,
                          const uint8_t* mask, int32_t* token, miudo_error* error) {
  return guarded(error, [&] {
    need(logits, "logits");
    need(sampling, "sampling");
    need(token, "token");
    if (n_seen != 0) need(seen, "seen");
    if (vocab_size == 0) fail(Code::kRequest, "vocab_size is 0");
    for (std::size_t i = 0; i < n_seen; ++i) {
      if (seen[i] < 0 || static_cast<std::size_t>(seen[i]) >= vocab_size) {
        fail(Code::kRequest, "seen holds an id outside the vocabulary");
      }
    }
    miudo::check_sampling(*sampling);
    miudo::Sampler sampler(miudo::kernels_for(miudo::choose_isa()));
    *token = sampler.sample({logits, vocab_size}, *sampling, position, {seen, n_seen}, mask);
  });
}

miudo_status miudo_linear(miudo_dtype type, int64_t rows, int64_t cols, const void* bytes,
                          size_t size_bytes, const float* x, size_t n, int32_t int8_activations,
                          float* out, miudo_error* error) {
  return guarded(error, [&] {
    need(bytes, "bytes");
    need(x, "x");
    need(out, "out");
    const miudo::DType dtype = miudo::dtype_of(type);
    const std::size_t r = miudo::size_of(rows, "rows"), k = miudo::size_of(cols, "cols");
    const bool known = r >= 1 && k >= 1 && r <= (1u << 24) && k <= (1u << 24);
    // No bytes at all are what rows of no whole blocks would have.
    const auto* given = static_cast<const std::uint8_t*>(bytes);
    if (!known || size_bytes == 0 ||
        size_bytes != miudo::wanted_bytes(dtype, r, k, given, size_bytes)) {
      fail(Code::kModelFile, "rows, cols and bytes do not fit together");
    }
    const miudo::Kernels& kernels = miudo::kernels_for(miudo::choose_isa());
    const miudo::PackedMatrix weight(dtype, r, k, given, kernels.has_masks());
    miudo::Rows in{x, k, {}, n};
    miudo::Rounded rounded;
    const bool int8 = int8_activations != 0 && !miudo::is_float(dtype);
    if (int8) {
      rounded.at_least(n, k);
      in.quants = rounded.quants();
      for (std::size_t i = 0; i < n; ++i) {
        kernels.quantize(x + i * k, k, 0, k / miudo::kGroup, i, n, in.quants);
      }
    }
    if (miudo::is_sparse(weight.type())) {
      std::vector<std::uint8_t> space(miudo::dense_tile_bytes(dtype, k));
      miudo::multiply_sparse(kernels, weight.view(), nullptr, in, int8, space.data(), out, r, 0,
                             weight.tiles());
      return;
    }
    const auto at = static_cast<std::size_t>(weight.type());
    (int8 ? kernels.matmul_int8[at] : kernels.matmul_float[at])(weight.view(), nullptr, in, out, r,
                                                                0, weight.tiles());
  });
}

const char* miudo_probe_isa(size_t index) {
  const auto loops = miudo::probe_loops();
  return index < loops.size() ? loops[index]->isa : nullptr;
}

miudo_status miudo_probe(miudo_probe_kind kind, const char* isa, int32_t threads,
                         uint64_t size_bytes, double seconds, double* rates, size_t n_rates,
                         miudo_error* error) {
  return guarded(error, [&] {
    if (n_rates != 0) need(rates, "rates");
    std::int32_t number;
    std::memcpy(&number, &kind, sizeof(number));
    const auto known = miudo::choice<miudo::ProbeKind>(number, 3, "probe");
    if (!(seconds > 0.0 && seconds <= 60.0)) fail(Code::kRequest, "seconds are not in (0, 60]");
    if (threads < 0) fail(Code::kRequest, "threads are fewer than none");
    if (size_bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
    miudo::probe({known, &miudo::loops_of(isa), miudo::choose_threads(threads), size_bytes, seconds},
                 {rates, n_rates});
  });
}
