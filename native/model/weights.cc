#include "model/weights.h"

#include <algorithm>

#include "kernels/sparse.h"
#include "util/pages.h"
#include "util/status.h"

namespace miudo {
namespace {

std::string text_of(const std::vector<std::size_t>& shape) {
  std::string text = "[";
  for (const std::size_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

// What is packed at a time. Of that much of a mapped file the pages count as ours; to let go of less
// at a time costs more, since every processor that runs the process is told.
constexpr std::size_t kPieceBytes = 2 << 20;

struct Piece {
  const StoredTensor* from;
  PackedMatrix* to;
  std::size_t begin, end;  // tiles
};

void cut(const StoredTensor& tensor, PackedMatrix& matrix, std::vector<Piece>& pieces) {
  const std::size_t tiles = matrix.tiles();
  const std::size_t step = std::max(kPieceBytes * tiles / tensor.size_bytes, std::size_t{1});
  for (std::size_t tile = 0; tile < tiles; tile += step) {
    pieces.push_back({&tensor, &matrix, tile, std::min(tile + step, tiles)});
  }
}

// Of a sparse tensor a piece lies in three parts: masks, scales, numbers.
void let_go_parts(const Piece& piece) {
  const PackedMatrix& to = *piece.to;
  const std::size_t groups = to.cols() / kGroup, head = sparse_head(to.rows(), to.cols());
  const std::size_t first = piece.begin * kTileRows * groups;
  const std::size_t last = std::min(piece.end * kTileRows, to.rows()) * groups;
  const std::uint8_t *masks = piece.from->bytes, *scales = masks + to.rows() * groups * 4;
  const std::size_t per_byte = piece.from->type == DType::kSparse8 ? 1 : 2;
  const std::size_t begin = to.first_number(piece.begin), end = to.first_number(piece.end);
  let_go(masks + first * 4, (last - first) * 4);
  let_go(scales + first * 2, (last - first) * 2);
  let_go(masks + head + begin / per_byte, (end - begin) / per_byte);
}

void pack(const Piece& piece) {
  const StoredTensor& from = *piece.from;
  piece.to->pack(from.bytes, piece.begin, piece.end);
  if (from.mapped_before == 0) return;
  if (is_sparse(from.type)) return let_go_parts(piece);
  const std::size_t tile_bytes = kTileRows * stored_bytes(from.type, 1, piece.to->cols());
  const std::size_t begin = piece.begin * tile_bytes;
  const std::size_t end = std::min(piece.end * tile_bytes, from.size_bytes);
  // To read a page maps its neighbours too, which were let go with the piece before.
  const std::size_t before = std::min(from.mapped_before + begin, kPieceBytes);
  let_go(from.bytes + begin - before, end - begin + before);
}

}  // namespace

Weights::Weights(const ModelConfig& config, bool masks)
    : layers(config.layers.size()), tied_(config.tie_embeddings), masks_(masks) {
  const std::size_t d = config.d_model;
  add_linear("embed", embed, config.vocab_size, d, false);
  if (config.embed_norm) add_norm("embed_norm", embed_norm, config);
  if (config.learned_positions) {
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
  if (config.norms_before()) add_norm(at + "attn_norm", to.attn_norm, config);
  if (config.has_latent()) {
    add_latent(config, c, at + "attn.", to);
  } else {
    add_queries_keys_values(config, c, at + "attn.", to);
  }
  add_block_linear(at + "attn.o", to.o, d, c.n_heads * c.v_head_dim, config.o_bias);
  if (config.norms_after()) add_norm(at + "attn_post_norm", to.attn_post_norm, config);
  if (config.norms_before() && config.parallel != Parallel::kOneNorm) {
    add_norm(at + "mlp_norm", to.mlp_norm, config);
  }
  if (config.mlp == Mlp::kGated) {
    add_block_linear(at + "mlp.gate", to.gate, c.d_ff, d, config.mlp_bias);
  }
  add_block_linear(at + "mlp.up", to.up, c.d_ff, d, config.mlp_bias);
  add_block_linear(at + "mlp.down", to.down, d, c.d_ff, config.mlp_bias);
  if (config.norms_after()) add_norm(at + "mlp_post_norm", to.mlp_post_norm, config);
}

void Weights::add_queries_keys_values(const ModelConfig& config, const LayerConfig& c,
                                      const std::string& at, Layer& to) {
  const std::size_t d = config.d_model, q = c.n_heads * c.head_dim, k = c.n_kv_heads * c.head_dim;
  add_block_linear(at + "q", to.q, q, d, config.qkv_bias);
  add_block_linear(at + "k", to.k, k, d, config.qkv_bias);
  add_block_linear(at + "v", to.v, c.n_kv_heads * c.v_head_dim, d, config.qkv_bias);
  if (config.qk_norm == QkNorm::kNone) return;
  const bool full = config.qk_norm == QkNorm::kFull;
  add_vector(at + "q_norm.weight", to.q_norm.weight, full ? q : c.head_dim);
  add_vector(at + "k_norm.weight", to.k_norm.weight, full ? k : c.head_dim);
}

void Weights::add_latent(const ModelConfig& config, const LayerConfig& c, const std::string& at,
                         Layer& to) {
  const LatentConfig& latent = config.latent;
  const std::size_t d = config.d_model, q = c.n_heads * c.head_dim;
  if (latent.q_rank == 0) {
    add_block_linear(at + "q", to.q, q, d, false);
  } else {
    add_block_linear(at + "q_a", to.q_a, latent.q_rank, d, false);
    add_vector(at + "q_a_norm.weight", to.q_a_norm.weight, latent.q_rank);
    add_block_linear(at + "q_b", to.q_b, q, latent.q_rank, false);
  }
  add_block_linear(at + "kv_a", to.kv_a, latent.kv_rank + latent.rope_dim, d, false);
  add_vector(at + "kv_a_norm.weight", to.kv_a_norm.weight, latent.kv_rank);
  const std::size_t wide = c.n_heads * (c.head_dim - latent.rope_dim + c.v_head_dim);
  add_block_linear(at + "kv_b", to.kv_b, wide, latent.kv_rank, false);
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
  if (config.norm_weight) {
    add_vector(name + ".weight", norm_weights.weight, config.d_model);
  } else {  // ones are exact, and one way for all norms
    norm_weights.weight = Vector(round_up(config.d_model, kTileRows));
    std::fill_n(norm_weights.weight.data(), config.d_model, 1.0f);
  }
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

Weights::Slot& Weights::slot_of(const StoredTensor& tensor) {
  const auto found = slots_.find(tensor.name);
  if (found == slots_.end()) fail(Code::kModelFile, "tensor " + tensor.name + " is unknown");
  Slot& slot = found->second;
  if (slot.filled) fail(Code::kModelFile, "tensor " + tensor.name + " was given twice");
  if (tensor.shape != slot.shape) {
    fail(Code::kModelFile, "tensor " + tensor.name + " is " + text_of(tensor.shape) +
                               ", the config wants " + text_of(slot.shape));
  }
  const std::size_t rows = slot.matrix != nullptr ? slot.shape[0] : 1;
  if (is_sparse(tensor.type) && block_matrix(tensor.name) == nullptr) {
    fail(Code::kModelFile, "tensor " + tensor.name + " is sparse, which only blocks' matrices can be");
  }
  const std::size_t wanted =
      wanted_bytes(tensor.type, rows, slot.shape.back(), tensor.bytes, tensor.size_bytes);
  if (wanted == 0 || tensor.size_bytes != wanted) {
    fail(Code::kModelFile, "tensor " + tensor.name + " has " + std::to_string(tensor.size_bytes) +
                               " bytes, its shape and type want " + std::to_string(wanted));
  }
  return slot;
}

void Weights::set(std::span<const StoredTensor> tensors, Team& team) {
  std::size_t size = 0;
  for (const StoredTensor& tensor : tensors) {
    const Slot& slot = slot_of(tensor);
    if (slot.matrix != nullptr) {
      size += packed_bytes(tensor.type, slot.shape[0], slot.shape[1], tensor.bytes, masks_);
    }
  }
  // One piece of memory, in the order of the pass through the model.
  spaces_.emplace_back(size, kUnset);
  std::uint8_t* space = spaces_.back().data();
  std::vector<Piece> pieces;
  const std::size_t size_before = size_bytes_;
  std::size_t placed = 0;
  try {
    for (; placed < tensors.size(); ++placed) {
      PackedMatrix* const matrix = place(tensors[placed], space);
      if (matrix != nullptr) cut(tensors[placed], *matrix, pieces);
    }
  } catch (...) {  // none of them is there: what has a place holds no numbers yet
    for (const StoredTensor& tensor : tensors.first(placed + 1)) {
      slots_.find(tensor.name)->second.filled = false;
    }
    size_bytes_ = size_before;
    spaces_.pop_back();
    throw;
  }
  team.run([&](int worker) {
    team.deal(worker, pieces.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) pack(pieces[i]);
    });
  });
  for (const StoredTensor& tensor : tensors) {  // what was mapped again after all
    if (tensor.mapped_before != 0) let_go(tensor.bytes, tensor.size_bytes);
  }
}

PackedMatrix* Weights::place(const StoredTensor& tensor, std::uint8_t*& space) {
  Slot& slot = slot_of(tensor);
  if (slot.matrix != nullptr) {
    *slot.matrix =
        PackedMatrix(space, tensor.type, slot.shape[0], slot.shape[1], tensor.bytes, masks_);
    if (is_sparse(slot.matrix->type())) {
      expanded_bytes_ = std::max(expanded_bytes_, dense_tile_bytes(tensor.type, slot.shape[1]));
    }
    space += slot.matrix->size_bytes();
    size_bytes_ += slot.matrix->size_bytes();
  } else {
    *slot.vector = Vector(round_up(slot.shape[0], kTileRows));
    to_float(tensor.type, tensor.bytes, slot.shape[0], slot.vector->data());
    size_bytes_ += slot.vector->size() * sizeof(float);
  }
  slot.filled = true;
  return slot.matrix;
}

void Weights::check_complete() const {
  for (const auto& [name, slot] : slots_) {
    if (!slot.filled) fail(Code::kModelFile, "tensor " + name + " is missing");
  }
}

}  // namespace miudo
