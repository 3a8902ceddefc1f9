// Rows of activations in the form that a weight multiplies: as they are, in bfloat16, or as int8
// with a scale for each unit of 32 columns (the smallest error: max / 127, to nearest).

#pragma once

#include <algorithm>
#include <cstdint>

#include "weights.h"

enum Form : int32_t { kFloatRows = 0, kBfloat16Rows = 1, kInt8Rows = 2 };

struct UnitScale {
  float scale;
  int32_t sums[2];  // of the codes of columns 0 to 15 and 16 to 31
  int32_t unused;
};

// Rows in one of the forms; memory is the caller's.
struct Input {
  Form form;
  int64_t columns;  // a multiple of 32: what is beyond the real ones is zero
  uint8_t* memory;

  static int64_t row_bytes(Form form, int64_t columns) {
    if (form == kFloatRows) return 4 * columns;
    if (form == kBfloat16Rows) return 2 * columns;
    return columns + columns / kUnit * static_cast<int64_t>(sizeof(UnitScale));
  }
  uint8_t* row(int64_t index) const { return memory + index * row_bytes(form, columns); }
  const float* floats(int64_t index) const { return reinterpret_cast<const float*>(row(index)); }
  const uint16_t* halves(int64_t index) const {
    return reinterpret_cast<const uint16_t*>(row(index));
  }
  const int8_t* codes(int64_t index) const { return reinterpret_cast<const int8_t*>(row(index)); }
  UnitScale* scales(int64_t index) const {
    return reinterpret_cast<UnitScale*>(row(index) + columns);
  }
};

inline void quantize_row(const float* from, const Input& input, int64_t row) {
  using namespace simd;
  int8_t* codes = reinterpret_cast<int8_t*>(input.row(row));
  UnitScale* scales = input.scales(row);
  for (int64_t unit = 0; unit < input.columns / kUnit; ++unit, from += kUnit, codes += kUnit) {
    const Floats a = load(from), b = load(from + kLanes);
    // as integers, among which NaN is the largest: it and infinity make the scale not finite
    const int32_t bits = largest(max(as_ints(magnitude(a)), as_ints(magnitude(b))));
    const float most = from_bits(static_cast<uint32_t>(bits));
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    const Ints low = to_ints(mul(a, all(inverse))), high = to_ints(mul(b, all(inverse)));
    store_int8(codes, low);
    store_int8(codes + kLanes, high);
    scales[unit] = {most / 127.0f, {sum(low), sum(high)}, 0};
  }
}

// Brings a row of floats, filled up with zeros to input.columns, into the input's form. `scratch`
// has room for a row and is used where the columns are to be put in another order.
inline void put_row(const float* from, const int32_t* order, const Input& input, int64_t row,
                    float* scratch) {
  if (order != nullptr) {
    for (int64_t i = 0; i < input.columns; ++i) scratch[i] = from[order[i]];
    from = scratch;
  }
  if (input.form == kInt8Rows) return quantize_row(from, input, row);
  if (input.form == kFloatRows) {
    std::memcpy(input.row(row), from, 4 * input.columns);
    return;
  }
  uint16_t* to = reinterpret_cast<uint16_t*>(input.row(row));
  for (int64_t i = 0; i < input.columns; i += simd::kLanes)
    simd::store_bfloat16(to + i, simd::load(from + i));
}
