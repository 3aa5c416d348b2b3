// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/axis.hpp>

#include <cstddef>
#include <string>
#include <vector>

namespace moxie::inline MOXIE_ABI::plot {

/// One curve y(x); with `low` and `high`, as long as y, a band is laid under it.
struct Series {
  std::string name = {};  ///< in the legend; empty: not there
  std::vector<double> x = {}, y = {}, low = {}, high = {};
  bool line = true, marks = false;
};

struct LineChart {
  std::string title = {}, subtitle = {};
  Axis x = {}, y = {};
  std::vector<Series> series = {};
  int width = 760, height = 440;  ///< pixels
};

/// Curves over a common x axis; the legend stands above the plot. Throws Error, see svg.hpp.
inline std::string svg(const LineChart& chart) {
  using namespace detail;
  expect_page(!chart.series.empty(), chart.width, chart.height);
  Range x_range, y_range;
  for (const Series& s : chart.series) {
    const std::string name = "plot: series \"" + s.name + "\"";
    if (s.x.empty()) fail(Code::shape_mismatch, name + " is empty");
    const Index n = Index(s.x.size()), band = s.low.empty() && s.high.empty() ? 0 : n;
    expect_size(name + ", y", s.y.size(), n);
    expect_size(name + ", low", s.low.size(), band);
    expect_size(name + ", high", s.high.size(), band);
    x_range.add(s.name, s.x, chart.x.log);
    for (const auto* values : {&s.y, &s.low, &s.high}) y_range.add(s.name, *values, chart.y.log);
  }
  Canvas canvas(chart.width, chart.height, chart.title, chart.subtitle);
  const auto sample = [&](double x, double y, std::size_t i) {
    if (chart.series[i].line) canvas << "<path d='M" << x << " " << y << "h28'" << stroke(i) << "/>\n";
    if (chart.series[i].marks) canvas.mark(x + 14, y, i);
  };
  const double top = legend(canvas, chart.series, header_height(chart.subtitle) + 8, sample);
  const double bottom = chart.height - (chart.x.label.empty() ? 32 : 52), right = chart.width - 24;
  Scale y{y_range.widened(), bottom, top, chart.y.log};
  const double left = draw_y(canvas, y, chart.y);
  const Scale x{x_range.widened(), left, right, chart.x.log};
  canvas.line(left, bottom, right, bottom, "#444");
  double taken = 0;  // where the last label ends
  for (const Tick& t : x.log ? log_ticks(x.range) : linear_ticks(x.range, (right - left) / 80, false)) {
    const double half = text_width(t.label, 11) / 2;
    canvas.line(x(t.at), bottom, x(t.at), bottom + 4, "#444");
    if (x(t.at) - half < taken) continue;
    canvas.text(x(t.at), bottom + 17, t.label, 11, "text-anchor='middle' fill='#444'");
    taken = x(t.at) + half + 6;
  }
  canvas.text((left + right) / 2, bottom + 38, caption(chart.x), 12, "text-anchor='middle'");
  const auto points = [&](const Series& s, const std::vector<double>& v, bool back) {
    for (std::size_t i = 0, n = v.size(); i < n; ++i) {
      const std::size_t k = back ? n - 1 - i : i;
      canvas << (i == 0 && !back ? "M" : " ") << x(s.x[k]) << " " << y(v[k]);
    }
  };
  for (std::size_t k = 0; k < chart.series.size(); ++k) {
    if (chart.series[k].low.empty()) continue;
    canvas << "<path fill='" << colour(k) << "' fill-opacity='0.18' d='";
    points(chart.series[k], chart.series[k].low, false);
    points(chart.series[k], chart.series[k].high, true);
    canvas << "z'/>\n";
  }
  for (std::size_t k = 0; k < chart.series.size(); ++k) {
    const Series& s = chart.series[k];
    if (s.line) {
      canvas << "<path" << stroke(k) << " d='";
      points(s, s.y, false);
      canvas << "'/>\n";
    }
    for (std::size_t i = 0; s.marks && i < s.x.size(); ++i) canvas.mark(x(s.x[i]), y(s.y[i]), k);
  }
  return canvas.out + "</svg>\n";
}

}  // namespace moxie::inline MOXIE_ABI::plot
