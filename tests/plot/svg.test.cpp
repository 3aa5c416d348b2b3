// SPDX-License-Identifier: MIT
#if __has_include(<catch2/catch_all.hpp>)
#  include <catch2/catch_all.hpp>
#else
#  include <catch2/catch.hpp>
#endif

#include <moxie/plot/svg.hpp>

#include <cctype>
#include <cmath>
#include <limits>
#include <locale>
#include <string>
#include <vector>

using namespace moxie::plot;
using moxie::Code;

namespace {

/// Elements nest and close, attributes are quoted once each, text holds no bare markup. Returns what is
/// wrong.
std::string xml_fault(const std::string& xml) {
  std::vector<std::string> open;
  std::size_t at = 0;
  const auto references_end = [&](char until) {  // steps over text; false at a bare '<' or '&'
    while (at < xml.size() && xml[at] != until) {
      if (xml[at] == '<') return false;
      if (xml[at] == '&' && xml.compare(at, 5, "&amp;") != 0 && xml.compare(at, 4, "&lt;") != 0 &&
          xml.compare(at, 4, "&gt;") != 0)
        return false;
      ++at;
    }
    return at < xml.size();
  };
  const auto word = [&] {
    const std::size_t begin = at;
    while (at < xml.size() && (std::isalnum(static_cast<unsigned char>(xml[at])) || xml[at] == '-')) ++at;
    return xml.substr(begin, at - begin);
  };
  while (at < xml.size()) {
    if (xml[at] != '<') return "text outside the root";
    if (++at < xml.size() && xml[at] == '/') {
      ++at;
      const std::string name = word();
      if (open.empty() || open.back() != name) return "unexpected </" + name + ">";
      open.pop_back();
    } else {
      const std::string name = word();
      std::vector<std::string> seen;
      if (name.empty()) return "element without name at " + std::to_string(at);
      while (at < xml.size() && xml[at] == ' ') {
        while (xml[at] == ' ') ++at;
        if (xml[at] == '>' || xml[at] == '/') break;
        seen.push_back(word());
        if (xml.compare(at, 2, "='") != 0) return "attribute without value in <" + name + ">";
        for (std::size_t i = 0; i + 1 < seen.size(); ++i)
          if (seen[i] == seen.back()) return "attribute twice in <" + name + ">";
        at += 2;
        if (!references_end('\'')) return "bad value in <" + name + ">";
        ++at;
      }
      if (xml[at] == '/')
        ++at;
      else
        open.push_back(name);
    }
    if (xml[at++] != '>') return "unclosed tag at " + std::to_string(at);
    if (open.empty()) return at == xml.size() || xml.substr(at) == "\n" ? "" : "more than one root";
    if (!references_end('<')) return "bare markup in <" + open.back() + ">";
  }
  return "unclosed elements";
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

bool contains(const std::string& text, const std::string& part) { return count(text, part) > 0; }

LineChart line_chart() {
  LineChart chart{.title = "Loss", .subtitle = "two curves", .x = {"step", ""}, .y = {"loss", "nats"}};
  chart.series = {{.name = "training",
                   .x = {0, 50, 100},
                   .y = {3.3, 2.4, 2.1},
                   .low = {3.2, 2.3, 2},
                   .high = {3.4, 2.5, 2.2}},
                  {.name = "held out", .x = {0, 100}, .y = {3.4, 2.2}, .marks = true}};
  return chart;
}

BarChart bar_chart() {
  return {.title = "Loss",
          .y = {"loss", "nats"},
          .groups = {"fr", "de"},
          .series = {{"before", {3, 4}}, {"change", {-1, -2}, {-1.5, -2.5}, {-0.5, 0.25}}}};
}

HeatMap heat_map() {
  return {.title = "Routing",
          .column = {"expert", ""},
          .value = {"mean probability", ""},
          .rows = {{"trained", {"French", "German"}}, {"unseen", {"Catalan"}}},
          .panels = {{"layer 1", {"1", "2"}, {0.1, 0.9, 0.8, 0.2, 0.25, 0.75}},
                     {"layer 2", {"1", "2", "3"}, {0, 0.5, 0.5, 1, 0, 0, 0.25, 0.25, 0.5}}}};
}

template <class Chart>
Code refusal(const Chart& chart) {
  try {
    svg(chart);
  } catch (const moxie::Error& error) {
    CHECK(contains(error.what(), "plot: "));
    return error.code();
  }
  FAIL("not refused");
  return {};
}

/// Numbers as no program wants them, where a locale decides.
struct Commas : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\1"; }
};

}  // namespace

TEST_CASE("the check of well-formed XML finds faults", "[svg]") {
  CHECK(xml_fault("<a b='1' c='&lt;'><d/>x &amp; y</a>\n").empty());
  for (const char* bad :
       {"<a>", "<a></b>", "<a b=1/>", "<a b='1' b='2'/>", "<a>x & y</a>", "<a/><b/>", "<a b='<'/>"})
    CHECK_FALSE(xml_fault(bad).empty());
}

TEST_CASE("every chart is well-formed XML with its title, captions and units", "[svg]") {
  for (const std::string& picture : {svg(line_chart()), svg(bar_chart()), svg(heat_map())}) {
    CHECK(xml_fault(picture) == "");
    CHECK(picture.starts_with("<svg xmlns='http://www.w3.org/2000/svg'"));
    CHECK_FALSE(contains(picture, "nan"));
    CHECK_FALSE(contains(picture, "inf"));
  }
  const std::string line = svg(line_chart()), bars = svg(bar_chart()), heat = svg(heat_map());
  for (const char* text :
       {"<title>Loss</title>", ">two curves<", ">training<", ">held out<", ">step<", ">loss (nats)<"})
    CHECK(contains(line, text));
  CHECK(count(line, "fill-opacity") == 1);  // one band
  for (const char* text : {">fr<", ">de<", ">before<", ">change<", ">loss (nats)<", ">-2<"})
    CHECK(contains(bars, text));
  for (const char* text :
       {">layer 1<", ">layer 2<", ">French<", ">Catalan<", ">unseen<", ">mean probability<", ">0.75<"})
    CHECK(contains(heat, text));
  CHECK(count(heat, "<rect") == 1 + 6 + 9 + 1);  // page, cells, colour bar
}

TEST_CASE("the same chart gives the same bytes in every locale", "[svg]") {
  const std::string line = svg(line_chart()), bars = svg(bar_chart()), heat = svg(heat_map());
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Commas));
  CHECK(svg(line_chart()) == line);
  CHECK(svg(bar_chart()) == bars);
  CHECK(svg(heat_map()) == heat);
  std::locale::global(before);
}

TEST_CASE("texts are escaped and always valid UTF-8", "[svg]") {
  HeatMap map = heat_map();
  map.title = "a < b && c > 'd' \"e\"";
  map.rows[0].rows[0] = "caf\xe9 \x01 caf\xc3\xa9 \xed\xa0\x80";
  const std::string picture = svg(map);
  CHECK(xml_fault(picture) == "");
  CHECK(contains(picture, "a &lt; b &amp;&amp; c &gt; 'd' \"e\""));
  const std::string unknown = "\xef\xbf\xbd";
  CHECK(contains(picture,
                 ">caf" + unknown + " " + unknown + " caf\xc3\xa9 " + unknown + unknown + unknown + "<"));
}

TEST_CASE("ticks are round numbers that cover the data", "[svg]") {
  const auto at = [](const std::vector<detail::Tick>& ticks) {
    std::string all;
    for (const detail::Tick& t : ticks) all += t.label + " ";
    return all;
  };
  CHECK(at(detail::linear_ticks({0, 300}, 6, false)) == "0 50 100 150 200 250 300 ");
  CHECK(at(detail::linear_ticks({1.82, 3.55}, 4, true)) == "1.5 2.0 2.5 3.0 3.5 4.0 ");
  CHECK(at(detail::linear_ticks({-0.31, 0.12}, 4, true)) == "-0.4 -0.3 -0.2 -0.1 0.0 0.1 0.2 ");
  CHECK(at(detail::linear_ticks({0, 3e8}, 3, false)) == "0 1e+08 2e+08 3e+08 ");
  CHECK(at(detail::log_ticks({0.02, 5})) == "0.02 0.05 0.1 0.2 0.5 1 2 5 ");
  CHECK(at(detail::log_ticks({0.5, 20000})) == "1 10 100 1000 10000 ");
  for (const double size : {1e-99, 1e-12, 1.0, 1e12, 9e99})
    for (const double low : {-1.0, 0.0, 0.999999}) {
      const auto ticks = detail::linear_ticks({low * size, size}, 5, true);
      CHECK((ticks.size() >= 2 && ticks.size() < 14));
      CHECK((ticks.front().at <= (low + 1e-8) * size && ticks.back().at >= (1 - 1e-8) * size));
    }
}

TEST_CASE("a heat map darkens evenly from low to high", "[svg]") {
  const auto lightness = [](const std::string& hex) {
    double y = 0;
    for (const auto& [at, weight] : {std::pair{1, 0.2126}, {3, 0.7152}, {5, 0.0722}}) {
      const double c = std::stoi(hex.substr(static_cast<std::size_t>(at), 2), nullptr, 16) / 255.0;
      y += weight * (c <= 0.04045 ? c / 12.92 : std::pow((c + 0.055) / 1.055, 2.4));
    }
    return 116 * std::cbrt(y) - 16;
  };
  for (int i = 0; i < 64; ++i) {
    const double step = lightness(detail::heat(i / 64.0)) - lightness(detail::heat((i + 1) / 64.0));
    CHECK((step > 0.4 && step < 2.2));
  }
  CHECK(detail::heat(-1) == detail::heat(0));
  CHECK(detail::heat(2) == detail::heat(1));
}

TEST_CASE("a heat map's cell without a number is crossed out, and counts for no scale", "[svg]") {
  HeatMap map = heat_map();
  map.row.label = "language";
  const std::string whole = svg(map);
  CHECK(contains(whole, ">language<"));
  map.panels[0].values[4] = std::nan("");  // neither the lowest nor the highest
  const std::string picture = svg(map);
  CHECK(xml_fault(picture) == "");
  CHECK(count(picture, "#bbb") == count(whole, "#bbb") + 1);
  CHECK(count(picture, ">0.25<") == count(whole, ">0.25<") - 1);
  CHECK(count(picture, ">0.90<") == count(whole, ">0.90<"));
  CHECK_FALSE(contains(picture, "nan"));
  for (double& value : map.panels[0].values) value = std::nan("");
  for (double& value : map.panels[1].values) value = std::nan("");
  CHECK(refusal(map) == Code::non_finite);  // no scale
  map.low = 0;
  map.high = 1;
  CHECK(xml_fault(svg(map)) == "");
}

TEST_CASE("flat data, one point and huge ranges are drawn", "[svg]") {
  LineChart chart = line_chart();
  for (const std::vector<double>& y :
       {std::vector<double>{2, 2, 2}, {0, 0, 0}, {-9e99, 0, 9e99}, {1e-300, 0, 0}}) {
    chart.series = {{.name = "s", .x = {1, 2, 3}, .y = y}};
    CHECK(xml_fault(svg(chart)) == "");
  }
  chart.series = {{.name = "s", .x = {5}, .y = {7}, .marks = true}};
  chart.x.log = chart.y.log = true;
  CHECK_FALSE(contains(svg(chart), "nan"));
  HeatMap map{.title = "one cell", .rows = {{"", {"r"}}}, .panels = {{"", {"c"}, {0.5}}}};
  CHECK(xml_fault(svg(map)) == "");
}

TEST_CASE("charts without data or with data that do not fit are refused", "[svg]") {
  CHECK(refusal(LineChart{}) == Code::shape_mismatch);
  CHECK(refusal(BarChart{}) == Code::shape_mismatch);
  CHECK(refusal(HeatMap{}) == Code::shape_mismatch);
  LineChart line = line_chart();
  line.series[0].x.clear();
  CHECK(refusal(line) == Code::shape_mismatch);
  line = line_chart();
  line.series[1].y.push_back(1);
  CHECK(refusal(line) == Code::shape_mismatch);
  line = line_chart();
  line.series[0].high.clear();
  CHECK(refusal(line) == Code::shape_mismatch);
  BarChart bars = bar_chart();
  bars.series[1].values.pop_back();
  CHECK(refusal(bars) == Code::shape_mismatch);
  bars = bar_chart();
  bars.series[0].low = {2, 3};  // and no high
  CHECK(refusal(bars) == Code::shape_mismatch);
  HeatMap map = heat_map();
  map.panels[1].values.pop_back();
  CHECK(refusal(map) == Code::shape_mismatch);
}

TEST_CASE("values that are not finite and settings out of range are refused", "[svg]") {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity(), -1e100}) {
    LineChart line = line_chart();
    line.series[0].low[1] = bad;
    CHECK(refusal(line) == Code::non_finite);
    BarChart bars = bar_chart();
    bars.series[0].values[1] = bad;
    CHECK(refusal(bars) == Code::non_finite);
    bars = bar_chart();
    bars.series[1].low = {0, 0}, bars.series[1].high = {1, bad};
    CHECK(refusal(bars) == Code::non_finite);
    HeatMap map = heat_map();
    map.panels[0].values[5] = bad;
    CHECK((std::isnan(bad) || refusal(map) == Code::non_finite));
    map = heat_map();
    map.high = bad;
    CHECK(refusal(map) == Code::non_finite);
  }
  LineChart line = line_chart();
  line.x.log = true;  // holds step 0
  CHECK(refusal(line) == Code::config_range);
  line = line_chart();
  line.width = 10;
  CHECK(refusal(line) == Code::config_range);
  HeatMap map = heat_map();
  map.panels_across = 0;
  CHECK(refusal(map) == Code::config_range);
  map = heat_map();
  map.decimals = 9;
  CHECK(refusal(map) == Code::config_range);
  map = heat_map();
  map.low = 2.0;
  CHECK(refusal(map) == Code::config_range);
}
