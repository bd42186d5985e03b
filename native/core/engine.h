// Conversations over one model: who owns which page, what a batch wants, what it gets.
// For: miudo.cc, which is the C door to it. Not for: arithmetic (model/).
// Read next: core/step.cc, then model/forward.cc.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/miudo.h"
#include "core/reading.h"
#include "core/sampler.h"
#include "model/adapter.h"
#include "model/forward.h"
#include "model/kv_cache.h"
#include "util/laps.h"
#include "util/own_mutex.h"
#include "util/team.h"

namespace miudo {

// Positions computed together: bounds scratch.
constexpr std::size_t kChunk = 256;
// Positions whose norms and rounding every worker does for itself sooner than it would meet the rest.
constexpr std::size_t kNarrow = 2;

struct Conversation {
  std::vector<Page> pages;  // those full may be shared; the last one too, until it is written
  std::vector<std::int32_t> ids;  // taken in so far; its size is the length
  const Adapter* adapter = nullptr;  // which the pages were computed with
};

class Engine {
 public:
  Engine(ModelConfig config, const miudo_options& options);

  void set_tensors(std::span<const StoredTensor> tensors);
  void finalize();

  std::int64_t open();
  std::int64_t fork(std::int64_t conversation, std::size_t length);
  void close(std::int64_t conversation);
  std::size_t length(std::int64_t conversation);
  void truncate(std::int64_t conversation, std::size_t length);

  void add_adapter(const std::string& name, std::span<const miudo_low_rank> parts);
  void remove_adapter(const std::string& name);

  void step(std::span<miudo_work> works);
  void score(std::span<const std::int32_t> ids, const char* adapter, const miudo_scores& scores);
  // Logits of states [rows, D] of the residual stream, as if the last layer had left them.
  void unembed(std::span<const float> hidden, std::span<float> out);

  // Begins to sum the seconds of steps by phase, from none, or ceases.
  void time_phases(bool wanted);
  std::array<double, kPhases> phase_seconds();

  const Model& model() const { return model_; }
  int threads() const { return team_.threads(); }
  std::size_t page_bytes() const { return pages_.page_bytes(); }
  std::size_t cache_bytes_used();
  // Whether this is a child of the process that made the engine.
  bool elsewhere() const { return mutex_.elsewhere(); }

 private:
  // One work item on its way through a step.
  struct Item {
    miudo_work* work;
    Conversation* conversation;
    const Adapter* adapter;
    std::size_t taken = 0;  // ids already computed
    bool differed = false;  // a drawn id was not the drafted one

    // How many of the ids the conversation keeps: a draft up to where a drawn id differed.
    std::size_t kept() const {
      return work->n_drafted == 0 ? work->n_ids : work->n_ids - work->n_drafted + work->n_tokens - 1;
    }
  };

  Conversation& find(std::int64_t conversation);
  void check_ids(std::span<const std::int32_t> ids, std::size_t length) const;
  void check_work(const miudo_work& work, const Conversation& conversation) const;
  const Adapter* find_adapter(const char* name) const;
  void check_adapter(const miudo_work& work, const Conversation& conversation,
                     const Adapter* adapter) const;
  std::vector<Item> check_batch(std::span<miudo_work> works);
  void look_for_interrupt();

  void give_back_beyond(Conversation& conversation, std::size_t length) noexcept;
  // Pages for what the items take in, and copies of shared ones that they write; all or none.
  std::size_t pages_wanted(std::span<const Item> items) const;
  void reserve(std::span<const Item> items);
  void own_last_page(Conversation& conversation);
  void release(std::span<const Item> items) noexcept;

  void compute(std::span<Item> items);
  Pass take_chunk(std::span<Item> items, std::size_t& first);
  void answer(const Pass& pass, std::span<Item> items);
  void run(const Pass& pass);
  void read_logits(const Pass& pass, std::size_t n);
  const miudo_work* drawn_by_weight(const Item& item, std::size_t index) const;
  void weigh(std::size_t i, std::size_t stretch, float top);
  // Of row i in head_out_.
  std::span<const float> row_of(std::size_t i) const {
    return {head_out_.data() + i * model_.config.vocab_size, model_.config.vocab_size};
  }
  std::span<Stretch> of_row(std::size_t i) {
    const std::size_t stretches = stretches_of(model_.config.vocab_size);
    return std::span<Stretch>(stretches_).subspan(i * stretches, stretches);
  }
  void answer_row(Item& item, std::size_t index, std::size_t at);
  void score_rows(const Pass& pass, std::span<const std::int32_t> ids, std::size_t start,
                  const miudo_scores& scores);
  static void score_row(const float* row, const Reading& reading, std::int32_t target,
                        std::size_t at, const miudo_scores& scores,
                        std::vector<std::int32_t>& order);
  std::size_t head_rows() const;

  OwnMutex mutex_;
  miudo_options options_;
  Model model_;
  Team team_;
  Stop stop_;
  Laps laps_;
  bool timed_ = false;
  PagePool pages_;
  bool complete_ = false;
  std::int64_t next_conversation_ = 1;
  std::map<std::int64_t, Conversation> conversations_;
  std::map<std::string, Adapter> adapters_;  // conversations point into it

  Scratch scratch_;
  Sampler sampler_;
  std::vector<Segment> segments_;
  AdaptedRows adapted_;
  std::vector<std::size_t> segment_item_;
  Buffer<float> head_in_, head_out_;  // [head_rows, D], [head_rows, V]
  std::vector<Stretch> stretches_;    // of the rows in head_out_
  std::vector<const miudo_work*> drawn_;  // who draws by weight from each of them, or null
  Buffer<double> weights_;                // [head_rows, V] for these
  std::vector<std::int32_t> seen_;
};

}  // namespace miudo
