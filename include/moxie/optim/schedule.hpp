// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <cmath>
#include <numbers>

namespace moxie::inline MOXIE_ABI {

/// What the learning rate does after the warm-up.
enum class Decay { constant, linear, cosine };

/// Learning rate per step: linear warm-up to `peak` over `warmup` steps (step 0 already learns), then `decay`
/// to floor * peak at step `steps`, and there it stays.
struct Schedule {
  double peak = 1e-3;
  std::uint64_t warmup = 0;
  std::uint64_t steps = 1;
  Decay decay = Decay::constant;
  double floor = 0;  ///< share of the peak, 0 to 1

  /// Throws ConfigRange naming the setting.
  double at(std::uint64_t step) const {
    detail::expect_range(peak >= 0 && std::isfinite(peak), "schedule peak", peak,
                         "a finite number, 0 or more");
    detail::expect_range(floor >= 0 && floor <= 1, "schedule floor", floor, "0 to 1");
    detail::expect_range(warmup <= steps, "schedule warmup", static_cast<double>(warmup), "at most `steps`");
    if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
    if (decay == Decay::constant) return peak;
    if (step >= steps) return peak * floor;
    const double way = static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
    const double left = decay == Decay::linear ? 1 - way : (1 + std::cos(std::numbers::pi * way)) / 2;
    return peak * (floor + (1 - floor) * left);
  }
};

}  // namespace moxie::inline MOXIE_ABI
