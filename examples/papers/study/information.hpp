// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace papers {

/// What routers gave to tokens, by the token's label and byte: sums of gates, which add up to 1 a token, and
/// numbers of tokens, [label][byte][expert] and [label][byte].
struct GateSums {
  static constexpr std::size_t bytes = 256;
  std::size_t labels, experts;
  std::vector<double> gates, tokens;

  GateSums(std::size_t labels_, std::size_t experts_)
      : labels(labels_), experts(experts_), gates(labels * bytes * experts), tokens(labels * bytes) {}

  void add(std::size_t label, std::size_t byte, const double* shares) {
    const std::size_t cell = label * bytes + byte;
    tokens[cell] += 1;
    for (std::size_t e = 0; e < experts; ++e) gates[cell * experts + e] += shares[e];
  }
};

/// In nats: mutual information of the expert with the label, with the byte, and with the label where the byte
/// is known; and the entropy of the expert.
struct Information {
  double label = 0, byte = 0, label_given_byte = 0, entropy = 0;
};

inline Information information(const GateSums& s) {
  // Entropy of the expert where only the group of a token is known: the mean over tokens of that of its
  // group.
  const auto entropy = [&](std::size_t groups, auto&& group_of) {
    std::vector<double> gates(groups * s.experts), tokens(groups);
    double all = 0, sum = 0;
    for (std::size_t label = 0; label < s.labels; ++label)
      for (std::size_t byte = 0; byte < GateSums::bytes; ++byte) {
        const std::size_t cell = label * GateSums::bytes + byte, group = group_of(label, byte);
        tokens[group] += s.tokens[cell];
        all += s.tokens[cell];
        for (std::size_t e = 0; e < s.experts; ++e)
          gates[group * s.experts + e] += s.gates[cell * s.experts + e];
      }
    for (std::size_t group = 0; group < groups; ++group)
      for (std::size_t e = 0; e < s.experts; ++e)
        if (const double g = gates[group * s.experts + e]; g > 0)
          sum -= g / all * std::log(g / tokens[group]);
    return sum;
  };
  const double none = entropy(1, [](std::size_t, std::size_t) { return std::size_t{0}; });
  const double of_label = entropy(s.labels, [](std::size_t label, std::size_t) { return label; });
  const double of_byte = entropy(GateSums::bytes, [](std::size_t, std::size_t byte) { return byte; });
  const double of_both = entropy(s.labels * GateSums::bytes, [](std::size_t label, std::size_t byte) {
    return label * GateSums::bytes + byte;
  });
  return {none - of_label, none - of_byte, of_byte - of_both, none};
}

}  // namespace papers
