// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

#include "checkpoint.hpp"

namespace llama {

/// A shape and its weights in one flat vector, in Layout's order.
template <class S>
struct Model {
  Config config;
  Layout layout;
  std::vector<S> weights;

  explicit Model(const Config& c) : config(c), layout((check(c, "llama"), c)), weights(size()) {}
  explicit Model(const Checkpoint& file) : Model(file.config) {
    if (file.weights.size() != size())
      detail::bad_file("llama", "weights", std::to_string(file.weights.size()), std::to_string(size()));
    for (std::size_t i = 0; i < size(); ++i) weights[i] = static_cast<S>(file.weights[i]);
  }

  std::size_t size() const { return static_cast<std::size_t>(layout.size()); }

  /// A linear [out, in] or a norm [1, dim].
  In<S> weight(Weight w, Index layer = 0) const {
    return view(weights.data() + layout.offset(w, layer), layout.kind(w).rows, layout.kind(w).cols);
  }

  /// What write_checkpoint takes, always in float.
  std::vector<float> single() const {
    std::vector<float> result(size());
    for (std::size_t i = 0; i < size(); ++i) result[i] = static_cast<float>(weights[i]);
    return result;
  }
};

namespace detail {

/// Standard normal, a function of (seed, index) alone: Box-Muller over splitmix64.
inline double normal(std::uint64_t seed, std::uint64_t index) {
  const auto uniform = [&](std::uint64_t k) {
    std::uint64_t z = (seed * 0xD1342543DE82EF95u + 2 * index + k + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
  };
  return std::sqrt(-2 * std::log(uniform(0))) * std::cos(2 * std::numbers::pi * uniform(1));
}

}  // namespace detail

/// Norms 1, linears N(0, 1 / (3 in)), embedding and head N(0, 0.1²).
template <class S>
void init(Model<S>& model, std::uint64_t seed) {
  for (std::size_t k = 0; k < 12; ++k) {
    const Weight w = static_cast<Weight>(k);
    const Layout::Kind& kind = model.layout.kind(w);
    const bool token = w == Weight::embed || w == Weight::head;
    const double sigma = token ? 0.1 : 1 / std::sqrt(3.0 * double(kind.cols));
    for (Index i = kind.offset; i < kind.offset + kind.copies * kind.rows * kind.cols; ++i)
      model.weights[static_cast<std::size_t>(i)] =
          kind.rows == 1 ? S(1) : static_cast<S>(sigma * detail::normal(seed, static_cast<std::uint64_t>(i)));
  }
}

}  // namespace llama
