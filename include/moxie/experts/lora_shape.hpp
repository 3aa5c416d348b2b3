// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/experts/lora_config.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI {

/// What a LoRA bank is apart from its arithmetic: sizes, tensors, scales, start.
template <Scalar S>
class LoraShape {
 public:
  using Scalar = S;
  using Config = LoraConfig;
  static constexpr bool multiplicative = false;

  /// Throws ConfigRange naming the setting.
  explicit LoraShape(const Config& config) : config_(config), begin_(detail::first_rows(config)) {
    for (const double scale : detail::scales(config, begin_)) {
      detail::expect_range(detail::finite_as<S>(scale), "LoRA scale", scale, "a finite number");
      scale_.push_back(static_cast<S>(scale));
    }
  }

  const Config& config() const { return config_; }
  Index experts() const { return config_.experts; }
  Index in() const { return config_.in; }
  Index out() const { return config_.out; }
  Index rows_per_token() const { return 1; }
  Index total_rank() const { return begin_.back(); }
  Index rank(Index e) const { return begin(e + 1) - begin(e); }
  /// First row of expert e in A and B.
  Index begin(Index e) const { return begin_[static_cast<std::size_t>(e)]; }
  S scale(Index e) const { return scale_[static_cast<std::size_t>(e)]; }

  /// The rows of the experts that a token chose, ascending, written to `rows`.
  std::span<const int> chosen_rows(const Routing<S>& routing, Index token, int* rows) const {
    int* end = rows;
    detail::for_chosen(routing, token, [&](Index e) {
      for (Index j = begin(e); j < begin(e + 1); ++j) *end++ = static_cast<int>(j);
    });
    return {rows, end};
  }

  Index size() const { return total_rank() * (in() + out()) + (config_.bias ? experts() * out() : 0); }
  std::vector<Field> fields() const {
    std::vector<Field> fields{{.name = "lora_A", .shape = {total_rank(), in()}},
                              {.name = "lora_B", .shape = {total_rank(), out()}}};
    if (config_.bias) fields.push_back({.name = "lora_bias", .shape = {experts(), out()}, .decay = false});
    return fields;
  }
  void init(std::span<S> theta, std::uint64_t seed) const {
    detail::expect_size("theta", theta.size(), size());
    std::fill(theta.begin(), theta.end(), S(0));
    for (Index e = 0; e < experts(); ++e)
      detail::initialise(
          theta.subspan(static_cast<std::size_t>(begin(e) * in()), static_cast<std::size_t>(rank(e) * in())),
          config_.init, in(), rank(e),
          random::key(random::Use::init, {seed, 1, static_cast<std::uint64_t>(e)}));
  }

  std::array<kernels::MatrixShape, 3> matrices() const {
    return {{{total_rank(), in(), false},
             {total_rank(), out(), true},
             {config_.bias ? experts() : 0, out(), true}}};
  }

 private:
  Config config_;
  std::vector<Index> begin_;
  std::vector<S> scale_;
};

}  // namespace moxie::inline MOXIE_ABI
