// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/params.hpp>

#include <algorithm>
#include <cmath>

namespace moxie::inline MOXIE_ABI {

/// A run of a flat parameter vector that is trained alike. An AdapterSet makes one per field.
struct ParameterGroup {
  std::string name = {};
  Index offset = 0, size = 0;
  bool trainable = true;
  bool decay = true;
  double learning_rate_factor = 1;
};

/// What one optimiser step is to do.
struct Step {
  double learning_rate = 0;
  double clip_norm = 0;  ///< the gradient is scaled down to this norm; 0: never
  double loss = 0;       ///< only to be refused where it is not finite
};

/// What it did. Nothing at all has been changed where it was not applied.
struct [[nodiscard]] StepResult {
  bool applied = false;
  double gradient_norm = 0;  ///< before clipping, over the trainable groups
  std::string reason = {};   ///< why it was not applied: the first number that is not finite, and where
};

namespace detail {

/// Length of the vector that the groups lie in.
inline Index extent(const std::vector<ParameterGroup>& groups) {
  Index end = 0;
  for (const ParameterGroup& group : groups) end = std::max(end, group.offset + group.size);
  return end;
}

inline void check_step(const Step& step, const std::vector<ParameterGroup>& groups, std::size_t theta,
                       std::size_t gradient) {
  expect_range(step.learning_rate >= 0 && std::isfinite(step.learning_rate), "learning rate",
               step.learning_rate, "a finite number, 0 or more");
  expect_range(step.clip_norm >= 0 && std::isfinite(step.clip_norm), "clip norm", step.clip_norm,
               "a finite number, 0 or more");
  expect_size("theta", theta, extent(groups));
  expect_size("the gradient", gradient, extent(groups));
}

/// The gradient's norm, one sum in ascending order in double; or why the step must not be taken.
template <class S>
StepResult measure(const Step& step, const std::vector<ParameterGroup>& groups, std::span<const S> gradient) {
  StepResult result;
  if (!std::isfinite(step.loss)) {
    result.reason = "the loss is " + text(step.loss) + ", wanted a finite number";
    return result;
  }
  double sum = 0;
  for (const ParameterGroup& group : groups) {
    if (!group.trainable) continue;
    for (Index i = group.offset; i < group.offset + group.size; ++i) {
      const auto g = static_cast<double>(gradient[static_cast<std::size_t>(i)]);
      if (!std::isfinite(g)) {
        result.reason = "the gradient of " + (group.name.empty() ? "theta" : group.name) + " [" +
                        text(i - group.offset) + "] is " + text(g) + ", wanted a finite number";
        return result;
      }
      sum += g * g;
    }
  }
  result.gradient_norm = std::sqrt(sum);
  result.applied = true;
  return result;
}

/// The factor that clipping puts on every gradient.
inline double clip_factor(const Step& step, double norm) {
  return step.clip_norm > 0 && norm > step.clip_norm ? step.clip_norm / norm : 1.0;
}

}  // namespace detail

/// The groups of a list of fields that make up a whole vector.
inline std::vector<ParameterGroup> parameter_groups(const std::vector<Field>& fields) {
  std::vector<ParameterGroup> groups;
  Index offset = 0;
  for (const Field& field : fields) {
    groups.push_back({.name = field.name,
                      .offset = offset,
                      .size = field.size(),
                      .trainable = field.trainable,
                      .decay = field.decay});
    offset += field.size();
  }
  return groups;
}

}  // namespace moxie::inline MOXIE_ABI
