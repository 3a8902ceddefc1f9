// Rows of activations times a weight: out[m][n] = sum over k of x[m][k] * w[n][k].
//
// A product of a row does not depend on the rows beside it: every way below adds the same numbers in
// the same order, unit after unit, into one float32 sum for each output. Weights in float32 and
// bfloat16 add column by column (two at a time). Packed weights meet int8 rows in integer dot
// products of a unit, exact, which are scaled and added; or float32 rows, widened.
//
// One to four rows read the weight once and unpack it in registers. With more, a block of columns of
// two panels is unpacked into the first-level cache and meets all rows.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "inputs.h"
#include "simd.h"
#include "weights.h"

namespace products {

using namespace simd;

#if defined(__AVX512F__)
constexpr int kPlainRows = 12, kPackedRows = 6, kPanels = 2;  // what the registers hold
constexpr int kDirectRows = 6;
#else
constexpr int kPlainRows = 4, kPackedRows = 3, kPanels = 1;
constexpr int kDirectRows = 4;
#endif
constexpr int64_t kMostDirectRows = 64;  // of a product; with more, unpacking once pays
constexpr int64_t kBlockUnits = 16;       // of unpacked codes in the cache
constexpr int64_t kWidenedUnits = 4;      // of units in float32
constexpr int64_t kPrefetchBytes = 2048;  // ahead of a stream of weights

struct Output {
  float* to;  // row 0, the weight's first row
  int64_t stride;
  const float* bias;  // of the weight's rows; null = none

  float* at(int64_t row, int64_t column) const { return to + row * stride + column; }
};

// Stores 16 sums, or as many as the weight has rows left.
inline void store_sums(const Output& out, int64_t row, int64_t column, int64_t num_columns,
                       Floats sums) {
  if (num_columns >= kPanel) {
    if (out.bias != nullptr) sums = add(sums, load(out.bias + column));
    return store(out.at(row, column), sums);
  }
  float values[kPanel];
  store(values, sums);
  for (int64_t i = 0; i < num_columns; ++i)
    *out.at(row, column + i) = out.bias == nullptr ? values[i] : values[i] + out.bias[column + i];
}

inline int32_t four_codes(const int8_t* from) {
  int32_t codes;
  std::memcpy(&codes, from, sizeof codes);
  return codes;
}

inline uint32_t pair_of(const uint16_t* from) {
  uint32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

// What a unit adds to a sum, from the integer dot products of its halves or, in the first, all of it.
template <bool kHalves, bool kOffsets>
inline Floats add_unit(Floats sum, const Ints* dots, const Floats* scales, const Floats* offsets,
                       const UnitScale& x) {
  const Floats scale = all(x.scale);
  const int num = kHalves ? 2 : 1;
  for (int i = 0; i < num; ++i) sum = fma(to_floats(dots[i]), mul(scales[i], scale), sum);
  if constexpr (kOffsets) {
    for (int i = 0; i < num; ++i) {
      const int32_t codes = kHalves ? x.sums[i] : x.sums[0] + x.sums[1];
      sum = fma(offsets[i], all(x.scale * static_cast<float>(codes)), sum);
    }
  }
  return sum;
}

// Where integer sums start, so that codes without offsets have their zero point taken off.
template <bool kHalves, bool kOffsets>
inline void start_dots(Ints* dots, const UnitScale& x, int32_t zero) {
  if constexpr (kOffsets) {
    dots[0] = all_ints(0);
    if constexpr (kHalves) dots[1] = all_ints(0);
  } else if constexpr (kHalves) {
    dots[0] = all_ints(-zero * x.sums[0]);
    dots[1] = all_ints(-zero * x.sums[1]);
  } else {
    dots[0] = all_ints(-zero * (x.sums[0] + x.sums[1]));
  }
}

// ---- packed weights and int8 rows: a few rows, unpacked in registers ----

template <int kBits, bool kHalves, bool kOffsets, int kRows>
void multiply_direct(const Weight& weight, const Input& input, int64_t first_row, int64_t panel,
                     const Output& out) {
  const uint8_t* at = weight.panel(panel);
  const int64_t units_per_group = weight.units_per_group(), num_units = weight.num_units();
  const int64_t header_bytes = weight.header_bytes(), unit_bytes = weight.unit_bytes();
  constexpr int kSets = kHalves ? 2 : 1;
  Floats sums[kRows];
  for (auto& sum : sums) sum = zero();
  const int8_t* codes[kRows];
  const UnitScale* scales_of[kRows];
  for (int r = 0; r < kRows; ++r) {
    codes[r] = input.codes(first_row + r);
    scales_of[r] = input.scales(first_row + r);
  }
  for (int64_t unit = 0; unit < num_units;) {
    Floats scales[kSets], offsets[kSets];
    for (int i = 0; i < kSets; ++i) {
      scales[i] = weight.load_set(at, i);
      if (kOffsets) offsets[i] = weight.load_set(at, kSets + i);
    }
    at += header_bytes;
    for (int64_t i = 0; i < units_per_group; ++i, ++unit, at += unit_bytes) {
      Bytes vectors[kUnitVectors];
      for (int64_t byte = 0; byte < unit_bytes + 64; byte += 64)
        __builtin_prefetch(at + kPrefetchBytes + byte);
      unpack<kBits>(at, vectors);
      for (int r = 0; r < kRows; ++r) {
        const UnitScale& x = scales_of[r][unit];
        Ints dots[kSets];
        start_dots<kHalves, kOffsets>(dots, x, weight.zero);
        for (int v = 0; v < kUnitVectors; ++v) {
          Ints& dot = dots[kHalves ? v / 4 : 0];
          dot = dot_bytes<kBits>(dot, vectors[v], four_codes(codes[r] + unit * kUnit + 4 * v));
        }
        sums[r] = add_unit<kHalves, kOffsets>(sums[r], dots, scales, offsets, x);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    store_sums(out, first_row + r, panel * kPanel, weight.rows - panel * kPanel, sums[r]);
}

// ---- many rows: a block of columns of kCount panels meets up to kRoomRows rows ----

constexpr int64_t kRoomRows = 256;

struct UnpackedUnit {
  uint8_t codes[kUnitVectors][64];
  float scales[2][kPanel], offsets[2][kPanel];
};

// What a thread works in: it stays in its caches.
struct Room {
  alignas(64) float sums[kPanels][kRoomRows][kPanel];
  union {
    alignas(64) UnpackedUnit units[kPanels][kBlockUnits];
    alignas(64) float widened[kPanels][kWidenedUnits * kUnit * kPanel];
  };
};

// Of unpacked codes only whether they are of 8 bits matters, and not even that with VNNI.
constexpr int unpacked_bits(int bits) {
#if defined(__AVX512VNNI__)
  return 4;
#else
  return bits == 8 ? 8 : 6;
#endif
}

// Rows of a tile: from `row` of the input on, and from `at` of the room's sums.
struct Tile {
  int64_t row, at;
};

inline void unpack_unit(const Weight& weight, const UnitAddress& from, UnpackedUnit& to) {
  Bytes vectors[kUnitVectors];
  unpack(from.codes, weight.bits, vectors);
  for (int i = 0; i < kUnitVectors; ++i) store_bytes(to.codes[i], vectors[i]);
  const int num = weight.has_halves() ? 2 : 1;
  for (int i = 0; i < num; ++i) {
    store(to.scales[i], weight.load_set(from.header, i));
    if (weight.has_offsets) store(to.offsets[i], weight.load_set(from.header, num + i));
  }
}

template <int kBits, bool kHalves, bool kOffsets, int kRows, int kCount>
void packed_tile(Room& room, const Weight& weight, const Input& input, Tile tile,
                 int64_t first_unit, int64_t num_units) {
  constexpr int kSets = kHalves ? 2 : 1;
  Floats sums[kCount][kRows];
  const int8_t* codes[kRows];
  const UnitScale* scales_of[kRows];
  for (int r = 0; r < kRows; ++r) {
    codes[r] = input.codes(tile.row + r) + first_unit * kUnit;
    scales_of[r] = input.scales(tile.row + r) + first_unit;
    for (int p = 0; p < kCount; ++p)
      sums[p][r] = first_unit == 0 ? zero() : load(room.sums[p][tile.at + r]);
  }
  for (int64_t unit = 0; unit < num_units; ++unit) {
    Ints dots[kCount][kRows][kSets];
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kCount; ++p)
        start_dots<kHalves, kOffsets>(dots[p][r], scales_of[r][unit], weight.zero);
    for (int v = 0; v < kUnitVectors; ++v) {
      Bytes vectors[kCount];
      for (int p = 0; p < kCount; ++p) vectors[p] = load_bytes(room.units[p][unit].codes[v]);
      for (int r = 0; r < kRows; ++r) {
        const int32_t x = four_codes(codes[r] + unit * kUnit + 4 * v);
        for (int p = 0; p < kCount; ++p) {
          Ints& dot = dots[p][r][kHalves ? v / 4 : 0];
          dot = dot_bytes<kBits>(dot, vectors[p], x);
        }
      }
    }
    for (int p = 0; p < kCount; ++p) {
      Floats scales[kSets], offsets[kSets];
      for (int i = 0; i < kSets; ++i) {
        scales[i] = load(room.units[p][unit].scales[i]);
        if (kOffsets) offsets[i] = load(room.units[p][unit].offsets[i]);
      }
      for (int r = 0; r < kRows; ++r)
        sums[p][r] = add_unit<kHalves, kOffsets>(sums[p][r], dots[p][r], scales, offsets,
                                                 scales_of[r][unit]);
    }
  }
  for (int p = 0; p < kCount; ++p)
    for (int r = 0; r < kRows; ++r) store(room.sums[p][tile.at + r], sums[p][r]);
}

// Weights in float32 or bfloat16, `blocks` their vectors from `first_unit` on.
template <bool kIsBfloat16, int kRows, int kCount>
void plain_tile(Room& room, const uint8_t* const* blocks, const Input& input, Tile tile,
                int64_t first_unit, int64_t num_units) {
  Floats sums[kCount][kRows];
  const uint8_t* x[kRows];
  constexpr int64_t kElement = kIsBfloat16 ? 2 : 4;
  for (int r = 0; r < kRows; ++r) {
    x[r] = input.row(tile.row + r) + first_unit * kUnit * kElement;
    for (int p = 0; p < kCount; ++p)
      sums[p][r] = first_unit == 0 ? zero() : load(room.sums[p][tile.at + r]);
  }
  const int64_t num_vectors = num_units * kUnit * kElement / 4;
  for (int64_t v = 0; v < num_vectors; ++v) {
    if (kRows <= 2)
      for (int p = 0; p < kCount; ++p) __builtin_prefetch(blocks[p] + 64 * v + kPrefetchBytes);
    for (int p = 0; p < kCount; ++p) {
      const uint8_t* vector = blocks[p] + 64 * v;
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kIsBfloat16) {
          sums[p][r] = dot_pairs(sums[p][r], reinterpret_cast<const uint16_t*>(vector),
                                 pair_of(reinterpret_cast<const uint16_t*>(x[r] + 4 * v)));
        } else {
          const Floats input_column = all(reinterpret_cast<const float*>(x[r])[v]);
          sums[p][r] = fma(load(reinterpret_cast<const float*>(vector)), input_column, sums[p][r]);
        }
      }
    }
  }
  for (int p = 0; p < kCount; ++p)
    for (int r = 0; r < kRows; ++r) store(room.sums[p][tile.at + r], sums[p][r]);
}

// Calls run(bits, has halves, has offsets) with constants of a packed weight.
template <typename Run>
inline void dispatch_packed(const Weight& weight, Run run) {
  const auto with_bits = [&](auto bits) {
    const std::true_type yes;
    const std::false_type no;
    if (weight.has_halves()) {
      weight.has_offsets ? run(bits, yes, yes) : run(bits, yes, no);
    } else {
      weight.has_offsets ? run(bits, no, yes) : run(bits, no, no);
    }
  };
  switch (weight.bits) {
    case 4: return with_bits(std::integral_constant<int, 4>());
    case 5: return with_bits(std::integral_constant<int, 5>());
    case 6: return with_bits(std::integral_constant<int, 6>());
    default: return with_bits(std::integral_constant<int, 8>());
  }
}

// Calls run(constant, tile) for tiles of at most kMost rows that cover `num_rows`.
template <int kMost, typename Run>
inline void for_each_tile(int64_t first_row, int64_t at, int64_t num_rows, Run run) {
  for (; at + kMost <= num_rows; at += kMost)
    run(std::integral_constant<int, kMost>(), Tile{first_row + at, at});
  if constexpr (kMost > 1)
    if (at < num_rows) for_each_tile<kMost - 1>(first_row, at, num_rows, run);
}

// The panels from `panel` on and up to kRoomRows rows from `first_row` on.
template <int kCount>
void multiply_block(const Weight& weight, const Input& input, int64_t first_row, int64_t num_rows,
                    int64_t panel, Room& room, const Output& out) {
  const int64_t num_units = weight.num_units();
  const bool is_packed = weight.kind == kPacked, is_widened = is_packed && input.form == kFloatRows;
  const int64_t step = is_widened ? kWidenedUnits : kBlockUnits;
  for (int64_t first = 0; first < num_units; first += step) {
    const int64_t count = std::min(step, num_units - first);
    if (is_packed && !is_widened) {
      for (int p = 0; p < kCount; ++p)
        for (int64_t i = 0; i < count; ++i)
          unpack_unit(weight, find_unit(weight, weight.panel(panel + p), first + i),
                      room.units[p][i]);
      dispatch_packed(weight, [&](auto bits, auto halves, auto offsets) {
        for_each_tile<kPackedRows>(first_row, 0, num_rows, [&](auto rows, Tile tile) {
          packed_tile<unpacked_bits(bits.value), halves.value, offsets.value, rows.value, kCount>(
              room, weight, input, tile, first, count);
        });
      });
      continue;
    }
    const uint8_t* blocks[kCount];
    for (int p = 0; p < kCount; ++p) {
      blocks[p] = weight.panel(panel + p) + first * weight.unit_bytes();
      if (!is_widened) continue;
      for (int64_t i = 0; i < count; ++i)
        widen_unit(weight, find_unit(weight, weight.panel(panel + p), first + i),
                   room.widened[p] + i * kUnit * kPanel);
      blocks[p] = reinterpret_cast<const uint8_t*>(room.widened[p]);
    }
    for_each_tile<kPlainRows>(first_row, 0, num_rows, [&](auto rows, Tile tile) {
      if (weight.kind == kBfloat16) {
        plain_tile<true, rows.value, kCount>(room, blocks, input, tile, first, count);
      } else {
        plain_tile<false, rows.value, kCount>(room, blocks, input, tile, first, count);
      }
    });
  }
  for (int p = 0; p < kCount; ++p) {
    const int64_t column = (panel + p) * kPanel;
    for (int64_t r = 0; r < num_rows; ++r)
      store_sums(out, first_row + r, column, weight.rows - column, load(room.sums[p][r]));
  }
}

// ---- the work of a whole product, cut into tasks for a team ----

// Which way a product goes depends on how many rows there are, and its result does not.
inline bool is_direct(const Weight& weight, const Input& input, int64_t num_rows) {
  return weight.kind == kPacked && input.form == kInt8Rows && num_rows <= kMostDirectRows;
}

inline int64_t panels_of_task(const Weight& weight, const Input& input, int64_t num_rows,
                              int team_size) {
  if (num_rows > 32) return kPanels;
  // few rows: tasks large enough that handing them out costs nothing beside them
  const int64_t share = weight.num_panels() / (4 * team_size);
  return round_up(std::max<int64_t>(share, 1), kPanels);
}

inline int64_t num_tasks(const Weight& weight, const Input& input, int64_t num_rows,
                         int team_size) {
  const int64_t panels = panels_of_task(weight, input, num_rows, team_size);
  return (weight.num_panels() + panels - 1) / panels * ((num_rows + kRoomRows - 1) / kRoomRows);
}

inline void run_task(const Weight& weight, const Input& input, int64_t num_rows, int team_size,
                     int64_t task, Room& room, const Output& out) {
  const int64_t panels = panels_of_task(weight, input, num_rows, team_size);
  const int64_t num_blocks = (weight.num_panels() + panels - 1) / panels;
  const int64_t first_row = task / num_blocks * kRoomRows;
  num_rows = std::min(kRoomRows, num_rows - first_row);
  int64_t panel = task % num_blocks * panels;
  const int64_t end = std::min(panel + panels, weight.num_panels());
  if (is_direct(weight, input, num_rows)) {
    dispatch_packed(weight, [&](auto bits, auto halves, auto offsets) {
      for (; panel < end; ++panel) {
        for_each_tile<kDirectRows>(first_row, 0, num_rows, [&](auto rows, Tile tile) {
          multiply_direct<bits.value, halves.value, offsets.value, rows.value>(
              weight, input, tile.row, panel, out);
        });
      }
    });
    return;
  }
  for (; panel + kPanels <= end; panel += kPanels)
    multiply_block<kPanels>(weight, input, first_row, num_rows, panel, room, out);
  if constexpr (kPanels > 1)
    for (; panel < end; ++panel)
      multiply_block<1>(weight, input, first_row, num_rows, panel, room, out);
}

}  // namespace products
