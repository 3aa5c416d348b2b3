// SPDX-License-Identifier: MIT
#include "cell.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <stdexcept>

namespace compare {

std::string name(Op op) {
  constexpr const char* names[] = {"lora", "ia3", "mov", "soft", "top2"};
  return names[static_cast<std::size_t>(op)];
}

std::string Cell::text() const {
  std::string s = name(op) + " " + pass() + " d=" + std::to_string(d) + " T=" + std::to_string(tokens);
  if (routed()) s += " E=" + std::to_string(experts);
  if (lora_kind()) s += " r=" + std::to_string(rank);
  return s + " threads=" + std::to_string(threads) + (cold ? " cold" : " hot");
}

Json to_json(const Result& r) {
  const Cell& c = r.cell;
  const auto rounded = [](double v) { return std::round(1000 * v) / 1000; };
  Json peers = Json::object();
  for (const auto& [peer, us] : r.peers) peers[peer] = rounded(us);
  Json line = {{"op", name(c.op)},
               {"pass", c.pass()},
               {"d", c.d},
               {"T", c.tokens},
               {"E", c.experts},
               {"r", c.rank},
               {"k", c.chosen},
               {"threads", c.threads},
               {"weights", c.cold ? "cold" : "hot"},
               {"ours_us", rounded(r.ours_us)},
               {"bound_us", rounded(r.bound_us)},
               {"peers", peers},
               {"peak_gflops", rounded(r.peak_gflops)},
               {"pack_us", rounded(r.pack_us)},
               {"workspace_bytes", r.workspace_bytes},
               {"rounds", r.rounds}};
  if (c.threads > 1) line["ours_one_thread_us"] = rounded(r.ours_one_thread_us);
  if (!r.variants.empty()) line["variants"] = r.variants;
  if (!r.skipped.empty()) line["skipped"] = r.skipped;
  return line;
}

Result result_from(const Json& line) {
  Result r;
  Cell& c = r.cell;
  const auto op = std::find_if(std::begin(all_ops), std::end(all_ops),
                               [&](Op o) { return name(o) == line.at("op").get<std::string>(); });
  if (op == std::end(all_ops)) throw std::runtime_error("results: unknown op " + line.at("op").dump());
  c.op = *op;
  c.backward = line.at("pass") != "forward";
  c.d = line.at("d");
  c.tokens = line.at("T");
  c.experts = line.at("E");
  c.rank = line.at("r");
  c.chosen = line.at("k");
  c.threads = line.at("threads");
  c.cold = line.at("weights") == "cold";
  r.ours_us = line.at("ours_us");
  r.bound_us = line.at("bound_us");
  r.peers = line.at("peers").get<std::map<std::string, double>>();
  r.peak_gflops = line.value("peak_gflops", 0.0);
  r.pack_us = line.value("pack_us", 0.0);
  r.workspace_bytes = line.value("workspace_bytes", 0.0);
  r.rounds = line.value("rounds", 0);
  r.ours_one_thread_us = line.value("ours_one_thread_us", 0.0);
  const std::map<std::string, std::string> none;
  r.variants = line.value("variants", none);
  r.skipped = line.value("skipped", none);
  return r;
}

Results read_results(const std::string& file) {
  Results all;
  std::ifstream in(file);
  for (std::string text; std::getline(in, text);) {
    const Json line = Json::parse(text, nullptr, false);
    if (line.is_discarded()) continue;
    if (line.contains("limits"))
      all.headers.push_back(line);
    else
      all.results.push_back(result_from(line));
  }
  return all;
}

namespace {

template <class T>
std::vector<T> pick(const std::vector<T>& wanted, std::vector<T> all) {
  return wanted.empty() ? all : wanted;
}

/// The summary's cells first, then by cost, so that a sweep cut short has said most.
double order(const Cell& c) {
  const bool told = (c.experts == 8 || !c.routed()) && (c.rank == 8 || !c.lora_kind());
  return (told ? 0 : 1e18) + static_cast<double>(c.weights()) * static_cast<double>(c.tokens);
}

}  // namespace

std::vector<Cell> cells(const Selection& s) {
  std::vector<Cell> all;
  std::set<std::string> seen;
  const auto add = [&](const Cell& c) {
    if (seen.insert(c.text()).second) all.push_back(c);
  };
  for (const std::string& op_name : pick(s.ops, {"lora", "ia3", "mov", "soft", "top2"}))
    for (const Op op : all_ops)
      for (const std::string& pass : pick(s.passes, {"forward", "forward+backward"}))
        for (const Index d : pick(s.d, {768, 4096}))
          for (const Index tokens : pick(s.tokens, s.quick ? std::vector<Index>{1, 64, 512}
                                                           : std::vector<Index>{1, 8, 64, 512, 2048}))
            for (const Index experts :
                 pick(s.experts, s.quick ? std::vector<Index>{8} : std::vector<Index>{8, 32}))
              for (const Index rank :
                   pick(s.ranks, s.quick ? std::vector<Index>{8} : std::vector<Index>{4, 8, 16, 64}))
                for (const int threads : pick(s.threads, {1, 2})) {
                  if (name(op) != op_name) continue;
                  Cell c{
                      .op = op, .backward = pass != "forward", .d = d, .tokens = tokens, .threads = threads};
                  if (c.routed()) c.experts = experts;
                  if (op != Op::ia3 && op != Op::mov) c.rank = rank;
                  c.chosen = op == Op::top2 ? std::min<Index>(2, c.experts) : c.experts;
                  add(c);
                  c.cold = true;
                  if (tokens <= 8 && !s.quick) add(c);
                }
  std::stable_sort(all.begin(), all.end(), [](const Cell& a, const Cell& b) { return order(a) < order(b); });
  return all;
}

}  // namespace compare
