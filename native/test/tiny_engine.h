// A small model made through the C door, and works on it. Read next: test/engine_test.cc.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/miudo.h"
#include "test/check.h"

namespace miudo::test {

inline constexpr std::int64_t kVocab = 37, kModel = 24, kFeed = 40, kPositions = 100;
inline constexpr miudo_sampling kGreedy = {0.0, 0, 1.0, 0.0, 1.0, nullptr, nullptr, 0, 0, 0};

struct Destroy {
  void operator()(miudo_engine* engine) const { miudo_destroy(engine); }
};
using EnginePtr = std::unique_ptr<miudo_engine, Destroy>;

inline const float kFrequencies[] = {1.0f, 0.05f, 0.002f};
inline const miudo_layer kLayers[] = {{4, 2, 6, 5, kFeed, 0, kFrequencies, 3, nullptr, 0},
                                      {4, 2, 6, 5, kFeed, 9, kFrequencies, 3, nullptr, 0}};

inline miudo_config config() {
  miudo_config c = {};
  c.vocab_size = kVocab;
  c.d_model = kModel;
  c.max_positions = kPositions;
  c.n_layers = 2;
  c.layers = kLayers;
  c.norm_weight = c.tie_embeddings = 1;
  c.norm_eps = 1e-5;
  c.attention_factor = c.embed_scale = c.residual_scale = c.logit_scale = 1.0;
  return c;
}

inline miudo_status set(miudo_engine* e, const std::string& name, std::vector<std::int64_t> shape,
                        Noise& noise) {
  std::size_t n = 1;
  for (const std::int64_t s : shape) n *= static_cast<std::size_t>(s);
  const std::vector<float> values = noise.floats(n);
  const miudo_tensor tensor = {name.c_str(),  MIUDO_F32, shape.data(), shape.size(),
                               values.data(), n * 4,     0};
  return miudo_set_tensors(e, &tensor, 1, nullptr);
}

inline EnginePtr make_engine(int threads, std::uint64_t cache_bytes = 1 << 24,
                             int (*interrupt)(void*) = nullptr, void* context = nullptr,
                             std::int32_t cache_type = MIUDO_CACHE_F16) {
  const miudo_config c = config();
  const miudo_options options = {threads, 1, cache_type, cache_bytes, interrupt, context};
  miudo_engine* raw = nullptr;
  CHECK(miudo_create(&c, &options, &raw, nullptr) == MIUDO_OK);
  EnginePtr e(raw);
  Noise noise(3);
  miudo_error error = {};
  CHECK(miudo_finalize(raw, &error) == MIUDO_MODEL_FILE && std::strlen(error.message) > 0);
  CHECK(set(raw, "embed.weight", {kVocab, kModel}, noise) == MIUDO_OK);
  for (int i = 0; i < 2; ++i) {
    const std::string at = "layers." + std::to_string(i) + ".";
    CHECK(set(raw, at + "attn_norm.weight", {kModel}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "attn.q.weight", {24, kModel}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "attn.k.weight", {12, kModel}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "attn.v.weight", {10, kModel}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "attn.o.weight", {kModel, 20}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "mlp_norm.weight", {kModel}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "mlp.gate.weight", {kFeed, kModel}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "mlp.up.weight", {kFeed, kModel}, noise) == MIUDO_OK);
    CHECK(set(raw, at + "mlp.down.weight", {kModel, kFeed}, noise) == MIUDO_OK);
  }
  CHECK(set(raw, "norm.weight", {kModel}, noise) == MIUDO_OK);
  CHECK(set(raw, "norm.weight", {kModel}, noise) == MIUDO_MODEL_FILE);  // twice
  CHECK(set(raw, "other.weight", {kModel}, noise) == MIUDO_MODEL_FILE);
  CHECK(miudo_finalize(raw, nullptr) == MIUDO_OK);
  return e;
}

inline miudo_work work_for(std::int64_t conversation, const std::vector<std::int32_t>& ids,
                           std::uint32_t want) {
  miudo_work work = {};
  work.conversation = conversation;
  work.ids = ids.data();
  work.n_ids = ids.size();
  work.want = want;
  work.sampling = kGreedy;
  return work;
}

inline std::vector<std::int32_t> some_ids(std::size_t n) {
  std::vector<std::int32_t> ids(n);
  for (std::size_t i = 0; i < n; ++i) ids[i] = static_cast<std::int32_t>(i * 7 % kVocab);
  return ids;
}

inline std::vector<float> all_logits(miudo_engine* e, std::int64_t k,
                                     const std::vector<std::int32_t>& ids) {
  std::vector<float> logits(ids.size() * kVocab);
  miudo_work work = work_for(k, ids, MIUDO_WANT_ALL_LOGITS);
  work.logits = logits.data();
  CHECK(miudo_step(e, &work, 1, nullptr) == MIUDO_OK);
  return logits;
}

}  // namespace miudo::test
