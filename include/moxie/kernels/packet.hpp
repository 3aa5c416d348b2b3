// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/math.hpp>

/// The two products that everything hot is made of, on Eigen's packet primitives. Each element of a result is
/// one chain of fused multiply-adds whose order depends on shape, scalar and packet size alone: not on the
/// number of tokens, on the block it falls in, or on addresses. (architecture: rules that keep the bits)
namespace moxie::inline MOXIE_ABI::kernels {

template <Scalar S>
using Packet = typename Eigen::internal::packet_traits<S>::type;

template <Scalar S>
constexpr Index packet_size = Eigen::internal::unpacket_traits<Packet<S>>::size;

// Register blocks: accumulators plus operands fit the register file (32 with AVX-512 and NEON, 16 before).
constexpr bool many_registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32;
constexpr int dot_tokens = 4, dot_rows = many_registers ? 4 : 2;
constexpr int dot_rows_single = 8;  // one token alone: eight independent chains hide the latency
constexpr int combine_rows = many_registers ? 6 : 4, combine_packets = many_registers ? 4 : 2;

namespace detail {

/// Whether `combine` starts each chain from zero and overwrites, continues the chain in the output, or starts
/// from zero and adds the finished sum to the output once.
enum class Into { set, chain, add };

template <Scalar S>
Packet<S> packet_madd(const Packet<S>& a, const Packet<S>& b, const Packet<S>& c) {
  if constexpr (packet_size<S> == 1)
    return madd(a, b, c);
  else
    return Eigen::internal::pmadd(a, b, c);
}

/// The first n < packet_size scalars, zero behind them.
template <Scalar S>
Packet<S> load_part(const S* p, Index n) {
  alignas(64) S full[packet_size<S>] = {};
  for (Index i = 0; i < n; ++i) full[i] = p[i];
  return Eigen::internal::pload<Packet<S>>(full);
}
template <Scalar S>
void store_part(S* p, const Packet<S>& v, Index n) {
  alignas(64) S full[packet_size<S>];
  Eigen::internal::pstore(full, v);
  for (Index i = 0; i < n; ++i) p[i] = full[i];
}

/// M tokens times N rows: h[t, j] = <x[t], a[j]>. One accumulator per pair, features in steps of a packet,
/// the tail filled with zeros, one horizontal sum.
template <int M, int N, Scalar S>
void dot_block(const S* x, Index ldx, const S* a, Index lda, Index d, S* h, Index ldh) {
  using namespace Eigen::internal;
  constexpr Index step = packet_size<S>;
  Packet<S> sum[M][N];
  for (int t = 0; t < M; ++t)
    for (int j = 0; j < N; ++j) sum[t][j] = pset1<Packet<S>>(S(0));
  Index i = 0;
  for (; i + step <= d; i += step) {
    Packet<S> row[N];
    for (int j = 0; j < N; ++j) row[j] = ploadu<Packet<S>>(a + j * lda + i);
    for (int t = 0; t < M; ++t) {
      const Packet<S> token = ploadu<Packet<S>>(x + t * ldx + i);
      for (int j = 0; j < N; ++j) sum[t][j] = packet_madd<S>(token, row[j], sum[t][j]);
    }
  }
  if (i < d) {
    for (int t = 0; t < M; ++t) {
      const Packet<S> token = load_part(x + t * ldx + i, d - i);
      for (int j = 0; j < N; ++j)
        sum[t][j] = packet_madd<S>(token, load_part(a + j * lda + i, d - i), sum[t][j]);
    }
  }
  for (int t = 0; t < M; ++t)
    for (int j = 0; j < N; ++j) h[t * ldh + j] = predux(sum[t][j]);
}

template <int M, int N, Scalar S>
void dot_tokens_block(const S* x, Index ldx, const S* a, Index lda, Index n, Index d, S* h, Index ldh) {
  Index j = 0;
  for (; j + N <= n; j += N) dot_block<M, N>(x, ldx, a + j * lda, lda, d, h + j, ldh);
  for (; j < n; ++j) dot_block<M, 1>(x, ldx, a + j * lda, lda, d, h + j, ldh);
}

/// R rows times P packets of out, over the whole depth; `cols` < packet_size only where P is 1.
template <int R, int P, bool Part, Scalar S>
void combine_block(Into into, const S* c, Index c_row, Index c_depth, Index depth, const S* m, Index ldm,
                   S* out, Index ldo, Index cols) {
  using namespace Eigen::internal;
  constexpr Index step = packet_size<S>;
  const auto load = [&](const S* p) {
    if constexpr (Part)
      return load_part(p, cols);
    else
      return ploadu<Packet<S>>(p);
  };
  Packet<S> sum[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p)
      sum[r][p] = into == Into::chain ? load(out + r * ldo + p * step) : pset1<Packet<S>>(S(0));
  for (Index k = 0; k < depth; ++k) {
    Packet<S> row[P];
    for (int p = 0; p < P; ++p) row[p] = load(m + k * ldm + p * step);
    for (int r = 0; r < R; ++r) {
      const Packet<S> weight = pset1<Packet<S>>(c[r * c_row + k * c_depth]);
      for (int p = 0; p < P; ++p) sum[r][p] = packet_madd<S>(weight, row[p], sum[r][p]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      S* const to = out + r * ldo + p * step;
      const Packet<S> result = into == Into::add ? padd(load(to), sum[r][p]) : sum[r][p];
      if constexpr (Part)
        store_part(to, result, cols);
      else
        pstoreu(to, result);
    }
  }
}

/// All columns of R rows.
template <int R, Scalar S>
void combine_rows_block(Into into, const S* c, Index c_row, Index c_depth, Index depth, const S* m, Index ldm,
                        Index cols, S* out, Index ldo) {
  constexpr Index step = packet_size<S>, wide = combine_packets * step;
  Index i = 0;
  for (; i + wide <= cols; i += wide)
    combine_block<R, combine_packets, false>(into, c, c_row, c_depth, depth, m + i, ldm, out + i, ldo, step);
  for (; i + step <= cols; i += step)
    combine_block<R, 1, false>(into, c, c_row, c_depth, depth, m + i, ldm, out + i, ldo, step);
  if (i < cols) combine_block<R, 1, true>(into, c, c_row, c_depth, depth, m + i, ldm, out + i, ldo, cols - i);
}

}  // namespace detail

using detail::Into;

/// Rank product: h[t, j] = sum over i of x[t, i] a[j, i], for x [tokens, d] and a [n, d].
template <Scalar S>
void dot(const S* x, Index ldx, Index tokens, const S* a, Index lda, Index n, Index d, S* h, Index ldh) {
  Index t = 0;
  for (; t + dot_tokens <= tokens; t += dot_tokens)
    detail::dot_tokens_block<dot_tokens, dot_rows>(x + t * ldx, ldx, a, lda, n, d, h + t * ldh, ldh);
  for (; t < tokens; ++t)
    detail::dot_tokens_block<1, dot_rows_single>(x + t * ldx, ldx, a, lda, n, d, h + t * ldh, ldh);
}

/// Up product: out[r, i] = sum over k of c[r, k] m[k, i], k ascending, for c given by its two strides (so
/// that a weight gradient, where k runs over tokens, is the same call) and m [depth, cols].
template <Scalar S>
void combine(Into into, const S* c, Index c_row, Index c_depth, Index rows, Index depth, const S* m,
             Index ldm, Index cols, S* out, Index ldo) {
  Index r = 0;
  for (; r + combine_rows <= rows; r += combine_rows)
    detail::combine_rows_block<combine_rows>(into, c + r * c_row, c_row, c_depth, depth, m, ldm, cols,
                                             out + r * ldo, ldo);
  for (; r + 2 <= rows; r += 2)
    detail::combine_rows_block<2>(into, c + r * c_row, c_row, c_depth, depth, m, ldm, cols, out + r * ldo,
                                  ldo);
  if (r < rows)
    detail::combine_rows_block<1>(into, c + r * c_row, c_row, c_depth, depth, m, ldm, cols, out + r * ldo,
                                  ldo);
}

}  // namespace moxie::inline MOXIE_ABI::kernels
