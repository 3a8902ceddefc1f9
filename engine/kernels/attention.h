// Causal attention of new tokens over the paged KV cache of their sequences.
//
// Keys are taken in splits of 128 by absolute position, each with a softmax of its own, and the splits
// of a query are merged in order (arXiv:1805.02867, arXiv:2205.14135). So a query's result depends on
// its own position and sequence alone, not on the chunk it came in or on which thread took which
// split.
//
// A cache of bfloat16 or float32 has the numbers of 16 slots of one KV head together, in the order that
// they are multiplied in: a tile, which is read as it is. With int8 a slot is a row, and tiles are made
// of it.
//
// Scores and the sums of values are bfloat16 products in float32 where the model is bfloat16, with
// probabilities rounded to bfloat16; else all is float32. A word is what one lane takes in one
// product: two bfloat16 numbers or one float.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "products.h"
#include "simd.h"

namespace attention {

using namespace simd;

constexpr int64_t kBlock = 16;  // keys whose scores are the lanes of a vector; slots of a tile
constexpr int64_t kSplit = 128;
constexpr int64_t kMostRows = 64;  // queries (token, head) that meet a packed split
constexpr int64_t kBlocksOfHeads = 2;  // that several heads take at once
constexpr float kMasked = -1e38f;

enum CacheKind : int32_t { kFloatCache = 0, kBfloat16Cache = 1, kInt8Cache = 2 };

// Keys or values of a layer: (slots, num_kv_heads, head_dim) of int8, else tiles of num_kv_heads heads
// of 16 slots: keys (words, 16 slots), values (words of 16 slots, head_dim). Mirrored by
// engine/kernels/abi.py.
struct Cache {
  uint8_t* data;
  uint8_t* scales;  // of int8: (slots, num_kv_heads, groups), in the model's type
  int64_t groups;   // of a head
  int32_t kind, scales_are_bfloat16;
};

struct Shape {
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t window;       // tokens that a query sees; 0 = all before it
  const float* slopes;  // ALiBi's, one for each head; null = none
  bool is_bfloat16;     // the model

  int64_t group() const { return num_heads / num_kv_heads; }
  int64_t padded_dim() const { return round_up(head_dim, 32); }
  int64_t words() const { return is_bfloat16 ? padded_dim() / 2 : padded_dim(); }
  int64_t keys_per_word() const { return is_bfloat16 ? 2 : 1; }
  int64_t element() const { return is_bfloat16 ? 2 : 4; }  // bytes of what is not int8
};

// One sequence's keys and queries.
struct Context {
  const int64_t* block_table;
  int64_t block_size;
  int64_t length;      // tokens in the cache
  int64_t first_token;  // of the step, that its queries begin with
  int64_t first_position;

  // Slots of 16 positions from a multiple of 16 on, as far as the sequence goes.
  void find_slots(int64_t first, int64_t end, int64_t* slots) const {
    const int64_t count = std::min(kBlock, end - first);
    if (block_size % kBlock == 0) {  // they are one behind the other
      const int64_t slot = block_table[first / block_size] * block_size + first % block_size;
      for (int64_t i = 0; i < count; ++i) slots[i] = slot + i;
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = (first + i) / block_size;
      slots[i] = block_table[block] * block_size + (first + i - block * block_size);
    }
  }
};

// ---- the cache ----

inline float load_scale(const Cache& cache, int64_t index) {
  if (cache.scales_are_bfloat16)
    return widen_bfloat16(reinterpret_cast<const uint16_t*>(cache.scales)[index]);
  return reinterpret_cast<const float*>(cache.scales)[index];
}

// A head of a slot.
struct Place {
  int64_t slot, head, num_heads, dim;

  int64_t row() const { return slot * num_heads + head; }
  int64_t lane() const { return slot % kBlock; }
  // Bytes before its tile, of elements of so many bytes.
  int64_t tile(int64_t element) const {
    return (slot / kBlock * num_heads + head) * kBlock * dim * element;
  }
};

// Puts a head's numbers, float32, into a slot of int8.
inline void write_int8(const Cache& cache, const Place& place, const float* from) {
  int8_t* to = reinterpret_cast<int8_t*>(cache.data) + place.row() * place.dim;
  const int64_t size = place.dim / cache.groups;
  for (int64_t g = 0; g < cache.groups; ++g, from += size, to += size) {
    float most = 0.0f;
    for (int64_t i = 0; i < size; ++i) {
      const float value = std::fabs(from[i]);
      if (most == most && !(value <= most)) most = value;  // NaN stays
    }
    float scale = most / 127.0f;
    const int64_t at = place.row() * cache.groups + g;
    if (cache.scales_are_bfloat16) {
      const uint16_t rounded = round_bfloat16(scale);
      reinterpret_cast<uint16_t*>(cache.scales)[at] = rounded;
      scale = widen_bfloat16(rounded);
    } else {
      reinterpret_cast<float*>(cache.scales)[at] = scale;
    }
    const float divisor = std::max(scale, 1.17549435e-38f);
    for (int64_t i = 0; i < size; ++i) {
      const float code = std::nearbyintf(from[i] / divisor);
      to[i] = static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, code)));
    }
  }
}

// Calls use(first, bfloat16 numbers, count) for all of a row of floats.
template <typename Use>
inline void round_row(const float* from, int64_t count, Use use) {
  uint16_t halves[kLanes];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store_bfloat16(halves, load(from + i));
    use(i, halves, kLanes);
  }
  for (int64_t j = i; j < count; ++j) halves[j - i] = round_bfloat16(from[j]);
  if (i < count) use(i, halves, count - i);
}

// Keys, float32, into their slot.
inline void write_keys(const Cache& cache, const Place& place, const float* from) {
  if (cache.kind == kInt8Cache) return write_int8(cache, place, from);
  if (cache.kind == kFloatCache) {
    float* to = reinterpret_cast<float*>(cache.data + place.tile(4)) + place.lane();
    for (int64_t i = 0; i < place.dim; ++i) to[i * kBlock] = from[i];
    return;
  }
  uint32_t* to = reinterpret_cast<uint32_t*>(cache.data + place.tile(2)) + place.lane();
  round_row(from, place.dim, [&](int64_t first, const uint16_t* halves, int64_t count) {
    for (int64_t i = 0; i < count; i += 2)
      to[(first + i) / 2 * kBlock] = products::pair_of(halves + i);
  });
}

// Puts bfloat16 numbers into the low (0) or high (1) halves of words, and leaves the others alone:
// another thread may write those.
inline void put_halves(uint16_t* words, const uint16_t* halves, int64_t count, int64_t which) {
#if defined(__AVX512BW__)
  if (count == kLanes) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
    const __m512i wide = _mm512_cvtepu16_epi32(narrow);
    const __m512i shifted = which == 1 ? _mm512_slli_epi32(wide, 16) : wide;
    _mm512_mask_storeu_epi16(words, which == 1 ? 0xaaaaaaaau : 0x55555555u, shifted);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) words[2 * i + which] = halves[i];
}

// Values, float32, into their slot.
inline void write_values(const Cache& cache, const Place& place, const float* from) {
  if (cache.kind == kInt8Cache) return write_int8(cache, place, from);
  if (cache.kind == kFloatCache) {
    float* to = reinterpret_cast<float*>(cache.data + place.tile(4)) + place.lane() * place.dim;
    std::memcpy(to, from, 4 * place.dim);
    return;
  }
  const int64_t lane = place.lane();
  uint16_t* to = reinterpret_cast<uint16_t*>(cache.data + place.tile(2)) + lane / 2 * 2 * place.dim;
  round_row(from, place.dim, [&](int64_t first, const uint16_t* halves, int64_t count) {
    put_halves(to + 2 * first, halves, count, lane % 2);
  });
}

// A thread's memory, cut from one block.
struct Room {
  uint32_t* queries;        // (rows, words)
  uint32_t* keys;           // (blocks of a split, words, 16): tiles that had to be made
  uint32_t* values;         // (words of a split, padded_dim): the same
  uint32_t* probabilities;  // (rows, words of a split)
  float* scores;            // (rows, keys of a split)
  float *sums, *totals;     // (rows, padded_dim) of a split, and of all splits
  float *most, *weight, *total_most, *total_weight;  // (rows)
  uint32_t* rows;           // (16, words): widened rows of int8
  uint32_t* nothing;        // (words): a row of zeros

  // The same, for a split that comes first: its results are those of all splits so far.
  Room for_totals() const {
    Room room = *this;
    room.sums = totals;
    room.most = total_most;
    room.weight = total_weight;
    return room;
  }
  static int64_t carve(const Shape& shape, uint8_t* memory, Room* room) {
    const int64_t words = shape.words(), dim = shape.padded_dim();
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      uint8_t* at = memory + used;
      used += round_up(4 * count, 64);
      return at;
    };
    Room r;
    r.queries = reinterpret_cast<uint32_t*>(take(kMostRows * words));
    r.keys = reinterpret_cast<uint32_t*>(take(kSplit * dim));
    r.values = reinterpret_cast<uint32_t*>(take(kSplit * dim));
    r.probabilities = reinterpret_cast<uint32_t*>(take(kMostRows * kSplit));
    r.scores = reinterpret_cast<float*>(take(kMostRows * kSplit));
    r.sums = reinterpret_cast<float*>(take(kMostRows * dim));
    r.totals = reinterpret_cast<float*>(take(kMostRows * dim));
    for (float** each : {&r.most, &r.weight, &r.total_most, &r.total_weight})
      *each = reinterpret_cast<float*>(take(kMostRows));
    r.rows = reinterpret_cast<uint32_t*>(take(kBlock * words));
    r.nothing = reinterpret_cast<uint32_t*>(take(words));
    if (room != nullptr) {
      *room = r;
      std::memset(r.nothing, 0, 4 * words);
      std::memset(r.rows, 0, 4 * kBlock * words);
    }
    return used;
  }
};

// The words of 16 rows of int8: of `count` slots, then zeros.
inline void widen_rows(const Cache& cache, const Shape& shape, const int64_t* slots, int64_t count,
                       int64_t head, const Room& room, const uint32_t** rows) {
  const int64_t dim = shape.head_dim, words = shape.words(), size = dim / cache.groups;
  for (int64_t i = 0; i < kBlock; ++i) {
    rows[i] = i < count ? room.rows + i * words : room.nothing;
    if (i >= count) continue;
    const int64_t at = slots[i] * shape.num_kv_heads + head;
    const int8_t* codes = reinterpret_cast<const int8_t*>(cache.data) + at * dim;
    for (int64_t g = 0; g < cache.groups; ++g) {
      const float scale = load_scale(cache, at * cache.groups + g);
      for (int64_t j = g * size; j < (g + 1) * size; ++j) {
        const float value = codes[j] * scale;
        if (shape.is_bfloat16) {
          reinterpret_cast<uint16_t*>(room.rows + i * words)[j] = round_bfloat16(value);
        } else {
          reinterpret_cast<float*>(room.rows + i * words)[j] = value;
        }
      }
    }
  }
}

// 16 rows of `words` words -> (words, 16).
inline void transpose(const uint32_t* const* rows, int64_t words, uint32_t* to) {
  int64_t w = 0;
#if defined(__AVX512F__)
  for (; w + 16 <= words; w += 16) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i] + w);
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
      b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
      a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
      a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
      a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
      a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
      b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
      b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
      b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
      _mm512_storeu_si512(to + (w + i) * 16, _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88));
      _mm512_storeu_si512(to + (w + 8 + i) * 16, _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd));
    }
  }
#endif
  for (; w < words; ++w)
    for (int i = 0; i < 16; ++i) to[w * 16 + i] = rows[i][w];
}

// Two rows of bfloat16 -> pairs of their elements.
inline void interleave(const uint32_t* a, const uint32_t* b, int64_t dim, uint32_t* to) {
#if defined(__AVX512BW__)
  alignas(64) static const uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,
                                                37, 6, 38, 7, 39, 8,  40, 9,  41, 10, 42,
                                                11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t i = 0; i < dim; i += 32) {
    const __m512i x = _mm512_loadu_si512(a + i / 2), y = _mm512_loadu_si512(b + i / 2);
    _mm512_storeu_si512(to + i, _mm512_permutex2var_epi16(x, low, y));
    _mm512_storeu_si512(to + i + 16, _mm512_permutex2var_epi16(x, high, y));
  }
#else
  for (int64_t w = 0; w < dim / 2; ++w) {
    to[2 * w] = (a[w] & 0xffffu) | b[w] << 16;
    to[2 * w + 1] = a[w] >> 16 | (b[w] & 0xffff0000u);
  }
#endif
}

// Keys or values of 16 positions from a multiple of 16 on; `count` of them are the sequence's.
struct Block {
  const int64_t* slots;
  int64_t count;
  bool is_tile;  // their slots are those of a tile
};

inline const uint32_t* tile_of(const Cache& cache, const Shape& shape, int64_t slot, int64_t head) {
  const Place place{slot, head, shape.num_kv_heads, shape.head_dim};
  return reinterpret_cast<const uint32_t*>(cache.data + place.tile(shape.element()));
}

// (words, 16): where they are, or put into `made`. What is beyond the sequence's end may be anything.
inline const uint32_t* find_keys(const Cache& cache, const Shape& shape, const Block& block,
                                 int64_t head, const Room& room, uint32_t* made) {
  const int64_t words = shape.words();
  if (cache.kind == kInt8Cache) {
    const uint32_t* rows[kBlock];
    widen_rows(cache, shape, block.slots, block.count, head, room, rows);
    transpose(rows, words, made);
    return made;
  }
  const int64_t real_words = shape.head_dim * shape.element() / 4;
  if (block.is_tile && real_words == words) return tile_of(cache, shape, block.slots[0], head);
  std::memset(made, 0, 4 * words * kBlock);
  for (int64_t i = 0; i < block.count; ++i) {
    const uint32_t* tile = tile_of(cache, shape, block.slots[i], head) + block.slots[i] % kBlock;
    for (int64_t w = 0; w < real_words; ++w) made[w * kBlock + i] = tile[w * kBlock];
  }
  return made;
}

// (words of 16 slots, padded_dim): where they are, or put into `made`, zero beyond the sequence's end,
// since a probability of zero does not make nothing of a NaN.
inline const uint32_t* find_values(const Cache& cache, const Shape& shape, const Block& block,
                                   int64_t head, const Room& room, uint32_t* made) {
  const int64_t dim = shape.head_dim, padded = shape.padded_dim(), per_word = shape.keys_per_word();
  if (cache.kind == kInt8Cache) {
    const uint32_t* rows[kBlock];
    widen_rows(cache, shape, block.slots, block.count, head, room, rows);
    for (int64_t i = 0; i < kBlock; i += per_word) {
      if (per_word == 2) {
        interleave(rows[i], rows[i + 1], padded, made + i / 2 * padded);
      } else {
        std::memcpy(made + i * padded, rows[i], 4 * padded);
      }
    }
    return made;
  }
  if (block.is_tile && padded == dim && block.count == kBlock)
    return tile_of(cache, shape, block.slots[0], head);
  std::memset(made, 0, 4 * kBlock / per_word * padded);
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t lane = block.slots[i] % kBlock;
    const uint32_t* from = tile_of(cache, shape, block.slots[i], head) + lane / per_word * dim;
    uint32_t* to = made + i / per_word * padded;
    if (per_word == 1) {
      std::memcpy(to, from, 4 * dim);
    } else if (block.is_tile && i % 2 == 0 && i + 1 < block.count) {
      std::memcpy(to, from, 4 * dim);
      ++i;
    } else {
      for (int64_t j = 0; j < dim; ++j)
        to[j] |= (from[j] >> 16 * (lane % 2) & 0xffffu) << 16 * (i % 2);
    }
  }
  return made;
}

// ---- one split ----

template <bool kIsBfloat16>
inline Floats dot_words(Floats sums, const uint32_t* vector, uint32_t x) {
  if constexpr (kIsBfloat16) {
    return dot_pairs(sums, reinterpret_cast<const uint16_t*>(vector), x);
  } else {
    return fma(load(reinterpret_cast<const float*>(vector)), all(from_bits(x)), sums);
  }
}

#if defined(__AVX512F__)
constexpr int kScoreRows = 8, kValueRows = 6;
#else
constexpr int kScoreRows = 3, kValueRows = 2;
#endif

// Blocks of a split, from `first` on.
struct Blocks {
  int64_t first, count;
};

using Tiles = const uint32_t* [kSplit / kBlock];

template <bool kIsBfloat16, int kRows>
inline void score_rows(const Room& room, int64_t words, int64_t row, const Blocks& blocks,
                       const Tiles& tiles) {
  for (int64_t block = 0; block < blocks.count; block += 2) {
    const uint32_t* keys[2] = {tiles[block], tiles[std::min(block + 1, blocks.count - 1)]};
    Floats sums[2][kRows];
    for (auto& each : sums)
      for (auto& sum : each) sum = zero();
    for (int64_t w = 0; w < words; ++w) {
      for (int r = 0; r < kRows; ++r) {
        const uint32_t x = room.queries[(row + r) * words + w];
        sums[0][r] = dot_words<kIsBfloat16>(sums[0][r], keys[0] + w * kBlock, x);
        sums[1][r] = dot_words<kIsBfloat16>(sums[1][r], keys[1] + w * kBlock, x);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      float* to = room.scores + (row + r) * kSplit + (blocks.first + block) * kBlock;
      store(to, sums[0][r]);
      if (block + 1 < blocks.count) store(to + kBlock, sums[1][r]);
    }
  }
}

// sums = those of the blocks before + probabilities . values
template <bool kIsBfloat16, int kRows>
inline void add_values(const Room& room, int64_t dim, int64_t row, const Blocks& blocks,
                       const Tiles& tiles) {
  constexpr int kVectors = 4;
  constexpr int64_t kWords = kIsBfloat16 ? kBlock / 2 : kBlock;  // of a block
  constexpr int64_t words_of_split = kSplit / kBlock * kWords;
  const uint32_t* weights = room.probabilities + row * words_of_split + blocks.first * kWords;
  for (int64_t first = 0; first < dim; first += kVectors * kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kVectors, (dim - first) / kLanes));
    const auto run = [&](auto vectors) {
      constexpr int kCount = decltype(vectors)::value;
      float* kept = room.sums + row * dim + first;
      Floats sums[kRows][kCount];
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kCount; ++v)
          sums[r][v] = blocks.first == 0 ? zero() : load(kept + r * dim + v * kLanes);
      for (int64_t block = 0; block < blocks.count; ++block) {
        for (int64_t w = 0; w < kWords; ++w) {
          const uint32_t* values = tiles[block] + w * dim + first;
          for (int r = 0; r < kRows; ++r) {
            const uint32_t x = weights[r * words_of_split + block * kWords + w];
            for (int v = 0; v < kCount; ++v)
              sums[r][v] = dot_words<kIsBfloat16>(sums[r][v], values + v * kLanes, x);
          }
        }
      }
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kCount; ++v) store(kept + r * dim + v * kLanes, sums[r][v]);
    };
    if (count == 4) {
      run(std::integral_constant<int, 4>());
    } else {  // a padded dimension is a multiple of 32
      run(std::integral_constant<int, 2>());
    }
  }
}

alignas(64) inline const float kLaneNumbers[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                       8, 9, 10, 11, 12, 13, 14, 15};

// What the scores of a row become: scaled, biased and masked; then probabilities, with the largest
// score and their sum kept in the room.
template <bool kIsBfloat16>
inline void soften_row(const Room& room, const Shape& shape, int64_t row, int64_t head,
                       int64_t position, int64_t first_key, int64_t num_blocks) {
  float* scores = room.scores + row * kSplit;
  const int64_t distance = position - first_key, num_keys = num_blocks * kBlock;  // of the first
  const bool sees_all = distance >= num_keys - 1 && (shape.window == 0 || distance < shape.window);
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const bool is_biased = shape.slopes != nullptr;
  const float slope = is_biased ? shape.slopes[head] : 0.0f;
  const float unit = is_biased ? 1.0f : scale;  // of the scores that are kept
  Floats most = all(kMasked);
  for (int64_t block = 0; block < num_blocks; ++block) {
    Floats score = load(scores + block * kBlock);
    if (!sees_all || is_biased) {
      // position - key: exact in float32
      const Floats distances =
          sub(all(static_cast<float>(distance - block * kBlock)), load(kLaneNumbers));
      if (is_biased) score = fma(all(-slope), distances, mul(score, all(scale)));
      Floats hidden = distances;  // negative where the key is not seen
      if (shape.window > 0)
        hidden = min(hidden, sub(all(static_cast<float>(shape.window - 1)), distances));
      score = select(as_ints(hidden), all(kMasked), score);
      store(scores + block * kBlock, score);
    }
    most = max(most, score);
  }
  const float largest_score = largest(most);
  const bool sees_none = largest_score == kMasked;
  const float base = sees_none ? 0.0f : largest_score * unit;
  // as powers of two, or of e
  const float factor = kIsBfloat16 ? unit * kLog2OfE : unit;
  const Floats factors = all(factor);
  const Floats subtrahend = all(sees_none ? 0.0f : -(largest_score * factor));
  Floats weights = zero(), check = zero();
  uint32_t* to = room.probabilities + row * (kIsBfloat16 ? kSplit / 2 : kSplit);
  for (int64_t block = 0; block < num_blocks; ++block) {
    const Floats score = load(scores + block * kBlock);
    check = fma(score, zero(), check);  // NaN if one is: `max` and `exp` lose it
    const Floats power = fma(score, factors, subtrahend);
    Floats probability;
    if constexpr (kIsBfloat16) {
      uint16_t* halves = reinterpret_cast<uint16_t*>(to) + block * kBlock;
      store_bfloat16(halves, exp2_coarse(power));
      probability = load_bfloat16(halves);
    } else {
      probability = exp(power);
      store(reinterpret_cast<float*>(to) + block * kBlock, probability);
    }
    weights = add(weights, probability);
  }
  room.weight[row] = sum(weights) + sum(check);
  room.most[row] = sees_none ? kMasked : base;
}

// Adds a split's sums to those of the splits before it.
inline void merge(int64_t dim, float most, float weight, const float* sums, float& total_most,
                  float& total_weight, float* totals) {
  const float both = std::max(most, total_most), base = both == kMasked ? 0.0f : both;
  const auto share = [base](float score) {
    if (score == base) return 1.0f;
    return score == kMasked ? 0.0f : std::exp(score - base);
  };
  const float old = share(total_most), fresh = share(most);
  total_most = both;
  total_weight = total_weight * old + weight * fresh;
  for (int64_t i = 0; i < dim; i += kLanes) {
    const Floats added = mul(load(sums + i), all(fresh));
    store(totals + i, fma(load(totals + i), all(old), added));
  }
}

// ---- tasks ----

// Queries of `num_tokens` tokens of a sequence from its `first` on, of the heads of some KV heads.
struct Task {
  int64_t sequence, first_head, num_heads, first, num_tokens;
  int64_t split;    // the only one, whose results go to partials; -1 = all of them
  int64_t partial;  // index of the first partial result
};

// Of one query's split: the largest score, the sum of probabilities, and the values' sums.
inline int64_t partial_floats(const Shape& shape) { return shape.padded_dim() + kLanes; }

// The first key that a query sees.
inline int64_t first_seen(const Shape& shape, int64_t position) {
  return shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
}

// Scores, probabilities and sums of the task's queries over one split: `num_heads` KV heads from
// `first_head` on, the queries of one after those of another. A few blocks of all heads come before
// the next blocks, since the heads of a slot lie side by side.
template <bool kIsBfloat16>
void run_split(const Room& room, const Shape& shape, const Cache& keys, const Cache& values,
               const Context& context, const Task& task, int64_t first_head, int64_t num_heads,
               int64_t split) {
  const int64_t words = shape.words(), dim = shape.padded_dim(), group = shape.group();
  const int64_t rows_of_head = task.num_tokens * group, num_rows = num_heads * rows_of_head;
  const int64_t position = context.first_position + task.first;  // of the first query
  const int64_t first = split * kSplit;
  const int64_t last = std::min(position + task.num_tokens, first + kSplit);
  if (last <= first_seen(shape, position)) {  // a window has passed it
    std::fill(room.most, room.most + num_rows, kMasked);
    std::fill(room.weight, room.weight + num_rows, 0.0f);
    std::memset(room.sums, 0, sizeof(float) * num_rows * dim);
    return;
  }
  const int64_t num_blocks = (last - first + kBlock - 1) / kBlock;
  const int64_t step = num_heads > 1 ? kBlocksOfHeads : kSplit / kBlock;
  const bool is_tile = context.block_size % kBlock == 0;
  int64_t slots[kSplit];
  for (int64_t block = 0; block < num_blocks; ++block)
    context.find_slots(first + block * kBlock, last, slots + block * kBlock);
  // Calls use(first row, blocks, tiles) for each head of a few blocks, then of the next.
  const auto for_blocks = [&](const Cache& cache, auto find, uint32_t* made, auto use) {
    for (int64_t begin = 0; begin < num_blocks; begin += step) {
      const Blocks blocks{begin, std::min(step, num_blocks - begin)};
      for (int64_t i = 0; i < num_heads; ++i) {
        Tiles tiles;
        for (int64_t j = 0; j < blocks.count; ++j) {
          const int64_t key = (begin + j) * kBlock;
          const Block block{slots + key, std::min(kBlock, last - first - key), is_tile};
          tiles[j] = find(cache, shape, block, first_head + i, room, made + j * kBlock * dim);
        }
        use(i * rows_of_head, blocks, tiles);
      }
    }
  };
  for_blocks(keys, find_keys, room.keys, [&](int64_t first_row, const Blocks& blocks,
                                             const Tiles& tiles) {
    products::for_each_tile<kScoreRows>(
        first_row, first_row + rows_of_head, [&](auto count, int64_t row) {
          score_rows<kIsBfloat16, count.value>(room, words, row, blocks, tiles);
        });
  });
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t of_head = row % rows_of_head;
    const int64_t head = (first_head + row / rows_of_head) * group + of_head % group;
    soften_row<kIsBfloat16>(room, shape, row, head, position + of_head / group, first, num_blocks);
  }
  for_blocks(values, find_values, room.values, [&](int64_t first_row, const Blocks& blocks,
                                                   const Tiles& tiles) {
    products::for_each_tile<kValueRows>(
        first_row, first_row + rows_of_head, [&](auto count, int64_t row) {
          add_values<kIsBfloat16, count.value>(room, dim, row, blocks, tiles);
        });
  });
}

inline void store_result(const Shape& shape, const float* totals, float weight, float* to) {
  const float inverse = 1.0f / weight;
  for (int64_t i = 0; i < shape.head_dim; ++i) to[i] = totals[i] * inverse;
}

// queries: a row for each token of the step, heads side by side, rotated; out: the same for results.
struct Rows {
  const float* queries;
  int64_t query_stride;
  float* out;
  int64_t out_stride;
};

template <bool kIsBfloat16>
void load_queries(const Room& room, const Shape& shape, const Context& context, const Task& task,
                  int64_t kv_head, const Rows& io, int64_t first_row) {
  const int64_t group = shape.group(), words = shape.words();
  for (int64_t r = 0; r < task.num_tokens * group; ++r) {
    const int64_t token = context.first_token + task.first + r / group;
    const float* from =
        io.queries + token * io.query_stride + (kv_head * group + r % group) * shape.head_dim;
    uint32_t* to = room.queries + (first_row + r) * words;
    std::memset(to, 0, 4 * words);
    if constexpr (kIsBfloat16) {
      uint16_t* halves = reinterpret_cast<uint16_t*>(to);
      round_row(from, shape.head_dim, [&](int64_t first, const uint16_t* some, int64_t count) {
        std::memcpy(halves + first, some, 2 * count);
      });
    } else {
      std::memcpy(to, from, 4 * shape.head_dim);
    }
  }
}

template <bool kIsBfloat16>
void run_task(const Room& room, const Shape& shape, const Cache& keys, const Cache& values,
              const Context& context, const Task& task, const Rows& io, float* partials) {
  const int64_t group = shape.group(), dim = shape.padded_dim();
  const int64_t num_rows = task.num_tokens * group;
  if (task.split >= 0) {
    const int64_t most = kMostRows / num_rows, end = task.first_head + task.num_heads;
    for (int64_t first = task.first_head; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      for (int64_t i = 0; i < count; ++i)
        load_queries<kIsBfloat16>(room, shape, context, task, first + i, io, i * num_rows);
      run_split<kIsBfloat16>(room, shape, keys, values, context, task, first, count, task.split);
      for (int64_t r = 0; r < count * num_rows; ++r) {
        const int64_t index = task.partial + (first - task.first_head) * num_rows + r;
        float* to = partials + index * partial_floats(shape);
        to[0] = room.most[r];
        to[1] = room.weight[r];
        std::memcpy(to + kLanes, room.sums + r * dim, 4 * dim);
      }
    }
    return;
  }
  for (int64_t head = task.first_head; head < task.first_head + task.num_heads; ++head) {
    load_queries<kIsBfloat16>(room, shape, context, task, head, io, 0);
    const int64_t position = context.first_position + task.first;
    int64_t split = first_seen(shape, position) / kSplit;
    run_split<kIsBfloat16>(room.for_totals(), shape, keys, values, context, task, head, 1, split);
    for (++split; split * kSplit < position + task.num_tokens; ++split) {
      run_split<kIsBfloat16>(room, shape, keys, values, context, task, head, 1, split);
      for (int64_t r = 0; r < num_rows; ++r)
        merge(dim, room.most[r], room.weight[r], room.sums + r * dim, room.total_most[r],
              room.total_weight[r], room.totals + r * dim);
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t token = context.first_token + task.first + r / group;
      float* to = io.out + token * io.out_stride + (head * group + r % group) * shape.head_dim;
      store_result(shape, room.totals + r * dim, room.total_weight[r], to);
    }
  }
}

// Merges the splits of one token's queries. Of each split the partial results begin `stride` after
// those of the one before.
struct Merge {
  int64_t token, head, num_splits, first_partial, stride;
};

inline void run_merge(const Room& room, const Shape& shape, const Merge& task,
                      const float* partials, const Rows& io) {
  const int64_t group = shape.group(), dim = shape.padded_dim(), size = partial_floats(shape);
  for (int64_t r = 0; r < group; ++r) {
    float most = kMasked, weight = 0.0f;
    std::memset(room.totals, 0, sizeof(float) * dim);
    for (int64_t split = 0; split < task.num_splits; ++split) {
      const float* from = partials + (task.first_partial + split * task.stride + r) * size;
      merge(dim, from[0], from[1], from + kLanes, most, weight, room.totals);
    }
    float* to = io.out + task.token * io.out_stride + (task.head * group + r) * shape.head_dim;
    store_result(shape, room.totals, weight, to);
  }
}

// ---- a step: the tasks of all its sequences, the same for every layer ----

// A chunk of so few tokens has its splits computed apart: otherwise one long sequence would keep one
// thread busy. All KV heads are taken together, so that the cache is read from front to back.
constexpr int64_t kMostSplitTokens = 8;

struct Step {
  int64_t num_sequences, block_size, table_width;
  const int64_t *query_starts, *context_lens, *block_tables;

  Context context(int64_t sequence) const {
    const int64_t first = query_starts[sequence], count = query_starts[sequence + 1] - first;
    return {block_tables + sequence * table_width, block_size, context_lens[sequence], first,
            context_lens[sequence] - count};
  }
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<Merge> merges;
  int64_t num_partials = 0;

  Plan(const Shape& shape, const Step& step) {
    const int64_t num_heads = shape.num_kv_heads;
    const int64_t tile = std::max<int64_t>(1, kMostRows / shape.group());
    for (int64_t i = 0; i < step.num_sequences; ++i) {
      const Context context = step.context(i);
      const int64_t count = step.query_starts[i + 1] - step.query_starts[i];
      const int64_t num_splits = (context.length + kSplit - 1) / kSplit;
      if (count <= std::min(kMostSplitTokens, tile) && num_splits > 1) {
        const int64_t rows = count * shape.group(), stride = num_heads * rows;
        for (int64_t split = 0; split < num_splits; ++split)
          tasks.push_back({i, 0, num_heads, 0, count, split, num_partials + split * stride});
        for (int64_t t = 0; t < count; ++t)
          for (int64_t head = 0; head < num_heads; ++head)
            merges.push_back({context.first_token + t, head, num_splits,
                              num_partials + head * rows + t * shape.group(), stride});
        num_partials += num_splits * stride;
        continue;
      }
      // the last queries see most: they come first, so that no thread is left alone with them
      for (int64_t first = (count - 1) / tile * tile; first >= 0; first -= tile)
        for (int64_t head = 0; head < num_heads; ++head)
          tasks.push_back({i, head, 1, first, std::min(tile, count - first), -1, 0});
    }
  }
};

}  // namespace attention
