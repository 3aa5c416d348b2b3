// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/params.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

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

inline std::string name_of(const ParameterGroup& group) { return group.name.empty() ? "theta" : group.name; }

/// Length of the vector that the groups lie in; refuses groups that lie in none.
inline Index extent(const std::vector<ParameterGroup>& groups) {
  Index total = 0;
  for (const ParameterGroup& group : groups) {
    const bool starts = group.offset >= 0;
    const bool fits =
        group.size >= 0 && starts && group.size <= std::numeric_limits<Index>::max() - group.offset;
    if (!fits)
      expect_range(false, (starts ? "the size of group " : "the offset of group ") + name_of(group),
                   static_cast<double>(starts ? group.size : group.offset), "0 or more, within memory");
    total = std::max(total, group.offset + group.size);
  }
  return total;
}

/// `kept` is the length of what the optimiser remembers.
template <class S>
void check_step(const Step& step, const std::vector<ParameterGroup>& groups, std::size_t kept,
                std::size_t theta, std::size_t gradient) {
  expect_range(step.learning_rate >= 0 && std::isfinite(step.learning_rate), "learning rate",
               step.learning_rate, "a finite number, 0 or more");
  expect_range(step.clip_norm >= 0 && std::isfinite(step.clip_norm), "clip norm", step.clip_norm,
               "a finite number, 0 or more");
  const Index total = extent(groups);
  expect_size("the optimiser's state", kept, total);
  for (const ParameterGroup& group : groups) {
    const double rate = step.learning_rate * group.learning_rate_factor;
    if (!(group.learning_rate_factor >= 0) || !finite_as<S>(rate))
      expect_range(false, "learning rate times the factor of group " + name_of(group), rate,
                   "a finite number, 0 or more");
  }
  expect_size("theta", theta, total);
  expect_size("the gradient", gradient, total);
}

/// The gradient's norm, one sum in ascending order in double; or why the step must not be taken.
template <class S>
StepResult measure(const Step& step, const std::vector<ParameterGroup>& groups, std::span<const S> gradient) {
  StepResult result;
  if (!std::isfinite(step.loss)) {
    result.reason = "the loss is " + text(step.loss) + ", wanted a finite number";
    return result;
  }
  double sum = 0, largest = 0;
  for (const ParameterGroup& group : groups) {
    if (!group.trainable) continue;
    for (Index i = group.offset; i < group.offset + group.size; ++i) {
      const auto g = static_cast<double>(gradient[static_cast<std::size_t>(i)]);
      if (!std::isfinite(g)) {
        result.reason = "the gradient of " + name_of(group) + " [" + text(i - group.offset) + "] is " +
                        text(g) + ", wanted a finite number";
        return result;
      }
      sum += g * g;
      largest = std::max(largest, std::abs(g));
    }
  }
  result.gradient_norm = std::sqrt(sum);
  if (!std::isfinite(sum)) {  // only the squares overflowed
    sum = 0;
    for (const ParameterGroup& group : groups)
      for (Index i = group.offset; group.trainable && i < group.offset + group.size; ++i) {
        const double g = static_cast<double>(gradient[static_cast<std::size_t>(i)]) / largest;
        sum += g * g;
      }
    result.gradient_norm = largest * std::sqrt(sum);
  }
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
