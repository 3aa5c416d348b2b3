// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/losses/pool.hpp>

namespace moxie::inline MOXIE_ABI {

namespace detail {

/// CV^2 with the population variance, var / (mean^2 + 1e-10), and its slope per element. Shazeer et al.,
/// arXiv:1701.06538, eq. 7; tensor2tensor `expert_utils.cv_squared`.
struct PopulationCv {
  double value = 0;
  std::vector<double> slope;

  explicit PopulationCv(const std::vector<double>& v) : slope(v.size()) {
    const auto n = static_cast<double>(v.size());
    double mean = 0, variance = 0;
    for (const double x : v) mean += x / n;
    for (const double x : v) variance += (x - mean) * (x - mean) / n;
    const double scale = mean * mean + 1e-10;
    value = v.size() > 1 ? variance / scale : 0;
    if (v.size() > 1)
      for (std::size_t i = 0; i < v.size(); ++i)
        slope[i] = 2 * (v[i] - mean) / (n * scale) - 2 * mean * variance / (n * scale * scale);
  }
};

}  // namespace detail

/// Importance loss: CV^2 over experts of the sum over rows of their gates; a loss per routing, added.
/// Shazeer et al., arXiv:1701.06538, eq. 6 and 7; coefficient 0.01 there. The gradient goes through the
/// gates.
template <Scalar S>
class ImportanceLoss {
 public:
  using Scalar = S;
  struct Config {
    bool mask_padding = false;
  };

  ImportanceLoss() = default;
  explicit ImportanceLoss(const Config& config) : config_(config) {}
  const Config& config() const { return config_; }

  double value(RoutingSpan<S> routings, const Batch& batch) const {
    detail::expect_routings<S>(routings);
    double loss = 0;
    for (const Routing<S>* routing : routings)
      loss += detail::PopulationCv(importance(*routing, batch)).value;
    return loss;
  }

  /// Adds weight times the gradient to the gradients' `gates`.
  void backward(RoutingSpan<S> routings, const Batch& batch, double weight,
                RoutingGradientSpan<S> gradients) const {
    detail::expect_gradients(routings, gradients);
    for (const Routing<S>* routing : routings)
      detail::expect_batch(*routing, batch, config_.mask_padding, false);
    for (std::size_t i = 0; i < routings.size(); ++i) {
      const Routing<S>& routing = *routings[i];
      const detail::PopulationCv cv(importance(routing, batch));
      Buffer<S>& dgates = gradients[i]->part(&Routing<S>::gates);
      for (Index row = 0; row < routing.rows; ++row) {
        if (!detail::counts(routing, batch, config_.mask_padding, row)) continue;
        for (std::size_t e = 0; e < cv.slope.size(); ++e)
          dgates[static_cast<std::size_t>(row) * cv.slope.size() + e] += static_cast<S>(weight * cv.slope[e]);
      }
    }
  }

 private:
  std::vector<double> importance(const Routing<S>& routing, const Batch& batch) const {
    detail::expect_batch(routing, batch, config_.mask_padding, false);
    std::vector<double> sum(static_cast<std::size_t>(routing.experts));
    for (Index row = 0; row < routing.rows; ++row) {
      if (!detail::counts(routing, batch, config_.mask_padding, row)) continue;
      for (std::size_t e = 0; e < sum.size(); ++e) sum[e] += static_cast<double>(routing.gate_row(row)[e]);
    }
    return sum;
  }

  Config config_;
};

/// Load loss: CV^2 over experts of Load_e = sum over rows of Phi((z_e - kappa_e) / sigma_e), the probability
/// that e would be chosen if its noise were drawn again, kappa_e the k-th largest noisy logit of the other
/// experts; a loss per routing, added. Shazeer et al., arXiv:1701.06538, eq. 8 to 11; coefficient 0.01 there.
/// Needs a router with noise in training; an expert that cannot lose its place (k = N) has load 1 a row.
template <Scalar S>
class LoadLoss {
 public:
  using Scalar = S;
  struct Config {
    bool mask_padding = false;
  };

  LoadLoss() = default;
  explicit LoadLoss(const Config& config) : config_(config) {}
  const Config& config() const { return config_; }

  /// Throws StateError where a routing was made without noise.
  double value(RoutingSpan<S> routings, const Batch& batch) const {
    detail::expect_routings<S>(routings);
    double loss = 0;
    for (const Routing<S>* routing : routings) loss += detail::PopulationCv(load(*routing, batch)).value;
    return loss;
  }

  /// With u = (z_e - kappa_e) / sigma_e and phi the normal density: dz_e += phi / sigma, dkappa_e -= phi /
  /// sigma, dsigma_e -= phi u / sigma. Adds weight times it to the gradients' `logits`, `noisy` and
  /// `noise_scale`.
  void backward(RoutingSpan<S> routings, const Batch& batch, double weight,
                RoutingGradientSpan<S> gradients) const {
    detail::expect_gradients(routings, gradients);
    for (const Routing<S>* routing : routings) check(*routing, batch);
    for (std::size_t i = 0; i < routings.size(); ++i) {
      const Routing<S>& routing = *routings[i];
      const detail::PopulationCv cv(load(routing, batch));
      Buffer<S>& dz = gradients[i]->part(&Routing<S>::logits);
      Buffer<S>& dnoisy = gradients[i]->part(&Routing<S>::noisy);
      Buffer<S>& dsigma = gradients[i]->part(&Routing<S>::noise_scale);
      for_margins(routing, batch, [&](std::size_t row_start, Index e, Index rival, double u, double sigma) {
        const auto at = row_start + static_cast<std::size_t>(e);
        const double density = std::exp(-u * u / 2) * 0.3989422804014327;  // 1 / sqrt(2 pi)
        const double slope = weight * cv.slope[static_cast<std::size_t>(e)] * density / sigma;
        dz[at] += static_cast<S>(slope);
        dnoisy[row_start + static_cast<std::size_t>(rival)] -= static_cast<S>(slope);
        dsigma[at] -= static_cast<S>(slope * u);
      });
    }
  }

 private:
  void check(const Routing<S>& routing, const Batch& batch) const {
    detail::expect_batch(routing, batch, config_.mask_padding, false);
    if (routing.noisy.empty() && routing.rows > 0)
      fail(Code::state_error, "load loss of a routing without noise: wanted a noisy router in training");
  }

  std::vector<double> load(const Routing<S>& routing, const Batch& batch) const {
    check(routing, batch);
    std::vector<double> sum(static_cast<std::size_t>(routing.experts));
    if (routing.max_chosen >= routing.experts) {
      for (Index row = 0; row < routing.rows; ++row)
        if (detail::counts(routing, batch, config_.mask_padding, row))
          for (double& load : sum) load += 1;
      return sum;
    }
    for_margins(routing, batch, [&](std::size_t, Index e, Index, double u, double) {
      sum[static_cast<std::size_t>(e)] += std::erfc(-u * 0.7071067811865476) / 2;  // Phi(u)
    });
    return sum;
  }

  /// f(start of the row, expert, the expert whose noisy logit is its threshold, u, sigma).
  template <class F>
  void for_margins(const Routing<S>& routing, const Batch& batch, F&& f) const {
    const Index experts = routing.experts, k = routing.max_chosen;
    if (k >= experts) return;
    std::vector<int> order(static_cast<std::size_t>(experts));
    for (Index row = 0; row < routing.rows; ++row) {
      if (!detail::counts(routing, batch, config_.mask_padding, row)) continue;
      const S* const noisy = routing.noisy.data() + row * experts;
      for (Index e = 0; e < experts; ++e) order[static_cast<std::size_t>(e)] = static_cast<int>(e);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return noisy[a] > noisy[b]; });
      const int last_in = order[static_cast<std::size_t>(k - 1)],
                first_out = order[static_cast<std::size_t>(k)];
      for (Index place = 0; place < experts; ++place) {
        const int e = order[static_cast<std::size_t>(place)], rival = place < k ? first_out : last_in;
        const auto at = static_cast<std::size_t>(row * experts + e);
        const auto sigma = static_cast<double>(routing.noise_scale[at]);
        const double u =
            (static_cast<double>(routing.logits[at]) - static_cast<double>(noisy[rival])) / sigma;
        f(static_cast<std::size_t>(row * experts), e, rival, u, sigma);
      }
    }
  }

  Config config_;
};

}  // namespace moxie::inline MOXIE_ABI
