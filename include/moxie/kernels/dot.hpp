// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/kernels/packet.hpp>
#include <moxie/kernels/panels.hpp>

#include <span>

/// The rank product h[t, j] = sum over i of x[t, i] a[j, i]: one accumulator packet per pair (t, j), features
/// in steps of a packet, the tail filled with zeros, one horizontal sum.
namespace moxie::inline MOXIE_ABI::kernels {

// Tokens x rows of weights in registers: 16 accumulators and 5 operands of 32, or 12 and 4 of 16.
// Measured with AVX-512 at 512 tokens of 768 and 4096: 4x4 109 and 104, 6x4 109 and 108, 3x8 109 and 99,
// 2x8 107 and 88 of 118 GFLOP/s; with AVX2 at 768: 4x3 108, 6x2 100, 4x2 83. 4 divides the usual batches.
constexpr int dot_tokens = 4, dot_rows = many_registers ? 4 : 3;
// One token alone: independent chains hide the latency of the multiply-add. With 16, rows a power of two
// apart throw each other out of the first cache (64 rows of 4096: 12.7 against 23.5 us).
constexpr int dot_rows_single = 8;
// Rows of weights that pass all tokens together, in bytes: half of a small second cache.
constexpr Index dot_group_bytes = 1 << 18;

namespace detail {

/// M rows of tokens.
template <int M, Scalar S>
struct TokenRows {
  const S* row[M];
  template <bool part>
  EIGEN_ALWAYS_INLINE Packet<S> get(int t, Index i, Index n) const {
    return load_some<part, S>(row[t] + i, n);
  }
};
/// M rows of the product of two matrices, element by element.
template <int M, Scalar S>
struct ProductRows {
  const S *row[M], *other[M];
  template <bool part>
  EIGEN_ALWAYS_INLINE Packet<S> get(int t, Index i, Index n) const {
    return Eigen::internal::pmul(load_some<part, S>(row[t] + i, n), load_some<part, S>(other[t] + i, n));
  }
};

template <int M, int N, Scalar S>
struct DotBlock {
  Packet<S> sum[M][N];

  template <bool part, class Tokens, class W>
  EIGEN_ALWAYS_INLINE void step(const Tokens& x, Index i, const W* a, Index stride, Index n) {
    Packet<S> row[N];
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      row[j] = load_some<part, S>(a + j * stride, n);
      if constexpr (M > 1) keep(row[j]);
    }
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t) {
      Packet<S> token = x.template get<part>(t, i, n);
      keep(token);
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) sum[t][j] = packet_madd<S>(token, row[j], sum[t][j]);
    }
  }

  /// Rows [first, first + N) of `a`; h[t] points to the results of token t.
  template <class Tokens, class W>
  EIGEN_ALWAYS_INLINE void run(const Tokens& x, const Panels<W>& a, Index first, S* const* h) {
    constexpr Index size = packet_size<S>;
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t)
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) sum[t][j] = Eigen::internal::pset1<Packet<S>>(S(0));
    const W* panel = a.data + first * a.stride;
    Index i = 0;
    for (; i + panel_columns <= a.cols; i += panel_columns, panel += a.panel)
#pragma GCC unroll 4
      for (Index q = 0; q < panel_columns; q += size) step<false>(x, i + q, panel + q, a.stride, size);
    for (; i + size <= a.cols; i += size, panel += size) step<false>(x, i, panel, a.stride, size);
    if (i < a.cols) step<true>(x, i, panel, a.stride, a.cols - i);
#pragma GCC unroll 16
    for (int t = 0; t < M; ++t)
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) h[t][j] = Eigen::internal::predux(sum[t][j]);
  }
};

/// Rows [first, first + count) of `a` in blocks of N, what is left in blocks of half as many, and so on.
template <int M, int N, Scalar S, class Tokens, class W>
void dot_rows_of(const Tokens& x, const Panels<W>& a, Index first, Index count, S* const (&h)[M]) {
  for (; count >= N; first += N, count -= N) {
    S* to[M];
    for (int t = 0; t < M; ++t) to[t] = h[t] + first;
    DotBlock<M, N, S>().run(x, a, first, to);
  }
  if constexpr (N > 1)
    if (count > 0) dot_rows_of<M, N / 2>(x, a, first, count, h);
}

/// `rows(t, M)` makes the M rows from number t on and tells where their results go.
template <Scalar S, class W, class Rows>
void dot_all(Index tokens, const Panels<W>& a, const Rows& rows) {
  const Index wanted = dot_group_bytes / static_cast<Index>(sizeof(S)) / std::max<Index>(a.cols, 1);
  const Index group = std::max<Index>(wanted / dot_rows_single * dot_rows_single, dot_rows_single);
  for (Index j = 0; j < a.rows; j += group) {
    const Index count = std::min(group, a.rows - j);
    Index t = 0;
    for (; t + dot_tokens <= tokens; t += dot_tokens) {
      S* h[dot_tokens];
      const auto x = rows.template operator()<dot_tokens>(t, h);
      dot_rows_of<dot_tokens, dot_rows>(x, a, j, count, h);
    }
    for (; t < tokens; ++t) {
      S* h[1];
      const auto x = rows.template operator()<1>(t, h);
      dot_rows_of<1, dot_rows_single>(x, a, j, count, h);
    }
  }
}

}  // namespace detail

/// h [T, n] = x a^T for x [T, d] and a [n, d].
template <Scalar S, class W>
void dot(In<S> x, const Panels<W>& a, Out<S> h) {
  detail::dot_all<S>(x.rows, a, [&]<int M>(Index first, S*(&to)[M]) {
    detail::TokenRows<M, S> rows;
    for (int t = 0; t < M; ++t) {
      rows.row[t] = x.row(first + t);
      to[t] = h.row(first + t);
    }
    return rows;
  });
}

/// Of the listed rows of x and h alone.
template <Scalar S, class W>
void dot(In<S> x, std::span<const int> list, const Panels<W>& a, Out<S> h) {
  detail::dot_all<S>(std::ssize(list), a, [&]<int M>(Index first, S*(&to)[M]) {
    detail::TokenRows<M, S> rows;
    for (int t = 0; t < M; ++t) {
      const Index row = list[static_cast<std::size_t>(first + t)];
      rows.row[t] = x.row(row);
      to[t] = h.row(row);
    }
    return rows;
  });
}

/// h = (x * other) a^T, where x * other is taken element by element and never stored.
template <Scalar S, class W>
void dot(In<S> x, In<S> other, const Panels<W>& a, Out<S> h) {
  detail::dot_all<S>(x.rows, a, [&]<int M>(Index first, S*(&to)[M]) {
    detail::ProductRows<M, S> rows;
    for (int t = 0; t < M; ++t) {
      rows.row[t] = x.row(first + t);
      rows.other[t] = other.row(first + t);
      to[t] = h.row(first + t);
    }
    return rows;
  });
}

}  // namespace moxie::inline MOXIE_ABI::kernels
