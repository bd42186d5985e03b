#include "model/weights.h"

#include "util/status.h"

namespace miudo {
namespace {

std::string text_of(const std::vector<std::size_t>& shape) {
  std::string text = "[";
  for (const std::size_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

}  // namespace

Weights::Weights(const ModelConfig& config)
    : layers(config.layers.size()), tied_(config.tie_embeddings) {
  const std::size_t d = config.d_model;
  add_linear("embed", embed, config.vocab_size, d, false);
  if (config.position == Position::kLearned) {
    add_linear("position", position, config.max_positions, d, false);
  }
  for (std::size_t i = 0; i < layers.size(); ++i) add_layer(config, config.layers[i], i);
  add_norm("norm", norm, config);
  if (!tied_) add_linear("head", head, config.vocab_size, d, false);
}

void Weights::add_layer(const ModelConfig& config, const LayerConfig& c, std::size_t index) {
  const std::string at = "layers." + std::to_string(index) + ".";
  const std::size_t d = config.d_model;
  Layer& to = layers[index];
  add_norm(at + "attn_norm", to.attn_norm, config);
  add_block_linear(at + "attn.q", to.q, c.n_heads * c.head_dim, d, config.qkv_bias);
  add_block_linear(at + "attn.k", to.k, c.n_kv_heads * c.head_dim, d, config.qkv_bias);
  add_block_linear(at + "attn.v", to.v, c.n_kv_heads * c.v_head_dim, d, config.qkv_bias);
  if (config.qk_norm == QkNorm::kHead) {
    add_vector(at + "attn.q_norm.weight", to.q_norm, c.head_dim);
    add_vector(at + "attn.k_norm.weight", to.k_norm, c.head_dim);
  }
  add_block_linear(at + "attn.o", to.o, d, c.n_heads * c.v_head_dim, config.o_bias);
  add_norm(at + "mlp_norm", to.mlp_norm, config);
  if (config.mlp == Mlp::kGated) {
    add_block_linear(at + "mlp.gate", to.gate, c.d_ff, d, config.mlp_bias);
  }
  add_block_linear(at + "mlp.up", to.up, c.d_ff, d, config.mlp_bias);
  add_block_linear(at + "mlp.down", to.down, d, c.d_ff, config.mlp_bias);
}

void Weights::add_linear(const std::string& name, Linear& linear, std::size_t out, std::size_t in,
                         bool bias) {
  Slot slot;
  slot.shape = {out, in};
  slot.matrix = &linear.weight;
  slots_.emplace(name + ".weight", std::move(slot));
  if (bias) add_vector(name + ".bias", linear.bias, out);
}

void Weights::add_block_linear(const std::string& name, Linear& linear, std::size_t out,
                               std::size_t in, bool bias) {
  add_linear(name, linear, out, in, bias);
  linear.slot = block_matrices_.size();
  block_matrices_.emplace(name + ".weight", &linear);
}

const Linear* Weights::block_matrix(const std::string& name) const {
  const auto found = block_matrices_.find(name);
  return found == block_matrices_.end() ? nullptr : found->second;
}

void Weights::add_norm(const std::string& name, NormWeights& norm_weights,
                       const ModelConfig& config) {
  add_vector(name + ".weight", norm_weights.weight, config.d_model);
  if (config.norm == Norm::kLayer && config.norm_bias) {
    add_vector(name + ".bias", norm_weights.bias, config.d_model);
  }
}

void Weights::add_vector(const std::string& name, Vector& vector, std::size_t size) {
  Slot slot;
  slot.shape = {size};
  slot.vector = &vector;
  slots_.emplace(name, std::move(slot));
}

void Weights::set(const std::string& name, DType type, const std::vector<std::size_t>& shape,
                  const std::uint8_t* bytes, std::size_t size_bytes) {
  const auto found = slots_.find(name);
  if (found == slots_.end()) fail(Code::kModelFile, "tensor " + name + " is unknown");
  Slot& slot = found->second;
  if (slot.filled) fail(Code::kModelFile, "tensor " + name + " was given twice");
  if (shape != slot.shape) {
    fail(Code::kModelFile, "tensor " + name + " is " + text_of(shape) + ", the config wants " +
                               text_of(slot.shape));
  }
  const std::size_t rows = slot.matrix != nullptr ? shape[0] : 1;
  const std::size_t wanted = stored_bytes(type, rows, shape.back());
  if (wanted == 0 || size_bytes != wanted) {
    fail(Code::kModelFile, "tensor " + name + " has " + std::to_string(size_bytes) +
                               " bytes, its shape and type want " + std::to_string(wanted));
  }
  if (slot.matrix != nullptr) {
    *slot.matrix = PackedMatrix(type, rows, shape[1], bytes);
    size_bytes_ += slot.matrix->size_bytes();
  } else {
    *slot.vector = Vector(round_up(shape[0], kTileRows));
    to_float(type, bytes, shape[0], slot.vector->data());
    size_bytes_ += slot.vector->size() * sizeof(float);
  }
  slot.filled = true;
}

void Weights::check_complete() const {
  for (const auto& [name, slot] : slots_) {
    if (!slot.filled) fail(Code::kModelFile, "tensor " + name + " is missing");
  }
}

}  // namespace miudo
