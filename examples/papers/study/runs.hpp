// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <set>

#include "setting.hpp"

namespace papers {

/// A study's results: one JSON object a line, `{"setting": ..., ...}`. What is there is not measured again,
/// so a study that was stopped goes on where it was.
class Runs {
 public:
  using Measure = std::function<Json(const Setting&)>;

  /// Reads `file` where it exists. Without a `measure` runs can only be read. Throws std::runtime_error for
  /// lines that are no results.
  Runs(std::string file, Measure measure, int workers);

  /// Measures those of `settings` that are not there, `workers` at a time, and tells on stderr how far it is.
  /// `more`: runs that will be asked for later, for the time left.
  void run(const std::vector<Setting>& settings, std::size_t more = 0);
  /// The result of a setting. Throws std::runtime_error where it was not measured.
  const Json& result(const Setting& setting) const;
  bool has(const Setting& setting) const { return results_.contains(setting.json().dump()); }

  /// Chooses each setting's learning rate by figure `loss` of runs on the words for tuning, with a seed that
  /// no table has: the best of a grid of factors of two around its own, which is widened until there is a
  /// worse one on either side, or seven, and of the two half-way to its neighbours.
  std::vector<Setting> tuned(std::vector<Setting> settings, std::size_t more, bool widen);

  /// Writes the file again in the order in which the runs were asked for.
  void tidy();

 private:
  std::string file_;
  Measure measure_;
  int workers_;
  std::map<std::string, Json> results_;
  std::vector<std::string> asked_;
  double seconds_ = 0;  ///< spent measuring, all workers together
  std::size_t measured_ = 0;
};

/// A number for a results file: five digits behind the point.
double rounded(double value);

}  // namespace papers
