// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "../../progress.hpp"

namespace papers {

/// Mean and spread (standard deviation) over runs.
struct Mean {
  double mean = 0, spread = 0;
  std::size_t n = 0;
};

inline Mean mean_of(std::span<const double> values) {
  Mean m{.n = values.size()};
  for (const double v : values) m.mean += v / static_cast<double>(m.n);
  for (const double v : values) m.spread += (v - m.mean) * (v - m.mean);
  m.spread = m.n > 1 ? std::sqrt(m.spread / static_cast<double>(m.n - 1)) : 0;
  return m;
}

/// A setting as it was given: "0.005".
inline std::string shortest(double value) {
  char buffer[40];
  return std::string(buffer,
                     std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr);
}

/// "2.138 ± 0.004".
inline std::string text(const Mean& m, int decimals = 3) {
  return examples::fixed(m.mean, decimals) + " ± " + examples::fixed(m.spread, decimals);
}

/// 97.5 % quantile of Student's t with n - 1 degrees of freedom.
inline double t_quantile(std::size_t n) {
  constexpr std::array<double, 12> table = {0,     12.706, 4.303, 3.182, 2.776, 2.571,
                                            2.447, 2.365,  2.306, 2.262, 2.228, 2.201};
  return n < 2 ? 0 : n - 1 < table.size() ? table[n - 1] : 1.96 + 2.5 / static_cast<double>(n - 1);
}

/// Half of the 95 % interval of a mean.
inline double half_interval(const Mean& m) {
  return m.n == 0 ? 0 : t_quantile(m.n) * m.spread / std::sqrt(static_cast<double>(m.n));
}

/// "0.039 ± 0.008", the mean and half of its 95 % interval.
inline std::string interval(const Mean& m, int decimals = 3) {
  return text({m.mean, half_interval(m), m.n}, decimals);
}

/// A sentence about a figure that is paired over bases and seeds: it says that the mean is below `threshold`.
/// The rule, written down before the runs: true where the 95 % interval of the mean (Student's t over all
/// pairs) lies below the threshold and so does the mean of each base alone; false where the interval does not
/// reach below it; else not decidable.
struct Claim {
  std::string text;
  double threshold = 0;
  std::vector<std::vector<double>> values = {};  ///< [base][seed]
};

enum class Verdict { true_, false_, undecidable };

struct Decision {
  Verdict verdict;
  Mean mean;
  double half = 0;  ///< of the interval
};

inline Decision decide(const Claim& claim) {
  std::vector<double> all;
  bool each = true;
  for (const auto& base : claim.values) {
    all.insert(all.end(), base.begin(), base.end());
    each = each && mean_of(base).mean < claim.threshold;
  }
  Decision d{Verdict::undecidable, mean_of(all)};
  d.half = half_interval(d.mean);
  if (all.size() > 1 && each && d.mean.mean + d.half < claim.threshold) d.verdict = Verdict::true_;
  if (all.size() > 1 && d.mean.mean - d.half >= claim.threshold) d.verdict = Verdict::false_;
  return d;
}

inline std::string name(Verdict v) {
  return v == Verdict::true_ ? "true" : v == Verdict::false_ ? "false" : "not decidable";
}

/// The smallest difference that n pairs of a spread show in four of five studies (5 % both sides): its power.
inline double smallest_effect(double spread, std::size_t n) {
  // 80 % quantile of Student's t with n - 1 degrees of freedom.
  constexpr std::array<double, 12> table = {0,     1.376, 1.061, 0.978, 0.941, 0.920,
                                            0.906, 0.896, 0.889, 0.883, 0.879, 0.876};
  if (n < 2) return 0;
  const double power = n - 1 < table.size() ? table[n - 1] : 0.86;
  return (t_quantile(n) + power) * spread / std::sqrt(static_cast<double>(n));
}

/// A table in Markdown; the first column stands left, the others right.
inline std::string markdown(const examples::Table& table) {
  const auto line = [](const std::vector<std::string>& cells) {
    std::string text = "|";
    for (const std::string& cell : cells) text += " " + cell + " |";
    return text + "\n";
  };
  std::string text = line(table.header) + "|---|";
  for (std::size_t c = 1; c < table.header.size(); ++c) text += "---:|";
  text += "\n";
  for (const auto& row : table.rows) text += line(row);
  return text + "\n";
}

}  // namespace papers
