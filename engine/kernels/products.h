// Rows of activations times a weight: out[m][n] = sum over k of x[m][k] * w[n][k].
//
// A product of a row does not depend on the rows beside it: every way below adds the same numbers in
// the same order, unit after unit, into one float32 sum for each output. Weights in float32 and
// bfloat16 add column by column (two at a time). Packed weights meet int8 rows in integer dot
// products of a unit, exact, which are scaled and added; or float32 rows, widened.
//
// Packed codes are unpacked in registers, again for every eight rows: a panel stays in the first-level
// cache, and reading unpacked codes from there costs more than unpacking them.

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
constexpr int kPackedRows = 8, kPlainRows = 12, kPlainPanels = 2;  // what the registers hold
#else
constexpr int kPackedRows = 4, kPlainRows = 4, kPlainPanels = 1;
#endif
constexpr int64_t kRowsStep = 24;         // what those numbers of rows divide
constexpr int64_t kMostRows = 264;        // of a task
constexpr int64_t kInputBytes = 400'000;  // of a task's rows, which are read for each panel
constexpr int64_t kBlockUnits = 16;       // of plain weights that meet all rows of a task at once
constexpr int64_t kWidenedUnits = 4;      // the same of codes in float32
constexpr int64_t kPrefetchBytes = 2048;  // ahead of a stream of weights

// Where products go: a row of an input, a row of a weight (a column here).
struct Output {
  float* to;  // of first_row and first_column
  int64_t stride;
  const float* bias;  // of the weight's rows; null = none
  int64_t first_row = 0, first_column = 0;

  float* at(int64_t row, int64_t column) const {
    return to + (row - first_row) * stride + column - first_column;
  }
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

// Calls run(number of rows, a constant; row) for tiles of at most kMost rows.
template <int kMost, typename Run>
inline void for_each_tile(int64_t row, int64_t end, Run run) {
  for (; row + kMost <= end; row += kMost) run(std::integral_constant<int, kMost>(), row);
  if constexpr (kMost > 1)
    if (row < end) for_each_tile<kMost - 1>(row, end, run);
}

// ---- packed weights and int8 rows ----

inline int32_t four_codes(const int8_t* from) {
  int32_t codes;
  std::memcpy(&codes, from, sizeof codes);
  return codes;
}

// What the integer sums of a set (a unit, or with halves one of them) start from, so that codes
// without offsets have their zero point taken off.
template <int kBits, bool kHalves, bool kOffsets>
inline Ints start_dots(const UnitScale& x, int set) {
  if constexpr (kOffsets) return all_ints(0);
  if (!kHalves) return shift_left<kBits - 1>(all_ints(x.minus_sum));
  const Ints second = all_ints(x.minus_second);
  return shift_left<kBits - 1>(set == 1 ? second : sub(all_ints(x.minus_sum), second));
}

// The sum of a set's codes, which its offset multiplies.
template <bool kHalves>
inline float scaled_sum(const UnitScale& x, int set) {
  if (!kHalves) return x.scaled_sum;
  return x.scale * static_cast<float>(-(set == 1 ? x.minus_second : x.minus_first()));
}

template <int kBits, bool kHalves, bool kOffsets, int kRows>
void packed_tile(const Weight& weight, const Input& input, int64_t row, int64_t panel,
                 const Output& out) {
  constexpr int kSets = kHalves ? 2 : 1, kVectors = kUnitVectors / kSets;
  const uint8_t* at = weight.panel(panel);
  const int64_t column = panel * kPanel, units_per_group = weight.units_per_group();
  const int64_t num_units = weight.num_units(), header_bytes = weight.header_bytes();
  const int64_t unit_bytes = weight.unit_bytes(), stride = input.unit_stride();
  const int8_t* codes = input.codes(row, 0);
  const UnitScale* x = input.scales(row, 0);
  Floats sums[kRows];
  for (int r = 0; r < kRows; ++r) {
    sums[r] = zero();
    __builtin_prefetch(out.at(row + r, column), 1);
  }
  for (int64_t unit = 0; unit < num_units;) {
    Floats scales[kSets], offsets[kSets];
    for (int i = 0; i < kSets; ++i) {
      scales[i] = weight.load_set(at, i);
      if (kOffsets) offsets[i] = weight.load_set(at, kSets + i);
    }
    at += header_bytes;
    for (int64_t i = 0; i < units_per_group; ++i, ++unit, at += unit_bytes) {
      for (int64_t byte = 0; byte < unit_bytes + 64; byte += 64)
        __builtin_prefetch(at + kPrefetchBytes + byte);
      Bytes vectors[kUnitVectors];
      if (!kHalves) unpack<kBits>(at, vectors);
#pragma GCC unroll 2
      for (int set = 0; set < kSets; ++set) {
        if (kHalves) unpack_half<kBits>(at, set, vectors);
        Ints dots[kRows];
        for (int r = 0; r < kRows; ++r)
          dots[r] = start_dots<kBits, kHalves, kOffsets>(x[r], set);
        for (int v = 0; v < kVectors; ++v) {
          const int8_t* four = codes + 4 * (set * kVectors + v);
          for (int r = 0; r < kRows; ++r)
            dots[r] = dot_bytes<kBits>(dots[r], vectors[v], four_codes(four + r * kUnit));
        }
        for (int r = 0; r < kRows; ++r) {
          sums[r] = fma(to_floats(dots[r]), mul(scales[set], all(x[r].scale)), sums[r]);
          if constexpr (kOffsets)
            sums[r] = fma(offsets[set], all(scaled_sum<kHalves>(x[r], set)), sums[r]);
        }
      }
      codes += stride;
      x = reinterpret_cast<const UnitScale*>(reinterpret_cast<const uint8_t*>(x) + stride);
    }
  }
  for (int r = 0; r < kRows; ++r)
    store_sums(out, row + r, column, weight.rows - column, sums[r]);
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

// ---- plain weights, and packed ones with float32 rows: a block of columns meets all rows ----

// What a thread works in: it stays in its caches.
struct Room {
  alignas(64) float sums[kPlainPanels][kMostRows][kPanel];
  alignas(64) float widened[kPlainPanels][kWidenedUnits * kUnit * kPanel];
};

// Rows of an input that a task treats.
struct Rows {
  int64_t first, count;

  int64_t end() const { return first + count; }
};

// Units of a weight's columns.
struct Block {
  int64_t first, count;
  bool is_last;
};

inline uint32_t pair_of(const uint16_t* from) {
  uint32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

// kRows of the rows, from `row` on. `vectors` are the block's; sums come from the block before and
// go to the next, or out.
template <bool kIsBfloat16, int kRows, int kCount>
void plain_tile(Room& room, const uint8_t* const* vectors, const Weight& weight,
                const Input& input, const Rows& rows, int64_t row, const Block& block,
                int64_t panel, const Output& out) {
  Floats sums[kCount][kRows];
  const uint8_t* x[kRows];
  constexpr int64_t kElement = kIsBfloat16 ? 2 : 4;
  for (int r = 0; r < kRows; ++r) {
    x[r] = input.row(row + r) + block.first * kUnit * kElement;
    for (int p = 0; p < kCount; ++p)
      sums[p][r] = block.first == 0 ? zero() : load(room.sums[p][row + r - rows.first]);
  }
  const int64_t num_vectors = block.count * kUnit * kElement / 4;
  for (int64_t v = 0; v < num_vectors; ++v) {
    if (kRows <= 2)
      for (int p = 0; p < kCount; ++p) __builtin_prefetch(vectors[p] + 64 * v + kPrefetchBytes);
    for (int p = 0; p < kCount; ++p) {
      const uint8_t* vector = vectors[p] + 64 * v;
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
  for (int p = 0; p < kCount; ++p) {
    const int64_t column = (panel + p) * kPanel;
    for (int r = 0; r < kRows; ++r) {
      if (block.is_last) {
        store_sums(out, row + r, column, weight.rows - column, sums[p][r]);
      } else {
        store(room.sums[p][row + r - rows.first], sums[p][r]);
      }
    }
  }
}

// kCount panels from `panel` on.
template <int kCount>
void multiply_plain(const Weight& weight, const Input& input, const Rows& rows, int64_t panel,
                    Room& room, const Output& out) {
  const int64_t num_units = weight.num_units();
  const bool is_widened = weight.kind == kPacked;
  const int64_t step = is_widened ? kWidenedUnits : kBlockUnits;
  for (int64_t first = 0; first < num_units; first += step) {
    const int64_t count = std::min(step, num_units - first);
    const Block block{first, count, first + count == num_units};
    const uint8_t* vectors[kCount];
    for (int p = 0; p < kCount; ++p) {
      vectors[p] = weight.panel(panel + p) + first * weight.unit_bytes();
      if (!is_widened) continue;
      for (int64_t i = 0; i < count; ++i)
        widen_unit(weight, find_unit(weight, weight.panel(panel + p), first + i),
                   room.widened[p] + i * kUnit * kPanel);
      vectors[p] = reinterpret_cast<const uint8_t*>(room.widened[p]);
    }
    for_each_tile<kPlainRows>(rows.first, rows.end(), [&](auto num_rows, int64_t row) {
      constexpr int kRows = decltype(num_rows)::value;
      if (weight.kind == kBfloat16) {
        plain_tile<true, kRows, kCount>(room, vectors, weight, input, rows, row, block, panel, out);
      } else {
        plain_tile<false, kRows, kCount>(room, vectors, weight, input, rows, row, block, panel,
                                         out);
      }
    });
  }
}

// Panels `panel` to `end` and the rows of a task.
inline void multiply_panels(const Weight& weight, const Input& input, const Rows& rows,
                            int64_t panel, int64_t end, Room& room, const Output& out) {
  if (weight.kind == kPacked && input.form == kInt8Rows) {
    dispatch_packed(weight, [&](auto bits, auto halves, auto offsets) {
      for (; panel < end; ++panel) {
        for_each_tile<kPackedRows>(rows.first, rows.end(), [&](auto num_rows, int64_t row) {
          packed_tile<bits.value, halves.value, offsets.value, num_rows.value>(weight, input, row,
                                                                               panel, out);
        });
      }
    });
    return;
  }
  for (; panel + kPlainPanels <= end; panel += kPlainPanels)
    multiply_plain<kPlainPanels>(weight, input, rows, panel, room, out);
  for (; panel < end; ++panel) multiply_plain<1>(weight, input, rows, panel, room, out);
}

// ---- the work of a whole product, cut into tasks for a team ----

// All rows and all units of 32 outputs: a task has some rows, which the second-level cache holds, and
// some units.
class Tasks {
 public:
  Tasks() = default;
  Tasks(const Input& input, int64_t num_rows, int64_t num_outputs, int team_size)
      : num_rows_(num_rows), num_units_(round_up(num_outputs, kUnit) / kUnit) {
    const int64_t fitting = kInputBytes / Input::row_bytes(input.form, input.columns);
    const int64_t most = std::clamp(fitting, 2 * kRowsStep, kMostRows);
    const int64_t rows = std::max<int64_t>(num_rows, 1);  // there may be none
    const int64_t num_blocks = (rows + most - 1) / most;
    rows_of_task_ = round_up((rows + num_blocks - 1) / num_blocks, kRowsStep);
    // few rows: tasks large enough that handing them out costs nothing beside them
    const int64_t share = num_rows > 32 ? 1 : num_units_ / (4 * team_size);
    units_of_task_ = std::max<int64_t>(1, share);
  }

  int64_t count() const {
    return per_block() * ((num_rows_ + rows_of_task_ - 1) / rows_of_task_);
  }
  Rows rows(int64_t task) const {
    const int64_t first = task / per_block() * rows_of_task_;
    return {first, std::min(rows_of_task_, num_rows_ - first)};
  }
  int64_t first_unit(int64_t task) const { return task % per_block() * units_of_task_; }
  int64_t end_unit(int64_t task) const {
    return std::min(first_unit(task) + units_of_task_, num_units_);
  }

 private:
  int64_t per_block() const { return (num_units_ + units_of_task_ - 1) / units_of_task_; }

  int64_t num_rows_, num_units_, rows_of_task_, units_of_task_;
};

inline void run_task(const Weight& weight, const Input& input, const Tasks& tasks, int64_t task,
                     Room& room, const Output& out) {
  constexpr int64_t kPanels = kUnit / kPanel;
  const int64_t end = std::min(tasks.end_unit(task) * kPanels, weight.num_panels());
  multiply_panels(weight, input, tasks.rows(task), tasks.first_unit(task) * kPanels, end, room,
                  out);
}

}  // namespace products
