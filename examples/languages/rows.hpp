// SPDX-License-Identifier: MIT
#pragma once

#include "words.hpp"

namespace languages {

/// Sequences of one length for a model: inputs and targets [rows * context], and the task of each row.
struct Rows {
  std::vector<int> inputs, targets;
  std::vector<std::size_t> tasks;

  void resize(std::size_t rows, std::size_t context) {
    inputs.resize(rows * context);
    targets.resize(rows * context);
    tasks.resize(rows);
  }
  /// Row `row` is `tokens`, context + 1 of them.
  void set(std::size_t row, std::span<const int> tokens, std::size_t task) {
    const std::size_t context = tokens.size() - 1;
    std::copy_n(tokens.begin(), context, inputs.begin() + static_cast<std::ptrdiff_t>(row * context));
    std::copy_n(tokens.begin() + 1, context, targets.begin() + static_cast<std::ptrdiff_t>(row * context));
    tasks[row] = task;
  }
};

/// What a step trains on: each row is of one task, drawn alike from a list; the first `replayed` rows from
/// another list.
struct Mix {
  std::vector<std::size_t> trained, memory = {};
  std::size_t rows = 32, context = 64, replayed = 0;
};

/// One step's rows, a function of (seed, step) alone.
inline void sample(const std::vector<Task>& tasks, const Mix& mix, std::uint64_t seed, std::uint64_t step,
                   Rows& rows) {
  rows.resize(mix.rows, mix.context);
  std::vector<int> tokens(mix.context + 1);
  for (std::size_t row = 0; row < mix.rows; ++row) {
    const Key key{seed, step, row};
    const auto& from = row < mix.replayed ? mix.memory : mix.trained;
    const std::size_t task = from[draw(key, 0) % from.size()];
    sample_row(tasks[task], key, tokens);
    rows.set(row, tokens, task);
  }
}

/// f(rows) for sequences of one task, at most `most` at a time.
template <class F>
void for_rows(std::span<const std::vector<int>> sequences, std::size_t task, std::size_t most, F&& f) {
  Rows rows;
  for (std::size_t at = 0; at < sequences.size(); at += most) {
    const std::size_t n = std::min(most, sequences.size() - at);
    rows.resize(n, sequences[at].size() - 1);
    for (std::size_t i = 0; i < n; ++i) rows.set(i, sequences[at + i], task);
    f(std::as_const(rows));
  }
}

}  // namespace languages
