// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/kernels/packet.hpp>

#include <algorithm>
#include <limits>

namespace moxie::inline MOXIE_ABI::kernels {

namespace detail {

/// exp(x), 0 where it would be subnormal (which slows down what it is multiplied with), NaN for NaN.
template <Scalar S>
EIGEN_ALWAYS_INLINE Packet<S> exp_packet(const Packet<S>& x) {
  using namespace Eigen::internal;
  const Packet<S> least = pset1<Packet<S>>(std::is_same_v<S, float> ? S(-87.3) : S(-708));
  const Packet<S> power = pselect(pcmp_lt(x, least), pset1<Packet<S>>(S(0)), pexp(x));
  return pselect(pcmp_eq(x, x), power, x);
}

}  // namespace detail

/// p = softmax(z) of one row, the only softmax of the library, in packets of experts: its order of sums is a
/// function of n alone. Finite logits of any size give finite p; a row with NaN or +infinity gives NaN in
/// that row alone.
template <Scalar S>
void softmax(const S* z, Index n, S* p) {
  using namespace Eigen::internal;
  constexpr Index size = packet_size<S>;
  S top = z[0];
  for (Index e = 1; e < n; ++e) top = std::max(top, z[e]);
  // Half of each before the difference, so that logits near the end of the range do not overflow; halving is
  // exact, so that a fused multiply-subtract changes nothing.
  const Packet<S> half = pset1<Packet<S>>(S(0.5)), half_top = pset1<Packet<S>>(S(0.5) * top);
  const auto power = [&](const Packet<S>& logits) {
    const Packet<S> below = psub(pmul(half, logits), half_top);
    return detail::exp_packet<S>(padd(below, below));
  };
  alignas(64) S rest[size];  // behind the last expert -infinity, whose power is 0
  Packet<S> sums = pset1<Packet<S>>(S(0));
  for (Index e = 0; e < n; e += size) {
    const bool whole = e + size <= n;
    if (!whole) std::fill(std::copy(z + e, z + n, rest), rest + size, -std::numeric_limits<S>::infinity());
    const Packet<S> powers = power(whole ? ploadu<Packet<S>>(z + e) : pload<Packet<S>>(rest));
    sums = padd(sums, powers);
    if (whole)
      pstoreu(p + e, powers);
    else
      pstore(rest, powers);
  }
  const S sum = predux(sums);
  const Index in_packets = n / size * size;
  for (Index e = 0; e < in_packets; ++e) p[e] /= sum;
  for (Index e = in_packets; e < n; ++e) p[e] = rest[e - in_packets] / sum;
}

}  // namespace moxie::inline MOXIE_ABI::kernels
