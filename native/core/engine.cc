#include "core/engine.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "core/door.h"
#include "util/cpu.h"
#include "util/status.h"

namespace miudo {
namespace {

void check_held(const Conversation& conversation, std::size_t length) {
  if (length <= conversation.ids.size()) return;
  fail(Code::kRequest, "length is " + std::to_string(length) + ", the conversation holds " +
                           std::to_string(conversation.ids.size()));
}

// The page that the next position is written to; null where it will be a new one.
Page begun_page(const Conversation& conversation) {
  return conversation.ids.size() % kTilePositions == 0 ? nullptr : conversation.pages.back();
}

void check_draft(const miudo_work& work) {
  if (work.n_drafted >= work.n_ids) {
    fail(Code::kRequest, std::to_string(work.n_drafted) + " of " + std::to_string(work.n_ids) +
                             " ids are drafted");
  }
  if (work.want != MIUDO_WANT_SAMPLE) {
    fail(Code::kRequest, "a draft wants more than a sample");
  }
  if (work.tokens == nullptr || work.logprobs == nullptr) {
    fail(Code::kRequest, "there is no space for the tokens of a draft");
  }
}

}  // namespace

Engine::Engine(ModelConfig config, const miudo_options& options)
    : options_(options),
      model_(std::move(config), choose_isa(), options.int8_activations != 0,
             cache_type_of(options)),
      team_(choose_threads(options.threads)),
      stop_(options.interrupt, options.interrupt_context),
      pages_(model_.layout.page_bytes(), options.cache_bytes),
      sampler_(model_.kernels) {}

void Engine::set_tensors(std::span<const StoredTensor> tensors) {
  const std::lock_guard lock(mutex_);
  if (complete_) fail(Code::kModelFile, "the model is complete, tensors are too late");
  model_.weights.set(tensors, team_);
}

void Engine::finalize() {
  const std::lock_guard lock(mutex_);
  model_.weights.check_complete();
  complete_ = true;
}

std::int64_t Engine::open() {
  const std::lock_guard lock(mutex_);
  if (!complete_) fail(Code::kRequest, "the model has no weights yet");
  conversations_.try_emplace(next_conversation_);
  return next_conversation_++;  // never used again: a stale handle is an error, not a neighbour
}

std::int64_t Engine::fork(std::int64_t conversation, std::size_t length) {
  const std::lock_guard lock(mutex_);
  const Conversation& from = find(conversation);
  check_held(from, length);
  Conversation made;
  made.ids.assign(from.ids.begin(), from.ids.begin() + static_cast<std::ptrdiff_t>(length));
  made.pages.assign(from.pages.begin(),
                    from.pages.begin() + static_cast<std::ptrdiff_t>(pages_for(length)));
  if (length != 0) made.adapter = from.adapter;
  const auto placed = conversations_.try_emplace(next_conversation_, std::move(made)).first;
  for (const Page page : placed->second.pages) pages_.share(page);
  return next_conversation_++;
}

void Engine::close(std::int64_t conversation) {
  const std::lock_guard lock(mutex_);
  give_back_beyond(find(conversation), 0);
  conversations_.erase(conversation);
}

std::size_t Engine::length(std::int64_t conversation) {
  const std::lock_guard lock(mutex_);
  return find(conversation).ids.size();
}

void Engine::truncate(std::int64_t conversation, std::size_t length) {
  const std::lock_guard lock(mutex_);
  Conversation& held = find(conversation);
  check_held(held, length);
  held.ids.resize(length);
  if (length == 0) held.adapter = nullptr;
  give_back_beyond(held, length);
}

void Engine::time_phases(bool wanted) {
  const std::lock_guard lock(mutex_);
  laps_ = Laps();
  timed_ = wanted;
}

std::array<double, kPhases> Engine::phase_seconds() {
  const std::lock_guard lock(mutex_);
  return laps_.seconds();
}

std::size_t Engine::cache_bytes_used() {
  const std::lock_guard lock(mutex_);
  return pages_.used_bytes();
}

Conversation& Engine::find(std::int64_t conversation) {
  const auto found = conversations_.find(conversation);
  if (found == conversations_.end()) {
    fail(Code::kRequest, "conversation " + std::to_string(conversation) + " is not open");
  }
  return found->second;
}

void Engine::check_ids(std::span<const std::int32_t> ids, std::size_t length) const {
  const ModelConfig& c = model_.config;
  if (ids.empty()) fail(Code::kRequest, "no ids to take in");
  if (length > c.max_positions || ids.size() > c.max_positions - length) {
    fail(Code::kRequest, std::to_string(length + ids.size()) + " positions, the model has " +
                             std::to_string(c.max_positions));
  }
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= c.vocab_size) {
      fail(Code::kRequest, "id " + std::to_string(id) + " is outside the vocabulary of " +
                               std::to_string(c.vocab_size));
    }
  }
}

void Engine::check_work(const miudo_work& work, const Conversation& conversation) const {
  constexpr std::uint32_t kAll = 31;
  if (work.ids == nullptr && work.n_ids != 0) fail(Code::kRequest, "ids are missing");
  check_ids({work.ids, work.n_ids}, conversation.ids.size());
  if ((work.want & ~kAll) != 0) fail(Code::kRequest, "an unknown thing is wanted");
  if ((work.want & MIUDO_WANT_SAMPLE) != 0) check_sampling(work.sampling);
  if (work.n_drafted != 0) check_draft(work);
  const bool logits = (work.want & (MIUDO_WANT_LAST_LOGITS | MIUDO_WANT_ALL_LOGITS)) != 0;
  if ((logits && work.logits == nullptr) ||
      ((work.want & MIUDO_WANT_HIDDEN) != 0 && work.hidden == nullptr) ||
      ((work.want & MIUDO_WANT_ATTENTION) != 0 && work.attention == nullptr)) {
    fail(Code::kRequest, "there is no space for what is wanted");
  }
  // The caller's arrays have this size; another thread may have moved the conversation on.
  if ((work.want & MIUDO_WANT_ATTENTION) != 0 &&
      work.n_keys != conversation.ids.size() + work.n_ids) {
    fail(Code::kRequest, "n_keys is not the length after the step");
  }
}

std::vector<Engine::Item> Engine::check_batch(std::span<miudo_work> works) {
  if (!complete_) fail(Code::kRequest, "the model has no weights yet");
  std::vector<Item> items;
  std::vector<std::int64_t> seen;
  bool adapted = false;
  for (miudo_work& work : works) {
    Conversation& conversation = find(work.conversation);
    check_work(work, conversation);
    const Adapter* adapter = find_adapter(work.adapter);
    check_adapter(work, conversation, adapter);
    items.push_back({&work, &conversation, adapter});
    adapted = adapted || adapter != nullptr;
    seen.push_back(work.conversation);
  }
  std::sort(seen.begin(), seen.end());
  if (std::adjacent_find(seen.begin(), seen.end()) != seen.end()) {
    fail(Code::kRequest, "one conversation is twice in a batch");
  }
  if (adapted) {  // rows that share an adapter lie together; results go to their own work
    std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
      return std::less<const Adapter*>()(a.adapter, b.adapter);
    });
  }
  return items;
}

void Engine::look_for_interrupt() {
  if (stop_.wanted()) fail(Code::kInterrupted, "interrupted");
}

void Engine::give_back_beyond(Conversation& conversation, std::size_t length) noexcept {
  while (conversation.pages.size() > pages_for(length)) {
    pages_.give_back(conversation.pages.back());
    conversation.pages.pop_back();
  }
}

std::size_t Engine::pages_wanted(std::span<const Item> items) const {
  std::size_t wanted = 0;
  std::vector<Page> written;  // shared ones: the last owner to come needs no copy
  for (const Item& item : items) {
    const Conversation& c = *item.conversation;
    wanted += pages_for(c.ids.size() + item.work->n_ids) - c.pages.size();
    const Page page = begun_page(c);
    if (page == nullptr || pages_.owners(page) == 1) continue;
    const auto before = std::count(written.begin(), written.end(), page);
    if (pages_.owners(page) - static_cast<std::size_t>(before) > 1) ++wanted;
    written.push_back(page);
  }
  return wanted;
}

void Engine::own_last_page(Conversation& conversation) {
  const Page page = begun_page(conversation);
  if (page == nullptr || pages_.owners(page) == 1) return;
  conversation.pages.back() = pages_.copy(page);
  pages_.give_back(page);
}

void Engine::reserve(std::span<const Item> items) {
  const std::size_t wanted = pages_wanted(items);
  if (wanted > pages_.available()) {
    fail(Code::kRequest, "the cache is full: " + std::to_string(wanted) +
                             " pages are wanted, " + std::to_string(pages_.available()) +
                             " are free");
  }
  for (const Item& item : items) {
    Conversation& c = *item.conversation;
    // What is taken in below is noted without fail at the end. Doubled, as a vector grows.
    const std::size_t length = c.ids.size() + item.work->n_ids;
    if (c.ids.capacity() < length) c.ids.reserve(std::max(length, 2 * c.ids.capacity()));
    own_last_page(c);
    c.pages.reserve(pages_for(length));
    while (c.pages.size() < pages_for(length)) c.pages.push_back(pages_.take());
  }
}

void Engine::release(std::span<const Item> items) noexcept {
  for (const Item& item : items) {
    give_back_beyond(*item.conversation, item.conversation->ids.size());
  }
}

// Rows of logits made at a time: never more than some MB, whatever the vocabulary, and blocks of eight,
// since the head is read once for them.
std::size_t Engine::head_rows() const {
  constexpr std::size_t kFloats = std::size_t{1} << 22;
  const std::size_t blocks = kFloats / model_.config.vocab_size / kBlockRows;
  return std::clamp<std::size_t>(blocks * kBlockRows, 1, kChunk);
}

}  // namespace miudo
