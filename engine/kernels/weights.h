// Weights as the kernels read them: panels of 16 rows, streamed once from front to back.
//
// A panel holds, for 16 rows, its columns in units of 32. A vector is 64 bytes, and lane i of it
// belongs to row i:
//   float32   32 vectors a unit, one column each
//   bfloat16  16 vectors a unit, two columns each
//   packed    codes of 4, 5, 6 or 8 bits without a sign, four columns a vector: 8 vectors of bytes,
//             or 4 vectors with vector j in the low and vector 4 + j in the high nibbles, then
//             the fifth bits of all (bit j of a byte is vector j's) or the fifth and sixth (in two
//             vectors: bits 2 * j of the first are vector j's, of the second vector 4 + j's)
// Units of packed codes that share scales are a group: first 16 scales, then 16 offsets where there
// are any, then the units. A group is a multiple of 32 columns, or 16: then a unit has two scales
// (vectors 0 to 3, 4 to 7) and two offsets. A weight is code * scale + offset, or without offsets
// (code - 2 ** (bits - 1)) * scale. Rows are filled up to 16 with zeros, columns of plain weights to 32.

#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

constexpr int64_t kUnit = 32;   // columns
constexpr int64_t kPanel = 16;  // rows
constexpr int kUnitVectors = 8;  // of unpacked codes

enum Kind : int32_t { kFloat32 = 0, kBfloat16 = 1, kPacked = 2 };

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Mirrored by engine/kernels/abi.py.
struct Weight {
  const uint8_t* panels;
  const int32_t* order;  // column i is for input order[i]; null = as they are
  int64_t rows, columns, group_size;
  int32_t kind, bits, has_offsets, scale_bytes;

  int64_t padded_columns() const { return round_up(columns, kUnit); }
  int64_t num_units() const { return padded_columns() / kUnit; }
  int64_t num_panels() const { return round_up(rows, kPanel) / kPanel; }
  bool has_halves() const { return kind == kPacked && group_size < kUnit; }
  int64_t units_per_group() const { return has_halves() ? 1 : group_size / kUnit; }
  int64_t unit_bytes() const {
    if (kind == kFloat32) return kUnit * kPanel * 4;
    if (kind == kBfloat16) return kUnit * kPanel * 2;
    return kUnit * kPanel * bits / 8;
  }
  // Of one set of 16: a scale or an offset for each row.
  int64_t set_bytes() const { return kPanel * scale_bytes; }
  int64_t num_sets() const { return (has_halves() ? 2 : 1) * (has_offsets ? 2 : 1); }
  int64_t header_bytes() const { return kind == kPacked ? num_sets() * set_bytes() : 0; }
  int64_t panel_bytes() const {
    if (kind != kPacked) return num_units() * unit_bytes();
    return num_units() / units_per_group() * header_bytes() + num_units() * unit_bytes();
  }
  const uint8_t* panel(int64_t index) const { return panels + index * panel_bytes(); }
  simd::Floats load_set(const uint8_t* header, int index) const {
    const uint8_t* from = header + index * set_bytes();
    if (scale_bytes == 2) return simd::load_halves(reinterpret_cast<const uint16_t*>(from));
    return simd::load(reinterpret_cast<const float*>(from));
  }
};

// Where a unit's header and codes are within a panel.
struct UnitAddress {
  const uint8_t* header;
  const uint8_t* codes;
};

inline UnitAddress find_unit(const Weight& weight, const uint8_t* panel, int64_t unit) {
  const int64_t per_group = weight.units_per_group(), group = unit / per_group;
  const int64_t group_bytes = weight.header_bytes() + per_group * weight.unit_bytes();
  const uint8_t* header = panel + group * group_bytes;
  return {header, header + weight.header_bytes() + unit % per_group * weight.unit_bytes()};
}

// Vector kIndex of a unit of codes of kBits, in bytes.
template <int kBits, int kIndex>
inline simd::Bytes unpack_vector(const uint8_t* codes) {
  using namespace simd;
  if constexpr (kBits == 8) return load_bytes(codes + 64 * kIndex);
  constexpr int kWord = kIndex % 4;
  const Bytes both = load_bytes(codes + 64 * kWord);
  const Bytes low = bit_and(kIndex < 4 ? both : shift_right<4>(both), all_bytes(15));
  if constexpr (kBits == 5) {
    const Bytes bits = shift_right<kIndex - 4>(load_bytes(codes + 256));
    return bit_or(low, bit_and(bits, all_bytes(16)));
  }
  if constexpr (kBits == 6) {
    const Bytes bits = shift_right<2 * kWord - 4>(load_bytes(codes + 256 + 64 * (kIndex / 4)));
    return bit_or(low, bit_and(bits, all_bytes(48)));
  }
  return low;
}

// Vectors kIndex and 4 + kIndex come from the same bytes.
template <int kBits, int kIndex = 0>
inline void unpack(const uint8_t* codes, simd::Bytes (&out)[kUnitVectors]) {
  out[kIndex] = unpack_vector<kBits, kIndex>(codes);
  out[4 + kIndex] = unpack_vector<kBits, 4 + kIndex>(codes);
  if constexpr (kIndex < 3) unpack<kBits, kIndex + 1>(codes, out);
}

// Vectors 0 to 3 or, of the second half, 4 to 7.
template <int kBits>
inline void unpack_half(const uint8_t* codes, int half, simd::Bytes* out) {
  if (half == 0) {
    out[0] = unpack_vector<kBits, 0>(codes);
    out[1] = unpack_vector<kBits, 1>(codes);
    out[2] = unpack_vector<kBits, 2>(codes);
    out[3] = unpack_vector<kBits, 3>(codes);
  } else {
    out[0] = unpack_vector<kBits, 4>(codes);
    out[1] = unpack_vector<kBits, 5>(codes);
    out[2] = unpack_vector<kBits, 6>(codes);
    out[3] = unpack_vector<kBits, 7>(codes);
  }
}

inline void unpack(const uint8_t* codes, int bits, simd::Bytes (&out)[kUnitVectors]) {
  switch (bits) {
    case 4: return unpack<4>(codes, out);
    case 5: return unpack<5>(codes, out);
    case 6: return unpack<6>(codes, out);
    default: return unpack<8>(codes, out);
  }
}

// A unit in float32, one column of 16 rows after the other; a code is widened without rounding.
inline void widen_unit(const Weight& weight, const UnitAddress& unit, float* to) {
  using namespace simd;
  Bytes codes[kUnitVectors];
  unpack(unit.codes, weight.bits, codes);
  const int num_halves = weight.has_halves() ? 2 : 1;
  const Ints zero = all_ints(1 << (weight.bits - 1));
  for (int i = 0; i < kUnitVectors; ++i) {
    const int half = weight.has_halves() ? i / 4 : 0;
    const Floats scale = weight.load_set(unit.header, half);
    const Ints columns[4] = {byte_of_lane<0>(codes[i]), byte_of_lane<1>(codes[i]),
                             byte_of_lane<2>(codes[i]), byte_of_lane<3>(codes[i])};
    for (int j = 0; j < 4; ++j, to += kLanes) {
      if (weight.has_offsets) {
        const Floats offset = weight.load_set(unit.header, num_halves + half);
        store(to, fma(to_floats(columns[j]), scale, offset));
      } else {
        store(to, mul(to_floats(sub(columns[j], zero)), scale));
      }
    }
  }
}

// ---- making panels, and reading rows back ----

// Codes, one in a byte, of up to 16 rows of one unit: (rows, stride) -> packed vectors.
inline void pack_codes(const uint8_t* from, int64_t stride, int64_t num_rows, int bits,
                       uint8_t* to) {
  uint8_t vectors[kUnitVectors][64] = {};
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t column = 0; column < kUnit; ++column)
      vectors[column / 4][4 * row + column % 4] = from[row * stride + column];
  if (bits == 8) {
    std::memcpy(to, vectors, sizeof vectors);
    return;
  }
  for (int i = 0; i < 4; ++i)
    for (int byte = 0; byte < 64; ++byte)
      to[64 * i + byte] = static_cast<uint8_t>((vectors[i][byte] & 15) | vectors[4 + i][byte] << 4);
  for (int byte = 0; byte < 64; ++byte) {
    unsigned fifth = 0, first = 0, second = 0;
    for (int i = 0; i < kUnitVectors; ++i) {
      fifth |= (vectors[i][byte] >> 4 & 1u) << i;
      (i < 4 ? first : second) |= (vectors[i][byte] >> 4 & 3u) << 2 * (i % 4);
    }
    if (bits == 5) to[256 + byte] = static_cast<uint8_t>(fifth);
    if (bits == 6) {
      to[256 + byte] = static_cast<uint8_t>(first);
      to[320 + byte] = static_cast<uint8_t>(second);
    }
  }
}

// Reads one row in float32 back from its panel; out has padded_columns() elements, in stored order.
inline void read_row(const Weight& weight, int64_t row, float* out) {
  const uint8_t* panel = weight.panel(row / kPanel);
  const int64_t lane = row % kPanel;
  float unit[kUnit * kPanel];
  for (int64_t u = 0; u < weight.num_units(); ++u) {
    const uint8_t* from = panel + u * weight.unit_bytes();
    if (weight.kind == kPacked) widen_unit(weight, find_unit(weight, panel, u), unit);
    for (int64_t column = 0; column < kUnit; ++column) {
      float value;
      if (weight.kind == kPacked) {
        value = unit[column * kPanel + lane];
      } else if (weight.kind == kFloat32) {
        std::memcpy(&value, from + 4 * (column * kPanel + lane), 4);
      } else {
        uint16_t half;
        std::memcpy(&half, from + 2 * (column / 2 * 2 * kPanel + 2 * lane + column % 2), 2);
        value = simd::widen_bfloat16(half);
      }
      out[u * kUnit + column] = value;
    }
  }
}
