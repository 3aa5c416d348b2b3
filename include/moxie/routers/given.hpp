// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI {

/// Gates and chosen experts come from the caller, who fills the cache's routing before `forward`: per-row
/// adapters and scales of an engine's batch, or a router run elsewhere. After `backward` the gradient of the
/// gates lies in the workspace's `drouting.gates`, chosen entries only.
template <Scalar S>
class GivenRouter {
 public:
  using Scalar = S;
  struct Config {
    Index experts = 1;
    Index heads = 1;  ///< routing rows per token
  };

  /// Throws ConfigRange naming the setting.
  explicit GivenRouter(const Config& config) : config_(config) {
    detail::expect_range(config.experts >= 1, "GivenRouter experts", static_cast<double>(config.experts),
                         "1 or more");
    detail::expect_range(config.heads >= 1, "GivenRouter heads", static_cast<double>(config.heads),
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

  /// Throws ShapeMismatch where the routing has another shape, RouterOutput where a row is none: an expert
  /// out of range, twice or out of order, a gate that is not finite, or not 0 for an expert that is not
  /// chosen.
  void prepare(Routing<S>& routing, Index tokens, const Run&) const {
    detail::expect_routing("the given routing", routing,
                           detail::checked_product("routing rows", tokens, config_.heads), config_.experts,
                           config_.heads);
    expect_routed(routing, {});
  }
  /// Before backward: the caller has not made it something else since.
  void expect_routed(const Routing<S>& routing, const Run&) const {
    for (Index row = 0; row < routing.rows; ++row) check_row(routing, row);
  }
  template <class W>
  void route_rows(const ForwardTile<S, W>&) const {}
  void backward_rows(const BackwardTile<S>&) const {}
  void backward_block(const BackwardBlock<S>&) const {}

 private:
  static void check_row(const Routing<S>& routing, Index row) {
    const auto refuse = [row](const std::string& what) {
      fail(Code::router_output, "row " + detail::text(row) + " of the given routing: " + what);
    };
    const Index count = routing.count[static_cast<std::size_t>(row)];
    if (count < 0 || count > routing.max_chosen)
      refuse("chooses " + detail::text(count) + " experts, wanted 0 to " + detail::text(routing.max_chosen));
    const int* chosen = routing.chosen_row(row);
    const S* gates = routing.gate_row(row);
    Index next = 0;
    for (Index j = 0; j < count; ++j) {
      if (chosen[j] < next || chosen[j] >= routing.experts)
        refuse("expert " + detail::text(chosen[j]) + ", wanted distinct experts in ascending order below " +
               detail::text(routing.experts));
      for (; next < chosen[j]; ++next)
        if (gates[next] != S(0)) refuse("expert " + detail::text(next) + " has a gate but is not chosen");
      if (!std::isfinite(gates[next])) refuse("the gate of expert " + detail::text(next) + " is not finite");
      ++next;
    }
    for (; next < routing.experts; ++next)
      if (gates[next] != S(0)) refuse("expert " + detail::text(next) + " has a gate but is not chosen");
  }

  Config config_;
};

/// Fills a routing from a matrix of gates [rows, experts]; experts whose gate is not 0 are chosen. A row of
/// zeros chooses none and gets the base. Throws ShapeMismatch where rows is not a multiple of
/// `rows_per_token`, ConfigRange where that is below 1.
template <Scalar S>
void give_gates(Routing<S>& routing, In<S> gates, Index rows_per_token = 1) {
  detail::expect_shape("gates", gates, -1, -1);
  detail::expect_range(rows_per_token >= 1, "rows_per_token", static_cast<double>(rows_per_token),
                       "1 or more");
  if (gates.rows % rows_per_token != 0)
    fail(Code::shape_mismatch, "gates has " + detail::text(gates.rows) + " rows, wanted a multiple of " +
                                   detail::text(rows_per_token) + " (rows per token)");
  const auto count_of = [&](Index row) {
    return std::count_if(gates.row(row), gates.row(row) + gates.cols, [](S gate) { return gate != S(0); });
  };
  Index most = 0;
  for (Index row = 0; row < gates.rows; ++row) most = std::max<Index>(most, count_of(row));
  routing.resize(gates.rows / rows_per_token, gates.cols, rows_per_token, most);
  std::fill(routing.logits.begin(), routing.logits.end(), S(0));
  for (Index row = 0; row < gates.rows; ++row) {
    std::copy_n(gates.row(row), gates.cols, routing.gate_row(row));
    std::copy_n(gates.row(row), gates.cols, routing.probs.data() + row * gates.cols);
    int count = 0;
    for (Index e = 0; e < gates.cols; ++e)
      if (gates.row(row)[e] != S(0))
        routing.chosen[static_cast<std::size_t>(row * most + count++)] = static_cast<int>(e);
    routing.count[static_cast<std::size_t>(row)] = count;
  }
}

}  // namespace moxie::inline MOXIE_ABI
