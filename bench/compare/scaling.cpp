// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <moxie/plot/svg.hpp>

#include <algorithm>
#include <functional>

namespace compare {
namespace {

namespace plot = moxie::plot;

// Curves have their colours by position: in this order an operation has the same one in every chart.
constexpr Op drawn[] = {Op::soft, Op::top2, Op::lora, Op::mov, Op::ia3};

/// One chart: the cells that `belongs` takes, one curve per operation.
struct Chart {
  std::string title, axis;
  std::function<bool(const Cell&)> belongs;
  std::function<double(const Cell&)> along;
};

bool usual_experts(const Cell& c) { return !c.routed() || c.experts == 8; }
bool usual_rank(const Cell& c) { return !c.lora_kind() || c.rank == 8; }

std::vector<Chart> charts() {
  const auto n = [](Index v) { return static_cast<double>(v); };
  const auto one = [](const Cell& c, bool backward) {
    return c.backward == backward && !c.cold && c.threads == 1;
  };
  const auto tokens = [=](bool backward) {
    return [=](const Cell& c) { return one(c, backward) && c.d == 768 && usual_experts(c) && usual_rank(c); };
  };
  const auto many = [=](const Cell& c) { return one(c, false) && c.tokens == 512; };
  return {{"Tokens (d = 768, E = 8, r = 8)", "tokens T", tokens(false),
           [=](const Cell& c) { return n(c.tokens); }},
          {"Tokens, forward+backward", "tokens T", tokens(true), [=](const Cell& c) { return n(c.tokens); }},
          {"Rank (d = 768, T = 512, E = 8)", "rank r",
           [=](const Cell& c) { return many(c) && c.d == 768 && c.lora_kind() && usual_experts(c); },
           [=](const Cell& c) { return n(c.rank); }},
          {"Experts (d = 768, T = 512, r = 8)", "experts E",
           [=](const Cell& c) { return many(c) && c.d == 768 && usual_rank(c); },
           [=](const Cell& c) { return n(c.experts); }},
          {"Width (T = 512, E = 8, r = 8)", "width d",
           [=](const Cell& c) { return many(c) && usual_experts(c) && usual_rank(c); },
           [=](const Cell& c) { return n(c.d); }},
          {"Threads (d = 768, T = 2048, E = 8, r = 8)", "threads",
           [=](const Cell& c) {
             return !c.backward && !c.cold && c.d == 768 && c.tokens == 2048 && usual_experts(c) &&
                    usual_rank(c);
           },
           [=](const Cell& c) { return n(c.threads); }}};
}

/// The chart's curves; lora and ia3, which have one expert, are single marks among those over experts. Empty
/// where nothing grows.
plot::LineChart draw(const Chart& chart, const std::vector<Result>& results) {
  plot::LineChart page{.title = chart.title,
                       .x = {.label = chart.axis, .log = true},
                       .y = {.label = "time", .unit = "µs per call", .log = true},
                       .series = {},
                       .width = 440,
                       .height = 360};
  for (const Op op : drawn) {
    std::vector<std::pair<double, double>> points;
    for (const Result& r : results)
      if (r.cell.op == op && chart.belongs(r.cell)) points.push_back({chart.along(r.cell), r.ours_us});
    std::sort(points.begin(), points.end());
    plot::Series curve{.name = name(op), .marks = true};
    for (const auto& [x, y] : points) {
      curve.x.push_back(x);
      curve.y.push_back(y);
    }
    if (!curve.x.empty()) page.series.push_back(curve);
  }
  const bool grows = std::any_of(page.series.begin(), page.series.end(),
                                 [](const plot::Series& s) { return s.x.front() < s.x.back(); });
  if (!grows) page.series.clear();
  return page;
}

}  // namespace

std::string scaling(const std::vector<Result>& results) {
  std::vector<plot::LineChart> pages;
  for (const Chart& chart : charts())
    if (plot::LineChart page = draw(chart, results); !page.series.empty()) pages.push_back(std::move(page));
  if (pages.empty()) return {};
  constexpr std::size_t across = 2;
  const std::size_t down = (pages.size() + across - 1) / across;
  const int width = pages.front().width, height = pages.front().height;
  const std::string w = std::to_string(width * static_cast<int>(std::min(across, pages.size()))),
                    h = std::to_string(height * static_cast<int>(down));
  std::string page = "<svg xmlns='http://www.w3.org/2000/svg' width='" + w + "' height='" + h +
                     "' viewBox='0 0 " + w + " " + h + "'>\n<rect width='" + w + "' height='" + h +
                     "' fill='#fff'/>\n";
  for (std::size_t i = 0; i < pages.size(); ++i) {
    // A chart is a page of its own; inside another it only needs a place.
    std::string chart = plot::svg(pages[i]);
    const std::string place = "<svg x='" + std::to_string(width * static_cast<int>(i % across)) + "' y='" +
                              std::to_string(height * static_cast<int>(i / across)) + "' ";
    page += chart.replace(0, std::string("<svg ").size(), place);
  }
  return page + "</svg>\n";
}

}  // namespace compare
