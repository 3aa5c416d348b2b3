// SPDX-License-Identifier: MIT
#pragma once

#include "../languages/rows.hpp"
#include "backward.hpp"

namespace llama {

/// Loss of held-out sequences, `most` at a time.
template <class S, HooksFor<S> H>
Loss evaluate(const Model<S>& model, std::span<const std::vector<int>> sequences, std::size_t most,
              int threads, State<S>& state, H& hooks) {
  Loss loss;
  languages::for_rows(sequences, 0, most, [&](const languages::Rows& rows) {
    const auto n = static_cast<Index>(rows.tasks.size());
    const Pass pass{.rows = n, .seq = std::ssize(rows.inputs) / n, .threads = threads};
    forward<S>(model, rows.inputs, pass, state, hooks);
    loss += total(cross_entropy<S>(state, rows.targets));
  });
  return loss;
}

}  // namespace llama
