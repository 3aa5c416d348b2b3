// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/init.hpp>
#include <moxie/experts/dropout.hpp>
#include <moxie/experts/path.hpp>

namespace moxie::inline MOXIE_ABI {

/// The factor of an expert's update.
enum class LoraScaling {
  alpha_over_rank,       ///< alpha / r (arXiv:2106.09685, section 4.1)
  alpha_over_sqrt_rank,  ///< alpha / sqrt(r), rsLoRA (arXiv:2312.03732)
  fixed,                 ///< `scales`, one per expert
};

/// What a LoRA bank is made from.
struct LoraConfig {
  Index in = 0, out = 0;
  Index experts = 1;
  Index rank = 8;
  std::vector<Index> ranks = {};  ///< one per expert where they differ; empty: all `rank`
  double alpha = 8;
  LoraScaling scaling = LoraScaling::alpha_over_rank;
  std::vector<double> scales = {};  ///< for LoraScaling::fixed
  bool bias = false;                ///< a bias per expert, weighed and scaled with it (PEFT's lora_bias)
  double dropout = 0;               ///< probability that an input feature is dropped in training
  DropoutMask mask = DropoutMask::shared;
  Init init = Init::kaiming_uniform;  ///< of A; B and biases start at 0
  ExpertPath path = ExpertPath::automatic;
};

namespace detail {

/// First row of every expert in the stacked A and B, and the number of rows behind the last. Checks all but
/// scales.
inline std::vector<Index> first_rows(const LoraConfig& config) {
  const auto number = [](auto v) { return static_cast<double>(v); };
  expect_range(config.in >= 1, "LoRA in", number(config.in), "1 or more");
  expect_range(config.out >= 1, "LoRA out", number(config.out), "1 or more");
  expect_range(config.experts >= 1 && config.experts <= 1 << 20, "LoRA experts", number(config.experts),
               "1 to 2^20");
  expect_range(config.dropout >= 0 && config.dropout < 1, "LoRA dropout", config.dropout,
               "0 or more, below 1");
  expect_range(config.ranks.empty() || std::ssize(config.ranks) == config.experts, "the number of LoRA ranks",
               number(config.ranks.size()), text(config.experts) + " (one per expert)");
  std::vector<Index> begin{0};
  for (Index e = 0; e < config.experts; ++e) {
    const Index rank = config.ranks.empty() ? config.rank : config.ranks[static_cast<std::size_t>(e)];
    expect_range(rank >= 1 && rank <= 1 << 24, "LoRA rank", number(rank), "1 to 2^24");
    begin.push_back(begin.back() + rank);
  }
  checked_product("LoRA A", begin.back(), config.in);
  checked_product("LoRA B", begin.back(), config.out);
  const Index longest = checked_product("LoRA in or out", 4, std::max(config.in, config.out));
  checked_product("LoRA A, B and biases", begin.back(), longest);
  return begin;
}

/// The factor of every expert's update.
inline std::vector<double> scales(const LoraConfig& config, const std::vector<Index>& begin) {
  const bool fixed = config.scaling == LoraScaling::fixed;
  expect_range(std::isfinite(config.alpha), "LoRA alpha", config.alpha, "a finite number");
  expect_range(std::ssize(config.scales) == (fixed ? config.experts : 0), "the number of LoRA scales",
               static_cast<double>(config.scales.size()),
               fixed ? text(config.experts) + " (one per expert)" : "0 unless the scaling is fixed");
  std::vector<double> scales = config.scales;
  for (std::size_t e = 0; !fixed && e + 1 < begin.size(); ++e) {
    const auto rank = static_cast<double>(begin[e + 1] - begin[e]);
    scales.push_back(config.alpha /
                     (config.scaling == LoraScaling::alpha_over_rank ? rank : std::sqrt(rank)));
  }
  return scales;
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
