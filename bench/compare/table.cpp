// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <tuple>

namespace compare {
namespace {

auto key(const Result& r) {
  const Cell& c = r.cell;
  return std::tuple(c.op, c.backward, c.threads, c.cold, c.d, c.experts, c.rank, c.tokens);
}
auto block(const Result& r) { return std::tuple(r.cell.op, r.cell.backward, r.cell.threads, r.cell.cold); }

/// Columns as wide as their widest word, numbers to the right.
std::string aligned(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i == widths.size()) widths.push_back(0);
      widths[i] = std::max(widths[i], row[i].size());
    }
  std::string text;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i)
      text += std::string(widths[i] - row[i].size() + 2, ' ') + row[i];
    text += "\n";
  }
  return text;
}

}  // namespace

std::string table(std::vector<Result> results) {
  std::stable_sort(results.begin(), results.end(),
                   [](const Result& a, const Result& b) { return key(a) < key(b); });
  std::string text;
  for (std::size_t from = 0; from < results.size();) {
    std::size_t to = from;
    std::vector<std::string> peers;
    for (; to < results.size() && block(results[to]) == block(results[from]); ++to)
      for (const auto& [peer, us] : results[to].peers)
        if (std::find(peers.begin(), peers.end(), peer) == peers.end()) peers.push_back(peer);
    std::sort(peers.begin(), peers.end());
    const Cell& c = results[from].cell;
    text += "\n" + name(c.op) + " " + c.pass() + ", " + std::to_string(c.threads) +
            (c.threads == 1 ? " thread" : " threads") + (c.cold ? ", cold weights" : "") +
            "; the peers' time over ours\n";
    std::vector<std::vector<std::string>> rows(1);
    rows[0] = {"d", "T"};
    if (c.routed()) rows[0].push_back("E");
    if (c.lora_kind()) rows[0].push_back("r");
    for (const char* head : {"us", "bound"}) rows[0].push_back(head);
    if (!c.backward) rows[0].push_back("pack us");
    if (c.threads > 1) rows[0].push_back("1 thread");
    rows[0].insert(rows[0].end(), peers.begin(), peers.end());
    for (; from < to; ++from) {
      const Result& r = results[from];
      std::vector<std::string> row{std::to_string(r.cell.d), std::to_string(r.cell.tokens)};
      if (c.routed()) row.push_back(std::to_string(r.cell.experts));
      if (c.lora_kind()) row.push_back(std::to_string(r.cell.rank));
      row.push_back(format("%.1f", r.ours_us));
      row.push_back(format("%.0f %%", 100 * r.share()));
      if (!c.backward) row.push_back(r.pack_us > 0 ? format("%.1f", r.pack_us) : "-");
      if (c.threads > 1) row.push_back(format("%.2fx", r.ours_one_thread_us / r.ours_us));
      for (const std::string& peer : peers) {
        const auto found = r.peers.find(peer);
        row.push_back(found != r.peers.end() ? format("%.2fx", found->second / r.ours_us) : "-");
      }
      rows.push_back(row);
      for (const auto& [peer, why] : r.skipped)
        text += "  left out at " + r.cell.text() + ": " + peer + ", " + why + "\n";
    }
    text += aligned(rows);
  }
  return text;
}

}  // namespace compare
