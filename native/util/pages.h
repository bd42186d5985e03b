// What the system does with pages of memory, where it can be told.
// For: large buffers, and maps of files that are read once. Not for: allocation (util/buffer.h).
#pragma once

#include <cstddef>

namespace miudo {

// Of a map of a file: pages that `bytes` lie in are no longer counted as this process's; used
// again, they are read again. Anonymous memory would lose what it holds.
void let_go(const void* bytes, std::size_t size);

// Asks for large pages, which are made ready in a fraction of the time.
constexpr std::size_t kLargePage = std::size_t{1} << 21;
void want_large_pages(void* memory, std::size_t size);

}  // namespace miudo
