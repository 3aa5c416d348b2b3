// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/params.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI {

/// How experts are spread over the layers, in four groups from the lowest layers to the highest.
/// MoLA, arXiv:2402.08562, section 3.2; middle_heavy is the finding of its NAACL 2025 version.
enum class Allocation {
  triangle,           ///< 8-6-4-2
  inverted_triangle,  ///< 2-4-6-8, MoLA's best in the first version
  hourglass,          ///< 8-2-2-8
  rectangle,          ///< 5-5-5-5
  middle_heavy,       ///< 2-8-8-2
};

/// Experts of each group of layers.
constexpr std::array<Index, 4> group_experts(Allocation shape) {
  switch (shape) {
    case Allocation::triangle:
      return {8, 6, 4, 2};
    case Allocation::inverted_triangle:
      return {2, 4, 6, 8};
    case Allocation::hourglass:
      return {8, 2, 2, 8};
    case Allocation::rectangle:
      return {5, 5, 5, 5};
    case Allocation::middle_heavy:
      return {2, 8, 8, 2};
  }
  return {1, 1, 1, 1};
}

/// Experts per layer from a list: one number per layer, or per group of layers; layer l takes entry
/// floor(n l / L) of n. Throws ConfigRange where a number is below 1 or the list longer than the layers.
inline std::vector<Index> experts_per_layer(std::span<const Index> list, Index layers) {
  detail::expect_range(layers >= 1, "layers", static_cast<double>(layers), "1 or more");
  const auto n = static_cast<Index>(list.size());
  detail::expect_range(n >= 1 && n <= layers, "the length of the expert list", static_cast<double>(n),
                       "1 to " + detail::text(layers) + " (the layers)");
  for (const Index experts : list)
    detail::expect_range(experts >= 1, "experts of a layer", static_cast<double>(experts), "1 or more");
  std::vector<Index> result;
  for (Index l = 0; l < layers; ++l) result.push_back(list[static_cast<std::size_t>(n * l / layers)]);
  return result;
}

/// Experts per layer of a published shape; layer l takes group floor(4 l / L). Throws ConfigRange for no
/// layers.
inline std::vector<Index> experts_per_layer(Allocation shape, Index layers) {
  detail::expect_range(layers >= 1, "layers", static_cast<double>(layers), "1 or more");
  const std::array<Index, 4> groups = group_experts(shape);
  std::vector<Index> result;
  for (Index l = 0; l < layers; ++l) result.push_back(groups[static_cast<std::size_t>(4 * l / layers)]);
  return result;
}

/// A total of experts spread over the layers in proportion to `weights` (one per layer) by largest remainder,
/// at least 1 a layer; equal remainders: the lower layer first. Throws ConfigRange where the total is below
/// the layers or a weight is negative or not finite.
inline std::vector<Index> spread_experts(Index total, std::span<const double> weights) {
  const auto layers = static_cast<Index>(weights.size());
  detail::expect_range(layers >= 1, "layers", static_cast<double>(layers), "1 or more");
  detail::expect_range(total >= layers, "total experts", static_cast<double>(total),
                       "at least " + detail::text(layers) + " (one per layer)");
  detail::expect_range(total <= Index{1} << 53, "total experts", static_cast<double>(total), "at most 2^53");
  double sum = 0;
  for (const double w : weights) {
    detail::expect_range(w >= 0 && std::isfinite(w), "a layer's weight", w, "a finite number, 0 or more");
    sum += w;
  }
  detail::expect_range(sum > 0 && std::isfinite(sum), "the sum of the layers' weights", sum,
                       "a finite number above 0");
  std::vector<Index> result;
  std::vector<double> owed;  // quota less what the layer has
  Index given = 0;
  for (const double w : weights) {
    const double quota = static_cast<double>(total) * (w / sum);
    result.push_back(std::max<Index>(1, static_cast<Index>(quota)));
    owed.push_back(quota - static_cast<double>(result.back()));
    given += result.back();
  }
  const auto move_one = [&](bool give) {
    std::size_t best = result.size();
    for (std::size_t l = 0; l < result.size(); ++l) {
      if (!give && result[l] == 1) continue;
      if (best == result.size() || (give ? owed[l] > owed[best] : owed[l] < owed[best])) best = l;
    }
    result[best] += give ? 1 : -1;
    owed[best] -= give ? 1 : -1;
    given += give ? 1 : -1;
  };
  while (given < total) move_one(true);
  while (given > total) move_one(false);
  return result;
}

/// A total spread in the proportions of a published shape. Throws ConfigRange as above.
inline std::vector<Index> spread_experts(Index total, Allocation shape, Index layers) {
  std::vector<double> weights;
  for (const Index experts : experts_per_layer(shape, layers))
    weights.push_back(static_cast<double>(experts));
  return spread_experts(total, weights);
}

/// Refuses a k that some layer cannot serve. Throws ConfigRange naming the layer.
inline void expect_top_k(std::span<const Index> experts_per_layer, Index k) {
  for (std::size_t l = 0; l < experts_per_layer.size(); ++l)
    detail::expect_range(k >= 1 && k <= experts_per_layer[l], "top-k k of layer " + detail::text(l),
                         static_cast<double>(k),
                         "1 to " + detail::text(experts_per_layer[l]) + " (its experts)");
}

}  // namespace moxie::inline MOXIE_ABI
