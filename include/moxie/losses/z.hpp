// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/losses/pool.hpp>

namespace moxie::inline MOXIE_ABI {

/// Router z-loss: the mean over all rows of the pool of logsumexp(z)^2. ST-MoE, arXiv:2202.08906, eq. 5;
/// coefficient 0.001.
template <Scalar S>
class ZLoss {
 public:
  using Scalar = S;
  struct Config {
    bool mask_padding = false;
  };

  ZLoss() = default;
  explicit ZLoss(const Config& config) : config_(config) {}
  const Config& config() const { return config_; }

  double value(RoutingSpan<S> routings, const Batch& batch) const {
    double sum = 0;
    const double rows = for_rows(routings, batch, [&](std::size_t i, Index row) {
      const auto lse =
          static_cast<double>(detail::log_sum_exp(logits(*routings[i], row), routings[i]->experts));
      sum += lse * lse;
    });
    return rows > 0 ? sum / rows : 0;
  }

  /// dL/dz_{t,e} = 2 logsumexp(z_t) p_{t,e} / rows. Adds weight times it to the gradients' `logits`.
  void backward(RoutingSpan<S> routings, const Batch& batch, double weight,
                RoutingGradientSpan<S> gradients) const {
    detail::expect_gradients(routings, gradients);
    const double rows = for_rows(routings, batch, [](std::size_t, Index) {});
    for_rows(routings, batch, [&](std::size_t i, Index row) {
      const Routing<S>& routing = *routings[i];
      const S lse = detail::log_sum_exp(logits(routing, row), routing.experts);
      const double slope = 2 * weight * static_cast<double>(lse) / rows;
      S* const dz = gradients[i]->part(&Routing<S>::logits).data() + row * routing.experts;
      for (Index e = 0; e < routing.experts; ++e)
        dz[e] += static_cast<S>(slope * std::exp(static_cast<double>(logits(routing, row)[e] - lse)));
    });
  }

 private:
  static const S* logits(const Routing<S>& routing, Index row) {
    return routing.logits.data() + row * routing.experts;
  }

  /// f(routing's number, row) over the rows that count; returns how many they are.
  template <class F>
  double for_rows(RoutingSpan<S> routings, const Batch& batch, F&& f) const {
    detail::expect_routings<S>(routings);
    double rows = 0;
    for (std::size_t i = 0; i < routings.size(); ++i) {
      detail::expect_batch(*routings[i], batch, config_.mask_padding, false);
      for (Index row = 0; row < routings[i]->rows; ++row) {
        if (!detail::counts(*routings[i], batch, config_.mask_padding, row)) continue;
        f(i, row);
        rows += 1;
      }
    }
    return rows;
  }

  Config config_;
};

}  // namespace moxie::inline MOXIE_ABI
