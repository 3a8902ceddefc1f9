// Vectors of 16 lanes on AVX-512, AVX2 and plain C++: what the kernels are written in.
//
// The same operations in the same order on each: explicit fused multiply-adds, no contraction by the
// compiler (-ffp-contract=off), so that a result depends on the instruction set alone and never on
// how much is computed together.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace simd {

constexpr int kLanes = 16;

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen_bfloat16(uint16_t value) { return from_bits(uint32_t{value} << 16); }

// To nearest, ties to even; a NaN stays one.
inline uint16_t round_bfloat16(float value) {
  const uint32_t bits = to_bits(value);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float widen_half(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, magnitude = half & 0x7fffu;
  // subnormals become normal when they are scaled; infinity and NaN keep the largest exponent
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};
struct Bytes {  // 64: lane i has bytes 4 * i to 4 * i + 3
  __m512i v;
};

inline Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }
inline Floats all(float value) { return {_mm512_set1_ps(value)}; }
inline Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats div(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats magnitude(Floats a) { return {_mm512_abs_ps(a.v)}; }
inline Floats nearest(Floats a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Floats select(Ints mask, Floats a, Floats b) {  // a where mask is negative
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(mask.v), b.v, a.v)};
}
inline Ints all_ints(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints sub(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints max(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int kBits>
inline Ints shift_left(Ints a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
inline Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints to_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest
inline Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
inline Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
inline Floats load_halves(const uint16_t* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline Floats load_bfloat16(const uint16_t* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline Floats load_int8(const int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
inline void store_int8(int8_t* to, Ints a) {  // values fit
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.v));
}
inline void store_bfloat16(uint16_t* to, Floats a) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh(a.v);
  std::memcpy(to, &halves, sizeof halves);
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  rounded = _mm512_srli_epi32(rounded, 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(rounded));
#endif
}
inline float sum(Floats a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(Floats a) { return _mm512_reduce_max_ps(a.v); }
inline int32_t largest(Ints a) { return _mm512_reduce_max_epi32(a.v); }

inline Bytes load_bytes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline Bytes all_bytes(uint8_t value) { return {_mm512_set1_epi8(static_cast<char>(value))}; }
inline Bytes bit_and(Bytes a, Bytes b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Bytes bit_or(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
// Shifts 16-bit words, to the left where kBits is negative: a mask has to follow.
template <int kBits>
inline Bytes shift_right(Bytes a) {
  if constexpr (kBits < 0) return {_mm512_slli_epi16(a.v, -kBits)};
  return {kBits == 0 ? a.v : _mm512_srli_epi16(a.v, kBits)};
}
template <int kByte>
inline Ints byte_of_lane(Bytes a) {
  return {_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * kByte), _mm512_set1_epi32(255))};
}

// sums[i] += the dot product of lane i's unsigned bytes and the four signed bytes of `x`.
// kBits: of the unsigned ones; with 8 of them, products of two do not fit into 16 bits.
template <int kBits>
inline Ints dot_bytes(Ints sums, Bytes codes, int32_t x) {
  const __m512i other = _mm512_set1_epi32(x);
#if defined(__AVX512VNNI__)
  return {_mm512_dpbusd_epi32(sums.v, codes.v, other)};
#else
  const __m512i ones = _mm512_set1_epi16(1);
  if constexpr (kBits < 8) {
    const __m512i pairs = _mm512_maddubs_epi16(codes.v, other);
    return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(pairs, ones))};
  } else {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(codes.v, 4), low);
    const __m512i a = _mm512_maddubs_epi16(_mm512_and_si512(codes.v, low), other);
    const __m512i b = _mm512_maddubs_epi16(high, other);
    const __m512i shifted = _mm512_slli_epi32(_mm512_madd_epi16(b, ones), 4);
    return {_mm512_add_epi32(sums.v, _mm512_add_epi32(_mm512_madd_epi16(a, ones), shifted))};
  }
#endif
}

// sums[i] += the dot product of lane i's two bfloat16 numbers and the two of `x`.
inline Floats dot_pairs(Floats sums, const uint16_t* pairs, uint32_t x) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(sums.v, (__m512bh)_mm512_loadu_si512(pairs),
                           (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(x)))};
#else
  const __m512i both = _mm512_loadu_si512(pairs);
  const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
  const __m512 partial = _mm512_fmadd_ps(high, _mm512_set1_ps(from_bits(x & 0xffff0000u)), sums.v);
  return {_mm512_fmadd_ps(low, _mm512_set1_ps(from_bits(x << 16)), partial)};
#endif
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};
struct Bytes {
  __m256i a, b;
};

inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.a);
  _mm256_storeu_ps(to + 8, x.b);
}
inline Floats all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats magnitude(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Floats nearest(Floats x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Floats select(Ints mask, Floats x, Floats y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(mask.a)),
          _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(mask.b))};
}
inline __m256i load_256(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline __m128i load_128(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
inline Ints all_ints(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints sub(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline Ints max(Ints x, Ints y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
template <int kBits>
inline Ints shift_left(Ints x) {
  return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
}
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Ints as_ints(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline Floats load_halves(const uint16_t* from) {
  return {_mm256_cvtph_ps(load_128(from)), _mm256_cvtph_ps(load_128(from + 8))};
}
inline __m256 widen_8(const uint16_t* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(from)), 16));
}
inline Floats load_bfloat16(const uint16_t* from) { return {widen_8(from), widen_8(from + 8)}; }
inline Floats load_int8(const int8_t* from) {
  const __m128i bytes = load_128(from);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline void store_int8(int8_t* to, Ints x) {
  alignas(32) int32_t values[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(values), x.a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(values + 8), x.b);
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(values[i]);
}
inline void store_bfloat16(uint16_t* to, Floats x) {
  float values[kLanes];
  store(values, x);
  for (int i = 0; i < kLanes; ++i) to[i] = round_bfloat16(values[i]);
}
inline float sum(Floats x) {
  float values[8];
  _mm256_storeu_ps(values, _mm256_add_ps(x.a, x.b));
  for (int width = 4; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) values[i] += values[i + width];
  return values[0];
}
inline float largest(Floats x) {
  float values[8];
  _mm256_storeu_ps(values, _mm256_max_ps(x.a, x.b));
  for (int i = 1; i < 8; ++i) values[0] = values[i] > values[0] ? values[i] : values[0];
  return values[0];
}
inline int32_t largest(Ints x) {
  int32_t values[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), _mm256_max_epi32(x.a, x.b));
  for (int i = 1; i < 8; ++i) values[0] = values[i] > values[0] ? values[i] : values[0];
  return values[0];
}

inline Bytes load_bytes(const uint8_t* from) { return {load_256(from), load_256(from + 32)}; }
inline Bytes all_bytes(uint8_t value) {
  const __m256i bytes = _mm256_set1_epi8(static_cast<char>(value));
  return {bytes, bytes};
}
inline Bytes bit_and(Bytes x, Bytes y) {
  return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
inline Bytes bit_or(Bytes x, Bytes y) {
  return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
template <int kBits>
inline Bytes shift_right(Bytes x) {
  if constexpr (kBits < 0) return {_mm256_slli_epi16(x.a, -kBits), _mm256_slli_epi16(x.b, -kBits)};
  return {_mm256_srli_epi16(x.a, kBits), _mm256_srli_epi16(x.b, kBits)};
}
template <int kByte>
inline Ints byte_of_lane(Bytes x) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * kByte), mask),
          _mm256_and_si256(_mm256_srli_epi32(x.b, 8 * kByte), mask)};
}

template <int kBits>
inline __m256i dot_bytes_8(__m256i sums, __m256i codes, __m256i x) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kBits < 8) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
  } else {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
    const __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(codes, low), x);
    const __m256i b = _mm256_maddubs_epi16(high, x);
    const __m256i shifted = _mm256_slli_epi32(_mm256_madd_epi16(b, ones), 4);
    return _mm256_add_epi32(sums, _mm256_add_epi32(_mm256_madd_epi16(a, ones), shifted));
  }
}
template <int kBits>
inline Ints dot_bytes(Ints sums, Bytes codes, int32_t x) {
  const __m256i other = _mm256_set1_epi32(x);
  return {dot_bytes_8<kBits>(sums.a, codes.a, other), dot_bytes_8<kBits>(sums.b, codes.b, other)};
}

inline __m256 dot_pairs_8(__m256 sums, __m256i both, __m256 x_low, __m256 x_high) {
  const __m256 low = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  const __m256 high = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(0xffff0000)));
  return _mm256_fmadd_ps(low, x_low, _mm256_fmadd_ps(high, x_high, sums));
}
inline Floats dot_pairs(Floats sums, const uint16_t* pairs, uint32_t x) {
  const __m256 low = _mm256_set1_ps(from_bits(x << 16));
  const __m256 high = _mm256_set1_ps(from_bits(x & 0xffff0000u));
  return {dot_pairs_8(sums.a, load_256(pairs), low, high),
          dot_pairs_8(sums.b, load_256(pairs + 16), low, high)};
}

#else

struct Floats {
  float v[kLanes];
};
struct Ints {
  int32_t v[kLanes];
};
struct Bytes {
  uint8_t v[4 * kLanes];
};

#define EACH_LANE(type, expression)                          \
  type r;                                                    \
  for (int i = 0; i < kLanes; ++i) r.v[i] = (expression); \
  return r

inline Floats load(const float* from) { EACH_LANE(Floats, from[i]); }
inline void store(float* to, const Floats& a) { std::memcpy(to, a.v, sizeof a.v); }
inline Floats all(float value) { EACH_LANE(Floats, value); }
inline Floats add(const Floats& a, const Floats& b) { EACH_LANE(Floats, a.v[i] + b.v[i]); }
inline Floats sub(const Floats& a, const Floats& b) { EACH_LANE(Floats, a.v[i] - b.v[i]); }
inline Floats mul(const Floats& a, const Floats& b) { EACH_LANE(Floats, a.v[i] * b.v[i]); }
inline Floats div(const Floats& a, const Floats& b) { EACH_LANE(Floats, a.v[i] / b.v[i]); }
inline Floats max(const Floats& a, const Floats& b) {
  EACH_LANE(Floats, a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline Floats min(const Floats& a, const Floats& b) {
  EACH_LANE(Floats, a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
// Rounds twice: std::fma is a slow call where the CPU has none.
inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  EACH_LANE(Floats, a.v[i] * b.v[i] + c.v[i]);
}
inline Floats magnitude(const Floats& a) { EACH_LANE(Floats, std::fabs(a.v[i])); }
inline Floats nearest(const Floats& a) { EACH_LANE(Floats, std::nearbyintf(a.v[i])); }
inline Floats select(const Ints& mask, const Floats& a, const Floats& b) {
  EACH_LANE(Floats, mask.v[i] < 0 ? a.v[i] : b.v[i]);
}
inline Ints all_ints(int32_t value) { EACH_LANE(Ints, value); }
inline Ints add(const Ints& a, const Ints& b) { EACH_LANE(Ints, a.v[i] + b.v[i]); }
inline Ints sub(const Ints& a, const Ints& b) { EACH_LANE(Ints, a.v[i] - b.v[i]); }
inline Ints max(const Ints& a, const Ints& b) {
  EACH_LANE(Ints, a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
template <int kBits>
inline Ints shift_left(const Ints& a) {
  EACH_LANE(Ints, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << kBits));
}
inline Floats to_floats(const Ints& a) { EACH_LANE(Floats, static_cast<float>(a.v[i])); }
inline Ints to_ints(const Floats& a) {
  EACH_LANE(Ints, static_cast<int32_t>(std::nearbyintf(a.v[i])));
}
inline Ints as_ints(const Floats& a) {
  EACH_LANE(Ints, static_cast<int32_t>(to_bits(a.v[i])));
}
inline Floats as_floats(const Ints& a) {
  EACH_LANE(Floats, from_bits(static_cast<uint32_t>(a.v[i])));
}
inline Floats load_halves(const uint16_t* from) { EACH_LANE(Floats, widen_half(from[i])); }
inline Floats load_bfloat16(const uint16_t* from) { EACH_LANE(Floats, widen_bfloat16(from[i])); }
inline Floats load_int8(const int8_t* from) { EACH_LANE(Floats, static_cast<float>(from[i])); }
inline void store_int8(int8_t* to, const Ints& a) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(a.v[i]);
}
inline void store_bfloat16(uint16_t* to, const Floats& a) {
  for (int i = 0; i < kLanes; ++i) to[i] = round_bfloat16(a.v[i]);
}
inline float sum(Floats a) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}
inline float largest(Floats a) {
  for (int i = 1; i < kLanes; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}
inline int32_t largest(Ints a) {
  for (int i = 1; i < kLanes; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}

inline Bytes load_bytes(const uint8_t* from) {
  Bytes r;
  std::memcpy(r.v, from, sizeof r.v);
  return r;
}
inline Bytes all_bytes(uint8_t value) {
  Bytes r;
  std::memset(r.v, value, sizeof r.v);
  return r;
}
inline Bytes bit_and(Bytes a, const Bytes& b) {
  for (int i = 0; i < 4 * kLanes; ++i) a.v[i] &= b.v[i];
  return a;
}
inline Bytes bit_or(Bytes a, const Bytes& b) {
  for (int i = 0; i < 4 * kLanes; ++i) a.v[i] |= b.v[i];
  return a;
}
template <int kBits>
inline Bytes shift_right(Bytes a) {
  constexpr int kRight = kBits < 0 ? 0 : kBits, kLeft = kBits < 0 ? -kBits : 0;
  for (uint8_t& byte : a.v) byte = static_cast<uint8_t>(byte >> kRight << kLeft);
  return a;
}
template <int kByte>
inline Ints byte_of_lane(const Bytes& a) {
  EACH_LANE(Ints, a.v[4 * i + kByte]);
}
template <int kBits>
inline Ints dot_bytes(const Ints& sums, const Bytes& codes, int32_t x) {
  int8_t bytes[4];
  std::memcpy(bytes, &x, sizeof bytes);
  EACH_LANE(Ints, sums.v[i] + codes.v[4 * i] * bytes[0] + codes.v[4 * i + 1] * bytes[1] +
                      codes.v[4 * i + 2] * bytes[2] + codes.v[4 * i + 3] * bytes[3]);
}
inline Floats dot_pairs(const Floats& sums, const uint16_t* pairs, uint32_t x) {
  const float low = from_bits(x << 16), high = from_bits(x & 0xffff0000u);
  EACH_LANE(Floats, widen_bfloat16(pairs[2 * i]) * low +
                        (widen_bfloat16(pairs[2 * i + 1]) * high + sums.v[i]));
}
#undef EACH_LANE

#endif

inline Floats zero() { return all(0.0f); }

inline int32_t sum_int8(const int8_t* from) {  // of 16
#if defined(__AVX2__)
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i sums = _mm_sad_epu8(_mm_xor_si128(codes, _mm_set1_epi8(-128)), _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
#else
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) total += from[i];
  return total;
#endif
}

// x * 2 ** n for whole n, for x from 0.5 to 2; zero where that is below 2 ** -126 (AVX-512: 2 ** -149).
inline Floats scale_by_power(Floats x, Floats n) {
#if defined(__AVX512F__)
  return {_mm512_scalef_ps(x.v, n.v)};
#else
  const Ints is_tiny = as_ints(add(n, all(125.0f)));  // negative sign where n is below -125
  const Floats scaled = as_floats(add(as_ints(x), shift_left<23>(to_ints(n))));
  return select(is_tiny, zero(), scaled);
#endif
}

// e to the power of each lane, within 2 ulp; exactly 1 at 0 and 0 where it is too small for a number.
// Range reduction by ln 2 in two parts and a polynomial of degree 6 (as in Cephes' expf).
inline Floats exp(Floats x) {
  const Floats clamped = min(max(x, all(-150.0f)), all(88.37626f));
  const Floats n = nearest(mul(clamped, all(1.44269504f)));
  Floats r = fma(n, all(-0.693359375f), clamped);
  r = fma(n, all(2.12194440e-4f), r);
  Floats p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.0f));
  return scale_by_power(p, n);
}

// 2 to the power of x, which is at most 127, within 3e-6 of itself, for what is rounded to bfloat16.
inline Floats exp2_coarse(Floats x) {
  const Floats power = max(x, all(-216.0f)), n = nearest(power), r = sub(power, n);
  Floats p = fma(all(0.009582855f), r, all(0.055906434f));
  p = fma(p, r, all(0.24024099f));
  p = fma(p, r, all(0.6931242f));
  return scale_by_power(fma(p, r, all(1.0f)), n);
}

constexpr float kLog2OfE = 1.44269504f;

// e to the power of x, as coarse.
inline Floats exp_coarse(Floats x) {
  return exp2_coarse(mul(min(x, all(88.0f)), all(kLog2OfE)));
}

}  // namespace simd
