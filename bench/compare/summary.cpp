// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <optional>
#include <utility>

namespace compare {
namespace {

/// One promise: a value of each cell that it is about, the median of which is to reach two marks.
struct Promise {
  std::string what;
  const char* pattern;
  double at_least, aim;  // 0: no such mark
  std::function<std::optional<double>(const Result&)> value;
};

double over(const Result& r, const std::string& peer) {
  const auto found = r.peers.find(peer);
  return found == r.peers.end() ? 0 : found->second / r.ours_us;
}
/// Of the fastest peer whose name begins so; 0 where there is none.
std::pair<double, std::string> best_peer(const Result& r, const std::string& prefix) {
  std::pair<double, std::string> best{0, ""};
  for (const auto& [peer, us] : r.peers)
    if (peer.rfind(prefix, 0) == 0 && (best.second.empty() || us / r.ours_us < best.first))
      best = {us / r.ours_us, peer};
  return best;
}

bool usual(const Cell& c) { return (!c.routed() || c.experts == 8) && (!c.lora_kind() || c.rank == 8); }
bool usual_many(const Cell& c) { return usual(c) && c.tokens >= 64 && !c.cold; }

std::vector<Promise> promises() {
  std::vector<Promise> all;
  const auto ratio = [&](Op op, bool backward, const std::string& peer, double at_least, double aim) {
    all.push_back({name(op) + (backward ? " forward+backward / " : " forward / ") + peer, "%.2fx", at_least,
                   aim, [=](const Result& r) -> std::optional<double> {
                     const bool here = r.cell.op == op && r.cell.backward == backward && r.cell.threads == 1;
                     if (!here || !usual_many(r.cell) || over(r, peer) == 0) return {};
                     return over(r, peer);
                   }});
  };
  ratio(Op::soft, false, "libtorch_concat", 1.25, 1.5);
  ratio(Op::soft, false, "libtorch_loramoe_loop", 6, 9);
  ratio(Op::top2, false, "libtorch_mola_loop", 8, 12);
  ratio(Op::top2, false, "libtorch_moepeft_loop", 7, 10);
  ratio(Op::lora, false, "libtorch_peft_lora", 3, 4);
  ratio(Op::lora, false, "libtorch_lora_inplace", 1.4, 1.85);
  ratio(Op::mov, false, "libtorch_mov", 2.5, 4);
  ratio(Op::soft, true, "libtorch_concat", 1.6, 2.2);
  ratio(Op::soft, true, "libtorch_loramoe_loop", 8, 12);
  ratio(Op::top2, true, "libtorch_mola_loop", 6, 10);
  const auto share = [&](Op op, bool backward, double at_least, double aim) {
    all.push_back({"share of the bound: " + name(op) + (backward ? " forward+backward" : " forward"),
                   "%.0f %%", at_least, aim, [=](const Result& r) -> std::optional<double> {
                     const bool here = r.cell.op == op && r.cell.backward == backward && r.cell.threads == 1;
                     if (!here || !usual_many(r.cell)) return {};
                     return 100 * r.share();
                   }});
  };
  share(Op::soft, false, 70, 85);
  share(Op::top2, false, 50, 65);
  share(Op::lora, false, 70, 85);
  share(Op::mov, false, 60, 80);
  share(Op::ia3, false, 90, 95);
  for (const Op op : all_ops) share(op, true, 0, 0);
  for (const bool backward : {false, true})
    for (const Op op : all_ops)
      all.push_back(
          {"two threads over one, T >= 512: " + name(op) + (backward ? " forward+backward" : " forward"),
           "%.2fx", 1.75, 1.9, [=](const Result& r) -> std::optional<double> {
             const bool here = r.cell.op == op && r.cell.backward == backward && r.cell.threads == 2;
             if (!here || !usual_many(r.cell) || r.cell.tokens < 512) return {};
             return r.ours_one_thread_us / r.ours_us;
           }});
  for (const bool libtorch : {false, true})
    for (const bool cold : {false, true})
      for (const Op op : all_ops)
        all.push_back({"T = 1 and 8, weights " + std::string(cold ? "cold: " : "hot: ") + name(op) + " / " +
                           (libtorch ? "best of libtorch" : "best peer"),
                       "%.2fx", libtorch ? 0.0 : 0.9, libtorch ? 2.0 : 0.0,
                       [=](const Result& r) -> std::optional<double> {
                         const bool here = r.cell.op == op && r.cell.cold == cold && r.cell.tokens <= 8;
                         const double value = best_peer(r, libtorch ? "libtorch" : "").first;
                         if (!here || r.cell.threads != 1 || !usual(r.cell) || value == 0) return {};
                         return value;
                       }});
  return all;
}

std::string lines(const std::vector<std::vector<std::string>>& rows, bool markdown) {
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  for (std::size_t line = 0; line < rows.size(); ++line) {
    const auto& row = rows[line];
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string pad(widths[i] - row[i].size(), ' ');
      if (markdown)
        text += "| " + row[i] + " ";
      else
        text += i == 0 ? row[i] + pad : "  " + pad + row[i];
    }
    text += markdown ? "|\n" : "\n";
    if (line == 0 && markdown) {
      text += "|---";
      for (std::size_t i = 1; i < row.size(); ++i) text += "|---:";
      text += "|\n";
    }
  }
  return text;
}

}  // namespace

std::string summary(const Results& all, bool markdown) {
  std::vector<std::vector<std::string>> rows{
      {"ours over", "cells", "median", "least", "most", "at least", "aim"}};
  if (!markdown) rows[0].push_back("");
  for (const Promise& promise : promises()) {
    std::vector<double> values;
    for (const Result& r : all.results)
      if (const auto value = promise.value(r)) values.push_back(*value);
    if (values.empty()) continue;
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    const double median = values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
    const auto mark = [&](double m) { return m == 0 ? std::string("-") : format(promise.pattern, m); };
    rows.push_back({promise.what, std::to_string(values.size()), format(promise.pattern, median),
                    format(promise.pattern, values.front()), format(promise.pattern, values.back()),
                    mark(promise.at_least), mark(promise.aim)});
    // "Within 10 % of the best peer" is of every cell, the others are of the median.
    const double reached = promise.at_least == 0.9 ? values.front() : median;
    const bool none = promise.at_least == 0 && promise.aim == 0;
    if (!markdown)
      rows.back().push_back(none                                                 ? ""
                            : promise.aim > 0 && median >= promise.aim           ? "aim"
                            : promise.at_least > 0 && reached < promise.at_least ? "MISSED"
                            : promise.at_least > 0                               ? "ok"
                                                                                 : "below");
  }
  if (rows.size() == 1) return "no cells of the summary: it is about E = 8, r = 8\n";
  std::string text = lines(rows, markdown);

  // Cells behind a peer by more than a tenth, the worst first; all of them where the text is to be kept.
  std::vector<std::pair<double, std::string>> behind;
  for (const Result& r : all.results)
    if (const auto [ratio, peer] = best_peer(r, ""); ratio > 0 && ratio < 0.9)
      behind.push_back({ratio, r.cell.text() + ": " + format("%.2fx", ratio) + " of " + peer});
  std::sort(behind.begin(), behind.end());
  text += "\n" + std::to_string(behind.size()) + " of " + std::to_string(all.results.size()) +
          " cells are behind the best peer by more than 10 %" + (behind.empty() ? "\n" : ":\n");
  if (markdown && !behind.empty()) text += "\n";
  const std::size_t shown = markdown ? behind.size() : std::min<std::size_t>(20, behind.size());
  for (std::size_t i = 0; i < shown; ++i) text += (markdown ? "- " : "  ") + behind[i].second + "\n";
  if (shown < behind.size()) text += "  ... and the rest with --markdown\n";
  return text;
}

}  // namespace compare
