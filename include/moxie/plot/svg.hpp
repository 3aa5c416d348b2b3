// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/bar_chart.hpp>
#include <moxie/plot/heat_map.hpp>
#include <moxie/plot/line_chart.hpp>

/// Charts as SVG text: describe one as a LineChart, BarChart or HeatMap and pass it to `svg`. The same chart
/// gives the same bytes whatever the locale. Curves differ by dash and mark, bars and cells by lightness:
/// grey print keeps them apart. Texts are UTF-8. Every `svg` throws Error: shape_mismatch for nothing to draw
/// or lengths that do not fit, non_finite for NaN (but in the cells of a heat map), infinity or |value| >=
/// 1e100, config_range for a setting out of its range.
