// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>
#include <moxie/core/init.hpp>
#include <moxie/kernels/combine.hpp>
#include <moxie/kernels/dot.hpp>

namespace moxie::inline MOXIE_ABI::detail {

/// z = x G^T without bias, the linear map under the soft and the top-k router, with the Switch paper's jitter
/// on its input (arXiv:2101.03961, section 2.2) and per-head rows (the released MoV code: one G of [E,
/// d_head] for all heads). Rows of z are token-major: row t * heads + h.
template <Scalar S>
class RouterProjection {
 public:
  RouterProjection(Index in, Index experts, Index heads, double jitter)
      : in_(in), experts_(experts), heads_(heads), jitter_(jitter) {
    expect_range(in >= 1, "router in", static_cast<double>(in), "1 or more");
    expect_range(experts >= 1, "router experts", static_cast<double>(experts), "1 or more");
    expect_range(heads >= 1 && in % std::max<Index>(heads, 1) == 0, "router heads",
                 static_cast<double>(heads), "a divisor of the input's " + text(in) + " features");
    expect_range(jitter >= 0 && jitter < 1, "router jitter", jitter, "0 or more, below 1");
    checked_product("router and noise", checked_product("router", 2, in), experts);
  }

  Index in() const { return in_; }
  Index experts() const { return experts_; }
  Index heads() const { return heads_; }
  Index features() const { return in_ / heads_; }  // a row's length
  Index size() const { return experts_ * features(); }
  Index blocks(Index tokens) const { return column_blocks(features(), tokens * heads_); }
  Index scratch(Index tile) const {
    return std::max(jitter_ > 0 ? tile * in_ : 0,
                    experts_ * most_block_columns + chunk_tokens * least_block_columns);
  }

  kernels::MatrixShape matrix() const { return {experts_, features(), false}; }

  /// z rows of a tile, [tile * heads, E].
  template <class W>
  void forward(const kernels::Panels<W>& g, In<S> x, Index first, S* z, S* scratch, const Run& run) const {
    if (jittered(run)) {
      jitter_rows(x, 0, in_, first, scratch, in_, run);
      x = In<S>(scratch, x.rows, in_);
    }
    for (Index h = 0; h < heads_; ++h)
      kernels::dot(In<S>(x.data + h * features(), x.rows, features(), x.stride), g,
                   Out<S>(z + h * experts_, x.rows, experts_, heads_ * experts_));
  }

  /// dx += dz G, times the jitter.
  void backward_input(const kernels::Panels<S>& g, In<S> x, Index first, const S* dz, Out<S> dx, S* scratch,
                      const Run& run) const {
    if (dx.empty()) return;
    const bool through_jitter = jittered(run);
    const Out<S> to = through_jitter ? Out<S>(scratch, x.rows, in_) : dx;
    for (Index h = 0; h < heads_; ++h)
      kernels::combine(through_jitter ? kernels::Into::set : kernels::Into::add,
                       {dz + h * experts_, heads_ * experts_, 1}, g,
                       Out<S>(to.data + h * features(), x.rows, features(), to.stride));
    if (!through_jitter) return;
    for (Index t = 0; t < x.rows; ++t) {
      const std::uint64_t stream = jitter_stream(first + t, run);
      for (Index i = 0; i < in_; ++i) scratch[t * in_ + i] *= factor(stream, i);
      for (Index i = 0; i < in_; ++i) dx.row(t)[i] += scratch[t * in_ + i];
    }
  }

  /// dG[:, block] += sum over rows of dz x, one chain from 0: chunks of tokens ascending, heads inside a
  /// chunk.
  void backward_block(Index block, In<S> x, const S* dz, S* dg, S* scratch, const Run& run) const {
    const Index d = features(), columns = block_columns(x.rows * heads_), begin = block * columns,
                width = std::min(columns, d - begin);
    const bool at_once = x.rows <= chunk_tokens && heads_ == 1;
    const Out<S> gradient(dg + begin, experts_, width, d), sum(scratch, experts_, width);
    S* const moved = scratch + experts_ * most_block_columns;
    for (Index t = 0; t < x.rows; t += chunk_tokens) {
      const In<S> part = x.middle_rows(t, std::min(chunk_tokens, x.rows - t));
      for (Index h = 0; h < heads_; ++h) {
        kernels::Panels<S> seen(part.data + h * d + begin, part.rows, width, part.stride);
        if (jittered(run)) {
          jitter_rows(part, h * d + begin, width, t, moved, width, run);
          seen = kernels::Panels<S>(moved, part.rows, width, width);
        }
        const auto into = at_once            ? kernels::Into::add
                          : t == 0 && h == 0 ? kernels::Into::set
                                             : kernels::Into::chain;
        kernels::combine(into, {dz + (t * heads_ + h) * experts_, 1, heads_ * experts_}, seen,
                         at_once ? gradient : sum);
      }
    }
    if (!at_once) kernels::add(In<S>(sum), gradient);
  }

 private:
  bool jittered(const Run& run) const { return jitter_ > 0 && run.training; }

  static std::uint64_t jitter_stream(Index token, const Run& run) {
    return random::key(random::Use::jitter,
                       {run.seed, run.step, run.module, static_cast<std::uint64_t>(run.first_token + token)});
  }
  S factor(std::uint64_t stream, Index feature) const {
    return static_cast<S>(1 +
                          jitter_ * (2 * random::uniform(stream, static_cast<std::uint64_t>(feature)) - 1));
  }
  /// to[t, i] = x[t, column + i] times its jitter.
  void jitter_rows(In<S> x, Index column, Index width, Index first, S* to, Index ldto, const Run& run) const {
    for (Index t = 0; t < x.rows; ++t) {
      const std::uint64_t stream = jitter_stream(first + t, run);
      for (Index i = 0; i < width; ++i) to[t * ldto + i] = x.row(t)[column + i] * factor(stream, column + i);
    }
  }

  Index in_, experts_, heads_;
  double jitter_;
};

}  // namespace moxie::inline MOXIE_ABI::detail
