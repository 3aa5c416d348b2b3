// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/experts/lora_config.hpp>
#include <moxie/kernels/packet.hpp>

namespace moxie::inline MOXIE_ABI {

/// E low-rank experts as one bank: y += sum over e of g_e s_e (B_e A_e x_e + b_e), where x_e is x after
/// dropout. The A are stacked to [R, in] and the B, transposed, to [R, out], R the sum of the ranks.
/// arXiv:2106.09685, eq. 3; as a mixture arXiv:2309.05444, section 3.2, arXiv:2312.09979, eq. 4.
template <Scalar S>
class LoraBank {
 public:
  using Scalar = S;
  using Config = LoraConfig;
  static constexpr bool multiplicative = false;

  /// Throws ConfigRange naming the setting.
  explicit LoraBank(const Config& config) : config_(config), begin_(detail::first_rows(config)) {
    for (const double scale : detail::scales(config, begin_)) {
      detail::expect_range(detail::finite_as<S>(scale), "LoRA scale", scale, "a finite number");
      scale_.push_back(static_cast<S>(scale));
    }
  }

  const Config& config() const { return config_; }
  Index experts() const { return config_.experts; }
  Index in() const { return config_.in; }
  Index out() const { return config_.out; }
  Index rows_per_token() const { return 1; }
  Index total_rank() const { return begin_.back(); }
  Index rank(Index e) const { return begin(e + 1) - begin(e); }
  Index begin(Index e) const {
    return begin_[static_cast<std::size_t>(e)];
  }  ///< first row of expert e in A and B
  S scale(Index e) const { return scale_[static_cast<std::size_t>(e)]; }

  Index size() const { return total_rank() * (in() + out()) + (config_.bias ? experts() * out() : 0); }
  std::vector<Field> fields() const {
    std::vector<Field> fields{{.name = "lora_A", .shape = {total_rank(), in()}},
                              {.name = "lora_B", .shape = {total_rank(), out()}}};
    if (config_.bias) fields.push_back({.name = "lora_bias", .shape = {experts(), out()}, .decay = false});
    return fields;
  }
  void init(std::span<S> theta, std::uint64_t seed) const {
    detail::expect_size("theta", theta.size(), size());
    std::fill(theta.begin(), theta.end(), S(0));
    for (Index e = 0; e < experts(); ++e)
      detail::initialise(
          theta.subspan(static_cast<std::size_t>(begin(e) * in()), static_cast<std::size_t>(rank(e) * in())),
          config_.init, in(), rank(e),
          random::key(random::Use::init, {seed, 1, static_cast<std::uint64_t>(e)}));
  }

  Index cached() const { return total_rank(); }
  /// dh [R], c [R] and, with biases, scale times gate [E].
  Index factors() const { return 2 * total_rank() + (config_.bias ? experts() : 0); }
  Index blocks() const { return in_blocks() + out_blocks(); }
  Index scratch(Index tile) const {
    const Index rows = tile * (total_rank() + in() + std::max(in(), out()) + experts());
    return std::max(rows, (total_rank() + experts() + chunk) * block_columns);
  }

  /// h = A x_e; c = (scale gate) h; y += sum of c B, one chain over (expert, rank) ascending, added once.
  void forward_rows(const ForwardTile<S>& tile) const {
    const Index tokens = tile.x.rows;
    S* const c = tile.scratch;                   // [tokens, R]
    S* const space = c + tokens * total_rank();  // [tokens, in] and [tokens, out]
    down(tile.theta.data(), tile.x, tile.first, tile.routing, tile.h, space, tile.run);
    const Weights weights{*this, tile.routing, tile.first, tile.run};
    for (Index t = 0; t < tokens; ++t)
      for (Index e = 0; e < experts(); ++e) {
        const S weight = weights(t, e);
        for (Index j = begin(e); j < begin(e + 1); ++j) c[t * total_rank() + j] = weight * tile.h.row(t)[j];
      }
    up(b_of(tile.theta.data()), out(), c, total_rank(), tile.routing, tile.first, tokens,
       config_.bias ? bias_of(tile.theta.data()) : nullptr, weights, space, tile.y);
  }

  /// u = B^T dy; dgate_e = s_e (h_e . u_e + b_e . dy); dh = (scale gate) u; dx += sum over e of mask_e A_e^T
  /// dh_e.
  void backward_rows(const BackwardTile<S>& tile) const {
    const Index tokens = tile.x.rows, ranks = total_rank();
    const S* const b = b_of(tile.theta.data());
    const Weights weights{*this, tile.routing, tile.first, tile.run};
    const bool grouped = detail::grouped(config_.path, tile.routing);
    if (!grouped)
      kernels::dot(tile.dy.data, tile.dy.stride, tokens, b, out(), ranks, out(), tile.factors.data,
                   tile.factors.stride);
    for (Index t = 0; t < tokens; ++t) {
      S* const dh = tile.factors.row(t);
      S* const c = dh + ranks;
      if (grouped) std::fill_n(dh, ranks, S(0));
      const auto expert = [&](Index e) {
        const Index from = begin(e), r = rank(e);
        if (grouped)
          kernels::dot(tile.dy.row(t), out(), 1, b + from * out(), out(), r, out(), dh + from, ranks);
        S slope = detail::chain(tile.h.row(t) + from, dh + from, r);
        if (config_.bias) {
          S through_bias;
          kernels::dot(tile.dy.row(t), out(), 1, bias_of(tile.theta.data()) + e * out(), out(), 1, out(),
                       &through_bias, 1);
          slope += through_bias;
        }
        tile.drouting.gates[static_cast<std::size_t>((tile.first + t) * experts() + e)] =
            weights.scale(e) * slope;
      };
      if (grouped)
        detail::for_chosen(tile.routing, tile.first + t, expert);
      else
        for (Index e = 0; e < experts(); ++e) expert(e);
      for (Index e = 0; e < experts(); ++e) {
        const S weight = weights(t, e);
        for (Index j = begin(e); j < begin(e + 1); ++j) {
          dh[j] *= weight;
          c[j] = weight * tile.h.row(t)[j];
        }
        if (config_.bias) c[ranks + e] = weight;
      }
    }
    if (tile.dx.empty()) return;
    if (!dropped(tile.run)) {
      up(tile.theta.data(), in(), tile.factors.data, tile.factors.stride, tile.routing, tile.first, tokens,
         nullptr, weights, tile.scratch, tile.dx);
    } else {
      down_backward_with_dropout(tile);
    }
  }

  /// dA += dh^T x_e, dB += c^T dy, dbias += (scale gate)^T dy, for one block of columns.
  void backward_block(const BackwardBlock<S>& b) const {
    const Index ranks = total_rank(), tokens = b.x.rows;
    detail::Cursor<S> cursor(b.dtheta);
    S* const da = cursor.take(ranks * in()).data();
    S* const db = cursor.take(ranks * out()).data();
    if (b.block >= in_blocks()) {
      const Index column = (b.block - in_blocks()) * block_columns,
                  width = std::min(block_columns, out() - column);
      kernels::combine(kernels::Into::add, b.factors.data + ranks, 1, b.factors.stride, ranks, tokens,
                       b.dy.data + column, b.dy.stride, width, db + column, out());
      if (config_.bias)
        kernels::combine(kernels::Into::add, b.factors.data + 2 * ranks, 1, b.factors.stride, experts(),
                         tokens, b.dy.data + column, b.dy.stride, width, db + ranks * out() + column, out());
      return;
    }
    const Index column = b.block * block_columns, width = std::min(block_columns, in() - column);
    if (!dropped(b.run)) {
      kernels::combine(kernels::Into::add, b.factors.data, 1, b.factors.stride, ranks, tokens,
                       b.x.data + column, b.x.stride, width, da + column, in());
      return;
    }
    // Dropout: the chain of each element goes on from chunk to chunk of tokens in `sum`.
    S* const sum = b.scratch;
    S* const masked = sum + ranks * block_columns;
    std::fill_n(sum, ranks * block_columns, S(0));
    for (Index t = 0; t < tokens; t += chunk) {
      const In<S> x = b.x.middle_rows(t, std::min(chunk, tokens - t));
      for (Index e = 0; e < masks(); ++e) {
        detail::drop(dropout(), mask_id(e), x, column, width, t, b.run, masked, block_columns);
        const Index from = per_expert() ? begin(e) : 0, r = per_expert() ? rank(e) : ranks;
        kernels::combine(kernels::Into::chain, b.factors.row(t) + from, 1, b.factors.stride, r, x.rows,
                         masked, block_columns, width, sum + from * block_columns, block_columns);
      }
    }
    for (Index j = 0; j < ranks; ++j)
      for (Index i = 0; i < width; ++i) da[j * in() + column + i] += sum[j * block_columns + i];
  }

 private:
  static constexpr Index chunk = 64;  // tokens whose masked input lies in scratch at a time

  /// scale_e times gate, in that order, of a tile's token.
  struct Weights {
    const LoraBank& bank;
    const Routing<S>& routing;
    Index first;
    const Run& run;
    S scale(Index e) const {
      return run.scale == 1 ? bank.scale(e) : bank.scale(e) * static_cast<S>(run.scale);
    }
    S operator()(Index t, Index e) const { return scale(e) * routing.gate_row(first + t)[e]; }
  };

  Index in_blocks() const { return detail::column_blocks(in()); }
  Index out_blocks() const { return detail::column_blocks(out()); }
  const S* b_of(const S* theta) const { return theta + total_rank() * in(); }
  const S* bias_of(const S* theta) const { return theta + total_rank() * (in() + out()); }
  bool dropped(const Run& run) const { return run.training && config_.dropout > 0; }
  bool per_expert() const { return config_.mask == DropoutMask::per_expert; }
  double dropout() const { return config_.dropout; }
  Index masks() const { return per_expert() ? experts() : 1; }
  std::uint64_t mask_id(Index e) const { return per_expert() ? static_cast<std::uint64_t>(e) + 1 : 0; }

  /// h = A x_e, 0 for experts that the grouped path skips.
  void down(const S* a, In<S> x, Index first, const Routing<S>& routing, Out<S> h, S* space,
            const Run& run) const {
    const bool drops = dropped(run);
    const bool grouped = detail::grouped(config_.path, routing);
    if (grouped)
      for (Index t = 0; t < x.rows; ++t) std::fill_n(h.row(t), total_rank(), S(0));
    for (Index mask = 0; mask < (drops ? masks() : 1); ++mask) {
      In<S> seen = x;
      if (drops) {
        detail::drop(dropout(), mask_id(mask), x, 0, in(), first, run, space, in());
        seen = In<S>(space, x.rows, in());
      }
      const bool one = drops && per_expert();
      if (!grouped) {
        const Index from = one ? begin(mask) : 0, r = one ? rank(mask) : total_rank();
        kernels::dot(seen.data, seen.stride, seen.rows, a + from * in(), in(), r, in(), h.data + from,
                     h.stride);
        continue;
      }
      for (Index t = 0; t < x.rows; ++t)
        detail::for_chosen(routing, first + t, [&](Index e) {
          if (!one || e == mask)
            kernels::dot(seen.row(t), seen.stride, 1, a + begin(e) * in(), in(), rank(e), in(),
                         h.row(t) + begin(e), h.stride);
        });
    }
  }

  /// to += sum over j of c[t, j] m[j], a chain over (expert, rank) ascending and then the biases, added once.
  void up(const S* m, Index cols, const S* c, Index ldc, const Routing<S>& routing, Index first, Index tokens,
          const S* bias, const Weights& weights, S* space, Out<S> to) const {
    using kernels::Into;
    const bool grouped = detail::grouped(config_.path, routing);
    if (!grouped && bias == nullptr) {
      kernels::combine(Into::add, c, ldc, 1, tokens, total_rank(), m, cols, cols, to.data, to.stride);
      return;
    }
    S* const gates = space;                       // [tokens, E]
    S* const delta = space + tokens * experts();  // [tokens, cols]
    if (grouped) {
      std::fill_n(delta, tokens * cols, S(0));
      for (Index t = 0; t < tokens; ++t)
        detail::for_chosen(routing, first + t, [&](Index e) {
          kernels::combine(Into::chain, c + t * ldc + begin(e), ldc, 1, 1, rank(e), m + begin(e) * cols, cols,
                           cols, delta + t * cols, cols);
        });
    } else {
      kernels::combine(Into::set, c, ldc, 1, tokens, total_rank(), m, cols, cols, delta, cols);
    }
    if (bias != nullptr) {
      for (Index t = 0; t < tokens; ++t)
        for (Index e = 0; e < experts(); ++e) gates[t * experts() + e] = weights(t, e);
      kernels::combine(Into::chain, gates, experts(), 1, tokens, experts(), bias, cols, cols, delta, cols);
    }
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < cols; ++i) to.row(t)[i] += delta[t * cols + i];
  }

  /// dx += sum over masks of mask (A^T dh), summed from 0 in ascending order and added once.
  void down_backward_with_dropout(const BackwardTile<S>& tile) const {
    const Index tokens = tile.x.rows;
    S* const part = tile.scratch;         // [tokens, in]
    S* const sum = part + tokens * in();  // [tokens, in]
    std::fill_n(sum, tokens * in(), S(0));
    for (Index e = 0; e < masks(); ++e) {
      const Index from = per_expert() ? begin(e) : 0, r = per_expert() ? rank(e) : total_rank();
      kernels::combine(kernels::Into::set, tile.factors.data + from, tile.factors.stride, 1, tokens, r,
                       tile.theta.data() + from * in(), in(), in(), part, in());
      detail::drop_backward(dropout(), mask_id(e), In<S>(part, tokens, in()), tile.first, tile.run, sum);
    }
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < in(); ++i) tile.dx.row(t)[i] += sum[t * in() + i];
  }

  Config config_;
  std::vector<Index> begin_;
  std::vector<S> scale_;
};

}  // namespace moxie::inline MOXIE_ABI
