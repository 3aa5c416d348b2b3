// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/canvas.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

/// Charts as SVG text: describe one as a LineChart, BarChart or HeatMap and pass it to `svg`. The same chart
/// gives the same bytes whatever the locale. Curves differ by dash and mark, bars and cells by lightness:
/// grey print keeps them apart. Texts are UTF-8. Every `svg` throws Error: shape_mismatch for nothing to draw
/// or lengths that do not fit, non_finite for NaN (but in the cells of a heat map), infinity or |value| >=
/// 1e100, config_range for a setting out of its range.
namespace moxie::inline MOXIE_ABI::plot {

/// Captioned "label (unit)". With `log` a decimal logarithm, for line charts.
struct Axis {
  std::string label = {}, unit = {};
  bool log = false;
};

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

/// One bar in each group of a bar chart.
struct Bars {
  std::string name = {};
  std::vector<double> values = {};  ///< [groups]
};

/// Groups of bars that stand on 0.
struct BarChart {
  std::string title = {}, subtitle = {};
  Axis x = {}, y = {};
  std::vector<std::string> groups = {};
  std::vector<Bars> series = {};
  int width = 760, height = 440;
};

/// Rows of a heat map that belong together: set apart by a gap, under the group's name where it has one.
struct RowGroup {
  std::string name = {};
  std::vector<std::string> rows = {};
};

/// One matrix of a heat map. Panels share the rows; their columns may differ in number.
struct Panel {
  std::string title = {};
  std::vector<std::string> columns = {};
  std::vector<double> values = {};  ///< [rows of all groups, columns], row-major; NaN: an empty cell
};

/// Panels in a grid with one colour scale from `low` to `high` (left out: the extremes of the values; what
/// lies beyond has the colour of the end). Cells show their values with `decimals` digits where they are wide
/// enough.
struct HeatMap {
  std::string title = {}, subtitle = {};
  Axis column = {}, row = {}, value = {};
  std::vector<RowGroup> rows = {};
  std::vector<Panel> panels = {};
  std::optional<double> low = {}, high = {};
  int panels_across = 2, decimals = 2;
  int width = 880;  ///< pixels, at most about this; the height follows from the rows
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

/// Curves over a common x axis; the legend stands above the plot. Throws Error, see the top of this file.
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

/// One group of bars for each name. Throws Error, see the top of this file.
inline std::string svg(const BarChart& chart) {
  using namespace detail;
  expect_page(!chart.series.empty() && !chart.groups.empty(), chart.width, chart.height);
  Range range{0, 0};
  for (const Bars& s : chart.series) {
    expect_size("plot: series \"" + s.name + "\"", s.values.size(), Index(chart.groups.size()));
    range.add(s.name, s.values);
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
      const double end = y(chart.series[k].values[g]), base = y(0);
      canvas.rect(x + 0.1 * group + bar * double(k), std::min(end, base), 0.94 * bar, std::abs(end - base),
                  colour(k));
    }
    if (tilt) canvas.turned(middle + 4, bottom + 14, chart.groups[g], 11, -35, "text-anchor='end'");
    if (!tilt) canvas.text(middle, bottom + 17, chart.groups[g], 11, "text-anchor='middle'");
  }
  canvas.line(left, y(0), right, y(0), "#444");
  canvas.text((left + right) / 2, chart.height - 12, caption(chart.x), 12, "text-anchor='middle'");
  return canvas.out + "</svg>\n";
}

/// Panels from left to right, then down; the colour bar stands at the right. Throws Error, see the top of
/// this file.
inline std::string svg(const HeatMap& map) {
  using namespace detail;
  expect_range(map.panels_across > 0, "plot: panels_across", map.panels_across, "> 0");
  expect_range(map.decimals >= 0 && map.decimals <= 4, "plot: decimals", map.decimals, "0 to 4");
  Range range;
  std::size_t rows = 0, columns = 0;
  double left = 30 + text_width(caption(map.row), 11), body = 0, title_h = 6, column_label = 0;
  for (const RowGroup& g : map.rows) {
    rows += g.rows.size();
    left = std::max({left, 30 + widest(g.rows, 12), 30 + text_width(g.name, 10.5)});
    body += g.name.empty() ? (rows > g.rows.size() ? 10 : 0) : 20;
  }
  for (const Panel& p : map.panels) {
    expect_size("plot: panel \"" + p.title + "\"", p.values.size(), Index(rows * p.columns.size()));
    range.add(p.title, without_nan(p.values));
    columns = std::max(columns, p.columns.size());
    column_label = std::max(column_label, widest(p.columns, 11));
    if (!p.title.empty() || !map.row.label.empty()) title_h = 24;
  }
  expect_page(rows * columns > 0, map.width, 150);
  range = {map.low.value_or(range.low), map.high.value_or(range.high)};
  Range{}.add("low, high", {range.low, range.high});
  expect_range(range.high >= range.low, "plot: high", range.high, ">= low");
  const Scale shade{range.widened(), 0, 1};

  const std::size_t across = std::min(std::size_t(map.panels_across), map.panels.size());
  const std::size_t down = (map.panels.size() + across - 1) / across;
  const double gap = 26, cell_h = rows > 16 ? 17 : 24, bar_w = 96;
  const double cell_w =
      std::clamp(((map.width - left - bar_w + gap) / double(across) - gap) / double(columns), 11.0, 46.0);
  const double panel_w = cell_w * double(columns) + gap;
  body += cell_h * double(rows);
  const bool tilt =
      column_label > std::max(cell_w - 2, 24.0);  // short ones are numbers, drawn as far as they fit
  const std::size_t stride = tilt ? 1 : std::size_t(std::ceil((column_label + 3) / cell_w));
  const double panel_h =
      title_h + body + (tilt ? 12 + 0.75 * column_label : 18) + (map.column.label.empty() ? 14 : 34);
  const double top = header_height(map.subtitle) + 4, plots = panel_w * double(across) - gap;
  const double title_w = std::min(
      double(map.width), 32 + std::max(text_width(map.title, bold * 16), text_width(map.subtitle, 12)));
  Canvas canvas(std::ceil(std::max(left + plots + bar_w, title_w)), top + panel_h * double(down), map.title,
                map.subtitle);

  for (std::size_t p = 0; p < map.panels.size(); ++p) {
    const Panel& panel = map.panels[p];
    const double x = left + panel_w * double(p % across), head = top + panel_h * double(p / across);
    canvas.text(x, head + 14, panel.title, 12, "font-weight='bold'");
    if (p % across == 0 && !map.row.label.empty())
      canvas.text(left - 10, head + 14, caption(map.row), 11, "text-anchor='end' fill='#444'");
    double y = head + title_h;
    std::size_t i = 0;
    for (std::size_t g = 0; g < map.rows.size(); ++g) {
      y += map.rows[g].name.empty() ? (g > 0 ? 10 : 0) : 20;
      if (p % across == 0)
        canvas.text(left - 10, y - 6, map.rows[g].name, 10.5,
                    "text-anchor='end' font-style='italic' fill='#555'");
      for (const std::string& row : map.rows[g].rows) {
        if (p % across == 0) canvas.text(left - 10, y + cell_h / 2 + 4, row, 12, "text-anchor='end'");
        for (std::size_t c = 0; c < panel.columns.size(); ++c, ++i) {
          const double at = x + cell_w * double(c), t = shade(panel.values[i]);
          const std::string value = number(panel.values[i], map.decimals);
          const double size = std::min(10.5, 0.84 * cell_w / (0.6 * double(value.size())));
          const bool empty = std::isnan(panel.values[i]);
          canvas.cell(at, y, cell_w - 1, cell_h - 1, empty ? "" : heat(t));
          if (size >= 8 && !empty)
            canvas.text(at + (cell_w - 1) / 2, y + cell_h / 2 + 3.5, value, size,
                        t > 0.55 ? "text-anchor='middle' fill='#fff'" : "text-anchor='middle'");
        }
        y += cell_h;
      }
    }
    for (std::size_t c = 0; c < panel.columns.size(); c += stride) {
      const double at = x + cell_w * (double(c) + 0.5);
      if (tilt) canvas.turned(at + 4, y + 10, panel.columns[c], 11, -45, "text-anchor='end' fill='#444'");
      if (!tilt) canvas.text(at - 0.5, y + 14, panel.columns[c], 11, "text-anchor='middle' fill='#444'");
    }
    canvas.text(x + cell_w * double(panel.columns.size()) / 2, head + panel_h - 20, caption(map.column), 11,
                "text-anchor='middle' fill='#444'");
  }

  const double bar_x = left + plots + 26, bar_y = top + title_h,
               bar_h = std::min(260.0, std::max(90.0, body));
  canvas << "<linearGradient id='moxie-heat' x1='0' y1='1' x2='0' y2='0'>";
  for (int i = 0; i <= 8; ++i)
    canvas << "<stop offset='" << i / 8.0 << "' stop-color='" << heat(i / 8.0) << "'/>";
  canvas << "</linearGradient>\n";
  canvas.rect(bar_x, bar_y, 14, bar_h, "url(#moxie-heat)");
  for (const Tick& t : linear_ticks(shade.range, std::max(3.5, bar_h / 45), false)) {
    const double y = bar_y + bar_h * (1 - shade(t.at));
    canvas.line(bar_x + 14, y, bar_x + 18, y, "#444");
    canvas.text(bar_x + 21, y + 4, t.label, 11, "fill='#444'");
  }
  canvas.turned(bar_x + 62, bar_y + bar_h / 2, caption(map.value), 12, -90, "text-anchor='middle'");
  return canvas.out + "</svg>\n";
}

}  // namespace moxie::inline MOXIE_ABI::plot
