// miudo_set_tensors with any name, type, shape and bytes: it refuses, or takes in what then runs. One
// tensor of a small model is made up, the others are plain; steps must end, whatever they say.
#include "core/miudo.h"
#include "fuzz/input.h"

using miudo::fuzz::Input;
using miudo::fuzz::kBlocks;
using miudo::fuzz::kTypes;
using miudo::fuzz::must;

namespace {

struct Named {
  const char* name;
  std::vector<std::int64_t> shape;
};

// Rows that are no whole tiles, columns that are whole blocks of 32.
const std::vector<Named>& tensors() {
  static const std::vector<Named> all = {
      {"embed.weight", {37, 32}},          {"norm.weight", {32}},
      {"layers.0.attn_norm.weight", {32}}, {"layers.0.attn.q.weight", {64, 32}},
      {"layers.0.attn.k.weight", {32, 32}}, {"layers.0.attn.v.weight", {32, 32}},
      {"layers.0.attn.o.weight", {32, 64}}, {"layers.0.mlp_norm.weight", {32}},
      {"layers.0.mlp.gate.weight", {96, 32}}, {"layers.0.mlp.up.weight", {96, 32}},
      {"layers.0.mlp.down.weight", {32, 96}}};
  return all;
}

miudo_engine* create(bool int8) {
  static const float frequencies[] = {1.0f, 0.1f};
  miudo_layer layer = {};
  layer.n_heads = 4;
  layer.n_kv_heads = 2;
  layer.head_dim = layer.v_head_dim = 16;
  layer.d_ff = 96;
  layer.frequencies = frequencies;
  layer.n_frequencies = 2;
  miudo_config config = {};
  config.vocab_size = 37;
  config.d_model = 32;
  config.max_positions = 64;
  config.n_layers = 1;
  config.layers = &layer;
  config.norm_weight = config.tie_embeddings = 1;
  config.norm_eps = 1e-5;
  config.attention_factor = config.embed_scale = 1.0;
  config.residual_scale = config.logit_scale = 1.0;
  miudo_options options = {};
  options.threads = 1;
  options.int8_activations = int8 ? 1 : 0;
  options.cache_bytes = 1 << 20;
  miudo_engine* engine = nullptr;
  must(miudo_create(&config, &options, &engine, nullptr) == MIUDO_OK);
  return engine;
}

std::size_t count_of(const std::vector<std::int64_t>& shape) {
  std::size_t n = 1;
  for (const std::int64_t s : shape) n *= static_cast<std::size_t>(s);
  return n;
}

void give_plain(miudo_engine* engine, const Named& tensor) {
  std::vector<float> values(count_of(tensor.shape));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 13) / 16.0f;
  const miudo_tensor given = {tensor.name,         MIUDO_F32,     tensor.shape.data(),
                              tensor.shape.size(), values.data(), values.size() * sizeof(float), 0};
  must(miudo_set_tensors(engine, &given, 1, nullptr) == MIUDO_OK);
}

// Returns whether it was taken in.
bool give_any(miudo_engine* engine, const Named& tensor, Input& input) {
  const auto how = input.take<std::uint8_t>();
  const int type = how == 255 ? input.take<std::int32_t>() : how % kTypes;
  Named given = tensor;
  std::string name = tensor.name;
  const auto wrong = input.take<std::uint8_t>();
  if (wrong < 40) {
    for (std::int64_t& s : given.shape) s = input.size(100);
    while (given.shape.size() < wrong % 6u) given.shape.push_back(input.size(3));
    if (wrong % 6 == 0) given.shape.clear();
  } else if (wrong < 44) {
    name.resize(wrong % 4 * 5);
  }
  const bool known = type >= 0 && type < kTypes;
  const std::size_t count = count_of(tensor.shape);
  std::size_t size = 0;
  if (known) {
    const auto values = static_cast<std::size_t>(kBlocks[type].values);
    size = count / values * kBlocks[type].bytes;
  }
  if (!known || wrong == 44) size = input.take<std::uint16_t>();
  const auto bytes = input.fill(size);
  miudo_tensor any = {name.c_str(), MIUDO_F32, given.shape.data(), given.shape.size(),
                      bytes.get(),  size,      0};
  std::memcpy(&any.type, &type, sizeof(type));  // it may be no value of the enum
  const miudo_tensor twice[] = {any, any};
  const bool repeated = wrong >= 250;
  const miudo_status status = miudo_set_tensors(engine, twice, repeated ? 2 : 1, nullptr);
  must(!repeated || status != MIUDO_OK);
  must(status == MIUDO_OK || status == MIUDO_MODEL_FILE || status == MIUDO_REQUEST);
  return status == MIUDO_OK;
}

void run(miudo_engine* engine, Input& input) {
  std::vector<std::int32_t> ids(1 + input.take<std::uint8_t>() % 6);
  for (std::int32_t& id : ids) id = input.take<std::uint8_t>() % 37;
  ids.shrink_to_fit();
  std::vector<float> logits(37);
  std::int64_t k = 0;
  must(miudo_open(engine, &k, nullptr) == MIUDO_OK);
  for (int i = 0; i < 2; ++i) {  // a prompt and one more
    miudo_work work = {};
    work.conversation = k;
    work.ids = ids.data();
    work.n_ids = i == 0 ? ids.size() : 1;
    work.want = MIUDO_WANT_LAST_LOGITS | MIUDO_WANT_SAMPLE;
    work.logits = logits.data();
    work.sampling.temperature = i;
    work.sampling.top_p = work.sampling.repetition_penalty = 1.0;
    const miudo_status status = miudo_step(engine, &work, 1, nullptr);
    // Logits that are no numbers have nothing to draw.
    must(status == MIUDO_OK || status == MIUDO_REQUEST);
    must(status != MIUDO_OK || (work.token >= 0 && work.token < 37));
  }
  must(miudo_close(engine, k, nullptr) == MIUDO_OK);
  must(miudo_cache_bytes_used(engine) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const auto first = input.take<std::uint8_t>();
  miudo_engine* engine = create(first % 2 != 0);
  const std::size_t which = first / 2 % tensors().size();
  for (std::size_t i = 0; i < tensors().size(); ++i) {
    if (i != which) give_plain(engine, tensors()[i]);
  }
  const bool taken = give_any(engine, tensors()[which], input);
  const bool complete = miudo_finalize(engine, nullptr) == MIUDO_OK;
  must(complete == taken);
  if (complete) run(engine, input);
  miudo_destroy(engine);
  return 0;
}
