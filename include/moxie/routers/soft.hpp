// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/kernels/softmax.hpp>
#include <moxie/routers/projection.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI {

/// All experts, weighed by softmax(x G^T / temperature). arXiv:2309.05444, eq. 3 and 4; arXiv:2312.09979,
/// eq. 5. With heads > 1 a row is a head of a token and G is [E, in / heads], shared by the heads: what the
/// released MoV code does on keys and values (`mov.py`, MoVAttention), where the paper writes one router per
/// token.
template <Scalar S>
class SoftRouter {
 public:
  using Scalar = S;
  struct Config {
    Index in = 0;
    Index experts = 1;
    Index heads = 1;  ///< routing rows per token
    double temperature = 1;
    double jitter = 0;  ///< in training the input is multiplied by U(1 - jitter, 1 + jitter)
    Init init = Init::kaiming_uniform;
  };

  /// Throws ConfigRange naming the setting.
  explicit SoftRouter(const Config& config)
      : config_(config), projection_(config.in, config.experts, config.heads, config.jitter) {
    detail::expect_range(config.temperature > 0 && std::isfinite(config.temperature), "router temperature",
                         config.temperature, "a finite number above 0");
    detail::expect_range(detail::finite_as<S>(1 / config.temperature), "router temperature",
                         config.temperature, "a number whose inverse is finite");
  }

  const Config& config() const { return config_; }
  Index experts() const { return config_.experts; }
  Index in() const { return config_.in; }
  Index rows_per_token() const { return config_.heads; }
  Index size() const { return projection_.size(); }
  std::vector<Field> fields() const {
    return {{.name = "router", .shape = {config_.experts, projection_.features()}, .decay = false}};
  }
  void init(std::span<S> theta, std::uint64_t seed) const {
    detail::expect_size("theta", theta.size(), size());
    detail::initialise(theta, config_.init, projection_.features(), 1,
                       random::key(random::Use::init, {seed, 2}));
  }
  std::array<kernels::MatrixShape, 1> matrices() const { return {projection_.matrix()}; }
  Index blocks(Index tokens) const { return projection_.blocks(tokens); }
  Index scratch(Index tile) const { return projection_.scratch(tile); }

  void prepare(Routing<S>& routing, Index tokens, const Run&) const {
    routing.resize(tokens, config_.experts, config_.heads, config_.experts);
  }
  template <class W>
  void route_rows(const ForwardTile<S, W>& tile) const {
    Routing<S>& routing = tile.routing;
    const Index first = tile.first * config_.heads, rows = tile.x.rows * config_.heads,
                experts = config_.experts;
    projection_.forward(tile.weights[0], tile.x, tile.first, routing.logits.data() + first * experts,
                        tile.scratch, tile.run);
    const S cold = static_cast<S>(1 / config_.temperature);
    for (Index row = first; row < first + rows; ++row) {
      S* const z = routing.logits.data() + row * experts;
      S* const p = routing.probs.data() + row * experts;
      for (Index e = 0; e < experts; ++e) z[e] *= cold;
      kernels::softmax(z, experts, p);
      std::copy_n(p, experts, routing.gates.data() + row * experts);
      routing.choose_all(row);
    }
  }
  /// dz = J^T (dgates + dprobs) + dlogits, J the softmax's Jacobian; dx += dz G / temperature.
  void backward_rows(const BackwardTile<S>& tile) const {
    Routing<S>& d = tile.drouting;
    const Index first = tile.first * config_.heads, rows = tile.x.rows * config_.heads,
                experts = config_.experts;
    const S cold = static_cast<S>(1 / config_.temperature);
    for (Index row = first; row < first + rows; ++row) {
      const Index at = row * experts;
      S* const dp = d.probs.data() + at;
      S* const dz = d.logits.data() + at;
      for (Index e = 0; e < experts; ++e) dp[e] += d.gates[static_cast<std::size_t>(at + e)];
      detail::softmax_backward(tile.routing.probs.data() + at, dp, experts, dz);
      for (Index e = 0; e < experts; ++e) dz[e] *= cold;
    }
    projection_.backward_input(tile.weights[0], tile.x, tile.first, d.logits.data() + first * experts,
                               tile.dx, tile.scratch, tile.run);
  }
  void backward_block(const BackwardBlock<S>& b) const {
    projection_.backward_block(b.block, b.x, b.drouting.logits.data(), b.dtheta.data(), b.scratch, b.run);
  }

 private:
  Config config_;
  detail::RouterProjection<S> projection_;
};

}  // namespace moxie::inline MOXIE_ABI
