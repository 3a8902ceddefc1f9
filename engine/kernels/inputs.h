// Rows of activations in the form that a weight multiplies: as they are, in bfloat16, or as int8
// with a scale for each unit of 32 columns (the smallest error: max / 127, to nearest).
//
// Rows of int8 are in blocks of up to 8, which a tile of a product reads as one stream: for each
// unit the 32 codes of every row of the block, then what else a product needs of them.

#pragma once

#include <algorithm>
#include <cstdint>

#include "weights.h"

enum Form : int32_t { kFloatRows = 0, kBfloat16Rows = 1, kInt8Rows = 2 };

struct UnitScale {
  float scale;
  float scaled_sum;      // scale times the sum of the codes
  int32_t minus_sum;     // the sum, negative: times a zero point, what integer products start from
  int32_t minus_second;  // the same of columns 16 to 31

  int32_t minus_first() const { return minus_sum - minus_second; }
};

// Rows in one of the forms; memory is the caller's.
struct Input {
  static constexpr int64_t kBlockRows = 8;
  static constexpr int64_t kUnitBytes = kUnit + sizeof(UnitScale);  // of int8

  Form form;
  int64_t columns;  // a multiple of 32: what is beyond the real ones is zero
  uint8_t* memory;
  int64_t block_rows;

  Input(Form form, int64_t columns, int64_t num_rows, uint8_t* memory)
      : form(form),
        columns(columns),
        memory(memory),
        block_rows(std::clamp<int64_t>(num_rows, 1, kBlockRows)) {}

  static int64_t bytes(Form form, int64_t columns, int64_t num_rows) {
    return round_up(num_rows, kBlockRows) * row_bytes(form, columns);
  }
  static int64_t row_bytes(Form form, int64_t columns) {
    if (form == kFloatRows) return 4 * columns;
    if (form == kBfloat16Rows) return 2 * columns;
    return columns / kUnit * kUnitBytes;
  }
  uint8_t* row(int64_t index) const { return memory + index * row_bytes(form, columns); }
  const float* floats(int64_t index) const { return reinterpret_cast<const float*>(row(index)); }
  const uint16_t* halves(int64_t index) const {
    return reinterpret_cast<const uint16_t*>(row(index));
  }
  // From a unit to the next.
  int64_t unit_stride() const { return block_rows * kUnitBytes; }
  // Where those of the rows behind it in its block follow.
  int8_t* codes(int64_t index, int64_t unit) const {
    return reinterpret_cast<int8_t*>(unit_of_block(index, unit)) + index % block_rows * kUnit;
  }
  UnitScale* scales(int64_t index, int64_t unit) const {
    uint8_t* scales = unit_of_block(index, unit) + block_rows * kUnit;
    return reinterpret_cast<UnitScale*>(scales) + index % block_rows;
  }

 private:
  uint8_t* unit_of_block(int64_t index, int64_t unit) const {
    return row(index / block_rows * block_rows) + unit * unit_stride();
  }
};

// A unit of a row, 32 floats, in the input's form.
inline void put_unit(const float* from, const Input& input, int64_t row, int64_t unit) {
  using namespace simd;
  const Floats a = load(from), b = load(from + kLanes);
  if (input.form == kFloatRows) {
    float* to = reinterpret_cast<float*>(input.row(row)) + unit * kUnit;
    store(to, a);
    store(to + kLanes, b);
    return;
  }
  if (input.form == kBfloat16Rows) {
    uint16_t* to = reinterpret_cast<uint16_t*>(input.row(row)) + unit * kUnit;
    store_bfloat16(to, a);
    store_bfloat16(to + kLanes, b);
    return;
  }
  // as integers, among which NaN is the largest: it and infinity make the scale not finite
  const int32_t bits = largest(max(as_ints(magnitude(a)), as_ints(magnitude(b))));
  const float most = from_bits(static_cast<uint32_t>(bits)), scale = most / 127.0f;
  const Floats inverse = all(most > 0.0f ? 127.0f / most : 0.0f);
  const Ints low = to_ints(mul(a, inverse)), high = to_ints(mul(b, inverse));
  int8_t* codes = input.codes(row, unit);
  store_int8(codes, low);
  store_int8(codes + kLanes, high);
  const int32_t second = sum_int8(codes + kLanes), both = sum_int8(codes) + second;
  *input.scales(row, unit) = {scale, scale * static_cast<float>(both), -both, -second};
}

// Brings a row of floats, filled up with zeros to input.columns, into the input's form. `scratch`
// has room for a row and is used where the columns are to be put in another order.
inline void put_row(const float* from, const int32_t* order, const Input& input, int64_t row,
                    float* scratch) {
  if (order != nullptr) {
    for (int64_t i = 0; i < input.columns; ++i) scratch[i] = from[order[i]];
    from = scratch;
  }
  for (int64_t unit = 0; unit < input.columns / kUnit; ++unit)
    put_unit(from + unit * kUnit, input, row, unit);
}
