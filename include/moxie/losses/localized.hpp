// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/losses/pool.hpp>

namespace moxie::inline MOXIE_ABI {

/// How the localized constraint measures dispersion.
enum class Dispersion {
  cv_squared,          ///< var(Z) / mean(Z)^2: the released code, and what its authors confirm
  variance_over_mean,  ///< var(Z) / mean(Z): as printed, arXiv:2312.09979, eq. 7
};

/// LoRAMoE's localized balancing constraint. Q[b, e] is the sum over the tokens of sample b of expert e's
/// probability, I[b, e] = 1 + delta where the expert's group is the sample's, else 1 - delta, and the loss is
/// the dispersion of Z = I * Q over all (b, e), with the unbiased variance; a loss per routing, added.
/// arXiv:2312.09979, section 3.3; `peft/tuners/lora.py`. Minimising it drives Q towards 1 / I: the matching
/// group gets the smaller gates, (1 - delta) / 2 of them in the limit of two groups, whatever the paper's
/// text says.
template <Scalar S>
class LocalizedBalance {
 public:
  using Scalar = S;
  struct Config {
    double delta = 0.1;
    Dispersion dispersion = Dispersion::cv_squared;
    std::vector<Index> group_sizes = {};  ///< consecutive experts of each group; empty: two halves
    std::vector<int> group_of_type = {
        1, 0};  ///< LoRAMoE: type 1 (other tasks) is the first half, 0 (world knowledge) the second
    bool mask_padding = false;  ///< the released code sums over padding too
  };

  LocalizedBalance() : LocalizedBalance(Config{}) {}
  /// Throws ConfigRange naming the setting.
  explicit LocalizedBalance(const Config& config) : config_(config) {
    detail::expect_range(config.delta >= 0 && config.delta < 1, "localized delta", config.delta,
                         "0 or more, below 1");
    const Index groups = config.group_sizes.empty() ? 2 : std::ssize(config.group_sizes);
    for (const Index size : config.group_sizes)
      detail::expect_range(size >= 1, "a localized group size", static_cast<double>(size), "1 or more");
    for (const int group : config.group_of_type)
      detail::expect_range(group >= 0 && group < groups, "a localized group", group,
                           "0 to " + detail::text(groups - 1));
  }
  const Config& config() const { return config_; }

  /// Throws ShapeMismatch where the groups do not make up the experts or the batch's samples do not fit,
  /// ConfigRange where a sample's type has no group.
  double value(RoutingSpan<S> routings, const Batch& batch) const {
    detail::expect_routings<S>(routings);
    double loss = 0;
    for (const Routing<S>* routing : routings) loss += dispersion(weighted(*routing, batch)).value;
    return loss;
  }

  /// With n = B N, mu the mean and v the variance of Z, eps = 1e-10:
  /// dL/dZ_i = 2 (Z_i - mu) / ((n - 1)(mu^2 + eps)) - 2 mu v / (n (mu^2 + eps)^2), or for variance over mean
  /// 2 (Z_i - mu) / ((n - 1)(mu + eps)) - v / (n (mu + eps)^2); dL/dp_{t,e} = I[b, e] dL/dZ[b, e].
  void backward(RoutingSpan<S> routings, const Batch& batch, double weight,
                RoutingGradientSpan<S> gradients) const {
    detail::expect_gradients(routings, gradients);
    for (const Routing<S>* routing : routings) check(*routing, batch);
    for (std::size_t i = 0; i < routings.size(); ++i) {
      const Routing<S>& routing = *routings[i];
      const std::vector<double> z = weighted(routing, batch);
      const Measure m = dispersion(z);
      Buffer<S>& dp = gradients[i]->part(&Routing<S>::probs);
      for_rows(routing, batch, [&](std::size_t sample, Index row) {
        for (Index e = 0; e < routing.experts; ++e) {
          const double dz =
              m.slope * (z[sample * static_cast<std::size_t>(routing.experts) + static_cast<std::size_t>(e)] -
                         m.mean) +
              m.offset;
          dp[static_cast<std::size_t>(row * routing.experts + e)] +=
              static_cast<S>(weight * dz * importance(routing, batch, sample, e));
        }
      });
    }
  }

 private:
  struct Measure {
    double value = 0, mean = 0, slope = 0, offset = 0;  // dL/dZ_i = slope (Z_i - mean) + offset
  };

  void check(const Routing<S>& routing, const Batch& batch) const {
    detail::expect_batch(routing, batch, config_.mask_padding, true);
    Index experts = 0;
    for (const Index size : config_.group_sizes) experts += size;
    if (config_.group_sizes.empty() ? routing.experts % 2 != 0 : experts != routing.experts)
      fail(Code::shape_mismatch,
           "localized balance groups " +
               (config_.group_sizes.empty() ? "two halves of" : detail::text(experts) + " of") + " the " +
               detail::text(routing.experts) + " experts, wanted groups that make them up");
    for (const int type : batch.types)
      detail::expect_range(
          type >= 0 && type < std::ssize(config_.group_of_type), "a sample's type", type,
          "0 to " + detail::text(std::ssize(config_.group_of_type) - 1) + " (the types with a group)");
  }

  double importance(const Routing<S>& routing, const Batch& batch, std::size_t sample, Index expert) const {
    const int wanted = config_.group_of_type[static_cast<std::size_t>(batch.types[sample])];
    int group = 0;
    if (config_.group_sizes.empty())
      group = expert < routing.experts / 2 ? 0 : 1;
    else
      for (Index end = config_.group_sizes[0]; expert >= end;
           end += config_.group_sizes[static_cast<std::size_t>(group)])
        ++group;
    return group == wanted ? 1 + config_.delta : 1 - config_.delta;
  }

  /// f(sample, row) over the rows that count.
  template <class F>
  void for_rows(const Routing<S>& routing, const Batch& batch, F&& f) const {
    for (std::size_t b = 0; b + 1 < batch.samples.size(); ++b)
      for (Index row = batch.samples[b] * routing.rows_per_token;
           row < batch.samples[b + 1] * routing.rows_per_token; ++row)
        if (detail::counts(routing, batch, config_.mask_padding, row)) f(b, row);
  }

  /// Z[b, e].
  std::vector<double> weighted(const Routing<S>& routing, const Batch& batch) const {
    check(routing, batch);
    const auto experts = static_cast<std::size_t>(routing.experts);
    std::vector<double> z((batch.samples.size() - 1) * experts);
    for_rows(routing, batch, [&](std::size_t sample, Index row) {
      for (std::size_t e = 0; e < experts; ++e)
        z[sample * experts + e] +=
            static_cast<double>(routing.probs[static_cast<std::size_t>(row) * experts + e]);
    });
    for (std::size_t i = 0; i < z.size(); ++i)
      z[i] *= importance(routing, batch, i / experts, static_cast<Index>(i % experts));
    return z;
  }

  Measure dispersion(const std::vector<double>& z) const {
    constexpr double eps = 1e-10;
    Measure m;
    const auto n = static_cast<double>(z.size());
    if (z.size() < 2) return m;
    for (const double v : z) m.mean += v / n;
    double variance = 0;
    for (const double v : z) variance += (v - m.mean) * (v - m.mean) / (n - 1);
    const bool squared = config_.dispersion == Dispersion::cv_squared;
    const double scale = (squared ? m.mean * m.mean : m.mean) + eps;
    m.value = variance / scale;
    m.slope = 2 / ((n - 1) * scale);
    m.offset = -(squared ? 2 * m.mean : 1) * variance / (n * scale * scale);
    return m;
  }

  Config config_;
};

}  // namespace moxie::inline MOXIE_ABI
