// The first half of an MLP, silu(gate) * up, in the form that the second half multiplies: the products
// of gate and up, wide as they are, never leave a thread's caches.

#pragma once

#include <cmath>
#include <cstdint>

#include "inputs.h"
#include "products.h"
#include "simd.h"

namespace gated {

// `is_rounded`: what it gives will be, so that the exponential need not be exact.
inline void silu_mul(const float* gate, const float* up, int64_t count, bool is_rounded, float* to) {
  using namespace simd;
  int64_t i = 0;
  const Floats one = all(1.0f);
  for (; i + kLanes <= count; i += kLanes) {
    const Floats g = load(gate + i), minus = sub(zero(), g);
    const Floats power = is_rounded ? exp_coarse(minus) : exp(minus);
    store(to + i, mul(div(g, add(one, power)), load(up + i)));
  }
  for (; i < count; ++i) to[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

struct Room {
  alignas(64) float gate[products::kMostRows][kUnit], up[products::kMostRows][kUnit];
};

// Gate and up, each from a panel of its weight on: they may be two, or parts of one.
struct Half {
  const Weight* weight;
  int64_t first_panel;
  const float* bias;  // of the weight's rows; null = none
};

// Units first to end of the `width` outputs that gate and up each have.
inline void run_task(const Half& gate, const Half& up, int64_t width, const Input& input,
                     const products::Tasks& tasks, int64_t task, products::Room& products_room,
                     Room& room, const Input& to) {
  const products::Rows rows = tasks.rows(task);
  for (int64_t unit = tasks.first_unit(task); unit < tasks.end_unit(task); ++unit) {
    const int64_t columns = std::min(kUnit, width - unit * kUnit);
    const auto multiply = [&](const Half& half, float (*sums)[kUnit]) {
      if (columns < kUnit) std::memset(sums, 0, sizeof(float) * kUnit * rows.count);
      const int64_t panel = half.first_panel + unit * (kUnit / kPanel);
      const int64_t end = panel + round_up(columns, kPanel) / kPanel;
      products::multiply_panels(*half.weight, input, rows, panel, end, products_room,
                                {sums[0], kUnit, half.bias, rows.first, panel * kPanel});
    };
    multiply(gate, room.gate);
    multiply(up, room.up);
    for (int64_t r = 0; r < rows.count; ++r) {
      float values[kUnit];
      silu_mul(room.gate[r], room.up[r], kUnit, to.form != kFloatRows, values);
      put_unit(values, to, rows.first + r, unit);
    }
  }
}

}  // namespace gated
