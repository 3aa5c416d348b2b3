// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/math.hpp>
#include <moxie/optim/step.hpp>

namespace moxie::inline MOXIE_ABI {

/// Adam with decoupled weight decay on a flat vector: with g the clipped gradient and t the step from 1,
/// theta -= lr wd theta; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
/// theta -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). arXiv:1711.05101, algorithm 2, as PyTorch has
/// it.
template <Scalar S>
class AdamW {
 public:
  using Scalar = S;
  struct Config {
    double beta1 = 0.9, beta2 = 0.999;
    double epsilon = 1e-8;
    double weight_decay = 0.01;
  };

  /// Throws ConfigRange naming the setting.
  explicit AdamW(std::vector<ParameterGroup> groups, const Config& config)
      : groups_(std::move(groups)), config_(config) {
    using detail::expect_range;
    expect_range(config.beta1 >= 0 && config.beta1 < 1, "AdamW beta1", config.beta1, "0 or more, below 1");
    expect_range(config.beta2 >= 0 && config.beta2 < 1, "AdamW beta2", config.beta2, "0 or more, below 1");
    expect_range(static_cast<S>(config.epsilon) > 0 && detail::finite_as<S>(config.epsilon), "AdamW epsilon",
                 config.epsilon, "a finite number above 0 that the scalar can hold");
    expect_range(config.weight_decay >= 0 && std::isfinite(config.weight_decay), "AdamW weight_decay",
                 config.weight_decay, "a finite number, 0 or more");
    m_.assign(static_cast<std::size_t>(detail::extent(groups_)), S(0));
    v_.assign(m_.size(), S(0));
  }
  explicit AdamW(std::vector<ParameterGroup> groups) : AdamW(std::move(groups), Config{}) {}

  /// Changes theta and the moments, or nothing where the loss or a gradient is not finite.
  StepResult step(std::span<S> theta, std::span<const S> gradient, const Step& step) {
    detail::check_step<S>(step, groups_, m_.size(), theta.size(), gradient.size());
    StepResult result = detail::measure(step, groups_, gradient);
    const double factor = detail::clip_factor(step, result.gradient_norm);
    if (result.applied &&
        result.gradient_norm * factor > std::sqrt(static_cast<double>(std::numeric_limits<S>::max()))) {
      result.applied = false;
      result.reason = "the gradient's norm is " + detail::text(result.gradient_norm) +
                      ", too large for its square to be kept";
    }
    if (!result.applied) return result;
    ++steps_;
    const auto t = static_cast<double>(steps_);
    const S clip = static_cast<S>(factor);
    const S b1 = static_cast<S>(config_.beta1), b2 = static_cast<S>(config_.beta2);
    const S one_b1 = static_cast<S>(1 - config_.beta1), one_b2 = static_cast<S>(1 - config_.beta2);
    const S root = static_cast<S>(std::sqrt(1 - std::pow(config_.beta2, t))),
            epsilon = static_cast<S>(config_.epsilon);
    for (const ParameterGroup& group : groups_) {
      if (!group.trainable) continue;
      const double rate = step.learning_rate * group.learning_rate_factor;
      const S shrink = static_cast<S>(group.decay ? 1 - rate * config_.weight_decay : 1.0);
      const S pace = static_cast<S>(-rate / (1 - std::pow(config_.beta1, t)));
      for (Index k = group.offset; k < group.offset + group.size; ++k) {
        const auto i = static_cast<std::size_t>(k);
        const S g = gradient[i] * clip;
        m_[i] = madd(b1, m_[i], one_b1 * g);
        v_[i] = madd(b2, v_[i], one_b2 * g * g);
        theta[i] = madd(pace, m_[i] / (std::sqrt(v_[i]) / root + epsilon), theta[i] * shrink);
      }
    }
    return result;
  }

  const std::vector<ParameterGroup>& groups() const { return groups_; }
  std::vector<ParameterGroup>& groups() {
    return groups_;
  }  ///< to change learning-rate factors between steps
  std::uint64_t steps() const { return steps_; }
  std::span<const S> first_moment() const { return m_; }
  std::span<const S> second_moment() const { return v_; }

  /// Goes on where another run stopped. Throws ShapeMismatch.
  void restore(std::span<const S> first_moment, std::span<const S> second_moment, std::uint64_t steps) {
    detail::expect_size("the first moment", first_moment.size(), std::ssize(m_));
    detail::expect_size("the second moment", second_moment.size(), std::ssize(v_));
    std::copy(first_moment.begin(), first_moment.end(), m_.begin());
    std::copy(second_moment.begin(), second_moment.end(), v_.begin());
    steps_ = steps;
  }

 private:
  std::vector<ParameterGroup> groups_;
  Config config_;
  Buffer<S> m_, v_;
  std::uint64_t steps_ = 0;
};

}  // namespace moxie::inline MOXIE_ABI
