// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/math.hpp>
#include <moxie/core/random.hpp>

#include <span>

namespace moxie::inline MOXIE_ABI {

/// How a tensor starts. `fan_in` is the length of the rows that meet the input.
enum class Init {
  zero,
  one,
  kaiming_uniform,  ///< U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's kaiming_uniform_(a = sqrt(5))
  gaussian,         ///< N(0, (1/r)^2) for rank r: PEFT's "gaussian"
  normal_002,       ///< N(0, 0.02^2): the released MoV and MoLoRA code
};

namespace detail {

template <Scalar S>
void initialise(std::span<S> values, Init init, Index fan_in, Index rank, std::uint64_t stream) {
  const double bound = 1 / std::sqrt(static_cast<double>(std::max<Index>(fan_in, 1)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    switch (init) {
      case Init::zero:
        values[i] = 0;
        break;
      case Init::one:
        values[i] = 1;
        break;
      case Init::kaiming_uniform:
        values[i] = static_cast<S>((2 * random::uniform(stream, i) - 1) * bound);
        break;
      case Init::gaussian:
        values[i] = static_cast<S>(random::normal(stream, i) / static_cast<double>(rank));
        break;
      case Init::normal_002:
        values[i] = static_cast<S>(0.02 * random::normal(stream, i));
        break;
    }
  }
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
