// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/math.hpp>

/// What everything hot is made of, on Eigen's packet primitives: one source for every instruction set that
/// Eigen knows. Each element of a result is one chain of fused multiply-adds whose order depends on shape,
/// scalar and packet size alone: not on the number of tokens, on the block it falls in, on how the weights
/// are laid out, or on addresses. (architecture: rules that keep the bits)
namespace moxie::inline MOXIE_ABI::kernels {

template <Scalar S>
using Packet = typename Eigen::internal::packet_traits<S>::type;

template <Scalar S>
constexpr Index packet_size = Eigen::internal::unpacket_traits<Packet<S>>::size;

/// 32 with AVX-512 and NEON, 16 before.
constexpr bool many_registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32;

namespace detail {

/// Holds a packet in its register. g++ 12 otherwise reads it from memory again in each multiply-add that uses
/// it, and the load ports become the limit (rank product, 512 tokens of 768: 80 against 107 of 118 GFLOP/s).
template <class P>
EIGEN_ALWAYS_INLINE void keep([[maybe_unused]] P& packet) {
#if defined(__GNUC__) && defined(__SSE2__)
  asm("" : "+v"(packet));
#elif defined(__GNUC__) && defined(__aarch64__)
  asm("" : "+w"(packet));
#endif
}

template <Scalar S>
EIGEN_ALWAYS_INLINE Packet<S> packet_madd(const Packet<S>& a, const Packet<S>& b, const Packet<S>& c) {
  if constexpr (packet_size<S> == 1)
    return madd(a, b, c);
  else
    return Eigen::internal::pmadd(a, b, c);
}

/// A packet of scalars, from scalars or from weights in 16-bit storage, whose widening is exact.
template <Scalar S, class W>
EIGEN_ALWAYS_INLINE Packet<S> load(const W* p) {
  if constexpr (std::is_same_v<W, S>) {
    return Eigen::internal::ploadu<Packet<S>>(p);
  } else {
    using Narrow = typename Eigen::internal::packet_traits<W>::type;
    constexpr Index width = Eigen::internal::unpacket_traits<Narrow>::size;
    if constexpr (std::is_same_v<S, float> && width == packet_size<S> && width >= 8) {
      return Eigen::internal::pcast<Narrow, Packet<S>>(Eigen::internal::ploadu<Narrow>(p));
    } else {
      alignas(64) S full[packet_size<S>];
      for (Index i = 0; i < packet_size<S>; ++i) full[i] = static_cast<S>(static_cast<float>(p[i]));
      return Eigen::internal::pload<Packet<S>>(full);
    }
  }
}

/// The first n < packet_size scalars, zero behind them.
template <Scalar S, class W>
Packet<S> load_part(const W* p, Index n) {
  alignas(64) W full[packet_size<S>] = {};
  for (Index i = 0; i < n; ++i) full[i] = p[i];
  return load<S>(full);
}
template <Scalar S>
void store_part(S* p, const Packet<S>& v, Index n) {
  alignas(64) S full[packet_size<S>];
  Eigen::internal::pstore(full, v);
  for (Index i = 0; i < n; ++i) p[i] = full[i];
}

/// load, or load_part of the first n.
template <bool part, Scalar S, class W>
EIGEN_ALWAYS_INLINE Packet<S> load_some(const W* p, Index n) {
  if constexpr (part)
    return load_part<S>(p, n);
  else
    return load<S>(p);
}

}  // namespace detail

/// to += strength * from, rounded once.
template <Scalar S>
void add(In<S> from, Out<S> to, S strength = 1) {
  using namespace Eigen::internal;
  const Packet<S> factor = pset1<Packet<S>>(strength);
  for (Index r = 0; r < to.rows; ++r) {
    const S* const source = from.row(r);
    S* const target = to.row(r);
    Index i = 0;
    for (; i + packet_size<S> <= to.cols; i += packet_size<S>)
      pstoreu(target + i,
              detail::packet_madd<S>(factor, ploadu<Packet<S>>(source + i), ploadu<Packet<S>>(target + i)));
    for (; i < to.cols; ++i) target[i] = madd(strength, source[i], target[i]);
  }
}

/// Asks for the cache lines of a matrix before it is used: what is read in short pieces of far rows would
/// otherwise wait for the third cache at each of them.
template <Scalar S>
void prefetch(In<S> m) {
  for (Index r = 0; r < m.rows; ++r)
    for (Index i = 0; i < m.cols; i += static_cast<Index>(64 / sizeof(S)))
      Eigen::internal::prefetch(m.row(r) + i);
}

}  // namespace moxie::inline MOXIE_ABI::kernels
