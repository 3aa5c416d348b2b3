// SPDX-License-Identifier: MIT
#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <thread>

namespace compare {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// What a first call from a clean start computes.
struct Output {
  Matrix y, dx;
  std::vector<float> gradient;
};
Output output_of(const Variant& variant, Problem& problem) {
  problem.reset();
  variant.call(0);
  if (variant.publish) variant.publish();
  // What LoRA adds, not what it is added to, is compared.
  Output out{problem.cell.lora_kind() ? Matrix(problem.y - problem.y0) : problem.y, problem.dx, {}};
  if (variant.gradient) out.gradient = variant.gradient();
  return out;
}

/// The largest difference over the largest element; throws where it is 1e-4 or more, or not a number.
void expect_close(const std::string& what, const float* got, const float* wanted, Index n) {
  float largest = 0, apart = 0;
  for (Index i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(wanted[i]));
    const float difference = std::abs(got[i] - wanted[i]);
    if (!(difference <= apart)) apart = difference;
  }
  if (largest > 0 && apart < 1e-4f * largest) return;
  char text[160];
  std::snprintf(text, sizeof text, ": largest difference %g, largest element %g", static_cast<double>(apart),
                static_cast<double>(largest));
  throw std::runtime_error(what + text);
}
void expect_same(const std::string& who, const Output& got, const Output& wanted) {
  expect_close(who + ", y", got.y.data(), wanted.y.data(), wanted.y.size());
  if (wanted.gradient.empty()) return;
  expect_close(who + ", dx", got.dx.data(), wanted.dx.data(), wanted.dx.size());
  if (got.gradient.size() != wanted.gradient.size())
    throw std::runtime_error(who + ": a gradient of another size");
  expect_close(who + ", gradient of the weights", got.gradient.data(), wanted.gradient.data(),
               static_cast<Index>(wanted.gradient.size()));
}

/// A contestant at its fastest variant, with its samples.
struct Runner {
  const Contestant* who = nullptr;
  const Variant* variant = nullptr;
  Problem* problem = nullptr;
  Index next = 0, calls = 1;
  int since_reset = 0;
  std::vector<double> samples = {};

  void call() {
    variant->call(next);
    next = (next + 1) % problem->copies;
  }
  /// Seconds per call over `count` calls.
  double timed(Index count) {
    const auto start = Clock::now();
    for (Index i = 0; i < count; ++i) call();
    return since(start) / static_cast<double>(count);
  }
  /// y and dx grow with each call that adds to them; they are set back before that could matter.
  void warm_up() {
    if (since_reset > 1000) {
      problem->reset();
      since_reset = 0;
    }
    since_reset += static_cast<int>(calls);
    call();
  }
  double median() const {
    std::vector<double> sorted = samples;
    std::sort(sorted.begin(), sorted.end());
    const std::size_t half = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
};

/// The number of calls that fills a sample, from a second and third call.
Index calls_for(Runner& runner, double seconds) {
  const double once = std::min(runner.timed(1), runner.timed(1));
  if (once >= seconds) return 1;
  const double many = runner.timed(std::clamp<Index>(static_cast<Index>(0.2 * seconds / once), 1, 10000));
  return std::clamp<Index>(static_cast<Index>(std::ceil(seconds / many)), 1, 1000000);
}

}  // namespace

Result measure(const Cell& cell, const Limits& limits, const Effort& effort) {
  Problem problem(cell, limits.l2_bytes());
  const Contestants own = ours(problem);
  Contestants all = own;
  for (const auto& peers : {eigen_peers, torch_peers, onednn_peers})
    for (Contestant& peer : peers(problem)) all.push_back(std::move(peer));

  Result result{
      .cell = cell, .bound_us = bound_us(problem, limits), .peers = {}, .variants = {}, .skipped = {}};
  const Output wanted = output_of(own.front().variants.front(), problem);
  std::vector<Runner> runners;
  double round_s = 0;
  for (const Contestant& who : all) {
    Runner best{.who = &who, .problem = &problem};
    double best_s = 1e9, slowest_s = 0;
    for (const Variant& variant : who.variants) {
      const auto start = Clock::now();
      const bool reference = &who == &all.front();
      if (!reference) {
        const Output got = output_of(variant, problem);
        expect_same(cell.text() + ": " + who.name + (variant.name.empty() ? "" : " (" + variant.name + ")"),
                    got, wanted);
      }
      problem.reset();
      slowest_s = since(start);
      Runner runner{.who = &who, .variant = &variant, .problem = &problem};
      runner.calls = slowest_s < effort.too_slow_s ? calls_for(runner, effort.sample_s) : 1;
      // Variants are told apart by the best of three samples.
      double s = slowest_s;
      for (int i = 0; i < (who.variants.size() > 1 ? 3 : 1) && slowest_s < effort.too_slow_s; ++i)
        s = std::min(s, runner.timed(runner.calls));
      if (s < best_s) best_s = s, best = runner;
    }
    if (who.name.rfind("ours", 0) != 0 && best_s > effort.too_slow_s) {
      char why[64];
      std::snprintf(why, sizeof why, "%.1f s per call", best_s);
      result.skipped[who.name] = why;
      continue;
    }
    if (who.variants.size() > 1) result.variants[who.name] = best.variant->name;
    round_s += best_s * static_cast<double>(best.calls + 1);
    runners.push_back(best);
  }

  result.rounds = std::clamp(static_cast<int>(effort.seconds / round_s), 3, effort.rounds);
  if (result.rounds < 7 && 7 * round_s < 3 * effort.seconds) result.rounds = 7;
  for (int round = 0; round < result.rounds; ++round)
    for (std::size_t i = 0; i < runners.size(); ++i) {
      Runner& runner = runners[(i + static_cast<std::size_t>(round)) % runners.size()];
      // The other pool of threads goes to sleep first.
      if (cell.threads > 1) std::this_thread::sleep_for(std::chrono::microseconds(500));
      runner.warm_up();
      runner.samples.push_back(runner.timed(runner.calls));
    }

  for (const Runner& runner : runners) {
    const double us = 1e6 * runner.median();
    if (runner.who->name == "ours") {
      result.ours_us = us;
      result.pack_us = runner.who->pack_us;
      result.workspace_bytes = runner.who->workspace_bytes();
    } else if (runner.who->name == "ours_one_thread") {
      result.ours_one_thread_us = us;
    } else {
      result.peers[runner.who->name] = us;
    }
  }
  return result;
}

}  // namespace compare
