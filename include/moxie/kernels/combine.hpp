// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/kernels/packet.hpp>
#include <moxie/kernels/panels.hpp>

#include <span>

/// The up product out[r, i] = sum over k of c[r, k] m[k, i]: one chain of multiply-adds per element, k
/// ascending.
namespace moxie::inline MOXIE_ABI::kernels {

/// Where a chain starts and where its sum goes.
enum class Into {
  set,           ///< from 0; overwrites
  chain,         ///< from the output; overwrites
  add,           ///< from 0; added to the output once
  multiply,      ///< from 0; out = other * sum
  multiply_add,  ///< from 0; out += other * sum, rounded once
};
/// `other` is [rows, cols] as the output; `strength` s moves the sum on the line from 1 through it: s (sum -
/// 1) + 1.
template <Scalar S>
struct End {
  Into into;
  In<S> other = {};
  S strength = 1;
  End(Into i) : into(i) {}
  End(Into i, In<S> o, S s) : into(i), other(o), strength(s) {}
};

/// c by its two strides, so that a weight gradient, where k runs over tokens, is the same call.
template <Scalar S>
struct Coefficients {
  const S* data;
  Index row, depth;
};

// Rows of out x packets in registers. Measured with AVX-512, 384 tokens: 4x4 104, 116, 114 of 118 GFLOP/s at
// (d, depth) of (768, 8), (768, 64), (4096, 64), 6x4 100, 116, 111, 3x8 96, 115, 109; with AVX2 at (768, 64):
// 6x2 100, 4x2 78.
constexpr int combine_rows = many_registers ? 4 : 6, combine_packets = many_registers ? 4 : 2;
// One row alone: more chains in flight, and fewer reads of its coefficients.
constexpr int combine_packets_single = 8;
// Weights that pass all rows together, in bytes: half of a small second cache.
constexpr Index combine_group_bytes = 1 << 18;

namespace detail {

/// The packets of a matrix from column i on; those of a block may lie in two panels, where i is a border.
template <Scalar S, class W>
struct Columns {
  const W* data;
  Index stride, panel;
  Columns(const Panels<W>& m, Index i)
      : data(m.data + i / panel_columns * m.panel + i % panel_columns), stride(m.stride), panel(m.panel) {}
  template <bool part>
  EIGEN_ALWAYS_INLINE Packet<S> get(Index k, Index q, Index n) const {
    return load_some<part, S>(data + k * stride + q / panel_columns * panel + q % panel_columns, n);
  }
};
/// The product of two matrices, element by element.
template <Scalar S>
struct Product {
  In<S> x, other;
  Index cols() const { return x.cols; }
};
template <Scalar S>
struct ProductColumns {
  const S *x, *other;
  Index x_stride, other_stride;
  ProductColumns(const Product<S>& m, Index i)
      : x(m.x.data + i), other(m.other.data + i), x_stride(m.x.stride), other_stride(m.other.stride) {}
  template <bool part>
  EIGEN_ALWAYS_INLINE Packet<S> get(Index k, Index q, Index n) const {
    return Eigen::internal::pmul(load_some<part, S>(x + k * x_stride + q, n),
                                 load_some<part, S>(other + k * other_stride + q, n));
  }
};

/// The depths k of a chain, ascending: all, or those of a list.
struct All {
  Index count;
  template <class F>
  EIGEN_ALWAYS_INLINE void each(F&& f) const {
    for (Index k = 0; k < count; ++k) f(k);
  }
};
struct Listed {
  std::span<const int> list;
  template <class F>
  EIGEN_ALWAYS_INLINE void each(F&& f) const {
    for (const int k : list) f(static_cast<Index>(k));
  }
};

template <int R, int P, bool part, Scalar S>
struct CombineBlock {
  // A block lies in one panel, or fills several.
  static_assert(P == 1 || panel_columns % (P * packet_size<S>) == 0 ||
                P * packet_size<S> % panel_columns == 0);
  Packet<S> sum[R][P];

  /// Adds row k of `from`, weight_of(r) times to row r.
  template <class From, class Weight>
  EIGEN_ALWAYS_INLINE void step(const From& from, Index k, const Weight& weight_of, Index n) {
    Packet<S> row[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      row[p] = from.template get<part>(k, p * packet_size<S>, n);
      if constexpr (R > 1) keep(row[p]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Packet<S> weight = Eigen::internal::pset1<Packet<S>>(weight_of(r));
      keep(weight);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[r][p] = packet_madd<S>(weight, row[p], sum[r][p]);
    }
  }

  EIGEN_ALWAYS_INLINE void put(S* to, const Packet<S>& value, Index n) {
    if constexpr (part)
      store_part(to, value, n);
    else
      Eigen::internal::pstoreu(to, value);
  }

  template <class From, class Depth>
  EIGEN_ALWAYS_INLINE void run(const End<S>& end, const Coefficients<S>& c, const Depth& depth,
                               const From& from, S* out, Index ldo, const S* other, Index n) {
    using namespace Eigen::internal;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[r][p] = pset1<Packet<S>>(S(0));
    if (end.into == Into::chain) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sum[r][p] = load_some<part, S>(out + r * ldo + p * packet_size<S>, n);
    }
    depth.each([&](Index k) __attribute__((always_inline)) {
      step(
          from, k, [&](int r) __attribute__((always_inline)) { return c.data[k * c.depth + r * c.row]; }, n);
    });
    const auto finish = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          S* const to = out + r * ldo + p * packet_size<S>;
          put(to, f(sum[r][p], to, r * end.other.stride + p * packet_size<S>), n);
        }
    };
    if (end.into == Into::add) {
      finish([&](const auto& s, S* to, Index) { return padd(load_some<part, S>(to, n), s); });
      return;
    }
    if (end.into == Into::set || end.into == Into::chain) {
      finish([&](const auto& s, S*, Index) { return s; });
      return;
    }
    if (end.strength != S(1)) {
      const Packet<S> one = pset1<Packet<S>>(S(1)), strength = pset1<Packet<S>>(end.strength);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sum[r][p] = packet_madd<S>(strength, psub(sum[r][p], one), one);
    }
    if (end.into == Into::multiply)
      finish([&](const auto& s, S*, Index at) { return pmul(load_some<part, S>(other + at, n), s); });
    else
      finish([&](const auto& s, S* to, Index at) {
        return packet_madd<S>(load_some<part, S>(other + at, n), s, load_some<part, S>(to, n));
      });
  }
};

/// Columns [first, first + count) of R rows from row r on.
template <class From, int R, Scalar S, class Depth, class M>
void combine_rows_of(const End<S>& end, const Coefficients<S>& c, const Depth& depth, const M& m, Index first,
                     Index count, Index r, Out<S> out) {
  constexpr Index size = packet_size<S>;
  constexpr int wide = R > 1 ? combine_packets : combine_packets_single;
  const Coefficients<S> own{c.data + r * c.row, c.row, c.depth};
  const auto block = [&]<int P, bool part>(Index i, Index n) {
    const S* const other = end.other.data == nullptr ? nullptr : end.other.row(r) + i;
    CombineBlock<R, P, part, S>().run(end, own, depth, From(m, i), out.row(r) + i, out.stride, other, n);
  };
  Index i = first;
  for (; i + wide * size <= first + count; i += wide * size) block.template operator()<wide, false>(i, size);
  if constexpr (wide > combine_packets)
    for (; i + combine_packets * size <= first + count; i += combine_packets * size)
      block.template operator()<combine_packets, false>(i, size);
  for (; i + size <= first + count; i += size) block.template operator()<1, false>(i, size);
  if (i < first + count) block.template operator()<1, true>(i, first + count - i);
}

/// Columns, whole panels of them, whose `deep` rows take so many bytes.
template <Scalar S>
Index column_group(Index bytes, Index deep) {
  const Index fitting = bytes / static_cast<Index>(sizeof(S)) / std::max<Index>(deep, 1);
  return std::max(fitting / panel_columns, Index{1}) * panel_columns;
}

/// For m of one row: nothing to keep in registers, so plain long runs of memory (IA3's forward, 64 tokens of
/// 768: 4.1 against 5.2 us; backward of one token under top-2 of 8 experts of 768: 3.5 against 4.6 us).
template <Into into, class From, Scalar S, class M>
void combine_row(In<S> other, const Coefficients<S>& c, const M& m, Out<S> out) {
  using namespace Eigen::internal;
  constexpr Index size = packet_size<S>;
  for (Index r = 0; r < out.rows; ++r) {
    const S* const x = into == Into::add ? nullptr : other.row(r);
    S* const to = out.row(r);
    const Packet<S> zero = pset1<Packet<S>>(S(0)), weight = pset1<Packet<S>>(c.data[r * c.row]);
    const auto step = [&]<bool part>(const From& from, Index i, Index q, Index n)
        __attribute__((always_inline)) {
      const Packet<S> sum = packet_madd<S>(weight, from.template get<part>(0, q, n), zero);
      S* const at = to + i + q;
      Packet<S> value;
      if constexpr (into == Into::add)
        value = padd(load_some<part, S>(at, n), sum);
      else if constexpr (into == Into::multiply)
        value = pmul(load_some<part, S>(x + i + q, n), sum);
      else
        value = packet_madd<S>(load_some<part, S>(x + i + q, n), sum, load_some<part, S>(at, n));
      if constexpr (part)
        store_part(at, value, n);
      else
        pstoreu(at, value);
    };
    Index i = 0;
    for (; i + panel_columns <= out.cols; i += panel_columns) {
      const From from(m, i);
#pragma GCC unroll 4
      for (Index q = 0; q < panel_columns; q += size) step.template operator()<false>(from, i, q, size);
    }
    for (; i + size <= out.cols; i += size) step.template operator()<false>(From(m, i), i, 0, size);
    if (i < out.cols) step.template operator()<true>(From(m, i), i, 0, out.cols - i);
  }
}
template <class From, Scalar S, class M>
bool combined_row(const End<S>& end, const Coefficients<S>& c, const M& m, Out<S> out) {
  if (end.strength != S(1)) return false;
  if (end.into == Into::add)
    combine_row<Into::add, From>(end.other, c, m, out);
  else if (end.into == Into::multiply)
    combine_row<Into::multiply, From>(end.other, c, m, out);
  else if (end.into == Into::multiply_add)
    combine_row<Into::multiply_add, From>(end.other, c, m, out);
  else
    return false;
  return true;
}

template <class From, Scalar S, class Depth, class M>
void combine_all(const End<S>& end, const Coefficients<S>& c, const Depth& depth, Index deep, const M& m,
                 Out<S> out) {
  // What is read but once gains nothing by groups.
  const Index group = out.rows > combine_rows ? column_group<S>(combine_group_bytes, deep) : out.cols;
  for (Index i = 0; i < out.cols; i += group) {
    const Index columns = std::min(group, out.cols - i);
    Index r = 0;
    for (; r + combine_rows <= out.rows; r += combine_rows)
      combine_rows_of<From, combine_rows>(end, c, depth, m, i, columns, r, out);
    for (; r < out.rows; ++r) combine_rows_of<From, 1>(end, c, depth, m, i, columns, r, out);
  }
}

}  // namespace detail

/// out [rows, cols] from c [rows, n] and m [n, cols].
template <Scalar S, class W>
void combine(const std::type_identity_t<End<S>>& end, Coefficients<S> c, const Panels<W>& m, Out<S> out) {
  using From = detail::Columns<S, W>;
  if (m.rows == 1 && detail::combined_row<From>(end, c, m, out)) return;
  detail::combine_all<From>(end, c, detail::All{m.rows}, m.rows, m, out);
}
/// Of the listed k alone, which must ascend.
template <Scalar S, class W>
void combine(const std::type_identity_t<End<S>>& end, Coefficients<S> c, std::span<const int> list,
             const Panels<W>& m, Out<S> out) {
  if (list.size() == 1) {
    const Index k = list.front();
    return combine(end, Coefficients<S>{c.data + k * c.depth, c.row, c.depth}, m.middle_rows(k, 1), out);
  }
  detail::combine_all<detail::Columns<S, W>>(end, c, detail::Listed{list}, std::ssize(list), m, out);
}
/// With m = x * other, taken element by element and never stored.
template <Scalar S>
void combine(const std::type_identity_t<End<S>>& end, Coefficients<S> c, In<S> x, In<S> other, Out<S> out) {
  using From = detail::ProductColumns<S>;
  const detail::Product<S> m{x, other};
  if (x.rows == 1 && detail::combined_row<From>(end, c, m, out)) return;
  detail::combine_all<From>(end, c, detail::All{x.rows}, x.rows, m, out);
}

}  // namespace moxie::inline MOXIE_ABI::kernels
