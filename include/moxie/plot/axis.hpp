// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/canvas.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace moxie::inline MOXIE_ABI::plot {

/// Captioned "label (unit)". With `log` a decimal logarithm, for line charts.
struct Axis {
  std::string label = {}, unit = {};
  bool log = false;
};

namespace detail {

using moxie::detail::expect_range;
using moxie::detail::expect_size;

inline std::string caption(const Axis& a) { return a.unit.empty() ? a.label : a.label + " (" + a.unit + ")"; }
/// The y axis and its grid; widens y to its ticks and returns the left edge of the plot.
inline double draw_y(Canvas& canvas, Scale& y, const Axis& axis) {
  const double height = y.from - y.to, right = canvas.width - 24;
  const std::vector<Tick> ticks =
      y.log ? log_ticks(y.range) : linear_ticks(y.range, std::max(2.0, height / 60), true);
  if (!y.log) y.range = {ticks.front().at, ticks.back().at};
  double left = 0;
  for (const Tick& t : ticks) left = std::max(left, text_width(t.label, 11));
  left += axis.label.empty() ? 22 : 44;
  for (const Tick& t : ticks) {
    canvas.line(left, y(t.at), right, y(t.at), "#e3e3e3");
    canvas.text(left - 8, y(t.at) + 4, t.label, 11, "text-anchor='end' fill='#444'");
  }
  const double size = std::min(12.0, 12 * (height + 40) / std::max(1.0, text_width(caption(axis), 12)));
  canvas.turned(22, (y.from + y.to) / 2, caption(axis), size, -90, "text-anchor='middle'");
  return left;
}

}  // namespace detail

}  // namespace moxie::inline MOXIE_ABI::plot
