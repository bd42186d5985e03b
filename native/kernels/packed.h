// How a weight matrix [rows, cols] lies in memory for the kernels: tiles of 16 rows, one lane a
// row, so that a thread reads one sequential stream, with scales beside the numbers they scale.
//   F32, F16, BF16: a tile is cols x 16 numbers.
//   Blocks of files (Q8_0, Q4_0, Q4_K ...): a tile is a run of groups of 32 columns, two by two:
//     [scales of both groups][numbers of the first][numbers of the second], on cache lines.
//     Where 256 columns share scales of scales, these come before each four pairs.
//   A group's numbers are planes of bits, 16 rows x 4 bytes a cache line. A quad is 4 consecutive
//   columns of the 16 rows; a group has 8. Of numbers of
//     8 bits: a line a quad;
//     4 bits: 4 lines, quad v in the low halves of line v % 4 or, from v = 4 on, the high halves;
//     2 bits: 2 lines, quad v in bits 2 (v % 4) and up of line v / 4;
//     1 bit:  1 line, quad v in bit v.
//   Numbers of 3, 5 and 6 bits are a plane of 2, 4 and 4 low bits, then one of 1, 1 and 2 high ones.
// Rows that fill up the last tile are zero.
// Plain data only: kernel files are compiled for newer processors, and an inline function that
// they shared with other files could be linked into those. (constexpr ones are static here.)
// Read next: kernels/matmul_inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miudo {

constexpr std::size_t kTileRows = 16;
constexpr std::size_t kGroup = 32;    // columns that share a scale
constexpr std::size_t kQuads = 8;     // of 4 columns, in a group
constexpr std::size_t kLine = 64;     // bytes: 16 rows x 4
constexpr std::size_t kSuperGroups = 8;     // groups that share scales of scales

// How numbers lie in files; the values are those of miudo.h.
enum class DType : int {
  kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K,
  kIQ4_NL, kIQ4_XS, kMXFP4, kTQ1_0, kTQ2_0,
  // The last: numbers of Q4_0 and Q8_0 without the zeros; see kernels/sparse.h.
  kSparse4, kSparse8
};

struct BlockShape {
  std::size_t values, bytes;
};

// By DType, as miudo/tensors.py has them, but for sparse ones, which have no blocks.
constexpr BlockShape kBlocks[] = {{1, 4},     {1, 2},     {1, 2},     {32, 34},
                                  {32, 18},   {32, 20},   {32, 22},   {32, 24},
                                  {256, 84},  {256, 110}, {256, 144}, {256, 176},
                                  {256, 210}, {32, 18},   {256, 136}, {32, 17},
                                  {256, 54},  {256, 66}};
constexpr std::int32_t kDTypes = sizeof(kBlocks) / sizeof(kBlocks[0]);
constexpr std::int32_t kSparseTypes = 2;
static_assert(static_cast<int>(DType::kSparse4) == kDTypes);

static constexpr bool is_sparse(DType type) { return static_cast<int>(type) >= kDTypes; }
// The type that has the same values, zeros and all.
static constexpr DType dense_of(DType type) {
  return type == DType::kSparse4 ? DType::kQ4_0 : type == DType::kSparse8 ? DType::kQ8_0 : type;
}

enum class Scales {
  kNone,             // floats have none
  kHalf,             // float16 a group
  kBfloat,           // bfloat16 a group: powers of two that float16 has not
  kHalfOffset,       // float16 and an offset in float16, a group
  kSuper,            // float16 for 256 columns times int8 for 16
  kSuperOffset,      // the same for scales and offsets, uint8 for 32
  kSuperHalfOffset,  // the same, 4 bits each for 16
  kSuperAlone,       // float16 for 256 columns, and nothing beside a group
};

// What stored numbers mean: (number - zero) * scale + offset, or table[number] * scale.
struct Format {
  int bits;  // 0: floats
  Scales scales;
  int zero;
  const std::int8_t* table;
};

constexpr std::int8_t kIq4Table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                       1,    13,   25,  38,  53,  69,  89,  113};
constexpr std::int8_t kFp4Table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// By DType. Numbers of 8 bits are signed, of fewer not.
constexpr Format kFormats[] = {{0, Scales::kNone, 0, nullptr},
                               {0, Scales::kNone, 0, nullptr},
                               {0, Scales::kNone, 0, nullptr},
                               {8, Scales::kHalf, 0, nullptr},               // Q8_0
                               {4, Scales::kHalf, 8, nullptr},               // Q4_0
                               {4, Scales::kHalfOffset, 0, nullptr},         // Q4_1
                               {5, Scales::kHalf, 16, nullptr},              // Q5_0
                               {5, Scales::kHalfOffset, 0, nullptr},         // Q5_1
                               {2, Scales::kSuperHalfOffset, 0, nullptr},    // Q2_K
                               {3, Scales::kSuper, 4, nullptr},              // Q3_K
                               {4, Scales::kSuperOffset, 0, nullptr},        // Q4_K
                               {5, Scales::kSuperOffset, 0, nullptr},        // Q5_K
                               {6, Scales::kSuper, 32, nullptr},             // Q6_K
                               {4, Scales::kHalf, 0, kIq4Table},             // IQ4_NL
                               {4, Scales::kSuper, 0, kIq4Table},            // IQ4_XS
                               {4, Scales::kBfloat, 0, kFp4Table},          // MXFP4
                               {2, Scales::kSuperAlone, 1, nullptr},         // TQ1_0, unpacked
                               {2, Scales::kSuperAlone, 1, nullptr}};        // TQ2_0

static constexpr const Format& format_of(DType type) {
  return kFormats[static_cast<std::size_t>(type)];
}

static constexpr bool is_float(DType type) { return format_of(dense_of(type)).bits == 0; }

// Offsets in a tile, in bytes.
struct TileLayout {
  std::size_t group, pair_header, super_header;

  constexpr explicit TileLayout(const Format& f)
      : group(static_cast<std::size_t>(f.bits) * kLine),
        pair_header(f.scales == Scales::kSuperAlone   ? 0
                    : f.scales == Scales::kHalfOffset ? 2 * kLine
                                                      : kLine),
        super_header(f.scales >= Scales::kSuper ? kLine : 0) {}

  constexpr std::size_t pair() const { return pair_header + 2 * group; }
  constexpr std::size_t super() const { return super_header + kSuperGroups / 2 * pair(); }
  // The header of a group's super block, and of its pair; and the group's numbers.
  constexpr std::size_t super_at(std::size_t g) const { return g / kSuperGroups * super(); }
  constexpr std::size_t pair_at(std::size_t g) const {
    return super_at(g) + super_header + g % kSuperGroups / 2 * pair();
  }
  constexpr std::size_t group_at(std::size_t g) const {
    return pair_at(g) + pair_header + g % 2 * group;
  }
  constexpr std::size_t size(std::size_t groups) const {
    return groups == 0 ? 0 : group_at(groups - 1) + group;
  }
};

// Of sparse types in tiles of pairs: a line of places, then 2 or 4 of numbers.
static constexpr TileLayout pairs_layout(DType type) {
  TileLayout at(format_of(dense_of(type)));
  at.group = (type == DType::kSparse8 ? 5 : 3) * kLine;
  return at;
}

// Of sparse types in tiles of masks: where the masks of a group begin, and its numbers.
static constexpr std::size_t kMasksAt = kTileRows * 2, kNumbersAt = kMasksAt + kLine;

// A sparse type stands for tiles of pairs or of masks here; other sparse matrices are dense in
// memory.
struct Packed {
  const std::uint8_t* data = nullptr;
  std::size_t rows = 0, cols = 0;
  std::size_t tile_bytes = 0;
  DType type = DType::kF32;
  bool masks = false;  // of a sparse type: not pairs
};

}  // namespace miudo
