// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/axis.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace moxie::inline MOXIE_ABI::plot {

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

/// Panels from left to right, then down; the colour bar stands at the right. Throws Error, see svg.hpp.
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
