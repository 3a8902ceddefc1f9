// Products with integer weights that have a scale for each group of columns. Loaded by library.py.
//
// Compiled once for each instruction set, almost all with the compiler's own vectors: one source
// serves AVX-512, AVX2 and everything else. A weight is widened in registers and multiplied in
// float32, so that a product is dequantize-then-matmul within float32 rounding.
//
// Codes of a row lie in units of 32 columns. With 8 bits a unit is 32 bytes, in order. With 4 bits
// it is 16 bytes: byte i has column i in its low nibble and column 16 + i in its high one. A group
// is 16 columns or a multiple of 32.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kParts = 16 / kLanes;
constexpr int64_t kUnit = 32;       // columns
constexpr int64_t kRowsAtOnce = 2;  // that share the loads of x
constexpr int64_t kMaxBatch = 8;    // rows of x that share a widened weight
constexpr int64_t kTaskRows = 16;   // of the weight, for one thread: their codes stay in its cache

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

template <typename V>
inline V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

// Of 16 columns, in the machine's own vectors: the compiler spills what is wider.
struct Columns {
  Floats part[kParts];
};

inline Columns load_columns(const float* from) {
  Columns c;
  for (int i = 0; i < kParts; ++i) c.part[i] = load<Floats>(from + i * kLanes);
  return c;
}

inline Columns scaled(Columns c, float scale, float offset) {
  for (int i = 0; i < kParts; ++i) c.part[i] = c.part[i] * scale + offset;
  return c;
}

inline void add_product(Columns& total, const Columns& a, const Columns& b) {
  for (int i = 0; i < kParts; ++i) total.part[i] += a.part[i] * b.part[i];
}

inline float sum(const Columns& c) {
  Floats total = c.part[0];
  for (int i = 1; i < kParts; ++i) total += c.part[i];
  float lanes[kLanes];
  std::memcpy(lanes, &total, sizeof total);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline Columns widen(Bytes codes) {
  Columns c;
#if defined(__AVX512F__)  // GCC 12 converts a vector that comes from memory byte by byte
  c.part[0] = __builtin_convertvector((Integers)_mm512_cvtepu8_epi32((__m128i)codes), Floats);
#elif defined(__AVX2__)
  const __m128i high = _mm_srli_si128((__m128i)codes, 8);
  c.part[0] = __builtin_convertvector((Integers)_mm256_cvtepu8_epi32((__m128i)codes), Floats);
  c.part[1] = __builtin_convertvector((Integers)_mm256_cvtepu8_epi32(high), Floats);
#else
  for (int i = 0; i < 16; ++i) c.part[i / kLanes][i % kLanes] = codes[i];
#endif
  return c;
}

// Rounds to nearest, ties to even; a NaN stays one.
inline void store_bfloat16(const Columns& c, uint16_t* to) {
  for (int i = 0; i < kParts; ++i) {
    const Words bits = (Words)c.part[i];
    const Words is_nan = (Words)(c.part[i] != c.part[i]);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words chosen = (rounded & ~is_nan) | (is_nan & 0x7fc0u);
    const Halves halves = __builtin_convertvector(chosen, Halves);
    std::memcpy(to + i * kLanes, &halves, sizeof halves);
  }
}

// w = code * scale + offset, where offset is -zero * scale unless there are offsets.
template <int kBits, typename S>
struct Weight {

  const uint8_t* codes;
  const S* scales;   // (rows, groups)
  const S* offsets;  // the same, or null
  float zero;
  int64_t columns, group_size;

  int64_t groups() const { return columns / group_size; }

  struct Group {
    float scale, offset;
  };
  Group group(int64_t row, int64_t index) const {
    const float scale = static_cast<float>(scales[row * groups() + index]);
    if (offsets == nullptr) return {scale, -zero * scale};
    return {scale, static_cast<float>(offsets[row * groups() + index])};
  }
};

struct Unit {
  Columns first, second;
};

template <int kBits>
inline Unit widen_unit(const uint8_t* codes) {
  if constexpr (kBits == 8) {
    return {widen(load<Bytes>(codes)), widen(load<Bytes>(codes + 16))};
  } else {
    const Bytes pairs = load<Bytes>(codes);
    return {widen(pairs & 15), widen(pairs >> 4)};
  }
}

// Calls visit(unit index, weights of its first and second 16 columns) for a row, unit by unit.
template <int kRows, int kBits, typename S, typename Visit>
inline void for_each_unit(const Weight<kBits, S>& weight, int64_t row, Visit visit) {
  constexpr int64_t unit_bytes = kUnit * kBits / 8;
  const int64_t row_bytes = weight.columns * kBits / 8;
  const uint8_t* codes = weight.codes + row * row_bytes;
  const int64_t num_units = weight.columns / kUnit;
  if (weight.group_size < kUnit) {
    for (int64_t unit = 0; unit < num_units; ++unit) {
      Unit values[kRows];
      for (int r = 0; r < kRows; ++r) {
        const auto a = weight.group(row + r, 2 * unit), b = weight.group(row + r, 2 * unit + 1);
        values[r] = widen_unit<kBits>(codes + r * row_bytes + unit * unit_bytes);
        values[r].first = scaled(values[r].first, a.scale, a.offset);
        values[r].second = scaled(values[r].second, b.scale, b.offset);
      }
      visit(unit, values);
    }
    return;
  }
  const int64_t units_per_group = weight.group_size / kUnit;
  for (int64_t unit = 0, index = 0; unit < num_units; ++index) {
    typename Weight<kBits, S>::Group group[kRows];
    for (int r = 0; r < kRows; ++r) group[r] = weight.group(row + r, index);
    for (int64_t i = 0; i < units_per_group; ++i, ++unit) {
      Unit values[kRows];
      for (int r = 0; r < kRows; ++r) {
        values[r] = widen_unit<kBits>(codes + r * row_bytes + unit * unit_bytes);
        values[r].first = scaled(values[r].first, group[r].scale, group[r].offset);
        values[r].second = scaled(values[r].second, group[r].scale, group[r].offset);
      }
      visit(unit, values);
    }
  }
}

template <int kRows, int kBatch, int kBits, typename S>
void multiply_rows(const Weight<kBits, S>& weight, int64_t row, const float* x, float* out,
                   int64_t rows) {
  Columns totals[kRows][kBatch] = {};
  for_each_unit<kRows>(weight, row, [&](int64_t unit, const Unit* values) {
    for (int b = 0; b < kBatch; ++b) {
      const float* from = x + b * weight.columns + unit * kUnit;
      const Columns first = load_columns(from), second = load_columns(from + 16);
      for (int r = 0; r < kRows; ++r) {
        add_product(totals[r][b], values[r].first, first);
        add_product(totals[r][b], values[r].second, second);
      }
    }
  });
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) out[b * rows + row + r] = sum(totals[r][b]);
}

template <int kRows, int kBits, typename S>
void multiply_batch(const Weight<kBits, S>& weight, int64_t row, const float* x, int64_t batch,
                    float* out, int64_t rows) {
  while (batch > 0) {
    const int64_t step = std::min(batch, kMaxBatch);
    switch (step) {
      case 1: multiply_rows<kRows, 1>(weight, row, x, out, rows); break;
      case 2: multiply_rows<kRows, 2>(weight, row, x, out, rows); break;
      case 3: multiply_rows<kRows, 3>(weight, row, x, out, rows); break;
      case 4: multiply_rows<kRows, 4>(weight, row, x, out, rows); break;
      case 5: multiply_rows<kRows, 5>(weight, row, x, out, rows); break;
      case 6: multiply_rows<kRows, 6>(weight, row, x, out, rows); break;
      case 7: multiply_rows<kRows, 7>(weight, row, x, out, rows); break;
      default: multiply_rows<kRows, 8>(weight, row, x, out, rows); break;
    }
    x += step * weight.columns;
    out += step * rows;
    batch -= step;
  }
}

template <int kBits, typename S>
void multiply(const Weight<kBits, S>& weight, int64_t rows, const float* x, int64_t batch,
              float* out) {
#pragma omp parallel for schedule(static)
  for (int64_t start = 0; start < rows; start += kTaskRows) {
    const int64_t end = std::min(rows, start + kTaskRows);
    int64_t row = start;
    for (; row + kRowsAtOnce <= end; row += kRowsAtOnce)
      multiply_batch<kRowsAtOnce>(weight, row, x, batch, out, rows);
    for (; row < end; ++row) multiply_batch<1>(weight, row, x, batch, out, rows);
  }
}

#if defined(__AVX512BF16__)
constexpr int kTileRows = 4, kTileBatch = 6;  // 24 sums and what they need fill the 32 registers

// out[b][r] = dot(w[r], x[b]) of bfloat16 rows, summed in float32; w is kRows rows, x kBatch.
template <int kRows, int kBatch>
void dot_tile(const uint16_t* w, const uint16_t* x, int64_t columns, float* out, int64_t rows) {
  __m512 totals[kRows][kBatch];
  for (auto& row : totals)
    for (auto& total : row) total = _mm512_setzero_ps();
  for (int64_t column = 0; column < columns; column += kUnit) {
    __m512bh values[kRows];
    for (int r = 0; r < kRows; ++r) values[r] = load<__m512bh>(w + r * columns + column);
    for (int b = 0; b < kBatch; ++b) {
      const __m512bh input = load<__m512bh>(x + b * columns + column);
      for (int r = 0; r < kRows; ++r)
        totals[r][b] = _mm512_dpbf16_ps(totals[r][b], values[r], input);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) out[b * rows + r] = _mm512_reduce_add_ps(totals[r][b]);
}

template <int kRows>
void dot_rows(const uint16_t* w, const uint16_t* x, int64_t batch, int64_t columns, float* out,
              int64_t rows) {
  for (; batch >= kTileBatch; batch -= kTileBatch) {
    dot_tile<kRows, kTileBatch>(w, x, columns, out, rows);
    x += kTileBatch * columns;
    out += kTileBatch * rows;
  }
  switch (batch) {
    case 5: dot_tile<kRows, 5>(w, x, columns, out, rows); break;
    case 4: dot_tile<kRows, 4>(w, x, columns, out, rows); break;
    case 3: dot_tile<kRows, 3>(w, x, columns, out, rows); break;
    case 2: dot_tile<kRows, 2>(w, x, columns, out, rows); break;
    case 1: dot_tile<kRows, 1>(w, x, columns, out, rows); break;
    default: break;
  }
}

// A few rows of the weight are widened to bfloat16 in the cache, and stay there for all rows of x.
template <int kBits, typename S>
void multiply_bfloat16(const Weight<kBits, S>& weight, int64_t rows, const uint16_t* x,
                       int64_t batch, float* out) {
#pragma omp parallel
  {
    std::vector<uint16_t> tile(kTileRows * weight.columns);
#pragma omp for schedule(static)
    for (int64_t start = 0; start < rows; start += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, rows - start);
      for (int64_t r = 0; r < count; ++r) {
        uint16_t* to = tile.data() + r * weight.columns;
        for_each_unit<1>(weight, start + r, [&](int64_t unit, const Unit* values) {
          const __m512bh both =
              _mm512_cvtne2ps_pbh(values[0].second.part[0], values[0].first.part[0]);
          std::memcpy(to + unit * kUnit, &both, sizeof both);
        });
      }
      if (count == kTileRows) {
        dot_rows<kTileRows>(tile.data(), x, batch, weight.columns, out + start, rows);
      } else {
        for (int64_t r = 0; r < count; ++r)
          dot_rows<1>(tile.data() + r * weight.columns, x, batch, weight.columns,
                      out + start + r, rows);
      }
    }
  }
}
#endif

template <int kBits, typename S>
void dequantize(const Weight<kBits, S>& weight, int64_t rows, void* out, bool as_bfloat16) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for_each_unit<1>(weight, row, [&](int64_t unit, const Unit* values) {
      const int64_t at = row * weight.columns + unit * kUnit;
      if (as_bfloat16) {
        store_bfloat16(values[0].first, static_cast<uint16_t*>(out) + at);
        store_bfloat16(values[0].second, static_cast<uint16_t*>(out) + at + 16);
      } else {
        std::memcpy(static_cast<float*>(out) + at, values, sizeof(Unit));
      }
    });
  }
}

template <typename Work>
void dispatch(const uint8_t* codes, const void* scales, const void* offsets, float zero,
              int64_t columns, int64_t group_size, int bits, int scale_bytes, Work work) {
  const auto as = [&](auto kBits, auto scale) {
    using S = decltype(scale);
    work(Weight<decltype(kBits)::value, S>{codes, static_cast<const S*>(scales),
                                           static_cast<const S*>(offsets), zero, columns,
                                           group_size});
  };
  const std::integral_constant<int, 4> four;
  const std::integral_constant<int, 8> eight;
  if (scale_bytes == 2)
    bits == 4 ? as(four, _Float16()) : as(eight, _Float16());
  else
    bits == 4 ? as(four, float()) : as(eight, float());
}

}  // namespace

extern "C" {

// out (batch, rows) = x (batch, columns) @ weight (rows, columns) transposed, all float32.
void groupwise_multiply(const uint8_t* codes, const void* scales, const void* offsets, float zero,
                        int64_t rows, int64_t columns, int64_t group_size, int bits,
                        int scale_bytes, const float* x, int64_t batch, float* out) {
  dispatch(codes, scales, offsets, zero, columns, group_size, bits, scale_bytes,
           [&](const auto& weight) { multiply(weight, rows, x, batch, out); });
}

#if defined(__AVX512BF16__)
// The same with x in bfloat16 and weights rounded to it.
void groupwise_multiply_bfloat16(const uint8_t* codes, const void* scales, const void* offsets,
                                 float zero, int64_t rows, int64_t columns, int64_t group_size,
                                 int bits, int scale_bytes, const uint16_t* x, int64_t batch,
                                 float* out) {
  dispatch(codes, scales, offsets, zero, columns, group_size, bits, scale_bytes,
           [&](const auto& weight) { multiply_bfloat16(weight, rows, x, batch, out); });
}
#endif

// out (rows, columns) in float32 or bfloat16.
void groupwise_dequantize(const uint8_t* codes, const void* scales, const void* offsets, float zero,
                          int64_t rows, int64_t columns, int64_t group_size, int bits,
                          int scale_bytes, void* out, int as_bfloat16) {
  dispatch(codes, scales, offsets, zero, columns, group_size, bits, scale_bytes,
           [&](const auto& weight) { dequantize(weight, rows, out, as_bfloat16 != 0); });
}

}  // extern "C"
