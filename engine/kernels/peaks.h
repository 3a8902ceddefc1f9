// The largest logit of each row, in one pass over what the sampler would otherwise pass over thrice.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "simd.h"

struct Peak {
  int64_t id;         // of the largest of the valid logits, the lowest among equals
  float value;        // the largest
  int32_t is_usable;  // it is finite, and no logit, valid or not, is NaN or +infinity
};

// A running maximum that notices what is not finite.
class Maximum {
 public:
  void add(const float* values, int64_t count) {
    using namespace simd;
    Floats most = all(value_);
    Ints bits = all_ints(bits_);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Floats each = load(values + i);
      most = max(each, most);  // which keeps `most` where `each` is NaN
      bits = max(bits, as_ints(magnitude(each)));
    }
    value_ = largest(most);
    bits_ = largest(bits);
    for (; i < count; ++i) {
      if (values[i] > value_) value_ = values[i];
      bits_ = std::max(bits_, static_cast<int32_t>(simd::to_bits(std::fabs(values[i]))));
    }
  }
  float value() const { return value_; }
  // Of magnitudes as integers, infinity is the largest but for NaN.
  bool has_nan() const { return bits_ > 0x7f800000; }

 private:
  float value_ = -std::numeric_limits<float>::infinity();
  int32_t bits_ = 0;
};

inline Peak find_peak(const float* logits, int64_t count, int64_t num_valid) {
  constexpr int64_t kRun = 1024;  // the first whose maximum is the row's holds the id
  Maximum all;
  int64_t id = 0;
  for (int64_t first = 0; first < num_valid; first += kRun) {
    const float before = all.value();
    all.add(logits + first, std::min(kRun, num_valid - first));
    if (all.value() > before) id = first;
  }
  const float best = all.value();
  while (id < num_valid - 1 && !(logits[id] == best)) ++id;
  all.add(logits + num_valid, count - num_valid);
  const float most = std::numeric_limits<float>::max();
  return {id, best, !all.has_nan() && best >= -most && all.value() <= most};
}
