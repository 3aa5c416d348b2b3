// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace moxie::inline MOXIE_ABI {

/// a * b + c, rounded once where the target has a fused multiply-add, exactly as the packet kernels do it.
/// Products are never added in any other way: the compiler may fuse one place and not another.
template <Scalar S>
inline S madd(S a, S b, S c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__AVX512F__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

namespace detail {

/// Sum over e of a[e] * b[e], from 0 in ascending order.
template <Scalar S>
S chain(const S* a, const S* b, Index n) {
  S sum = 0;
  for (Index e = 0; e < n; ++e) sum = madd(a[e], b[e], sum);
  return sum;
}

/// log(sum of exp(z)) of one row.
template <Scalar S>
S log_sum_exp(const S* z, Index n) {
  S top = z[0];
  for (Index e = 1; e < n; ++e) top = std::max(top, z[e]);
  S sum = 0;
  for (Index e = 0; e < n; ++e) sum += std::exp(z[e] - top);
  return top + std::log(sum);
}

/// dz[e] += p[e] (dp[e] - sum over j of p[j] dp[j]), the transposed Jacobian of the row softmax.
template <Scalar S>
void softmax_backward(const S* p, const S* dp, Index n, S* dz) {
  const S mean = chain(p, dp, n);
  for (Index e = 0; e < n; ++e) dz[e] = madd(p[e], dp[e] - mean, dz[e]);
}

/// The k largest of n values, written in ascending order of index; equal values: the lower index first.
/// NaN ranks below every number, so that indices stay in range whatever the values are.
template <Scalar S>
void top_k(const S* value, Index n, Index k, int* chosen) {
  if (k >= n) {
    for (Index e = 0; e < n; ++e) chosen[e] = static_cast<int>(e);
    return;
  }
  const auto rank = [&](Index e) {
    return std::isnan(value[e]) ? -std::numeric_limits<S>::infinity() : value[e];
  };
  Index last = -1;
  for (Index j = 0; j < k; ++j) {
    Index best = -1;
    for (Index e = 0; e < n; ++e) {
      const bool behind_last = last < 0 || rank(e) < rank(last) || (rank(e) == rank(last) && e > last);
      if (behind_last && (best < 0 || rank(e) > rank(best))) best = e;
    }
    chosen[j] = static_cast<int>(best);
    last = best;
  }
  std::sort(chosen, chosen + k);
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
