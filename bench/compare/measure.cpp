// SPDX-License-Identifier: MIT
#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <utility>

namespace compare {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// What a first call from a clean start computes.
struct Output {
  Matrix y, dx;
  std::vector<float> gradient;
};
Output output_of(const Variant& variant, Problem& problem, double& seconds) {
  problem.reset();
  const auto start = Clock::now();
  variant.call(0);
  seconds = since(start);
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

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// A contestant at its fastest variant, with its samples.
struct Runner {
  const Contestant* who = nullptr;
  const Variant* variant = nullptr;
  Problem* problem = nullptr;
  double seconds = 0;  // of a call, about
  Index next = 0, calls = 1, since_reset = 0;
  std::vector<double> samples = {};

  bool peer() const { return who->name.rfind("ours", 0) != 0; }

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
  void warm_up(bool long_call) {
    since_reset += calls;
    if (since_reset > 1000) {
      problem->reset();
      since_reset = 0;
    }
    if (!long_call) call();
  }
};

/// The number of calls that fills a sample, and the seconds of one.
void gauge(Runner& runner, double first_s, const Effort& effort) {
  runner.seconds = first_s;
  if (first_s > effort.long_call_s) return;
  const double once = std::min(runner.timed(1), runner.timed(1));
  const Index some = std::clamp<Index>(static_cast<Index>(0.2 * effort.sample_s / once), 1, 10000);
  runner.seconds = some > 1 ? runner.timed(some) : once;
  runner.calls =
      std::clamp<Index>(static_cast<Index>(std::ceil(effort.sample_s / runner.seconds)), 1, 1000000);
}

/// Checks the variants against `wanted` and gauges them; the fastest, told by the best of three samples. In a
/// corner the first is taken.
Runner fastest(const Contestant& who, Problem& problem, const Output* wanted, bool corner,
               const Effort& effort) {
  Runner best;
  for (const Variant& variant : who.variants) {
    Runner runner{.who = &who, .variant = &variant, .problem = &problem};
    double first_s = 0;
    const Output got = output_of(variant, problem, first_s);
    const std::string name = who.name + (variant.name.empty() ? "" : " (" + variant.name + ")");
    if (wanted != nullptr) expect_same(problem.cell.text() + ": " + name, got, *wanted);
    problem.reset();
    if (corner) {
      runner.seconds = first_s;
      return runner;
    }
    gauge(runner, first_s, effort);
    // A first call pays for memory that later ones find.
    const bool hopeless = best.who != nullptr && runner.seconds > 2 * best.seconds;
    for (int i = 0; i < 3 && who.variants.size() > 1 && !hopeless; ++i) {
      runner.seconds = std::min(runner.seconds, runner.timed(runner.calls));
      if (runner.seconds > effort.long_call_s) break;
    }
    if (best.who == nullptr || runner.seconds < best.seconds) best = runner;
  }
  return best;
}

double round_seconds(const std::vector<Runner>& runners, const Effort& effort) {
  double sum = 0;
  for (const Runner& r : runners)
    sum += r.seconds * static_cast<double>(r.calls + (r.seconds > effort.long_call_s ? 0 : 1));
  return sum;
}

/// Leaves out the slowest peers while three rounds would take too long.
void shorten(std::vector<Runner>& runners, const Effort& effort, Result& result) {
  while (3 * round_seconds(runners, effort) > effort.most_seconds) {
    const auto slowest =
        std::max_element(runners.begin(), runners.end(), [](const Runner& a, const Runner& b) {
          return std::pair(a.peer(), a.seconds) < std::pair(b.peer(), b.seconds);
        });
    if (!slowest->peer()) break;
    char why[64];
    std::snprintf(why, sizeof why, "too long, %.1f s per call", slowest->seconds);
    result.skipped[slowest->who->name] = why;
    runners.erase(slowest);
  }
}

}  // namespace

Result measure(const Cell& cell, const Limits& limits, const Effort& effort) {
  Problem problem(cell, limits.l2_bytes());
  Contestants all = ours(problem);
  const std::size_t own = all.size();
  for (const auto& peers : {eigen_peers, torch_peers, onednn_peers})
    for (Contestant& peer : peers(problem)) all.push_back(std::move(peer));

  Result result{.cell = cell, .peers = {}, .variants = {}, .skipped = {}};
  double ours_s = 0;
  const Output wanted = output_of(all.front().variants.front(), problem, ours_s);
  const bool corner = ours_s > effort.corner_s;
  std::vector<Runner> runners;
  for (std::size_t i = 0; i < all.size(); ++i) {
    // Not against itself: the gradient of ours has grown since.
    runners.push_back(fastest(all[i], problem, i == 0 ? nullptr : &wanted, corner, effort));
    if (i >= own && all[i].variants.size() > 1) result.variants[all[i].name] = runners.back().variant->name;
  }
  shorten(runners, effort, result);

  const double once = round_seconds(runners, effort);
  result.rounds = std::clamp(static_cast<int>(effort.seconds / once), 3, effort.rounds);
  if (result.rounds < 7 && 7 * once < 3 * effort.seconds) result.rounds = 7;
  std::vector<double> peaks;
  for (int round = 0; round < result.rounds; ++round) {
    peaks.push_back(bench::fma_gflops(cell.threads, 3, 20000));
    for (std::size_t i = 0; i < runners.size(); ++i) {
      Runner& runner = runners[(i + static_cast<std::size_t>(round)) % runners.size()];
      // The other pool of threads goes to sleep first.
      if (cell.threads > 1) std::this_thread::sleep_for(std::chrono::microseconds(500));
      runner.warm_up(runner.seconds > effort.long_call_s);
      runner.samples.push_back(runner.timed(runner.calls));
    }
  }
  result.peak_gflops = median(peaks);
  result.bound_us = bound_us(problem, limits, result.peak_gflops);

  for (const Runner& runner : runners) {
    const double us = 1e6 * median(runner.samples);
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
