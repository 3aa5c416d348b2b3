// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

/// What the charts of svg.hpp are drawn with: SVG markup, ranges, ticks, colours.
namespace moxie::inline MOXIE_ABI::plot::detail {

/// `value` with `decimals` digits after the point; scientific where that would be long.
inline std::string number(double value, int decimals) {
  char buffer[32];
  const bool fixed = decimals <= 4 && std::abs(value) < 1e7;
  const auto format = fixed ? std::chars_format::fixed : std::chars_format::general;
  const std::string s(buffer, std::to_chars(buffer, buffer + 32, value, format, fixed ? decimals : 4).ptr);
  return s.front() == '-' && s.find_first_not_of("-0.") == std::string::npos ? s.substr(1) : s;
}

/// Markup characters escaped; bytes that are not UTF-8 and characters that XML forbids become U+FFFD.
inline std::string escape(std::string_view text) {
  std::string out;
  for (std::size_t at = 0, length = 1; at < text.size(); at += length) {
    const unsigned lead = static_cast<unsigned char>(text[at]);
    length = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    char32_t c = length == 1 ? lead : lead & (0x7fu >> length);
    bool valid = lead < 0x80 || (lead >= 0xc0 && lead < 0xf8 && at + length <= text.size());
    for (std::size_t i = 1; valid && i < length; ++i) {
      valid = (static_cast<unsigned char>(text[at + i]) & 0xc0) == 0x80;
      c = (c << 6) | (static_cast<unsigned char>(text[at + i]) & 0x3fu);
    }
    constexpr char32_t least[] = {0, 0x20, 0x80, 0x800, 0x10000};
    valid = valid && c >= least[length] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff) && (c | 1) != 0xffff;
    if (!valid) length = 1;
    out += !valid     ? "\xef\xbf\xbd"
           : c == '&' ? "&amp;"
           : c == '<' ? "&lt;"
           : c == '>' ? "&gt;"
                      : text.substr(at, length);
  }
  return out;
}

/// In pixels; an estimate from the widths of common sans-serif fonts, a little generous.
inline double text_width(std::string_view text, double size) {
  double em = 0;
  for (const char c : text) {
    const bool narrow = std::string_view("fijlrtI .,:;'|!()[]-").find(c) != std::string_view::npos;
    const bool wide = std::string_view("mwMW%@").find(c) != std::string_view::npos;
    if ((c & 0xc0) != 0x80) em += narrow ? 0.38 : wide ? 0.92 : c >= 'A' && c <= 'Z' ? 0.7 : 0.62;
  }
  return em * size;
}

constexpr double bold = 1.13;  // how much wider bold text is

inline double widest(const std::vector<std::string>& labels, double size) {
  double w = 0;
  for (const std::string& l : labels) w = std::max(w, text_width(l, size));
  return w;
}

constexpr std::size_t styles = 8;

inline std::string colour(std::size_t i) {
  constexpr const char* colours[styles] = {"#1b4079", "#e07a1f", "#1f7a68", "#b07cc6",
                                           "#a3293d", "#6aa5d8", "#8a6d1c", "#4d4d4d"};
  return colours[i % styles];
}

/// Curve i differs from the others by dash as well as by colour.
inline std::string stroke(std::size_t i) {
  constexpr const char* dashes[styles] = {"none", "7 4", "2 3",          "11 4 2 4",
                                          "14 5", "5 2", "11 3 2 3 2 3", "1 4"};
  return " fill='none' stroke='" + colour(i) +
         "' stroke-width='2' stroke-linejoin='round' stroke-dasharray='" + dashes[(i + i / styles) % styles] +
         "'";
}

/// Sequential map from white to blue black; CIE lightness falls from 98 to 17 in even steps. t in [0, 1].
inline std::string heat(double t) {
  constexpr int map[9][3] = {{244, 250, 250}, {199, 225, 228}, {150, 201, 212},
                             {104, 175, 200}, {66, 147, 188},  {46, 116, 172},
                             {42, 87, 145},   {38, 61, 109},   {28, 39, 70}};
  const double at = 8 * std::clamp(t, 0.0, 1.0);
  const int i = std::min(int(at), 7);
  std::string hex = "#";
  for (int c = 0; c < 3; ++c) {
    const int v = int(std::lround(map[i][c] + (at - i) * (map[i + 1][c] - map[i][c])));
    hex += {"0123456789abcdef"[v / 16], "0123456789abcdef"[v % 16]};
  }
  return hex;
}

inline std::vector<double> without_nan(std::vector<double> values) {
  std::erase_if(values, [](double value) { return std::isnan(value); });
  return values;
}

struct Range {
  double low = HUGE_VAL, high = -HUGE_VAL;

  /// Takes the values in. Throws Error: non_finite; config_range for values <= 0 on a log axis.
  void add(const std::string& name, const std::vector<double>& values, bool log = false) {
    for (const double v : values) {
      if (!(std::abs(v) < 1e100))
        fail(Code::non_finite, "plot: \"" + name + "\" holds " + moxie::detail::text(v));
      if (log)
        moxie::detail::expect_range(v > 0, "plot: a value of \"" + name + "\" on a log axis", v, "> 0");
      low = std::min(low, v);
      high = std::max(high, v);
    }
  }
  /// Flat data gets some height.
  Range widened() const {
    const double size = std::max(std::abs(low), std::abs(high));
    const double pad = size == 0 ? 1 : std::max(size / 10, 1e-100);
    return high - low > 1e-9 * size ? *this : Range{low - pad, high + pad};
  }
};

/// From data to pixels.
struct Scale {
  Range range;
  double from, to;
  bool log = false;
  double operator()(double v) const {
    const auto f = [this](double u) { return log ? std::log10(u) : u; };
    return from + (f(v) - f(range.low)) / (f(range.high) - f(range.low)) * (to - from);
  }
};

struct Tick {
  double at;
  std::string label;
};

/// About `wanted` multiples of 1, 2 or 5 times a power of ten in the range; outward: and the next on both
/// sides of it.
inline std::vector<Tick> linear_ticks(const Range& r, double wanted, bool outward) {
  const double rough = (r.high - r.low) / wanted * 0.7, slack = outward ? -1e-9 : 1e-9;
  int k = int(std::floor(std::log10(rough)));
  const auto value = [&k](double i) { return k < 0 ? i / std::pow(10, -k) : i * std::pow(10, k); };
  double m = value(1) >= rough ? 1 : value(2) >= rough ? 2 : value(5) >= rough ? 5 : 10;
  if (m == 10) m = 1, ++k;
  const auto first = std::ceil(r.low / value(m) - slack) - (outward ? 1 : 0);
  const auto last = std::floor(r.high / value(m) + slack) + (outward ? 1 : 0);
  std::vector<Tick> ticks;
  for (double i = first; i <= last; ++i)
    ticks.push_back({value(i * m), number(value(i * m), std::max(0, -k))});
  return ticks;
}

/// 1, 2, 5 times powers of ten in the range, powers alone over more than three decades.
inline std::vector<Tick> log_ticks(const Range& r) {
  std::vector<Tick> ticks;
  const bool many = std::log10(r.high / r.low) > 3;
  for (int k = int(std::floor(std::log10(r.low))); k <= std::log10(r.high); ++k)
    for (const double m : {1.0, 2.0, 5.0}) {
      const double v = k < 0 ? m / std::pow(10, -k) : m * std::pow(10, k);
      if (v >= r.low && v <= r.high && (m == 1 || !many)) ticks.push_back({v, number(v, std::max(0, -k))});
    }
  return ticks.size() > 1 ? ticks : linear_ticks(r, 4, false);
}

/// The markup so far, without its end.
struct Canvas {
  std::string out;
  double width;

  /// Begins a page with its title and subtitle, smaller where the page is narrow.
  Canvas(double w, double h, const std::string& title, const std::string& subtitle) : width(w) {
    *this << "<svg xmlns='http://www.w3.org/2000/svg' width='" << w << "' height='" << h << "' viewBox='0 0 "
          << w << " " << h << "' role='img' font-family='Helvetica, Arial, sans-serif' fill='#222'>\n<title>"
          << escape(title) << "</title>\n";
    rect(0, 0, w, h, "#fff");
    const auto shrink = [w](double length) { return std::min(1.0, (w - 32) / std::max(1.0, length)); };
    text(16, 27, title, 16 * shrink(text_width(title, bold * 16)), "font-weight='bold'");
    text(16, 46, subtitle, 12 * shrink(text_width(subtitle, 12)), "fill='#555'");
  }
  Canvas& operator<<(std::string_view markup) { return out += markup, *this; }
  Canvas& operator<<(double v) {
    const std::string s = number(v, 2);
    const std::size_t last = s.find_last_not_of('0');
    return *this << std::string_view(s).substr(0, s[last] == '.' ? last : last + 1);
  }
  void text(double x, double y, std::string_view s, double size, std::string_view attributes = "") {
    if (s.empty()) return;
    *this << "<text x='" << x << "' y='" << y << "' font-size='" << size << "' " << attributes << ">"
          << escape(s) << "</text>\n";
  }
  void turned(double x, double y, std::string_view s, double size, double degrees,
              std::string_view attributes) {
    *this << "<g transform='translate(" << x << " " << y << ") rotate(" << degrees << ")'>";
    text(0, 0, s, size, attributes);
    *this << "</g>\n";
  }
  void line(double x1, double y1, double x2, double y2, std::string_view shade, double thick = 1) {
    *this << "<path d='M" << x1 << " " << y1 << "L" << x2 << " " << y2 << "' stroke='" << shade << "'";
    if (thick != 1) *this << " stroke-width='" << thick << "'";
    *this << "/>\n";
  }
  void rect(double x, double y, double w, double h, std::string_view fill) {
    *this << "<rect x='" << x << "' y='" << y << "' width='" << w << "' height='" << h << "' fill='" << fill
          << "'/>\n";
  }
  /// Crossed out where it has no colour.
  void cell(double x, double y, double w, double h, const std::string& fill) {
    rect(x, y, w, h, fill.empty() ? "#f6f6f6" : fill);
    if (fill.empty()) line(x, y + h, x + w, y, "#bbb");
  }
  void mark(double x, double y, std::size_t i) {
    constexpr const char* shapes[] = {"m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", "m-3.6 -3.6h7.2v7.2h-7.2z",
                                      "m0 -5l5 5l-5 5l-5 -5z", "m0 -5l4.8 8.4h-9.6z"};
    *this << "<path d='M" << x << " " << y << shapes[i % 4] << "' fill='" << colour(i)
          << "' stroke='#fff'/>\n";
  }
};

inline double header_height(const std::string& subtitle) { return subtitle.empty() ? 44 : 62; }

inline void expect_page(bool filled, int width, int height) {
  if (!filled) fail(Code::shape_mismatch, "plot: nothing to draw");
  moxie::detail::expect_range(width >= 200 && width <= 10000, "plot: width", width, "200 to 10000");
  moxie::detail::expect_range(height >= 150 && height <= 10000, "plot: height", height, "150 to 10000");
}

/// Names side by side, as many lines as the page needs; `sample(x, y, i)` draws. Returns the lower edge.
template <class Items, class Sample>
double legend(Canvas& canvas, const Items& items, double y, Sample&& sample) {
  double x = 16;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (items[i].name.empty()) continue;
    const double w = 52 + text_width(items[i].name, 12);
    if (x > 16 && x + w > canvas.width) x = 16, y += 20;
    sample(x, y - 4, i);
    canvas.text(x + 36, y, items[i].name, 12);
    x += w;
  }
  return x > 16 ? y + 20 : y;
}

}  // namespace moxie::inline MOXIE_ABI::plot::detail
