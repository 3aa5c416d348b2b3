// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/experts/lora_config.hpp>
#include <moxie/kernels/combine.hpp>
#include <moxie/kernels/dot.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI {

/// E experts that share one A: y += s sum over e of g_e B_e A x. A is [r, in], the B, transposed, are stacked
/// to [E r, out]. HydraLoRA, arXiv:2404.19245, eq. 4. Dropout has one mask for the one product A x; the
/// released code computes A x again for every expert, each time with a mask of its own.
template <Scalar S>
class HydraBank {
 public:
  using Scalar = S;
  struct Config {
    Index in = 0, out = 0;
    Index experts = 1;
    Index rank = 8;
    double alpha = 8;
    LoraScaling scaling = LoraScaling::alpha_over_rank;  ///< not `fixed`
    double dropout = 0;                 ///< probability that an input feature is dropped in training
    Init init = Init::kaiming_uniform;  ///< of A; B starts at 0
    ExpertPath path = ExpertPath::automatic;
  };
  static constexpr bool multiplicative = false;

  /// Throws ConfigRange naming the setting.
  explicit HydraBank(const Config& config) : config_(config) {
    const LoraConfig lora{.in = config.in,
                          .out = config.out,
                          .experts = config.experts,
                          .rank = config.rank,
                          .alpha = config.alpha,
                          .scaling = config.scaling,
                          .dropout = config.dropout};
    const double scale = detail::scales(lora, detail::first_rows(lora)).front();
    detail::expect_range(detail::finite_as<S>(scale), "LoRA scale", scale, "a finite number");
    scale_ = static_cast<S>(scale);
  }

  const Config& config() const { return config_; }
  Index experts() const { return config_.experts; }
  Index in() const { return config_.in; }
  Index out() const { return config_.out; }
  Index rank() const { return config_.rank; }
  S scale() const { return scale_; }
  Index rows_per_token() const { return 1; }
  Index size() const { return rank() * in() + total_rank() * out(); }
  std::vector<Field> fields() const {
    return {{.name = "lora_A", .shape = {rank(), in()}}, {.name = "lora_B", .shape = {total_rank(), out()}}};
  }
  void init(std::span<S> theta, std::uint64_t seed) const {
    detail::expect_size("theta", theta.size(), size());
    std::fill(theta.begin(), theta.end(), S(0));
    detail::initialise(theta.first(static_cast<std::size_t>(rank() * in())), config_.init, in(), rank(),
                       random::key(random::Use::init, {seed, 1, 0}));
  }

  std::array<kernels::MatrixShape, 2> matrices() const {
    return {{{rank(), in(), false}, {total_rank(), out(), true}}};
  }

  Index cached() const { return rank(); }
  Index factors() const { return rank() + total_rank(); }  // dh, c
  Index blocks(Index tokens) const {
    return detail::column_blocks(in(), tokens) + detail::column_blocks(out(), tokens);
  }
  Index scratch(Index tile) const {
    const Index row = total_rank() + (config_.dropout > 0 ? 2 * in() : 0);
    return std::max(tile * row, (total_rank() + detail::chunk_tokens) * detail::least_block_columns);
  }
  Index lists(Index) const { return total_rank(); }

  /// h = A x; c_e = (scale gate_e) h; y += sum of c B, one chain over (expert, rank) ascending, added once.
  template <class W>
  void forward_rows(const ForwardTile<S, W>& tile) const {
    const Index tokens = tile.x.rows;
    S* const c = tile.scratch;  // [tokens, E r]
    In<S> x = tile.x;
    if (dropped(tile.run)) {
      S* const space = c + tokens * total_rank();
      detail::drop(config_.dropout, 0, x, 0, in(), tile.first, tile.run, space, in());
      x = In<S>(space, tokens, in());
    }
    kernels::dot(x, tile.weights[0], Out<S>(tile.h.data, tokens, rank(), tile.h.stride));
    weigh(tile, In<S>(tile.h), c, total_rank());
    if (!detail::grouped(config_.path, tile.routing))
      return kernels::combine(kernels::Into::add, {c, total_rank(), 1}, tile.weights[1], tile.y);
    for (Index t = 0; t < tokens; ++t) {
      int* end = tile.lists;
      detail::for_chosen(tile.routing, tile.first + t, [&](Index e) {
        for (Index j = e * rank(); j < (e + 1) * rank(); ++j) *end++ = static_cast<int>(j);
      });
      const std::span<const int> rows(tile.lists, end);
      if (!rows.empty())
        kernels::combine(kernels::Into::add, {c + t * total_rank(), total_rank(), 1}, rows, tile.weights[1],
                         tile.y.middle_rows(t, 1));
    }
  }

  /// u = B^T dy; dgate_e = s (h . u_e); dh = sum over e of (scale gate_e) u_e; dx += mask A^T dh.
  void backward_rows(const BackwardTile<S>& tile) const {
    const Index tokens = tile.x.rows, r = rank();
    S* const u = tile.scratch;  // [tokens, E r]
    kernels::dot(tile.dy, tile.weights[1], Out<S>(u, tokens, total_rank()));
    weigh(tile, tile.h, tile.factors.data + r, tile.factors.stride);
    const S strength = scale_ * static_cast<S>(tile.run.scale);
    for (Index t = 0; t < tokens; ++t) {
      S* const dh = tile.factors.row(t);
      std::fill_n(dh, r, S(0));
      for (Index e = 0; e < experts(); ++e) {
        const S* const of_expert = u + t * total_rank() + e * r;
        tile.drouting.gates[static_cast<std::size_t>((tile.first + t) * experts() + e)] =
            strength * detail::chain(tile.h.row(t), of_expert, r);
        const S weight = strength * tile.routing.gate_row(tile.first + t)[e];
        for (Index j = 0; j < r; ++j) dh[j] = madd(weight, of_expert[j], dh[j]);
      }
    }
    if (tile.dx.empty()) return;
    const kernels::Coefficients<S> dh{tile.factors.data, tile.factors.stride, 1};
    if (!dropped(tile.run)) return kernels::combine(kernels::Into::add, dh, tile.weights[0], tile.dx);
    S* const part = u + tokens * total_rank();  // [tokens, in]
    S* const sum = part + tokens * in();        // [tokens, in]
    std::fill_n(sum, tokens * in(), S(0));
    kernels::combine(kernels::Into::set, dh, tile.weights[0], Out<S>(part, tokens, in()));
    detail::drop_backward(config_.dropout, 0, In<S>(part, tokens, in()), tile.first, tile.run, sum);
    kernels::add(In<S>(sum, tokens, in()), tile.dx);
  }

  /// dA += dh^T x (as it was dropped), dB += c^T dy, for one block of columns. The chain of each element goes
  /// on from chunk to chunk of tokens in scratch.
  void backward_block(const BackwardBlock<S>& b) const {
    detail::Cursor<S> cursor(b.dtheta);
    S* const da = cursor.take(rank() * in()).data();
    S* const db = cursor.take(total_rank() * out()).data();
    const Index columns = detail::block_columns(b.x.rows), of_a = detail::column_blocks(in(), b.x.rows);
    const bool a = b.block < of_a;
    const Index column = (a ? b.block : b.block - of_a) * columns, width = a ? in() : out();
    gradient(
        b, a ? b.x : b.dy, column, a ? 0 : rank(), a && dropped(b.run),
        Out<S>((a ? da : db) + column, a ? rank() : total_rank(), std::min(columns, width - column), width));
  }

 private:
  Index total_rank() const { return experts() * rank(); }
  bool dropped(const Run& run) const { return run.training && config_.dropout > 0; }

  /// c[t, e r + j] = (scale gate_e) h[t, j].
  template <class Tile>
  void weigh(const Tile& tile, In<S> h, S* c, Index ldc) const {
    const S strength = scale_ * static_cast<S>(tile.run.scale);
    for (Index t = 0; t < tile.x.rows; ++t)
      for (Index e = 0; e < experts(); ++e) {
        const S weight = strength * tile.routing.gate_row(tile.first + t)[e];
        for (Index j = 0; j < rank(); ++j) c[t * ldc + e * rank() + j] = weight * h.row(t)[j];
      }
  }

  /// to[j, i] += sum over tokens of factors[t, at + j] of[t, column + i], of its masked values where it
  /// drops.
  void gradient(const BackwardBlock<S>& b, In<S> of, Index column, Index at, bool drops, Out<S> to) const {
    using kernels::Into;
    constexpr Index chunk = detail::chunk_tokens;
    const bool at_once = of.rows <= chunk;
    const Out<S> piece(b.scratch, std::min(chunk, of.rows), to.cols);
    const Out<S> sum = at_once ? to : Out<S>(b.scratch + chunk * to.cols, to.rows, to.cols);
    for (Index t = 0; t < of.rows; t += chunk) {
      const Index tokens = std::min(chunk, of.rows - t);
      kernels::Panels<S> seen(of.row(t) + column, tokens, to.cols, of.stride);
      if (drops) {
        detail::drop(config_.dropout, 0, of.middle_rows(t, tokens), column, to.cols, t, b.run, piece.data,
                     to.cols);
        seen = kernels::Panels<S>(piece.middle_rows(0, tokens));
      }
      kernels::combine(at_once  ? Into::add
                       : t == 0 ? Into::set
                                : Into::chain,
                       {b.factors.row(t) + at, 1, b.factors.stride}, seen, sum);
    }
    if (!at_once) kernels::add(In<S>(sum), to);
  }

  Config config_;
  S scale_;
};

}  // namespace moxie::inline MOXIE_ABI
