// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>
#include <moxie/experts/path.hpp>
#include <moxie/kernels/combine.hpp>
#include <moxie/kernels/dot.hpp>

#include <array>

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

  std::array<kernels::MatrixShape, 1> matrices() const {
    return {{{config_.heads * experts(), head(), true}}};
  }

  Index cached() const { return 0; }
  Index factors() const { return 0; }
  Index blocks(Index tokens) const { return config_.heads * detail::column_blocks(head(), tokens); }
  Index scratch(Index) const { return experts() * detail::most_block_columns; }

  template <class W>
  void forward_rows(const ForwardTile<S, W>& tile) const {
    forward_part(tile, 0, 0, 1);
  }

  /// forward_rows of a few tokens cut into parts that may run side by side: heads, or columns of one head.
  static constexpr int stages = 1;
  template <class W>
  void forward_part(const ForwardTile<S, W>& tile, int, Index part, Index parts) const {
    const Index all = config_.heads > 1 ? config_.heads : kernels::panels(head());
    const Index first = all * part / parts, last = all * (part + 1) / parts;
    const bool by_heads = config_.heads > 1;
    for (Index h = by_heads ? first : 0; h < (by_heads ? last : 1); ++h) {
      const Index column = by_heads ? 0 : first * kernels::panel_columns,
                  columns = by_heads ? head() : std::min(last * kernels::panel_columns, head()) - column;
      if (columns > 0) scale(kernels::Into::multiply, tile, tile.x, h, column, columns, tile.y);
    }
  }

  /// dgate_e = sum over features of dy x l_e, where it is wanted; dx += dy s.
  void backward_rows(const BackwardTile<S>& tile) const {
    const Index tokens = tile.x.rows, d = head(), heads = config_.heads;
    const S strength = static_cast<S>(tile.run.scale);
    for (Index h = 0; h < heads; ++h) {
      const Out<S> dgates(tile.drouting.gates.data() + (tile.first * heads + h) * experts(), tokens,
                          experts(), heads * experts());
      if (tile.gates_wanted)
        kernels::dot(columns_of(tile.x, h), columns_of(tile.dy, h),
                     tile.weights[0].middle_rows(h * experts(), experts()), dgates);
      for (Index t = 0; t < tokens; ++t) {
        S* const row = dgates.row(t);
        if (!tile.gates_wanted) std::fill_n(row, experts(), S(0));
        for (Index e = 0; strength != 1 && e < experts(); ++e) row[e] *= strength;
      }
      if (!tile.dx.empty()) scale(kernels::Into::multiply_add, tile, tile.dy, h, 0, d, tile.dx);
    }
  }

  /// dl_e += sum over tokens of g_e dy x, for one block of columns of one head. The chain of each element
  /// goes on from chunk to chunk of tokens in scratch, so that a chunk stays in the first cache.
  void backward_block(const BackwardBlock<S>& b) const {
    const Index d = head(), heads = config_.heads, columns = detail::block_columns(b.x.rows),
                blocks = detail::column_blocks(d, b.x.rows);
    const Index h = b.block / blocks, column = b.block % blocks * columns,
                width = std::min(columns, d - column);
    const S strength = static_cast<S>(b.run.scale);
    const bool at_once = b.x.rows <= detail::chunk_tokens && strength == 1;
    const Out<S> dl(b.dtheta.data() + h * experts() * d + column, experts(), width, d),
        sum(b.scratch, experts(), width);
    const auto seen = [&](In<S> m, Index t, Index tokens) {
      return In<S>(m.row(t) + h * d + column, tokens, width, m.stride);
    };
    for (Index t = 0; t < b.x.rows; t += detail::chunk_tokens) {
      const Index tokens = std::min(detail::chunk_tokens, b.x.rows - t);
      const auto into = at_once ? kernels::Into::add : t == 0 ? kernels::Into::set : kernels::Into::chain;
      kernels::combine(into, {b.routing.gate_row(t * heads + h), 1, heads * experts()}, seen(b.x, t, tokens),
                       seen(b.dy, t, tokens), at_once ? dl : sum);
    }
    if (!at_once) kernels::add(In<S>(sum), dl, strength);
  }

 private:
  Index head() const { return config_.features / config_.heads; }  // its features
  In<S> columns_of(In<S> m, Index h) const { return {m.data + h * head(), m.rows, head(), m.stride}; }

  /// to = of * s, or to += of * s, for some columns of one head; s is a chain over experts ascending and
  /// never stored.
  template <class Tile>
  void scale(kernels::Into into, const Tile& tile, In<S> of, Index h, Index column, Index columns,
             Out<S> to) const {
    const Index tokens = tile.x.rows, heads = config_.heads, at = h * head() + column;
    const kernels::End<S> end(into, In<S>(of.data + at, tokens, columns, of.stride),
                              static_cast<S>(tile.run.scale));
    const kernels::Coefficients<S> gates{tile.routing.gate_row(tile.first * heads + h), heads * experts(), 1};
    const auto l = tile.weights[0].middle_rows(h * experts(), experts()).middle_cols(column, columns);
    const Out<S> target(to.data + at, tokens, columns, to.stride);
    if (!detail::grouped(config_.path, tile.routing)) return kernels::combine(end, gates, l, target);
    for (Index t = 0; t < tokens; ++t) {
      const Index row = (tile.first + t) * heads + h;
      const std::span<const int> chosen(
          tile.routing.chosen_row(row),
          static_cast<std::size_t>(tile.routing.count[static_cast<std::size_t>(row)]));
      kernels::combine({into, end.other.middle_rows(t, 1), end.strength},
                       kernels::Coefficients<S>{gates.data + t * gates.row, gates.row, 1}, chosen, l,
                       target.middle_rows(t, 1));
    }
  }

  Config config_;
};

}  // namespace moxie::inline MOXIE_ABI
