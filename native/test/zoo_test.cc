// Models of every kind through the C door: bits that no chunking and no thread moves, and tensors
// that may not be absent. Their numbers are held against others in tests/engine.
#include <array>
#include <functional>
#include <map>
#include <utility>

#include "test/tiny_engine.h"

namespace {

using namespace miudo::test;

constexpr std::int64_t kHeads = 4, kKeys = 2, kDim = 6, kValue = 5;
const float kPart[] = {1.0f};
const float kSlopes[] = {0.25f, 0.0625f, 0.015625f, 0.00390625f};

using Shapes = std::map<std::string, std::vector<std::int64_t>>;

struct Kind {
  std::array<miudo_layer, 2> layers = {kLayers[0], kLayers[1]};
  miudo_config config = miudo::test::config();
};

void norm_shapes(const miudo_config& c, const std::string& name, Shapes& to) {
  if (c.norm_weight != 0) to[name + ".weight"] = {kModel};
  if (c.norm == 1 && c.norm_bias != 0) to[name + ".bias"] = {kModel};
}

void matrix_shapes(const std::string& name, std::int64_t out, std::int64_t in, bool bias,
                   Shapes& to) {
  to[name + ".weight"] = {out, in};
  if (bias) to[name + ".bias"] = {out};
}

void attention_shapes(const miudo_config& c, const std::string& at, Shapes& to) {
  const miudo_latent& latent = c.latent;
  const bool bias = c.qkv_bias != 0;
  if (latent.kv_rank == 0) {
    matrix_shapes(at + "q", kHeads * kDim, kModel, bias, to);
    matrix_shapes(at + "k", kKeys * kDim, kModel, bias, to);
    matrix_shapes(at + "v", kKeys * kValue, kModel, bias, to);
    if (c.qk_norm != 0) {
      to[at + "q_norm.weight"] = {c.qk_norm == 1 ? kDim : kHeads * kDim};
      to[at + "k_norm.weight"] = {c.qk_norm == 1 ? kDim : kKeys * kDim};
    }
  } else {
    if (latent.q_rank == 0) {
      matrix_shapes(at + "q", kHeads * kDim, kModel, false, to);
    } else {
      matrix_shapes(at + "q_a", latent.q_rank, kModel, false, to);
      to[at + "q_a_norm.weight"] = {latent.q_rank};
      matrix_shapes(at + "q_b", kHeads * kDim, latent.q_rank, false, to);
    }
    matrix_shapes(at + "kv_a", latent.kv_rank + latent.rope_dim, kModel, false, to);
    to[at + "kv_a_norm.weight"] = {latent.kv_rank};
    const std::int64_t wide = kHeads * (kDim - latent.rope_dim + kValue);
    matrix_shapes(at + "kv_b", wide, latent.kv_rank, false, to);
  }
  matrix_shapes(at + "o", kModel, kHeads * kValue, c.o_bias != 0, to);
}

Shapes shapes_of(const miudo_config& c) {
  Shapes to;
  to["embed.weight"] = {kVocab, kModel};
  if (c.embed_norm != 0) norm_shapes(c, "embed_norm", to);
  if (c.learned_positions != 0) to["position.weight"] = {kPositions, kModel};
  for (int i = 0; i < 2; ++i) {
    const std::string at = "layers." + std::to_string(i) + ".";
    if (c.block != 1) norm_shapes(c, at + "attn_norm", to);
    if (c.block != 1 && c.parallel != 2) norm_shapes(c, at + "mlp_norm", to);
    if (c.block != 0) norm_shapes(c, at + "attn_post_norm", to);
    if (c.block != 0) norm_shapes(c, at + "mlp_post_norm", to);
    attention_shapes(c, at + "attn.", to);
    if (c.mlp == 0) matrix_shapes(at + "mlp.gate", kFeed, kModel, c.mlp_bias != 0, to);
    matrix_shapes(at + "mlp.up", kFeed, kModel, c.mlp_bias != 0, to);
    matrix_shapes(at + "mlp.down", kModel, kFeed, c.mlp_bias != 0, to);
  }
  norm_shapes(c, "norm", to);
  if (c.tie_embeddings == 0) to["head.weight"] = {kVocab, kModel};
  return to;
}

std::vector<Kind> kinds() {
  std::vector<Kind> all;
  const auto add = [&](const std::function<void(Kind&)>& change) {
    change(all.emplace_back());
  };
  // BLOOM.
  add([](Kind& k) {
    k.config.norm = k.config.norm_bias = k.config.embed_norm = k.config.mlp = 1;
    k.config.qkv_bias = k.config.o_bias = k.config.mlp_bias = 1;
    for (miudo_layer& layer : k.layers) {
      layer = {kHeads, kKeys, kDim, kValue, kFeed, 0, nullptr, 0, kSlopes, 4};
    }
  });
  // Galactica 30B, untied.
  add([](Kind& k) {
    k.config.norm = 1;
    k.config.norm_weight = k.config.tie_embeddings = 0;
    k.config.learned_positions = 1;
    for (miudo_layer& layer : k.layers) layer.n_frequencies = 0;
  });
  // GPT-NeoX.
  add([](Kind& k) {
    k.config.parallel = 1;
    for (miudo_layer& layer : k.layers) {
      layer.frequencies = kPart;
      layer.n_frequencies = 1;
    }
  });
  // StableLM 2 12B.
  add([](Kind& k) { k.config.parallel = 2; });
  // Gemma 2 and 3.
  add([](Kind& k) {
    k.config.block = 2;
    k.config.qk_norm = 1;
    k.config.embed_scale = 5.0;
    k.config.attn_scale = 0.5;
    k.config.attn_softcap = 2.0;
    k.config.logit_softcap = 3.0;
  });
  // OLMo 2.
  add([](Kind& k) {
    k.config.block = 1;
    k.config.qk_norm = 2;
  });
  // MiniCPM3, with and without narrow queries.
  for (const std::int64_t q_rank : {0, 7}) {
    add([=](Kind& k) {
      k.config.latent = {q_rank, 9, 2, 1e-6};
      k.config.residual_scale = 0.4;
      k.config.logit_scale = 0.7;
      k.config.attention_factor = 1.2;
      for (miudo_layer& layer : k.layers) {
        layer = {kHeads, kHeads, kDim, kValue, kFeed, layer.window, kPart, 1, nullptr, 0};
      }
    });
  }
  return all;
}

EnginePtr make(Kind& kind, int threads, const std::string& without = "") {
  kind.config.layers = kind.layers.data();
  const miudo_options options = {threads, 1, MIUDO_CACHE_F16, 1 << 24, nullptr, nullptr};
  miudo_engine* raw = nullptr;
  miudo_error error = {};
  CHECK(miudo_create(&kind.config, &options, &raw, &error) == MIUDO_OK);
  EnginePtr e(raw);
  Noise noise(3);
  for (const auto& [name, shape] : shapes_of(kind.config)) {
    if (name != without) CHECK(set(raw, name, shape, noise) == MIUDO_OK);
  }
  return e;
}

TEST(every_kind_of_model_has_the_same_bits_in_chunks_and_threads) {
  const std::vector<std::int32_t> ids = some_ids(70);
  for (Kind& kind : kinds()) {
    std::vector<float> first;
    for (const int threads : {1, 3}) {
      const EnginePtr e = make(kind, threads);
      CHECK(miudo_finalize(e.get(), nullptr) == MIUDO_OK);
      std::int64_t whole = 0, cut = 0;
      CHECK(miudo_open(e.get(), &whole, nullptr) == MIUDO_OK);
      CHECK(miudo_open(e.get(), &cut, nullptr) == MIUDO_OK);
      const std::vector<float> logits = all_logits(e.get(), whole, ids);
      if (first.empty()) first = logits;
      CHECK(logits == first);
      for (const float x : logits) CHECK(std::isfinite(x));
      std::vector<float> pieces;
      // One and two positions are narrow passes, the others not.
      for (const auto& [from, to] :
           {std::pair(0, 1), std::pair(1, 3), std::pair(3, 34), std::pair(34, 70)}) {
        const std::vector<std::int32_t> part(ids.begin() + from, ids.begin() + to);
        const std::vector<float> piece = all_logits(e.get(), cut, part);
        pieces.insert(pieces.end(), piece.begin(), piece.end());
      }
      CHECK(pieces == logits);
    }
  }
}

TEST(no_kind_of_model_runs_without_one_of_its_tensors) {
  for (Kind& kind : kinds()) {
    for (const auto& [name, shape] : shapes_of(kind.config)) {
      const EnginePtr e = make(kind, 1, name);
      miudo_error error = {};
      CHECK(miudo_finalize(e.get(), &error) == MIUDO_MODEL_FILE);
      CHECK(std::string(error.message).find(name) != std::string::npos);
      std::vector<std::int64_t> other = shape;
      ++other.back();
      Noise noise(1);
      CHECK(set(e.get(), name, other, noise) == MIUDO_MODEL_FILE);
      CHECK(set(e.get(), name + "x", shape, noise) == MIUDO_MODEL_FILE);
      CHECK(set(e.get(), name, shape, noise) == MIUDO_OK);
      CHECK(miudo_finalize(e.get(), nullptr) == MIUDO_OK);
    }
  }
}

miudo_status created(const std::function<void(miudo_config&, miudo_layer&)>& change) {
  miudo_config c = config();
  miudo_layer layers[] = {kLayers[0], kLayers[1]};
  c.layers = layers;
  change(c, layers[1]);
  const miudo_options options = {1, 1, MIUDO_CACHE_F16, 1 << 24, nullptr, nullptr};
  miudo_engine* raw = nullptr;
  const miudo_status status = miudo_create(&c, &options, &raw, nullptr);
  miudo_destroy(raw);
  return status;
}

TEST(numbers_of_positions_are_counted_before_they_are_read) {
  CHECK(created([](miudo_config&, miudo_layer&) {}) == MIUDO_OK);
  for (const std::size_t n : {std::size_t{4}, std::size_t{1} << 40, static_cast<std::size_t>(-1)}) {
    const std::vector<float> four(4, 1.0f);
    CHECK(created([&](miudo_config&, miudo_layer& layer) {
            layer.frequencies = four.data();
            layer.n_frequencies = n;
          }) == MIUDO_MODEL_FILE);
  }
  CHECK(created([](miudo_config&, miudo_layer& layer) { layer.frequencies = nullptr; }) ==
        MIUDO_REQUEST);
  CHECK(created([](miudo_config&, miudo_layer& layer) { layer.n_slopes = 4; }) == MIUDO_REQUEST);
  CHECK(created([](miudo_config&, miudo_layer& layer) {
          layer.slopes = kSlopes;
          layer.n_slopes = 3;
        }) == MIUDO_MODEL_FILE);
  CHECK(created([](miudo_config& c, miudo_layer&) { c.latent = {0, 9, 2, 1e-6}; }) ==
        MIUDO_MODEL_FILE);
}

}  // namespace
