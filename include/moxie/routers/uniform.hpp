// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI {

/// Every expert with weight 1/E, without parameters. With one expert this is plain LoRA or plain IA3.
template <Scalar S>
class UniformRouter {
 public:
  using Scalar = S;
  static constexpr bool constant = true;
  struct Config {
    Index experts = 1;
    Index heads = 1;  ///< routing rows per token
  };

  /// Throws ConfigRange naming the setting.
  explicit UniformRouter(const Config& config) : config_(config) {
    detail::expect_range(config.experts >= 1, "UniformRouter experts", static_cast<double>(config.experts),
                         "1 or more");
    detail::expect_range(config.heads >= 1, "UniformRouter heads", static_cast<double>(config.heads),
                         "1 or more");
  }

  const Config& config() const { return config_; }
  Index experts() const { return config_.experts; }
  Index in() const { return 0; }
  Index rows_per_token() const { return config_.heads; }
  Index size() const { return 0; }
  std::vector<Field> fields() const { return {}; }
  void init(std::span<S>, std::uint64_t) const {}
  std::array<kernels::MatrixShape, 0> matrices() const { return {}; }
  Index blocks(Index) const { return 0; }
  Index scratch(Index) const { return 0; }

  void prepare(Routing<S>& routing, Index tokens, const Run&) const {
    routing.resize(tokens, config_.experts, config_.heads, config_.experts);
  }
  template <class W>
  void route_rows(const ForwardTile<S, W>& tile) const {
    const Index first = tile.first * config_.heads, rows = tile.x.rows * config_.heads;
    Routing<S>& routing = tile.routing;
    const S gate = S(1) / static_cast<S>(config_.experts);
    const Index at = first * config_.experts, count = rows * config_.experts;
    std::fill_n(routing.logits.data() + at, count, S(0));
    std::fill_n(routing.probs.data() + at, count, gate);
    std::fill_n(routing.gates.data() + at, count, gate);
    for (Index row = first; row < first + rows; ++row) routing.choose_all(row);
  }
  void backward_rows(const BackwardTile<S>&) const {}
  void backward_block(const BackwardBlock<S>&) const {}

 private:
  Config config_;
};

}  // namespace moxie::inline MOXIE_ABI
