// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/axis.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace moxie::inline MOXIE_ABI::plot {

/// One bar in each group of a bar chart; with `low` and `high`, as long as values, a whisker stands on it.
struct Bars {
  std::string name = {};
  std::vector<double> values = {}, low = {}, high = {};  ///< [groups]
};

/// Groups of bars that stand on 0.
struct BarChart {
  std::string title = {}, subtitle = {};
  Axis x = {}, y = {};
  std::vector<std::string> groups = {};
  std::vector<Bars> series = {};
  int width = 760, height = 440;
};

/// One group of bars for each name. Throws Error, see svg.hpp.
inline std::string svg(const BarChart& chart) {
  using namespace detail;
  expect_page(!chart.series.empty() && !chart.groups.empty(), chart.width, chart.height);
  Range range{0, 0};
  for (const Bars& s : chart.series) {
    const std::string name = "plot: series \"" + s.name + "\"";
    const Index n = Index(chart.groups.size()), whiskers = s.low.empty() && s.high.empty() ? 0 : n;
    expect_size(name, s.values.size(), n);
    expect_size(name + ", low", s.low.size(), whiskers);
    expect_size(name + ", high", s.high.size(), whiskers);
    for (const auto* values : {&s.values, &s.low, &s.high}) range.add(s.name, *values);
  }
  Canvas canvas(chart.width, chart.height, chart.title, chart.subtitle);
  const auto sample = [&](double x, double y, std::size_t i) { canvas.rect(x, y - 6, 28, 12, colour(i)); };
  const double top = legend(canvas, chart.series, header_height(chart.subtitle) + 8, sample);
  const double right = chart.width - 24, label = widest(chart.groups, 11);
  const bool tilt = label > (right - 90) / double(chart.groups.size()) - 6;
  const double bottom = chart.height - (chart.x.label.empty() ? 14 : 36) - (tilt ? 12 + 0.58 * label : 20);
  Scale y{range.widened(), bottom, top};
  const double left = draw_y(canvas, y, chart.y), group = (right - left) / double(chart.groups.size());
  const double bar = 0.8 * group / double(chart.series.size());
  for (std::size_t g = 0; g < chart.groups.size(); ++g) {
    const double x = left + group * double(g), middle = x + group / 2;
    for (std::size_t k = 0; k < chart.series.size(); ++k) {
      const Bars& bars = chart.series[k];
      const double end = y(bars.values[g]), base = y(0), at = x + 0.1 * group + bar * double(k);
      canvas.rect(at, std::min(end, base), 0.94 * bar, std::abs(end - base), colour(k));
      if (bars.low.empty()) continue;
      const double mid = at + 0.47 * bar, low = y(bars.low[g]), high = y(bars.high[g]);
      for (const bool halo : {true, false}) {  // dark bars would swallow the line
        const char* const shade = halo ? "#fff" : "#222";
        const double thick = halo ? 3 : 1;
        canvas.line(mid, low, mid, high, shade, thick);
        for (const double tip : {low, high})
          canvas.line(mid - 0.15 * bar, tip, mid + 0.15 * bar, tip, shade, thick);
      }
    }
    if (tilt) canvas.turned(middle + 4, bottom + 14, chart.groups[g], 11, -35, "text-anchor='end'");
    if (!tilt) canvas.text(middle, bottom + 17, chart.groups[g], 11, "text-anchor='middle'");
  }
  canvas.line(left, y(0), right, y(0), "#444");
  canvas.text((left + right) / 2, chart.height - 12, caption(chart.x), 12, "text-anchor='middle'");
  return canvas.out + "</svg>\n";
}

}  // namespace moxie::inline MOXIE_ABI::plot
