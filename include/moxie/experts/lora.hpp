// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/experts/lora_shape.hpp>
#include <moxie/kernels/combine.hpp>
#include <moxie/kernels/dot.hpp>
#include <moxie/kernels/visits.hpp>

namespace moxie::inline MOXIE_ABI {

/// E low-rank experts as one bank: y += sum over e of g_e s_e (B_e A_e x_e + b_e), where x_e is x after
/// dropout. The A are stacked to [R, in] and the B, transposed, to [R, out], R the sum of the ranks.
/// arXiv:2106.09685, eq. 3; as a mixture arXiv:2309.05444, section 3.2, arXiv:2312.09979, eq. 4.
template <Scalar S>
class LoraBank : public LoraShape<S> {
 public:
  using LoraShape<S>::LoraShape;
  using LoraShape<S>::begin, LoraShape<S>::config, LoraShape<S>::experts, LoraShape<S>::in, LoraShape<S>::out;
  using LoraShape<S>::rank, LoraShape<S>::total_rank;

  bool grouped(const Routing<S>& routing) const { return detail::grouped(config().path, routing); }

  Index cached() const { return total_rank(); }
  /// dh [R], c [R] and, with biases, scale times gate [E].
  Index factors() const { return 2 * total_rank() + (config().bias ? experts() : 0); }
  Index blocks(Index tokens) const {
    return detail::column_blocks(in(), tokens) + detail::column_blocks(out(), tokens);
  }
  Index scratch(Index tile) const {
    const Index row =
        total_rank() + (config().bias ? experts() + out() : 0) + (config().dropout > 0 ? 2 * in() : 0);
    return std::max(tile * row + (tile + 1) * kernels::visit_columns,
                    (total_rank() + detail::chunk_tokens) * detail::least_block_columns);
  }
  Index lists(Index t) const {
    return std::max(detail::ByExpert::size(t, experts(), experts()), total_rank());
  }

  /// h = A x_e; c = (scale gate) h; y += sum of c B, one chain over (expert, rank) ascending, added once.
  template <class W>
  void forward_rows(const ForwardTile<S, W>& tile) const {
    for (int stage = 0; stage < stages; ++stage) forward_part(tile, stage, 0, 1);
  }

  /// forward_rows of a few tokens cut into stages, and each stage into parts that may run side by side: rows
  /// of A, then columns of B. Not with dropout.
  static constexpr int stages = 2;
  template <class W>
  void forward_part(const ForwardTile<S, W>& tile, int stage, Index part, Index parts) const {
    const Index tokens = tile.x.rows, ranks = total_rank();
    S* const c = tile.scratch;                                       // [tokens, R]
    S* const space = c + tokens * ranks;                             // [tokens + 1, visit_columns]
    S* const gates = space + (tokens + 1) * kernels::visit_columns;  // [tokens, E], with biases
    S* const sum = gates + tokens * experts();                       // [tokens, out], with biases
    if (grouped(tile.routing)) {                                     // too little to cut
      if (part > 0) return;
      parts = 1;
    }
    if (stage == 0) {
      const Index first = ranks * part / parts, last = ranks * (part + 1) / parts;
      down(tile, first, last, gates);
      const Weights weights{*this, tile.routing, tile.first, tile.run};
      for (Index t = 0; t < tokens; ++t)
        for_experts(tile.routing, tile.first + t, [&](Index e) {
          const S weight = weights(t, e);
          for (Index j = std::max(first, begin(e)); j < std::min(last, begin(e + 1)); ++j)
            c[t * ranks + j] = weight * tile.h.row(t)[j];
        });
      for (Index t = 0; config().bias && part == 0 && t < tokens; ++t)
        for (Index e = 0; e < experts(); ++e) gates[t * experts() + e] = weights(t, e);
      return;
    }
    const Index panels = kernels::panels(out()), column = panels * part / parts * kernels::panel_columns,
                columns = std::min(panels * (part + 1) / parts * kernels::panel_columns, out()) - column;
    if (columns <= 0) return;
    const Out<S> y(tile.y.data + column, tokens, columns, tile.y.stride);
    const kernels::Panels<W> b = tile.weights[1].middle_cols(column, columns);
    if (!config().bias) {
      up(tile, b, c, ranks, kernels::Into::add, space, y);
      return;
    }
    const Out<S> delta(sum + column, tokens, columns, out());
    up(tile, b, c, ranks, kernels::Into::set, space, delta);
    kernels::combine(kernels::Into::chain, {gates, experts(), 1},
                     tile.weights[2].middle_cols(column, columns), delta);
    kernels::add(In<S>(delta), y);
  }

  /// u = B^T dy; dgate_e = s_e (h_e . u_e + b_e . dy); dh = (scale gate) u; dx += sum over e of mask_e A_e^T
  /// dh_e.
  void backward_rows(const BackwardTile<S>& tile) const {
    const Index tokens = tile.x.rows, ranks = total_rank();
    const kernels::Panels<S>&a = tile.weights[0], &b = tile.weights[1], &biases = tile.weights[2];
    const Weights weights{*this, tile.routing, tile.first, tile.run};
    const Out<S> dhs(tile.factors.data, tokens, ranks, tile.factors.stride);
    if (grouped(tile.routing)) {
      for (Index t = 0; t < tokens; ++t) std::fill_n(tile.factors.row(t), factors(), S(0));
      const auto rows = detail::sort_by_expert(tile.routing, tile.first, tokens, tile.lists);
      for (Index e = 0; e < experts(); ++e)
        kernels::dot(tile.dy, rows[e], b.middle_rows(begin(e), rank(e)), of(e, dhs));
    } else {
      kernels::dot(tile.dy, b, dhs);
    }
    for (Index t = 0; t < tokens; ++t) {
      S* const dh = tile.factors.row(t);
      S* const c = dh + ranks;
      for_experts(tile.routing, tile.first + t, [&](Index e) {
        const S* const h = tile.h.row(t);
        S slope = detail::chain(h + begin(e), dh + begin(e), rank(e));
        if (config().bias) {
          S through_bias;
          kernels::dot(tile.dy.middle_rows(t, 1), biases.middle_rows(e, 1), Out<S>(&through_bias, 1, 1));
          slope += through_bias;
        }
        tile.drouting.gates[static_cast<std::size_t>((tile.first + t) * experts() + e)] =
            weights.scale(e) * slope;
        const S weight = weights(t, e);
        for (Index j = begin(e); j < begin(e + 1); ++j) {
          dh[j] *= weight;
          c[j] = weight * h[j];
        }
        if (config().bias) c[ranks + e] = weight;
      });
    }
    if (tile.dx.empty()) return;
    if (dropped(tile.run)) return down_backward_with_dropout(tile);
    up(tile, a, tile.factors.data, tile.factors.stride, kernels::Into::add, tile.scratch, tile.dx);
  }

  /// dA += dh^T x_e, dB += c^T dy, dbias += (scale gate)^T dy, for one block of columns. The chain of each
  /// element goes on from chunk to chunk of tokens in scratch, so that a chunk stays in the first cache.
  void backward_block(const BackwardBlock<S>& b) const {
    const Index ranks = total_rank();
    detail::Cursor<S> cursor(b.dtheta);
    S* const da = cursor.take(ranks * in()).data();
    S* const db = cursor.take(ranks * out()).data();
    const Index columns = detail::block_columns(b.x.rows), of_a = detail::column_blocks(in(), b.x.rows);
    const Index column = (b.block < of_a ? b.block : b.block - of_a) * columns;
    if (b.block < of_a) {
      gradient(b, b.x, column, 0, dropped(b.run),
               Out<S>(da + column, ranks, std::min(columns, in() - column), in()));
      return;
    }
    const Out<S> db_block(db + column, ranks, std::min(columns, out() - column), out());
    gradient(b, b.dy, column, ranks, false, db_block);
    if (config().bias)
      kernels::combine(kernels::Into::add, {b.factors.data + 2 * ranks, 1, b.factors.stride},
                       kernels::Panels<S>(b.dy.data + column, b.dy.rows, db_block.cols, b.dy.stride),
                       Out<S>(db + ranks * out() + column, experts(), db_block.cols, out()));
  }

 private:
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

  bool dropped(const Run& run) const { return run.training && config().dropout > 0; }
  bool per_expert() const { return config().mask == DropoutMask::per_expert; }
  double dropout() const { return config().dropout; }
  Index masks() const { return per_expert() ? experts() : 1; }
  std::uint64_t mask_id(Index e) const { return per_expert() ? static_cast<std::uint64_t>(e) + 1 : 0; }
  /// Expert e's columns of a [tokens, R] matrix.
  Out<S> of(Index e, Out<S> m) const { return {m.data + begin(e), m.rows, rank(e), m.stride}; }

  /// f(e) for the experts that a row is computed for, ascending.
  template <class F>
  void for_experts(const Routing<S>& routing, Index row, F&& f) const {
    if (grouped(routing)) return detail::for_chosen(routing, row, f);
    for (Index e = 0; e < experts(); ++e) f(e);
  }

  /// h = A x_e of ranks [from, to), 0 for experts that the grouped path skips.
  template <class W>
  void down(const ForwardTile<S, W>& tile, Index from, Index to, S* space) const {
    const kernels::Panels<W>& a = tile.weights[0];
    const bool drops = dropped(tile.run), by_expert = grouped(tile.routing);
    detail::ByExpert rows{};
    if (by_expert) {
      for (Index t = 0; t < tile.x.rows; ++t) std::fill_n(tile.h.row(t), total_rank(), S(0));
      rows = detail::sort_by_expert(tile.routing, tile.first, tile.x.rows, tile.lists);
    }
    for (Index mask = 0; mask < (drops ? masks() : 1); ++mask) {
      In<S> x = tile.x;
      if (drops) {
        detail::drop(dropout(), mask_id(mask), x, 0, in(), tile.first, tile.run, space, in());
        x = In<S>(space, x.rows, in());
      }
      const bool one = drops && per_expert();
      const Index first = one ? begin(mask) : from, last = one ? begin(mask + 1) : to;
      if (!by_expert)
        kernels::dot(x, a.middle_rows(first, last - first),
                     Out<S>(tile.h.data + first, x.rows, last - first, tile.h.stride));
      for (Index e = one ? mask : 0; by_expert && e < (one ? mask + 1 : experts()); ++e)
        kernels::dot(x, rows[e], a.middle_rows(begin(e), rank(e)), of(e, tile.h));
    }
  }

  /// Sum over j of c[t, j] m[j], a chain over (expert, rank) ascending. The grouped path goes expert by
  /// expert through its tokens (tile.lists); between a token's first and last expert its chain waits in
  /// `space`, [tile + 1, visit_columns].
  template <class Tile, class W>
  void up(const Tile& tile, const kernels::Panels<W>& m, const S* c, Index ldc, kernels::Into end, S* space,
          Out<S> to) const {
    if (!grouped(tile.routing)) return kernels::combine(end, {c, ldc, 1}, m, to);
    const bool adds = end == kernels::Into::add;
    if (to.rows == 1) {  // it meets nobody
      const auto rows = this->chosen_rows(tile.routing, tile.first, tile.lists);
      return rows.empty() && adds ? void() : kernels::combine(end, {c, ldc, 1}, rows, m, to);
    }
    constexpr Index width = kernels::visit_columns;
    const Routing<S>& routing = tile.routing;
    const detail::ByExpert tokens{tile.lists};
    std::fill_n(space, width, S(0));
    for (Index i = 0; i < to.cols; i += width) {
      const Index columns = std::min(width, to.cols - i);
      for (Index t = 0; !adds && t < to.rows; ++t) std::fill_n(to.row(t) + i, columns, S(0));
      for (Index e = 0; e < experts(); ++e) {
        const auto visits = [&](Index t) {
          const Index row = tile.first + t;
          const int* const chosen = routing.chosen_row(row);
          const bool last = chosen[routing.count[static_cast<std::size_t>(row)] - 1] == e;
          S* const between = space + (t + 1) * width;
          return kernels::Visit<S>{.start = chosen[0] == e ? space : between,
                                   .add = last ? to.row(t) + i : space,
                                   .out = last ? to.row(t) + i : between};
        };
        kernels::combine_visits(kernels::Coefficients<S>{c + begin(e), ldc, 1}, tokens[e],
                                m.middle_rows(begin(e), rank(e)).middle_cols(i, columns), visits);
      }
    }
  }

  /// dx += sum over masks of mask (A^T dh), summed from 0 in ascending order and added once.
  void down_backward_with_dropout(const BackwardTile<S>& tile) const {
    const Index tokens = tile.x.rows;
    S* const part = tile.scratch;         // [tokens, in]
    S* const sum = part + tokens * in();  // [tokens, in]
    std::fill_n(sum, tokens * in(), S(0));
    for (Index e = 0; e < masks(); ++e) {
      const Index from = per_expert() ? begin(e) : 0, r = per_expert() ? rank(e) : total_rank();
      kernels::combine(kernels::Into::set, {tile.factors.data + from, tile.factors.stride, 1},
                       tile.weights[0].middle_rows(from, r), Out<S>(part, tokens, in()));
      detail::drop_backward(dropout(), mask_id(e), In<S>(part, tokens, in()), tile.first, tile.run, sum);
    }
    kernels::add(In<S>(sum, tokens, in()), tile.dx);
  }

  /// to[j, i] += sum over tokens of factors[t, at + j] of[t, column + i], of its masked values where it
  /// drops.
  void gradient(const BackwardBlock<S>& b, In<S> of, Index column, Index at, bool drops, Out<S> to) const {
    using kernels::Into;
    const Index stride = b.factors.stride;
    const auto seen = [&](Index first, Index count) {
      return kernels::Panels<S>(of.row(first) + column, count, to.cols, of.stride);
    };
    if (grouped(b.routing) && !drops) {
      for (Index e = 0; e < experts(); ++e)
        if (const auto tokens = detail::ByExpert{b.by_expert}[e]; !tokens.empty())
          kernels::combine(Into::add, {b.factors.data + at + begin(e), 1, stride}, tokens, seen(0, of.rows),
                           to.middle_rows(begin(e), rank(e)));
      return;
    }
    constexpr Index chunk = detail::chunk_tokens;
    const bool at_once = of.rows <= chunk;
    const Out<S> piece(b.scratch, std::min(chunk, of.rows), to.cols);  // of x or dy
    const Out<S> sum = at_once ? to : Out<S>(piece.row(chunk), total_rank(), to.cols);
    const bool far = kernels::aliased_rows<S>(of.stride) && total_rank() >= 16;
    for (Index t = 0; t < of.rows; t += chunk) {
      const Index tokens = std::min(chunk, of.rows - t);
      const Into into = at_once ? Into::add : t == 0 ? Into::set : Into::chain;
      const Index next = std::min(t + chunk, of.rows);
      kernels::prefetch(In<S>(of.row(next) + column, std::min(chunk, of.rows - next), to.cols, of.stride));
      if (!drops) {
        if (far)
          for (Index i = 0; i < tokens; ++i) std::copy_n(of.row(t + i) + column, to.cols, piece.row(i));
        kernels::combine(into, {b.factors.row(t) + at, 1, stride},
                         far ? kernels::Panels<S>(piece.middle_rows(0, tokens)) : seen(t, tokens), sum);
        continue;
      }
      for (Index e = 0; e < masks(); ++e) {
        detail::drop(dropout(), mask_id(e), of.middle_rows(t, tokens), column, to.cols, t, b.run, piece.data,
                     to.cols);
        const Index from = per_expert() ? begin(e) : 0, r = per_expert() ? rank(e) : total_rank();
        kernels::combine(into, {b.factors.row(t) + at + from, 1, stride},
                         kernels::Panels<S>(piece.middle_rows(0, tokens)), sum.middle_rows(from, r));
      }
    }
    if (!at_once) kernels::add(In<S>(sum), to);
  }
};

}  // namespace moxie::inline MOXIE_ABI
