// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/math.hpp>
#include <moxie/optim/step.hpp>

namespace moxie::inline MOXIE_ABI {

/// Stochastic gradient descent with momentum and coupled weight decay on a flat vector:
/// g += wd theta; m = momentum m + g; theta -= lr m. As PyTorch has it (dampening 0).
template <Scalar S>
class Sgd {
 public:
  using Scalar = S;
  struct Config {
    double momentum = 0;
    double weight_decay = 0;
  };

  /// Throws ConfigRange naming the setting.
  explicit Sgd(std::vector<ParameterGroup> groups, const Config& config)
      : groups_(std::move(groups)), config_(config) {
    detail::expect_range(config.momentum >= 0 && config.momentum < 1, "SGD momentum", config.momentum,
                         "0 or more, below 1");
    detail::expect_range(config.weight_decay >= 0 && std::isfinite(config.weight_decay), "SGD weight_decay",
                         config.weight_decay, "a finite number, 0 or more");
    m_.assign(static_cast<std::size_t>(detail::extent(groups_)), S(0));
  }
  explicit Sgd(std::vector<ParameterGroup> groups) : Sgd(std::move(groups), Config{}) {}

  /// Changes theta and the momentum, or nothing where the loss or a gradient is not finite.
  StepResult step(std::span<S> theta, std::span<const S> gradient, const Step& step) {
    detail::check_step<S>(step, groups_, m_.size(), theta.size(), gradient.size());
    StepResult result = detail::measure(step, groups_, gradient);
    if (!result.applied) return result;
    const S clip = static_cast<S>(detail::clip_factor(step, result.gradient_norm));
    const S momentum = static_cast<S>(config_.momentum);
    for (const ParameterGroup& group : groups_) {
      if (!group.trainable) continue;
      const S pace = static_cast<S>(-step.learning_rate * group.learning_rate_factor);
      const S decay = static_cast<S>(group.decay ? config_.weight_decay : 0.0);
      for (Index k = group.offset; k < group.offset + group.size; ++k) {
        const auto i = static_cast<std::size_t>(k);
        m_[i] = madd(momentum, m_[i], madd(decay, theta[i], gradient[i] * clip));
        theta[i] = madd(pace, m_[i], theta[i]);
      }
    }
    return result;
  }

  const std::vector<ParameterGroup>& groups() const { return groups_; }
  std::vector<ParameterGroup>& groups() { return groups_; }
  std::span<const S> momentum() const { return m_; }

 private:
  std::vector<ParameterGroup> groups_;
  Config config_;
  Buffer<S> m_;
};

}  // namespace moxie::inline MOXIE_ABI
