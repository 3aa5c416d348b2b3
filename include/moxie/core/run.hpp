// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <cstdint>

namespace moxie::inline MOXIE_ABI {

/// What a call needs to know beyond its data. Randomness (dropout, jitter, noise) is a function of
/// (seed, step, module, expert, first_token + token, feature) alone, so a batch may be split anywhere.
struct Run {
  bool training = false;     ///< dropout, jitter and noise are on
  std::uint64_t seed = 0;    ///< of the whole training run
  std::uint64_t step = 0;    ///< of the optimiser
  Index first_token = 0;     ///< number of this call's first token within the step
  int threads = 1;           ///< size of the team for calls worth one; no output depends on it
  std::uint64_t module = 0;  ///< tells modules apart; an AdapterSet fills it in
  double scale = 1;          ///< strength of the adapter: 0 is the base, 1 the adapter as trained

  static constexpr int max_threads = 4096;
};

namespace detail {

/// Refuses what no call can run with; S is the scalar of the call.
template <class S>
void expect_run(const Run& run) {
  expect_range(run.threads >= 1 && run.threads <= Run::max_threads, "Run::threads", run.threads, "1 to 4096");
  expect_range(run.first_token >= 0, "Run::first_token", static_cast<double>(run.first_token), "0 or more");
  expect_range(finite_as<S>(run.scale), "Run::scale", run.scale, "a finite number");
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
