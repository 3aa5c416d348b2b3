// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/kernels/combine.hpp>

/// The up product of rows that each take another part of the weights, as tokens do under top-k routing: part
/// by part, the rows that take it together, so that each load of a weight serves several.
namespace moxie::inline MOXIE_ABI::kernels {

constexpr int visit_tokens = 4;  // in registers; few tokens of a tile share an expert
// Columns that pass the visits of all rows together: long enough pieces for far rows, short enough that what
// lies between two visits stays in the second cache.
constexpr Index visit_columns = 4 * panel_columns;

/// A row on its way through several products, as a token passes its experts: the chain goes on from `start`,
/// and out = add + sum. All three are columns of the same width; zeros stand for what is not there.
template <Scalar S>
struct Visit {
  const S *start, *add;
  S* out;
};

namespace detail {

template <int R, int P, bool part, Scalar S, class W>
void visit_block(const Visit<S> (&visit)[R], const S* const (&c)[R], Index c_depth, const Panels<W>& m,
                 Index i, Index n) {
  const Columns<S, W> from(m, i);
  CombineBlock<R, P, part, S> block;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
      block.sum[r][p] = load_some<part, S>(visit[r].start + i + p * packet_size<S>, n);
  for (Index k = 0; k < m.rows; ++k)
    block.step(
        from, k, [&](int r) __attribute__((always_inline)) { return c[r][k * c_depth]; }, n);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const Index at = i + p * packet_size<S>;
      const Packet<S> before = load_some<part, S>(visit[r].add + at, n);
      block.put(visit[r].out + at, Eigen::internal::padd(before, block.sum[r][p]), n);
    }
}

template <int R, Scalar S, class W, class Visits>
void visit_rows(const Coefficients<S>& c, const int* list, const Panels<W>& m, const Visits& visits) {
  constexpr Index size = packet_size<S>;
  constexpr int packets = R > 1 ? combine_packets : combine_packets_single;
  constexpr Index wide = packets * size;
  Visit<S> visit[R];
  const S* own[R];
  for (int r = 0; r < R; ++r) {
    visit[r] = visits(list[r]);
    own[r] = c.data + list[r] * c.row;
  }
  Index i = 0;
  for (; i + wide <= m.cols; i += wide) visit_block<R, packets, false>(visit, own, c.depth, m, i, size);
  for (; i + size <= m.cols; i += size) visit_block<R, 1, false>(visit, own, c.depth, m, i, size);
  if (i < m.cols) visit_block<R, 1, true>(visit, own, c.depth, m, i, m.cols - i);
}

}  // namespace detail

/// The visits of the listed rows: row t, with coefficients c [t, n], takes the product with m [n, cols];
/// visits(t) tells from where to where.
template <Scalar S, class W, class Visits>
void combine_visits(Coefficients<S> c, std::span<const int> list, const Panels<W>& m, const Visits& visits) {
  const int* row = list.data();
  const int* const end = row + list.size();
  for (; end - row >= visit_tokens; row += visit_tokens) {
    for (const int* next = row + visit_tokens; next < std::min(row + 2 * visit_tokens, end); ++next)
      prefetch(In<S>(visits(*next).add, 1, m.cols));
    detail::visit_rows<visit_tokens>(c, row, m, visits);
  }
  for (; row < end; ++row) detail::visit_rows<1>(c, row, m, visits);
}

}  // namespace moxie::inline MOXIE_ABI::kernels
