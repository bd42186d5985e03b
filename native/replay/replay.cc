// miudo_replay FILE: runs a dumped model through the C header and compares with what the dump
// says another engine computed. For: machines without Python, a Raspberry Pi or an emulator.
//   exit 0: all within the dump's bound   1: not   2: no dump, or one that the engine refuses
// MIUDO_ISA and MIUDO_THREADS work as everywhere. Dumps are made by scripts/replay_dump.py.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <type_traits>

#include "core/miudo.h"
#include "replay/dump.h"

namespace miudo::replay {
namespace {

constexpr std::uint64_t kCacheBytes = std::uint64_t{1} << 30;  // taken page by page

void check(miudo_status status, const miudo_error& error) {
  if (status != MIUDO_OK) throw BadDump(std::string("the engine says: ") + error.message);
}

template <typename T>
const T& find(const std::map<std::string, T>& all, const std::string& key) {
  const auto found = all.find(key);
  if (found == all.end()) throw BadDump("there is no " + key);
  return found->second;
}

template <typename T>
T number(const Dump& dump, const std::string& key) {
  const double value = find(dump.numbers, key);
  if (std::is_integral_v<T> && !(value >= 0.0 && value <= 0x7FFFFFFF)) {
    throw BadDump(key + " is out of range");
  }
  return static_cast<T>(value);
}

std::vector<float> floats_or_none(const Dump& dump, const std::string& key) {
  const auto found = dump.floats.find(key);
  return found == dump.floats.end() ? std::vector<float>{} : found->second;
}

struct Destroy {
  void operator()(miudo_engine* engine) const { miudo_destroy(engine); }
};
using EnginePtr = std::unique_ptr<miudo_engine, Destroy>;

miudo_config config_of(const Dump& dump, const std::vector<miudo_layer>& layers) {
  const auto whole = [&](const char* key) { return number<std::int64_t>(dump, key); };
  const auto small = [&](const char* key) { return number<std::int32_t>(dump, key); };
  const auto real = [&](const char* key) { return number<double>(dump, key); };
  miudo_config c = {};
  c.vocab_size = whole("vocab_size");
  c.d_model = whole("d_model");
  c.max_positions = whole("max_positions");
  c.n_layers = static_cast<std::int64_t>(layers.size());
  c.layers = layers.data();
  c.norm = small("norm");
  c.block = small("block");
  c.parallel = small("parallel");
  c.mlp = small("mlp");
  c.activation = small("activation");
  c.qk_norm = small("qk_norm");
  c.norm_weight = small("norm_weight");
  c.norm_bias = small("norm_bias");
  c.embed_norm = small("embed_norm");
  c.learned_positions = small("learned_positions");
  c.qkv_bias = small("qkv_bias");
  c.o_bias = small("o_bias");
  c.mlp_bias = small("mlp_bias");
  c.tie_embeddings = small("tie_embeddings");
  c.norm_eps = real("norm_eps");
  c.attention_factor = real("attention_factor");
  c.embed_scale = real("embed_scale");
  c.residual_scale = real("residual_scale");
  c.logit_scale = real("logit_scale");
  c.attn_scale = real("attn_scale");
  c.attn_softcap = real("attn_softcap");
  c.logit_softcap = real("logit_softcap");
  c.latent = {whole("latent.q_rank"), whole("latent.kv_rank"), whole("latent.rope_dim"),
              real("latent.norm_eps")};
  return c;
}

// `numbers` keeps what the layers point to.
std::vector<miudo_layer> layers_of(const Dump& dump, std::vector<std::vector<float>>& numbers) {
  std::vector<miudo_layer> layers;
  for (std::int64_t i = 0; i < number<std::int64_t>(dump, "n_layers"); ++i) {
    const std::string key = "layers." + std::to_string(i);
    const std::vector<std::int32_t>& v = find(dump.ints, key);
    if (v.size() != 6) throw BadDump(key + " are not six numbers");
    miudo_layer layer = {v[0], v[1], v[2], v[3], v[4], v[5], nullptr, 0, nullptr, 0};
    numbers.push_back(floats_or_none(dump, key + ".frequencies"));
    layer.frequencies = numbers.back().data();
    layer.n_frequencies = numbers.back().size();
    numbers.push_back(floats_or_none(dump, key + ".slopes"));
    layer.slopes = numbers.back().data();
    layer.n_slopes = numbers.back().size();
    layers.push_back(layer);
  }
  return layers;
}

EnginePtr engine_of(const Dump& dump) {
  std::vector<std::vector<float>> numbers;
  const std::vector<miudo_layer> layers = layers_of(dump, numbers);
  const miudo_config config = config_of(dump, layers);
  miudo_options options = {};
  options.int8_activations = number<std::int32_t>(dump, "int8_activations");
  options.cache_type = number<std::int32_t>(dump, "cache_type");
  options.cache_bytes = kCacheBytes;
  miudo_error error = {};
  miudo_engine* raw = nullptr;
  check(miudo_create(&config, &options, &raw, &error), error);
  EnginePtr engine(raw);
  for (const auto& [name, tensor] : dump.tensors) {
    if (name == "logits") continue;  // what is expected
    const miudo_tensor given = {name.c_str(), tensor.type,       tensor.shape.data(),
                                tensor.shape.size(), tensor.bytes, tensor.size_bytes, 0};
    check(miudo_set_tensors(raw, &given, 1, &error), error);
  }
  check(miudo_finalize(raw, &error), error);
  return engine;
}

miudo_sampling greedy() {
  miudo_sampling s = {};
  s.top_p = s.repetition_penalty = 1.0;
  return s;
}

// Logits [T, V] of ids, `together` at a time.
std::vector<float> logits_of(miudo_engine* engine, const std::vector<std::int32_t>& ids,
                             std::size_t vocab, std::size_t together) {
  std::vector<float> out(ids.size() * vocab);
  miudo_error error = {};
  std::int64_t conversation = 0;
  check(miudo_open(engine, &conversation, &error), error);
  for (std::size_t at = 0; at < ids.size(); at += together) {
    miudo_work work = {};
    work.conversation = conversation;
    work.ids = ids.data() + at;
    work.n_ids = together < ids.size() - at ? together : ids.size() - at;
    work.want = MIUDO_WANT_ALL_LOGITS;
    work.sampling = greedy();
    work.logits = out.data() + at * vocab;
    check(miudo_step(engine, &work, 1, &error), error);
  }
  check(miudo_close(engine, conversation, &error), error);
  return out;
}

// Prints how far `found` is from what is expected; whether that is within the bound.
bool compare(const char* how, const std::vector<float>& found, const Dump& dump) {
  const std::uint8_t* expected = find(dump.tensors, "logits").bytes;
  const auto bound = number<double>(dump, "bound");
  double largest = 0.0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    float right;
    std::memcpy(&right, expected + i * sizeof(float), sizeof(float));
    const double off = std::abs(static_cast<double>(found[i]) - static_cast<double>(right));
    if (std::isnan(off) || off > largest) largest = off;
    if (std::isnan(off)) break;
  }
  const bool ok = largest <= bound;
  std::printf("%s: largest difference %.3g, allowed %.3g: %s\n", how, largest, bound,
              ok ? "ok" : "FAILED");
  return ok;
}

bool compare_tokens(miudo_engine* engine, const Dump& dump) {
  const std::vector<std::int32_t>&ids = find(dump.ints, "ids"), &right = find(dump.ints, "tokens");
  const miudo_sampling sampling = greedy();
  std::vector<std::int32_t> found(right.size());
  std::size_t n = 0;
  miudo_error error = {};
  check(miudo_generate(engine, ids.data(), ids.size(), nullptr, &sampling, nullptr, 0,
                       found.size(), nullptr, nullptr, found.data(), &n, &error),
        error);
  std::size_t same = 0;
  while (same < n && found[same] == right[same]) ++same;
  const bool ok = same == right.size();
  std::printf("greedy: the first %zu of %zu ids are the same: %s\n", same, right.size(),
              ok ? "ok" : "FAILED");
  return ok;
}

bool replay(const Dump& dump) {
  const auto architecture = dump.texts.find("general.architecture");
  if (architecture == dump.texts.end() || architecture->second != "miudo.replay") {
    throw BadDump("its architecture is not miudo.replay");
  }
  const std::vector<std::int32_t>& ids = find(dump.ints, "ids");
  const Tensor& logits = find(dump.tensors, "logits");
  const auto vocab = number<std::int64_t>(dump, "vocab_size");
  const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(ids.size()), vocab};
  if (ids.empty() || logits.type != MIUDO_F32 || logits.shape != shape) {
    throw BadDump("logits are not float32 of [ids, vocab_size]");
  }
  const EnginePtr engine = engine_of(dump);
  std::printf("%s, %d threads, %zu ids, %s activations\n", miudo_isa(engine.get()),
              miudo_threads(engine.get()), ids.size(),
              number<std::int32_t>(dump, "int8_activations") != 0 ? "int8" : "float");
  const auto v = static_cast<std::size_t>(vocab);
  const bool whole = compare("prompt", logits_of(engine.get(), ids, v, ids.size()), dump);
  const bool each = compare("id by id", logits_of(engine.get(), ids, v, 1), dump);
  return compare_tokens(engine.get(), dump) && whole && each;
}

}  // namespace
}  // namespace miudo::replay

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: miudo_replay FILE, made by scripts/replay_dump.py\n");
    return 2;
  }
  try {
    return miudo::replay::replay(miudo::replay::read_dump(argv[1])) ? 0 : 1;
  } catch (const std::exception& bad) {
    std::fprintf(stderr, "%s: %s\n", argv[1], bad.what());
    return 2;
  }
}
