// The forward pass of a dense decoder, from token ids to hidden states, by one team of threads.
//
// The same steps as engine/models/decoder.py, which says what they are. Between matrix products
// activations are float32.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "attention.h"
#include "gated.h"
#include "inputs.h"
#include "products.h"
#include "team.h"
#include "weights.h"

constexpr int64_t kMostParts = 3;
constexpr int64_t kHugePage = 1 << 21;

// The structs down to Step are mirrored by engine/kernels/abi.py.

struct Linear {  // parts one below the other, of one kind and one order of columns
  int64_t num_parts;
  const Weight* parts;
  const float* bias;  // of all rows; null = none

  int64_t rows() const {
    int64_t total = 0;
    for (int64_t i = 0; i < num_parts; ++i) total += parts[i].rows;
    return total;
  }
  int64_t columns() const { return parts[0].columns; }
};

struct Layer {
  const float *attention_norm, *q_norm, *k_norm, *mlp_norm;  // q_norm and k_norm may be null
  Linear qkv, output, gate_up, down;
  attention::Cache keys, values;
  int64_t window;

  // Whether gate and up begin at panels of their own.
  bool has_panels_of_both() const {
    const int64_t width = gate_up.rows() / 2;
    return gate_up.num_parts == 2 ? gate_up.parts[0].rows == width
                                  : gate_up.num_parts == 1 && width % kPanel == 0;
  }
  gated::Half half(int64_t index) const {
    const int64_t first_row = index * (gate_up.rows() / 2);
    if (gate_up.num_parts == 1) return {gate_up.parts, first_row / kPanel, gate_up.bias};
    const float* bias = gate_up.bias == nullptr ? nullptr : gate_up.bias + first_row;
    return {gate_up.parts + index, 0, bias};
  }
};

struct Model {
  const Layer* layers;
  int64_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim;
  int64_t rotary_dim;     // 0 = none
  int64_t logn_length;    // 0 = queries are not scaled
  const float* slopes;    // ALiBi's; null = none
  const float* norm;      // the final one
  const Weight* embedding;
  Linear head;
  float eps, rotary_magnitude;
  int32_t is_bfloat16;
};

struct StepInput {
  int64_t num_tokens, num_sequences, block_size, table_width, num_outputs;
  const int64_t *token_ids, *positions, *slots, *query_starts, *context_lens, *block_tables;
  const int64_t* outputs;           // tokens whose results are wanted, ascending
  const float* const* frequencies;  // of each sequence: (rotary_dim / 2) angles per position
};

inline Form form_of(const Weight& weight, bool is_bfloat16) {
  if (weight.kind == kBfloat16) return kBfloat16Rows;
  return weight.kind == kPacked && is_bfloat16 ? kInt8Rows : kFloatRows;
}

// Memory that is kept from call to call and only ever grows.
class Arena {
 public:
  ~Arena() { std::free(memory_); }
  void reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    std::free(memory_);
    size_ = round_up(bytes, kHugePage);
    memory_ = static_cast<uint8_t*>(std::aligned_alloc(kHugePage, size_));
    if (memory_ == nullptr) std::abort();
#if defined(MADV_HUGEPAGE)
    madvise(memory_, size_, MADV_HUGEPAGE);  // rows of activations lie pages apart
#endif
  }
  uint8_t* take(int64_t bytes) {
    uint8_t* at = memory_ + used_;
    used_ += round_up(bytes, 64);
    return at;
  }
  float* floats(int64_t count) { return reinterpret_cast<float*>(take(4 * count)); }

 private:
  uint8_t* memory_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

// ---- rows ----

// sum(x[i] ** 2) after x += added, where there is something to add.
inline float add_and_square(float* x, const float* added, int64_t count) {
  using namespace simd;
  Floats squares = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Floats value = load(x + i);
    if (added != nullptr) {
      value = add(value, load(added + i));
      store(x + i, value);
    }
    squares = fma(value, value, squares);
  }
  float total = sum(squares);
  for (; i < count; ++i) {
    if (added != nullptr) x[i] += added[i];
    total += x[i] * x[i];
  }
  return total;
}

inline void scale_by(const float* x, float scale, const float* weight, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = x[i] * scale * weight[i];
}

inline void rms_norm(float* x, const float* added, const float* weight, float eps, int64_t count,
                     float* to) {
  const float mean = add_and_square(x, added, count) / static_cast<float>(count);
  scale_by(x, 1.0f / std::sqrt(mean + eps), weight, count, to);
}

inline void rotate(float* head, const float* cosines, const float* sines, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[half + i] = b * cosines[i] + a * sines[i];
  }
}

// ---- a product ----

inline void multiply(Team& team, const Linear& linear, const Input& input, int64_t num_rows,
                     products::Room& room, float* out, int64_t stride) {
  products::Tasks tasks[kMostParts];
  int64_t total = 0;
  for (int64_t i = 0; i < linear.num_parts; ++i) {
    tasks[i] = products::Tasks(input, num_rows, linear.parts[i].rows, team.size());
    total += tasks[i].count();
  }
  team.run(total, [&](int64_t task) {
    int64_t part = 0, first_row = 0;
    while (task >= tasks[part].count()) {
      task -= tasks[part].count();
      first_row += linear.parts[part++].rows;
    }
    const float* bias = linear.bias == nullptr ? nullptr : linear.bias + first_row;
    products::run_task(linear.parts[part], input, tasks[part], task, room,
                       {out + first_row, stride, bias});
  });
}

// Calls work(row) for all rows, `most` in a task where there are enough of them.
template <typename Work>
inline void for_rows(Team& team, int64_t num_rows, Work work, int64_t most = 4) {
  const int64_t step = num_rows > 4 * most ? most : 1;
  team.run((num_rows + step - 1) / step, [&](int64_t task) {
    for (int64_t row = task * step; row < std::min(num_rows, (task + 1) * step); ++row) work(row);
  });
}

// ---- the pass ----

class Pass {
 public:
  Pass(const Model& model, const StepInput& step, Arena& arena, int num_threads)
      : model_(model),
        step_(step),
        hidden_(round_up(model.hidden_size, 32)),
        heads_(model.num_heads * model.head_dim),
        qkv_(heads_ + 2 * model.num_kv_heads * model.head_dim),
        width_(model.num_layers > 0 ? model.layers[0].gate_up.rows() / 2 : 0),
        shape_{model.num_heads, model.num_kv_heads, model.head_dim,
               0,               model.slopes,       model.is_bfloat16 != 0},
        attention_step_{step.num_sequences, step.block_size,   step.table_width,
                        step.query_starts,  step.context_lens, step.block_tables},
        plan_(shape_, attention_step_) {
    const int64_t most_columns = round_up(std::max({hidden_, heads_, width_}), 32);
    const int64_t n = step.num_tokens, half = std::max<int64_t>(model.rotary_dim / 2, 1);
    const int64_t input_bytes = Input::bytes(kFloatRows, most_columns, n);
    const int64_t room_bytes = attention::Room::carve(shape_, nullptr, nullptr);
    const int64_t partial_floats = plan_.num_partials * attention::partial_floats(shape_);
    const int64_t gated_bytes = round_up(n, Input::kBlockRows) * 8 * round_up(width_, kUnit);
    int64_t bytes = 4 * n * (2 * hidden_ + qkv_ + heads_ + 2 * half) + input_bytes + gated_bytes;
    bytes += 4 * partial_floats + 64 * 16;
    const int64_t local_bytes = sizeof(products::Room) + sizeof(gated::Room) + room_bytes;
    bytes += num_threads * (local_bytes + 8 * most_columns + 64 * 8);
    arena.reserve(bytes);
    residual_ = arena.floats(n * hidden_);
    added_ = arena.floats(n * hidden_);
    projected_ = arena.floats(n * qkv_);
    attended_ = arena.floats(n * heads_);
    cosines_ = arena.floats(n * half);
    sines_ = arena.floats(n * half);
    partials_ = arena.floats(partial_floats);
    input_ = arena.take(input_bytes);
    gated_ = arena.take(gated_bytes);
    for (int i = 0; i < num_threads; ++i) {
      Local local;
      local.products = reinterpret_cast<products::Room*>(arena.take(sizeof(products::Room)));
      local.gated = reinterpret_cast<gated::Room*>(arena.take(sizeof(gated::Room)));
      attention::Room::carve(shape_, arena.take(room_bytes), &local.attention);
      local.row = arena.floats(most_columns);
      local.reordered = arena.floats(most_columns);
      locals_.push_back(local);
    }
  }

  // Hidden states after the final norm, (num_outputs, hidden_size), and unless it is null their
  // logits, (num_outputs, vocab_size).
  void run(Team& team, int thread, float* hidden, float* logits) {
    Local& local = locals_[thread];
    embed(team, local);
    int64_t num_rows = step_.num_tokens;
    const float* added = nullptr;
    for (int64_t i = 0; i < model_.num_layers; ++i) {
      const Layer& layer = model_.layers[i];
      attend(team, local, layer, added, i == model_.num_layers - 1);
      if (i == model_.num_layers - 1) num_rows = keep_outputs(team);
      const Input attended = prepare(team, local, layer.output, num_rows, [&](int64_t row, float* to) {
        std::memcpy(to, attended_ + row * heads_, 4 * heads_);
      });
      multiply(team, layer.output, attended, num_rows, *local.products, added_, hidden_);
      feed_forward(team, local, layer, num_rows);
      added = added_;
    }
    const int64_t size = model_.hidden_size;
    for_rows(team, num_rows, [&](int64_t row) {
      rms_norm(residual_ + row * hidden_, added == nullptr ? nullptr : added + row * hidden_,
               model_.norm, model_.eps, size, hidden + row * size);
    });
    if (logits == nullptr) return;
    const Input input = prepare(team, local, model_.head, num_rows, [&](int64_t row, float* to) {
      std::memcpy(to, hidden + row * size, 4 * size);
    });
    multiply(team, model_.head, input, num_rows, *local.products, logits, model_.head.rows());
  }

 private:
  struct Local {
    products::Room* products;
    gated::Room* gated;
    attention::Room attention;
    float *row, *reordered;
  };

  // Rows in the form that `linear` multiplies; fill(row, to) writes the real columns of one.
  template <typename Fill>
  Input prepare(Team& team, Local& local, const Linear& linear, int64_t num_rows, Fill fill) {
    const Weight& weight = linear.parts[0];
    const Form form = form_of(weight, shape_.is_bfloat16);
    const Input input(form, weight.padded_columns(), num_rows, input_);
    for_rows(team, num_rows, [&](int64_t row) {
      fill(row, local.row);
      std::fill(local.row + weight.columns, local.row + input.columns, 0.0f);
      put_row(local.row, weight.order, input, row, local.reordered);
    });
    return input;
  }

  void embed(Team& team, Local& local) {
    const int64_t half = model_.rotary_dim / 2;
    for_rows(team, step_.num_tokens, [&](int64_t token) {
      read_row(*model_.embedding, step_.token_ids[token], local.row);
      std::memcpy(residual_ + token * hidden_, local.row, 4 * model_.hidden_size);
      if (half == 0) return;
      const int64_t* starts = step_.query_starts;
      const int64_t sequence =
          std::upper_bound(starts, starts + step_.num_sequences + 1, token) - starts - 1;
      const float* frequencies = step_.frequencies[sequence];
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(step_.positions[token]) * frequencies[i];
        cosines_[token * half + i] = std::cos(angle) * model_.rotary_magnitude;
        sines_[token * half + i] = std::sin(angle) * model_.rotary_magnitude;
      }
    });
  }

  // In the last layer what nobody asks for is left out: other layers need all tokens' keys.
  void attend(Team& team, Local& local, const Layer& layer, const float* added, bool is_last) {
    const int64_t n = step_.num_tokens;
    const Input input = prepare(team, local, layer.qkv, n, [&](int64_t row, float* to) {
      rms_norm(residual_ + row * hidden_, added == nullptr ? nullptr : added + row * hidden_,
               layer.attention_norm, model_.eps, model_.hidden_size, to);
    });
    multiply(team, layer.qkv, input, n, *local.products, projected_, qkv_);
    // neighbours share cache lines of the tiles they are written to
    for_rows(team, n, [&](int64_t token) { place(layer, token); }, attention::kBlock);
    attention::Shape shape = shape_;
    shape.window = layer.window;
    const attention::Rows io{projected_, qkv_, attended_, heads_};
    team.run(static_cast<int64_t>(plan_.tasks.size()), [&](int64_t i) {
      const attention::Task& task = plan_.tasks[i];
      const attention::Context context = attention_step_.context(task.sequence);
      if (is_last && !are_wanted(context.first_token + task.first, task.num_tokens)) return;
      if (shape.is_bfloat16) {
        attention::run_task<true>(local.attention, shape, layer.keys, layer.values, context, task,
                                  io, partials_);
      } else {
        attention::run_task<false>(local.attention, shape, layer.keys, layer.values, context, task,
                                   io, partials_);
      }
    });
    if (plan_.merges.empty()) return;
    team.run(static_cast<int64_t>(plan_.merges.size()), [&](int64_t i) {
      attention::run_merge(local.attention, shape, plan_.merges[i], partials_, io);
    });
  }

  // Whether results of any of `count` tokens are.
  bool are_wanted(int64_t first_token, int64_t count) const {
    const int64_t* end = step_.outputs + step_.num_outputs;
    const int64_t* next = std::lower_bound(step_.outputs, end, first_token);
    return next != end && *next < first_token + count;
  }

  // Norms and rotates a token's queries and keys and puts its keys and values into the cache.
  void place(const Layer& layer, int64_t token) {
    const int64_t dim = model_.head_dim, half = model_.rotary_dim / 2;
    float* queries = projected_ + token * qkv_;
    float* keys = queries + heads_;
    const float* values = keys + model_.num_kv_heads * dim;
    for (int64_t i = 0; i < model_.num_heads + model_.num_kv_heads; ++i) {
      float* head = queries + i * dim;
      const float* norm = i < model_.num_heads ? layer.q_norm : layer.k_norm;
      if (norm != nullptr) rms_norm(head, nullptr, norm, model_.eps, dim, head);
      if (half > 0) rotate(head, cosines_ + token * half, sines_ + token * half, half);
    }
    const int64_t position = step_.positions[token];
    if (model_.logn_length > 0 && position + 1 > model_.logn_length) {
      const float scale = std::log(static_cast<float>(position + 1)) /
                          static_cast<float>(std::log(static_cast<double>(model_.logn_length)));
      for (int64_t i = 0; i < heads_; ++i) queries[i] *= scale;
    }
    for (int64_t i = 0; i < model_.num_kv_heads; ++i) {
      const attention::Place at{step_.slots[token], i, model_.num_kv_heads, dim};
      attention::write_keys(layer.keys, at, keys + i * dim);
      attention::write_values(layer.values, at, values + i * dim);
    }
  }

  // Moves the rows that are wanted to the front, once nothing reads the others any more.
  int64_t keep_outputs(Team& team) {
    if (step_.num_outputs == step_.num_tokens) return step_.num_tokens;
    team.run(1, [&](int64_t) {
      for (int64_t i = 0; i < step_.num_outputs; ++i) {
        const int64_t from = step_.outputs[i];
        if (from == i) continue;
        std::memcpy(residual_ + i * hidden_, residual_ + from * hidden_, 4 * hidden_);
        std::memcpy(attended_ + i * heads_, attended_ + from * heads_, 4 * heads_);
      }
    });
    return step_.num_outputs;
  }

  void feed_forward(Team& team, Local& local, const Layer& layer, int64_t num_rows) {
    const Input normed = prepare(team, local, layer.gate_up, num_rows, [&](int64_t row, float* to) {
      rms_norm(residual_ + row * hidden_, added_ + row * hidden_, layer.mlp_norm, model_.eps,
               model_.hidden_size, to);
    });
    const Weight& down = layer.down.parts[0];
    if (down.order == nullptr && layer.has_panels_of_both()) {
      const Form form = form_of(down, shape_.is_bfloat16);
      const Input gated(form, down.padded_columns(), num_rows, gated_);
      const gated::Half gate = layer.half(0), up = layer.half(1);
      const products::Tasks tasks(normed, num_rows, gated.columns, team.size());
      team.run(tasks.count(), [&](int64_t task) {
        gated::run_task(gate, up, width_, normed, tasks, task, *local.products, *local.gated,
                        gated);
      });
      multiply(team, layer.down, gated, num_rows, *local.products, added_, hidden_);
      return;
    }
    float* both = reinterpret_cast<float*>(gated_);
    const bool is_rounded = form_of(down, shape_.is_bfloat16) != kFloatRows;
    multiply(team, layer.gate_up, normed, num_rows, *local.products, both, 2 * width_);
    const Input gated = prepare(team, local, layer.down, num_rows, [&](int64_t row, float* to) {
      const float* gate = both + row * 2 * width_;
      gated::silu_mul(gate, gate + width_, width_, is_rounded, to);
    });
    multiply(team, layer.down, gated, num_rows, *local.products, added_, hidden_);
  }

  const Model& model_;
  const StepInput& step_;
  const int64_t hidden_, heads_, qkv_, width_;
  const attention::Shape shape_;
  const attention::Step attention_step_;
  const attention::Plan plan_;
  float *residual_, *added_, *projected_, *attended_, *cosines_, *sines_, *partials_;
  uint8_t *input_, *gated_;  // gated_: in the form that the product down takes, or gate and up
  std::vector<Local> locals_;
};
