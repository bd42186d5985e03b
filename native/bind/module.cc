// The only place that knows Python: miudo.h as the module miudo._native.
// For: miudo/engine/native.py, which gives and takes NumPy arrays. Not for: decisions.
// Everything long runs without the GIL; Ctrl-C is looked for between chunks.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/miudo.h"

namespace nb = nanobind;

namespace {

template <typename T, typename... Rest>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu, Rest...>;
using Ids = Array<const std::int32_t, nb::ndim<1>>;
using Floats = Array<float>;
using States = Array<const float, nb::ndim<2>>;
using Bytes = Array<const std::uint8_t, nb::ndim<1>>;
using Mask = Array<const bool, nb::ndim<1>>;

// temperature, top_k, top_p, min_p, repetition_penalty, bias ids, bias values, seed, request
using SamplingTuple =
    std::tuple<double, std::int64_t, double, double, double, std::vector<std::int32_t>,
               std::vector<double>, std::uint64_t, std::uint64_t>;
// n_heads, n_kv_heads, head_dim, v_head_dim, d_ff, window, frequencies, slopes
using LayerTuple =
    std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
               std::int64_t, std::vector<float>, std::vector<float>>;

// Raises miudo._native.NativeError(status, message), or what a signal handler raised.
void check(miudo_status status, const miudo_error& error) {
  if (status == MIUDO_OK) return;
  if (status == MIUDO_INTERRUPTED && PyErr_Occurred() != nullptr) throw nb::python_error();
  const nb::object type = nb::module_::import_("miudo._native").attr("NativeError");
  PyErr_SetObject(type.ptr(),
                  nb::make_tuple(static_cast<int>(error.status), nb::str(error.message)).ptr());
  throw nb::python_error();
}

[[noreturn]] void refuse(const char* message) {
  miudo_error error = {MIUDO_REQUEST, {}};
  std::string(message).copy(error.message, sizeof(error.message) - 1);
  check(MIUDO_REQUEST, error);
  throw nb::python_error();
}

void need_size(std::size_t size, std::size_t wanted, const char* message) {
  if (size != wanted) refuse(message);
}

// name, type, shape, bytes, bytes of a map of a file before them
using TensorTuple = std::tuple<std::string, int, std::vector<std::int64_t>, Bytes, std::size_t>;

// A name that C would cut short is another name.
const char* c_name(const std::string& name) {
  if (name.find('\0') != std::string::npos) refuse("a name holds a zero character");
  return name.c_str();
}

int signals(void*) {
  const nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals();
}

miudo_sampling sampling_of(const SamplingTuple& from) {
  const auto& [temperature, top_k, top_p, min_p, penalty, ids, values, seed, request] = from;
  if (ids.size() != values.size()) refuse("bias ids and values differ in number");
  return {temperature, top_k, top_p, min_p, penalty, ids.data(), values.data(),
          ids.size(),  seed,  request};
}

// One item of a step, as arrays that Python owns.
struct Work {
  std::int64_t conversation;
  Ids ids;
  std::uint32_t want;
  SamplingTuple sampling;
  std::optional<Mask> mask;
  std::optional<Floats> logits, hidden;
  std::vector<Floats> attention;
  std::optional<std::string> adapter;
  std::size_t n_drafted;
};

// matrix, down [rank, in], up [out, rank], scale
using Factor = Array<const float, nb::ndim<2>>;
using LowRankTuple = std::tuple<std::string, Factor, Factor, float>;

class Engine {
 public:
  Engine(const nb::dict& values, const std::vector<LayerTuple>& tuples, int threads, bool int8,
         int cache_type, std::uint64_t cache_bytes) {
    const auto number = [&](const char* key) { return nb::cast<std::int64_t>(values[key]); };
    const auto small = [&](const char* key) { return nb::cast<std::int32_t>(values[key]); };
    const auto real = [&](const char* key) { return nb::cast<double>(values[key]); };
    // The numbers behind the pointers are read by miudo_create alone.
    for (const auto& [heads, kv, dim, v_dim, ff, window, frequencies, slopes] : tuples) {
      layers_.push_back({heads, kv, dim, v_dim, ff, window, frequencies.data(),
                         frequencies.size(), slopes.data(), slopes.size()});
    }
    config_ = {};
    config_.vocab_size = number("vocab_size");
    config_.d_model = number("d_model");
    config_.max_positions = number("max_positions");
    config_.n_layers = static_cast<std::int64_t>(layers_.size());
    config_.layers = layers_.data();
    config_.norm = small("norm");
    config_.block = small("block");
    config_.parallel = small("parallel");
    config_.mlp = small("mlp");
    config_.activation = small("activation");
    config_.qk_norm = small("qk_norm");
    config_.norm_weight = small("norm_weight");
    config_.norm_bias = small("norm_bias");
    config_.embed_norm = small("embed_norm");
    config_.learned_positions = small("learned_positions");
    config_.qkv_bias = small("qkv_bias");
    config_.o_bias = small("o_bias");
    config_.mlp_bias = small("mlp_bias");
    config_.tie_embeddings = small("tie_embeddings");
    config_.norm_eps = real("norm_eps");
    config_.attention_factor = real("attention_factor");
    config_.embed_scale = real("embed_scale");
    config_.residual_scale = real("residual_scale");
    config_.logit_scale = real("logit_scale");
    config_.attn_scale = real("attn_scale");
    config_.attn_softcap = real("attn_softcap");
    config_.logit_softcap = real("logit_softcap");
    config_.latent = {number("latent.q_rank"), number("latent.kv_rank"),
                      number("latent.rope_dim"), real("latent.norm_eps")};
    const miudo_options options = {threads,     int8 ? 1 : 0, cache_type,
                                   cache_bytes, signals,      nullptr};
    miudo_error error = {};
    check(miudo_create(&config_, &options, &engine_, &error), error);
  }
  ~Engine() { miudo_destroy(engine_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void set_tensors(const std::vector<TensorTuple>& tuples) {
    std::vector<miudo_tensor> tensors;
    for (const auto& [name, type, shape, bytes, mapped_before] : tuples) {
      tensors.push_back({c_name(name), static_cast<miudo_dtype>(type), shape.data(), shape.size(),
                         bytes.data(), bytes.size(), mapped_before});
    }
    run([&](miudo_error* error) {
      return miudo_set_tensors(engine_, tensors.data(), tensors.size(), error);
    });
  }
  void finalize() {
    run([&](miudo_error* error) { return miudo_finalize(engine_, error); });
  }

  std::int64_t open() {
    std::int64_t conversation = 0;
    run([&](miudo_error* error) { return miudo_open(engine_, &conversation, error); });
    return conversation;
  }
  std::int64_t fork(std::int64_t conversation, std::size_t length) {
    std::int64_t forked = 0;
    run([&](miudo_error* error) {
      return miudo_fork(engine_, conversation, length, &forked, error);
    });
    return forked;
  }
  void close(std::int64_t conversation) {
    run([&](miudo_error* error) { return miudo_close(engine_, conversation, error); });
  }
  std::size_t length(std::int64_t conversation) {
    std::size_t length = 0;
    run([&](miudo_error* error) { return miudo_length(engine_, conversation, &length, error); });
    return length;
  }
  void truncate(std::int64_t conversation, std::size_t length) {
    run([&](miudo_error* error) { return miudo_truncate(engine_, conversation, length, error); });
  }

  void add_adapter(const std::string& name, const std::vector<LowRankTuple>& tuples) {
    std::vector<miudo_low_rank> parts;
    for (const auto& [matrix, down, up, scale] : tuples) {
      if (up.shape(1) != down.shape(0)) refuse("up is not [out, rank] for down [rank, in]");
      parts.push_back({c_name(matrix), static_cast<std::int64_t>(down.shape(0)), down.data(),
                       down.size(), up.data(), up.size(), scale});
    }
    const char* called = c_name(name);
    run([&](miudo_error* error) {
      return miudo_add_adapter(engine_, called, parts.data(), parts.size(), error);
    });
  }
  void remove_adapter(const std::string& name) {
    const char* called = c_name(name);
    run([&](miudo_error* error) { return miudo_remove_adapter(engine_, called, error); });
  }

  // The tokens drawn for each item, and their log-probabilities.
  std::vector<std::tuple<std::vector<std::int32_t>, std::vector<double>>> step(
      const std::vector<Work*>& items) {
    std::vector<miudo_work> works;
    std::vector<std::vector<float*>> attention(items.size());
    std::vector<std::tuple<std::vector<std::int32_t>, std::vector<double>>> out(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      auto& [tokens, logprobs] = out[i];
      // More than n_ids are refused, but by the core.
      const std::size_t most = std::min(items[i]->n_drafted, items[i]->ids.size()) + 1;
      tokens.resize(most);
      logprobs.resize(most);
      works.push_back(work_of(*items[i], attention[i]));
      works.back().tokens = tokens.data();
      works.back().logprobs = logprobs.data();
    }
    run([&](miudo_error* error) {
      return miudo_step(engine_, works.data(), works.size(), error);
    });
    for (std::size_t i = 0; i < works.size(); ++i) {
      auto& [tokens, logprobs] = out[i];
      tokens.resize(works[i].n_tokens);
      logprobs.resize(works[i].n_tokens);
    }
    return out;
  }

  void score(const Ids& ids, const Floats& logprobs, const Array<std::int32_t>& argmax,
             const Floats& logsumexp, std::int64_t top_k, const Array<std::int32_t>& top_ids,
             const Floats& top_logprobs, const std::optional<std::string>& adapter) {
    const char* name = adapter ? c_name(*adapter) : nullptr;
    const std::size_t rows = ids.size() == 0 ? 0 : ids.size() - 1;
    const std::size_t wide = top_k > 0 ? rows * static_cast<std::size_t>(top_k) : 0;
    need_size(logprobs.size(), rows, "logprobs has not one value a position");
    need_size(argmax.size(), rows, "argmax has not one value a position");
    need_size(logsumexp.size(), rows, "logsumexp has not one value a position");
    need_size(top_ids.size(), wide, "top_ids is not [T - 1, top_k]");
    need_size(top_logprobs.size(), wide, "top_logprobs is not [T - 1, top_k]");
    // An empty array may have no address; nothing is written to it.
    float none = 0.0f;
    std::int32_t no_id = 0;
    const miudo_scores scores = {rows != 0 ? logprobs.data() : &none,
                                 rows != 0 ? argmax.data() : &no_id,
                                 rows != 0 ? logsumexp.data() : nullptr,
                                 top_k,
                                 wide != 0 ? top_ids.data() : &no_id,
                                 wide != 0 ? top_logprobs.data() : &none};
    run([&](miudo_error* error) {
      return miudo_score(engine_, ids.data(), ids.size(), name, &scores, error);
    });
  }

  void unembed(const States& hidden, const Floats& logits) {
    need_size(hidden.shape(1), static_cast<std::size_t>(config_.d_model), "hidden is not [N, D]");
    need_size(logits.size(), hidden.shape(0) * static_cast<std::size_t>(config_.vocab_size),
              "logits is not [N, V]");
    run([&](miudo_error* error) {
      return miudo_unembed(engine_, hidden.data(), hidden.shape(0), logits.data(), error);
    });
  }

  void time_phases(bool wanted) {
    run([&](miudo_error* error) { return miudo_time_phases(engine_, wanted ? 1 : 0, error); });
  }
  std::vector<double> phase_seconds() {
    std::vector<double> seconds(MIUDO_PHASES);
    run([&](miudo_error* error) { return miudo_phase_seconds(engine_, seconds.data(), error); });
    return seconds;
  }

  std::string isa() const { return miudo_isa(engine_); }
  int threads() const { return miudo_threads(engine_); }
  std::uint64_t weight_bytes() const { return miudo_weight_bytes(engine_); }
  // Waits for a step on another thread, which may want the GIL to look for Ctrl-C.
  std::uint64_t cache_bytes_used() const {
    const nb::gil_scoped_release without_gil;
    return miudo_cache_bytes_used(engine_);
  }
  std::uint64_t page_bytes() const { return miudo_page_bytes(engine_); }

 private:
  template <typename Body>
  static void run(const Body& body) {
    miudo_error error = {};
    miudo_status status = MIUDO_OK;
    {
      const nb::gil_scoped_release without_gil;
      status = body(&error);
    }
    check(status, error);
  }

  miudo_work work_of(Work& item, std::vector<float*>& attention) {
    miudo_work work = {};
    work.conversation = item.conversation;
    work.ids = item.ids.data();
    work.n_ids = item.ids.size();
    work.n_drafted = item.n_drafted;
    work.want = item.want;
    work.sampling = sampling_of(item.sampling);
    work.adapter = item.adapter ? c_name(*item.adapter) : nullptr;
    const auto vocab = static_cast<std::size_t>(config_.vocab_size);
    const auto d = static_cast<std::size_t>(config_.d_model);
    if (item.mask) {
      need_size(item.mask->size(), vocab, "the mask has not one value an id");
      work.mask = reinterpret_cast<const std::uint8_t*>(item.mask->data());
    }
    if (item.logits) {
      const bool all = (item.want & MIUDO_WANT_ALL_LOGITS) != 0;
      need_size(item.logits->size(), all ? work.n_ids * vocab : vocab, "logits has another size");
      work.logits = item.logits->data();
    }
    if (item.hidden) {
      need_size(item.hidden->size(), (layers_.size() + 1) * work.n_ids * d,
                "hidden is not [L + 1, T, D]");
      work.hidden = item.hidden->data();
    }
    if ((item.want & MIUDO_WANT_ATTENTION) != 0) add_attention(item, work, attention);
    return work;
  }

  void add_attention(Work& item, miudo_work& work, std::vector<float*>& attention) {
    need_size(item.attention.size(), layers_.size(), "attention is not one array a layer");
    work.n_keys = length(item.conversation) + work.n_ids;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const auto heads = static_cast<std::size_t>(layers_[i].n_heads);
      need_size(item.attention[i].size(), heads * work.n_ids * work.n_keys,
                "attention is not [H, T, keys]");
      attention.push_back(item.attention[i].data());
    }
    work.attention = attention.data();
  }

  std::vector<miudo_layer> layers_;
  miudo_config config_;
  miudo_engine* engine_ = nullptr;
};

std::int32_t sample(const Array<const float, nb::ndim<1>>& logits, const SamplingTuple& settings,
                    std::uint64_t position, const Ids& seen, const std::optional<Mask>& mask) {
  const miudo_sampling sampling = sampling_of(settings);
  if (mask) need_size(mask->size(), logits.size(), "the mask has not one value an id");
  const auto* bytes = mask ? reinterpret_cast<const std::uint8_t*>(mask->data()) : nullptr;
  std::int32_t token = 0;
  miudo_error error = {};
  check(miudo_sample(logits.data(), logits.size(), &sampling, position, seen.data(), seen.size(),
                     bytes, &token, &error),
        error);
  return token;
}

void linear(int type, std::int64_t rows, std::int64_t cols, const Bytes& bytes,
            const Array<const float, nb::ndim<2>>& x, bool int8, const Floats& out) {
  need_size(x.shape(1), static_cast<std::size_t>(cols), "x is not [n, cols]");
  need_size(out.size(), x.shape(0) * static_cast<std::size_t>(rows), "out is not [n, rows]");
  miudo_error error = {};
  check(miudo_linear(static_cast<miudo_dtype>(type), rows, cols, bytes.data(), bytes.size(),
                     x.data(), x.shape(0), int8 ? 1 : 0, out.data(), &error),
        error);
}

std::vector<double> probe(int kind, const std::optional<std::string>& isa, int threads,
                          std::uint64_t size_bytes, double seconds, std::size_t repeats) {
  std::vector<double> rates(repeats);
  const char* name = isa ? c_name(*isa) : nullptr;
  miudo_error error = {};
  miudo_status status = MIUDO_OK;
  {
    const nb::gil_scoped_release without_gil;
    status = miudo_probe(static_cast<miudo_probe_kind>(kind), name, threads, size_bytes, seconds,
                         rates.data(), rates.size(), &error);
  }
  check(status, error);
  return rates;
}

std::vector<std::string> probe_isas() {
  std::vector<std::string> names;
  for (std::size_t i = 0; miudo_probe_isa(i) != nullptr; ++i) names.emplace_back(miudo_probe_isa(i));
  return names;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native engine. Use miudo.engine.native.";
  m.attr("NativeError") = nb::steal(
      PyErr_NewException("miudo._native.NativeError", PyExc_RuntimeError, nullptr));
  nb::class_<Work>(m, "Work")
      .def(
          "__init__",
          [](Work* self, std::int64_t conversation, Ids ids, std::uint32_t want,
             SamplingTuple sampling, std::optional<Mask> mask, std::optional<Floats> logits,
             std::optional<Floats> hidden, std::vector<Floats> attention,
             std::optional<std::string> adapter, std::size_t n_drafted) {
            new (self) Work{conversation,        std::move(ids),       want,
                            std::move(sampling), std::move(mask),      std::move(logits),
                            std::move(hidden),   std::move(attention), std::move(adapter),
                            n_drafted};
          },
          // What is written must be the caller's own array, not one converted from it.
          nb::arg("conversation"), nb::arg("ids"), nb::arg("want"), nb::arg("sampling"),
          nb::arg("mask").none(), nb::arg("logits").none().noconvert(),
          nb::arg("hidden").none().noconvert(), nb::arg("attention").noconvert(),
          nb::arg("adapter").none(), nb::arg("n_drafted") = 0);
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const nb::dict&, const std::vector<LayerTuple>&, int, bool, int,
                    std::uint64_t>(),
           nb::arg("config"), nb::arg("layers"), nb::arg("threads"), nb::arg("int8"),
           nb::arg("cache_type"), nb::arg("cache_bytes"))
      .def("set_tensors", &Engine::set_tensors)
      .def("finalize", &Engine::finalize)
      .def("open", &Engine::open)
      .def("fork", &Engine::fork)
      .def("close", &Engine::close)
      .def("length", &Engine::length)
      .def("truncate", &Engine::truncate)
      .def("add_adapter", &Engine::add_adapter)
      .def("remove_adapter", &Engine::remove_adapter)
      .def("step", &Engine::step)
      .def("score", &Engine::score, nb::arg("ids"), nb::arg("logprobs").noconvert(),
           nb::arg("argmax").noconvert(), nb::arg("logsumexp").noconvert(), nb::arg("top_k"),
           nb::arg("top_ids").noconvert(), nb::arg("top_logprobs").noconvert(),
           nb::arg("adapter").none())
      .def("unembed", &Engine::unembed, nb::arg("hidden"), nb::arg("logits").noconvert())
      .def("time_phases", &Engine::time_phases)
      .def("phase_seconds", &Engine::phase_seconds)
      .def_prop_ro("isa", &Engine::isa)
      .def_prop_ro("threads", &Engine::threads)
      .def_prop_ro("weight_bytes", &Engine::weight_bytes)
      .def_prop_ro("cache_bytes_used", &Engine::cache_bytes_used)
      .def_prop_ro("page_bytes", &Engine::page_bytes)
      .def_prop_ro_static("page_positions",
                          [](const nb::handle&) { return miudo_page_positions(); });
  m.def("sample", &sample, nb::arg("logits"), nb::arg("sampling"), nb::arg("position"),
        nb::arg("seen"), nb::arg("mask").none());
  m.def("uniform", &miudo_uniform);
  m.def("linear", &linear);
  m.def("probe", &probe, nb::arg("kind"), nb::arg("isa").none(), nb::arg("threads"),
        nb::arg("size_bytes"), nb::arg("seconds"), nb::arg("repeats"));
  m.def("probe_isas", &probe_isas);
}
