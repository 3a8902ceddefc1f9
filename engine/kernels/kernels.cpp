// What Python calls: plain C functions, see engine/kernels/library.py. Compiled once for each
// instruction set (pyproject.toml).

#include "decoder.h"
#include "peaks.h"

namespace {

// One caller's memory; the engine computes on one thread.
Arena& arena() {
  thread_local Arena memory;
  return memory;
}

}  // namespace

extern "C" {

// Sizes of the structs, so that engine/kernels/abi.py can be checked against them.
void struct_sizes(int64_t* sizes) {
  const int64_t all[] = {sizeof(Weight), sizeof(Linear),    sizeof(attention::Cache),
                         sizeof(Layer),  sizeof(Model),     sizeof(StepInput)};
  std::memcpy(sizes, all, sizeof all);
}

int64_t weight_bytes(const Weight* weight) {
  return weight->panel_bytes() * weight->num_panels();
}

// Fills weight->panels from codes, one in a byte: (rows, columns) uint8, with scales and offsets
// (rows, groups) of the weight's type.
void pack_codes(const Weight* weight, const uint8_t* codes, const uint8_t* scales,
                const uint8_t* offsets, uint8_t* panels) {
  const int64_t num_groups = weight->columns / weight->group_size;
  const int64_t sets = weight->has_halves() ? 2 : 1, size = weight->scale_bytes;
  const int64_t units_per_group = weight->units_per_group();
  std::memset(panels, 0, weight->panel_bytes() * weight->num_panels());
  for (int64_t p = 0; p < weight->num_panels(); ++p) {
    const int64_t row = p * kPanel, num_rows = std::min(kPanel, weight->rows - row);
    uint8_t* to = panels + p * weight->panel_bytes();
    for (int64_t unit = 0; unit < weight->num_units(); unit += units_per_group) {
      for (const uint8_t* from : {scales, offsets}) {
        if (from == nullptr) continue;
        for (int64_t set = 0; set < sets; ++set, to += kPanel * size) {
          const int64_t group = unit / units_per_group * sets + set;
          for (int64_t r = 0; r < num_rows; ++r)
            std::memcpy(to + r * size, from + ((row + r) * num_groups + group) * size, size);
        }
      }
      for (int64_t i = 0; i < units_per_group; ++i, to += weight->unit_bytes())
        pack_codes(codes + row * weight->columns + (unit + i) * kUnit, weight->columns, num_rows,
                   weight->bits, to);
    }
  }
}

// Fills panels of a plain weight from (rows, columns) of its own type.
void pack_plain(const Weight* weight, const uint8_t* from, uint8_t* panels) {
  const int64_t size = weight->kind == kFloat32 ? 4 : 2, per_lane = 4 / size;
  std::memset(panels, 0, weight->panel_bytes() * weight->num_panels());
  for (int64_t row = 0; row < weight->rows; ++row) {
    uint8_t* panel = panels + row / kPanel * weight->panel_bytes();
    const uint8_t* source = from + row * weight->columns * size;
    for (int64_t column = 0; column < weight->columns; column += per_lane) {
      const int64_t count = std::min(per_lane, weight->columns - column);
      std::memcpy(panel + column / per_lane * 64 + row % kPanel * 4, source + column * size,
                  count * size);
    }
  }
}

// out (count, columns) float32: rows of a weight, columns in the order of the inputs.
void read_rows(const Weight* weight, const int64_t* rows, int64_t count, float* out) {
#pragma omp parallel for schedule(static) if (count > 16)
  for (int64_t i = 0; i < count; ++i) {
    std::vector<float> row(weight->padded_columns());
    read_row(*weight, rows[i], row.data());
    for (int64_t j = 0; j < weight->columns; ++j)
      out[i * weight->columns + (weight->order == nullptr ? j : weight->order[j])] = row[j];
  }
}

// out (num_rows, rows) = x (num_rows, columns) @ weight transposed + bias, all float32; in between
// bfloat16 or int8, as for a model of that type.
void multiply_rows(const Linear* linear, int is_bfloat16, const float* x, int64_t num_rows,
                   float* out) {
  const Weight& weight = linear->parts[0];
  const Form form = form_of(weight, is_bfloat16 != 0);
  const int64_t columns = weight.padded_columns();
  const int num_threads = omp_get_max_threads();
  const int64_t room_bytes = sizeof(products::Room);
  const int64_t input_bytes = Input::bytes(form, columns, num_rows);
  arena().reserve(input_bytes + num_threads * (room_bytes + 8 * columns + 256) + 256);
  const Input input(form, columns, num_rows, arena().take(input_bytes));
  uint8_t* rooms = arena().take(num_threads * room_bytes);
  float* temporary = arena().floats(num_threads * 2 * columns);
  with_team([&](Team& team, int thread) {
    auto& room = *reinterpret_cast<products::Room*>(rooms + thread * room_bytes);
    float* row_of_thread = temporary + thread * 2 * columns;
    for_rows(team, num_rows, [&](int64_t row) {
      std::memcpy(row_of_thread, x + row * weight.columns, 4 * weight.columns);
      std::fill(row_of_thread + weight.columns, row_of_thread + columns, 0.0f);
      put_row(row_of_thread, weight.order, input, row, row_of_thread + columns);
    });
    multiply(team, *linear, input, num_rows, room, out, linear->rows());
  });
}

// Of each of `num_rows` rows of `count` logits, of which the first `num_valid` are tokens.
void find_peaks(const float* logits, int64_t num_rows, int64_t count, int64_t num_valid,
                Peak* peaks) {
#pragma omp parallel for schedule(static) if (num_rows > 1)
  for (int64_t i = 0; i < num_rows; ++i) peaks[i] = find_peak(logits + i * count, count, num_valid);
}

// What `step` wants, float32: hidden states (num_outputs, hidden_size) and, unless it is null, logits
// (num_outputs, vocab_size).
void decoder_forward(const Model* model, const StepInput* step, float* hidden, float* logits) {
  Pass pass(*model, *step, arena(), omp_get_max_threads());
  with_team([&](Team& team, int thread) { pass.run(team, thread, hidden, logits); });
}

}  // extern "C"
