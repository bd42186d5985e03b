// Every tensor of a model, packed. Immutable once complete, shared by all conversations.
// Names and shapes are those of miudo/tensors.py; whatever does not fit them is refused here,
// once more, before a byte is read.
// Read next: model/forward.h.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/matrix.h"
#include "model/config.h"
#include "util/buffer.h"
#include "util/team.h"

namespace miudo {

using Vector = Buffer<float>;  // padded to whole tiles with zeros

constexpr std::size_t kNoSlot = static_cast<std::size_t>(-1);

struct Linear {
  PackedMatrix weight;         // [out, in]
  Vector bias;                 // empty where there is none
  std::size_t slot = kNoSlot;  // place among the blocks' matrices, which adapters may correct
};

// A tensor as it lies in a file. `mapped_before`: so much of a read-only map of the file lies before
// `bytes`; pages of the map are let go as they are packed, so that a model is not in memory twice.
// 0: other memory.
struct StoredTensor {
  std::string name;
  DType type;
  std::vector<std::size_t> shape;
  const std::uint8_t* bytes;
  std::size_t size_bytes;
  std::size_t mapped_before;
};

struct NormWeights {
  Vector weight, bias;  // no weight: there is no such norm
};

struct Layer {
  NormWeights attn_norm, attn_post_norm, mlp_norm, mlp_post_norm;
  Linear q, k, v, o, gate, up, down;
  Linear q_a, q_b, kv_a, kv_b;  // of latent attention, instead of q, k and v
  NormWeights q_norm, k_norm, q_a_norm, kv_a_norm;
};

class Weights {
 public:
  // `masks`: whether tiles of masks will be multiplied as they lie (Kernels::has_masks, int8).
  Weights(const ModelConfig& config, bool masks);
  Weights(const Weights&) = delete;  // slots_ points into this object
  Weights& operator=(const Weights&) = delete;

  // Packs tensors on the workers of `team`; their bytes are not kept. Throws Failure(kModelFile)
  // for an unknown name, a second copy, a shape or byte count that is not the tensor's.
  void set(std::span<const StoredTensor> tensors, Team& team);
  // Throws Failure(kModelFile) naming a tensor that is missing.
  void check_complete() const;

  const Linear& head_linear() const { return tied_ ? embed : head; }  // neither has a bias
  // A block's matrix by name, null for any other name; their number.
  const Linear* block_matrix(const std::string& name) const;
  std::size_t block_matrices() const { return block_matrices_.size(); }
  std::size_t size_bytes() const { return size_bytes_; }
  // Of a tile of the widest sparse matrix, made dense; 0 where there is none.
  std::size_t expanded_bytes() const { return expanded_bytes_; }

  Linear embed, position, head;
  NormWeights embed_norm, norm;
  std::vector<Layer> layers;

 private:
  struct Slot {
    std::vector<std::size_t> shape;
    PackedMatrix* matrix = nullptr;  // one of the two
    Vector* vector = nullptr;
    bool filled = false;
  };

  // The place of a tensor that fits it.
  Slot& slot_of(const StoredTensor& tensor);
  // Gives a matrix a part of `space`, which is yet to be packed, and returns it; takes in a vector.
  PackedMatrix* place(const StoredTensor& tensor, std::uint8_t*& space);

  void add_layer(const ModelConfig& config, const LayerConfig& layer, std::size_t index);
  void add_queries_keys_values(const ModelConfig& config, const LayerConfig& layer,
                               const std::string& at, Layer& to);
  void add_latent(const ModelConfig& config, const LayerConfig& layer, const std::string& at,
                  Layer& to);
  void add_linear(const std::string& name, Linear& linear, std::size_t out, std::size_t in,
                  bool bias);
  void add_block_linear(const std::string& name, Linear& linear, std::size_t out, std::size_t in,
                        bool bias);
  void add_norm(const std::string& name, NormWeights& norm_weights, const ModelConfig& config);
  void add_vector(const std::string& name, Vector& vector, std::size_t size);

  bool tied_, masks_;
  std::size_t size_bytes_ = 0, expanded_bytes_ = 0;
  std::vector<Buffer<std::uint8_t>> spaces_;  // what the matrices lie in
  std::map<std::string, Slot> slots_;
  std::map<std::string, const Linear*> block_matrices_;
};

}  // namespace miudo
