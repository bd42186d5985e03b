// Adapters by name, and which conversation may use which. Read next: model/adapter.cc.
#include <string>
#include <utility>

#include "core/engine.h"
#include "util/status.h"

namespace miudo {
namespace {

std::string said(const Adapter* adapter) {
  return adapter == nullptr ? "no adapter" : "adapter '" + adapter->name() + "'";
}

}  // namespace

void Engine::add_adapter(const std::string& name, std::span<const miudo_low_rank> parts) {
  const std::lock_guard lock(mutex_);
  if (!complete_) fail(Code::kRequest, "the model has no weights yet");
  if (name.empty()) fail(Code::kRequest, "an adapter needs a name");
  if (adapters_.contains(name)) fail(Code::kRequest, "adapter '" + name + "' is there already");
  if (parts.empty()) fail(Code::kModelFile, "adapter '" + name + "' corrects no matrix");
  Adapter made(name, model_.weights);
  for (const miudo_low_rank& part : parts) {
    const auto rank = static_cast<std::size_t>(part.rank);
    made.set(part.matrix,
             {rank, {part.down, part.n_down}, {part.up, part.n_up}, part.scale});
  }
  adapters_.emplace(name, std::move(made));
}

void Engine::remove_adapter(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const Adapter* const adapter = find_adapter(name.c_str());
  for (const auto& [number, conversation] : conversations_) {
    if (conversation.adapter == adapter) {
      fail(Code::kRequest, "adapter '" + name + "' is used by conversation " +
                               std::to_string(number) + ", which must be closed before");
    }
  }
  adapters_.erase(name);
}

const Adapter* Engine::find_adapter(const char* name) const {
  if (name == nullptr) return nullptr;
  const auto found = adapters_.find(name);
  if (found == adapters_.end()) {
    fail(Code::kRequest, "no adapter named '" + std::string(name) + "' was given to this engine");
  }
  return &found->second;
}

// Cached keys and values are the adapter's: another one would read what it never wrote.
void Engine::check_adapter(const miudo_work& work, const Conversation& conversation,
                           const Adapter* adapter) const {
  if (conversation.ids.empty() || conversation.adapter == adapter) return;
  fail(Code::kRequest, "conversation " + std::to_string(work.conversation) + " was begun with " +
                           said(conversation.adapter) + " and cannot go on with " +
                           said(adapter));
}

}  // namespace miudo
