// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <vector>

#include "forward.hpp"

namespace llama {

/// The likeliest token of one row of logits; the first of equals.
template <class S>
int greedy(const Matrix<S>& logits, Index t) {
  const S* x = logits.data() + t * logits.cols();
  return static_cast<int>(std::max_element(x, x + logits.cols()) - x);
}

struct Generate {
  Index length = 64;  ///< tokens of a sequence, its prompt included; at most the model's context
  int stop = -1;      ///< a row ends before this token; -1: no such token
  int threads = 1;
};

/// Continues every prompt greedily with cached keys and values, one position a step, and returns the whole
/// sequences. Prompts may differ in length; a row's result does not depend on the others.
template <class S, HooksFor<S> H>
std::vector<std::vector<int>> generate(const Model<S>& model, const std::vector<std::vector<int>>& prompts,
                                       const Generate& options, H& hooks) {
  const std::size_t rows = prompts.size();
  std::vector<std::vector<int>> result(rows);
  if (rows == 0) return result;
  for (std::size_t s = 0; s < rows; ++s) {
    detail::wants(!prompts[s].empty(), "prompt tokens", 0, "at least 1");
    result[s] = {prompts[s][0]};
  }
  const Index length = std::min(options.length, model.config.context);
  KeyValues<S> past(model.config, static_cast<Index>(rows), length);
  State<S> state;
  std::vector<int> tokens(rows);
  std::vector<char> ended(rows, 0);
  for (Index position = 0; position + 1 < length && std::count(ended.begin(), ended.end(), 0) > 0;
       ++position) {
    for (std::size_t s = 0; s < rows; ++s) tokens[s] = result[s].back();
    const Matrix<S>& logits = forward<S>(
        model, tokens,
        {.rows = static_cast<Index>(rows), .seq = 1, .first = position, .threads = options.threads}, state,
        hooks, &past);
    for (std::size_t s = 0; s < rows; ++s) {
      if (ended[s]) continue;
      const std::size_t next = static_cast<std::size_t>(position) + 1;
      const int token = next < prompts[s].size() ? prompts[s][next] : greedy(logits, static_cast<Index>(s));
      ended[s] = token == options.stop;
      if (!ended[s]) result[s].push_back(token);
    }
  }
  return result;
}

}  // namespace llama
