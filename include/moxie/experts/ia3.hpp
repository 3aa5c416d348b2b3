// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>
#include <moxie/experts/path.hpp>
#include <moxie/kernels/packet.hpp>

namespace moxie::inline MOXIE_ABI {

/// E scaling vectors that multiply an activation: y = x * s, s = sum over e of g_e l_e. Per head the vectors
/// are [heads, E, features / heads] and every head of a token mixes its own E vectors by its own gates. IA3:
/// arXiv:2205.05638, section 3.3; MoV: arXiv:2309.05444, eq. 5 (per head as in the released `mov.py`).
/// Run::scale other than 1 moves s on the line from 1 (the base) through s.
template <Scalar S>
class Ia3Bank {
 public:
  using Scalar = S;
  struct Config {
    Index features = 0;
    Index heads = 1;
    Index experts = 1;
    ExpertPath path = ExpertPath::automatic;
  };
  static constexpr bool multiplicative = true;

  /// Throws ConfigRange naming the setting.
  explicit Ia3Bank(const Config& config) : config_(config) {
    using detail::expect_range;
    expect_range(config.features >= 1, "IA3 features", static_cast<double>(config.features), "1 or more");
    expect_range(config.experts >= 1, "IA3 experts", static_cast<double>(config.experts), "1 or more");
    expect_range(config.heads >= 1 && config.features % std::max<Index>(config.heads, 1) == 0, "IA3 heads",
                 static_cast<double>(config.heads),
                 "a divisor of the " + detail::text(config.features) + " features");
    detail::checked_product("IA3 vectors", config.features, config.experts);
  }

  const Config& config() const { return config_; }
  Index experts() const { return config_.experts; }
  Index in() const { return config_.features; }
  Index out() const { return config_.features; }
  Index rows_per_token() const { return config_.heads; }
  Index size() const { return config_.features * config_.experts; }
  std::vector<Field> fields() const {
    if (config_.heads == 1) return {{.name = "ia3_l", .shape = {experts(), in()}, .decay = false}};
    return {{.name = "ia3_l", .shape = {config_.heads, experts(), head()}, .decay = false}};
  }
  void init(std::span<S> theta, std::uint64_t) const {
    detail::expect_size("theta", theta.size(), size());
    std::fill(theta.begin(), theta.end(), S(1));
  }

  Index cached() const { return 0; }
  Index factors() const { return 0; }
  Index blocks() const { return config_.heads * detail::column_blocks(head()); }
  Index scratch(Index tile) const { return std::max(2 * tile * in(), (experts() + chunk) * block_columns); }

  void forward_rows(const ForwardTile<S>& tile) const {
    S* const s = tile.scratch;
    mix(tile.theta.data(), tile.routing, tile.first, tile.x.rows, tile.run, s);
    for (Index t = 0; t < tile.x.rows; ++t)
      for (Index i = 0; i < in(); ++i) tile.y.row(t)[i] = tile.x.row(t)[i] * s[t * in() + i];
  }

  /// dgate_e = sum over features of dy x l_e; dx += dy s.
  void backward_rows(const BackwardTile<S>& tile) const {
    const Index tokens = tile.x.rows, d = head(), heads = config_.heads;
    S* const product = tile.scratch;  // [tokens, features], dy x
    multiply(tile.x, tile.dy, 0, in(), tile.run, product, in());
    for (Index h = 0; h < heads; ++h)
      kernels::dot(product + h * d, in(), tokens, tile.theta.data() + h * experts() * d, d, experts(), d,
                   tile.drouting.gates.data() + (tile.first * heads + h) * experts(), heads * experts());
    if (tile.dx.empty()) return;
    S* const s = product + tokens * in();
    mix(tile.theta.data(), tile.routing, tile.first, tokens, tile.run, s);
    // Two loops, so that the product is rounded before it is added to what the caller has.
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < in(); ++i) s[t * in() + i] *= tile.dy.row(t)[i];
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < in(); ++i) tile.dx.row(t)[i] += s[t * in() + i];
  }

  /// dl_e += sum over tokens of g_e dy x, for one block of columns of one head.
  void backward_block(const BackwardBlock<S>& b) const {
    const Index d = head(), heads = config_.heads, blocks = detail::column_blocks(d);
    const Index h = b.block / blocks, column = b.block % blocks * block_columns,
                width = std::min(block_columns, d - column);
    S* const sum = b.scratch;
    S* const product = sum + experts() * block_columns;
    std::fill_n(sum, experts() * block_columns, S(0));
    for (Index t = 0; t < b.x.rows; t += chunk) {
      const Index tokens = std::min(chunk, b.x.rows - t);
      multiply(b.x.middle_rows(t, tokens), b.dy.middle_rows(t, tokens), h * d + column, width, b.run, product,
               block_columns);
      kernels::combine(kernels::Into::chain, b.routing.gate_row(t * heads + h), 1, heads * experts(),
                       experts(), tokens, product, block_columns, width, sum, block_columns);
    }
    S* const dl = b.dtheta.data() + h * experts() * d + column;
    for (Index e = 0; e < experts(); ++e)
      for (Index i = 0; i < width; ++i) dl[e * d + i] += sum[e * block_columns + i];
  }

 private:
  static constexpr Index chunk = 64;  // tokens whose product dy x lies in scratch at a time

  Index head() const { return config_.features / config_.heads; }  // its features

  /// s [tokens, features], a chain over experts ascending.
  void mix(const S* l, const Routing<S>& routing, Index first, Index tokens, const Run& run, S* s) const {
    const Index d = head(), heads = config_.heads;
    const bool grouped = detail::grouped(config_.path, routing);
    if (grouped) std::fill_n(s, tokens * in(), S(0));
    for (Index h = 0; h < heads; ++h) {
      const S* const lh = l + h * experts() * d;
      if (!grouped) {
        kernels::combine(kernels::Into::set, routing.gate_row(first * heads + h), heads * experts(), 1,
                         tokens, experts(), lh, d, d, s + h * d, in());
        continue;
      }
      for (Index t = 0; t < tokens; ++t) {
        const Index row = (first + t) * heads + h;
        detail::for_chosen(routing, row, [&](Index e) {
          kernels::combine(kernels::Into::chain, routing.gate_row(row) + e, 1, 1, 1, 1, lh + e * d, d, d,
                           s + t * in() + h * d, in());
        });
      }
    }
    if (run.scale == 1) return;
    const S strength = static_cast<S>(run.scale);
    for (Index i = 0; i < tokens * in(); ++i) s[i] = madd(strength, s[i] - S(1), S(1));
  }

  /// to[t, i] = dy x, times the strength of the run, from a column on.
  void multiply(In<S> x, In<S> dy, Index column, Index width, const Run& run, S* to, Index ldto) const {
    const S strength = static_cast<S>(run.scale);
    for (Index t = 0; t < x.rows; ++t)
      for (Index i = 0; i < width; ++i)
        to[t * ldto + i] = strength * dy.row(t)[column + i] * x.row(t)[column + i];
  }

  Config config_;
};

}  // namespace moxie::inline MOXIE_ABI
