// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/svg.hpp>

#include <nlohmann/json.hpp>

#include <cstdio>
#include <filesystem>

#include "../progress.hpp"
#include "tasks.hpp"

namespace finetune {

/// All that a run has found.
struct Findings {
  moxie::ParameterCount parameters;
  std::vector<double> before, after;  ///< per task
  std::vector<double> losses;         ///< per step, of the batch
  Watch watch;
  Index steps = 0;     ///< taken in this call
  double seconds = 0;  ///< of training in this call
};

/// Writes a file whole or not at all.
inline void write_file(const std::filesystem::path& path, const std::string& text) {
  llama::write_atomically(path.string(), [&](std::ostream& out) { out << text; });
}

inline std::string unit(const Options& o) { return o.tokenizer.empty() ? "nats per byte" : "nats per token"; }

inline std::string base_name(const Options& o) {
  return o.base.empty() ? "built-in" : std::filesystem::path(o.base).filename().string();
}

inline std::string heading(const Options& o, const std::vector<Index>& experts) {
  std::string text(o.full() ? "full fine-tuning" : std::string(moxie::name(method(o.how))));
  if (o.routed()) {
    const bool equal =
        std::adjacent_find(experts.begin(), experts.end(), std::not_equal_to<>()) == experts.end();
    text += ", " + std::to_string(experts.front());
    for (std::size_t i = 1; !equal && i < experts.size(); ++i) text += "-" + std::to_string(experts[i]);
    text += " experts";
  }
  if (!o.full() && !o.vectors()) text += ", rank " + std::to_string(o.rank);
  if (o.routed())
    text += o.route == llama::RouteBy::mean ? ", routed by the mean so far" : ", routed by the token";
  return text;
}

/// Per language before, after and their difference; the trained ones first.
inline std::string table(const Job& job, const Options& o, const Findings& f) {
  examples::Table table{{"held-out words, " + unit(o), "before", "after", "change"}};
  if (!o.data.empty()) table.header[0] = "held-out text, " + unit(o);
  const auto line = [&](const std::string& name, double before, double after) {
    table.rows.push_back({name, examples::fixed(before, 3), examples::fixed(after, 3),
                          examples::fixed(after - before, 3, true)});
  };
  for (const auto role : {languages::Role::trained, languages::Role::unseen, languages::Role::memory}) {
    const auto tasks = job.of_role(role);
    if (tasks.empty()) continue;
    if (!table.rows.empty()) table.rows.push_back({});
    double before = 0, after = 0;
    for (const std::size_t t : tasks) {
      const char* what = role == languages::Role::unseen   ? " (never trained)"
                         : role == languages::Role::memory ? " (memory of the base)"
                                                           : "";
      line(job.tasks[t].source.title + what, f.before[t], f.after[t]);
      before += f.before[t] / static_cast<double>(tasks.size());
      after += f.after[t] / static_cast<double>(tasks.size());
    }
    if (tasks.size() > 1)
      line(role == languages::Role::trained ? "mean of the trained" : "mean of the unseen", before, after);
  }
  return table.text();
}

inline nlohmann::ordered_json results(const Job& job, const Options& o, const Findings& f,
                                      const std::vector<Index>& experts) {
  nlohmann::ordered_json json;
  json["program"] = "finetune";
  json["version"] = MOXIE_VERSION;
  json["seed"] = o.seed;
  json["settings"] = {{"method", name(o.how)},
                      {"experts", experts},
                      {"rank", o.rank},
                      {"alpha", o.alpha},
                      {"top_k", o.top_k},
                      {"targets", o.targets},
                      {"dropout", o.dropout},
                      {"balance", o.balance},
                      {"replay", o.replay},
                      {"route", o.route == llama::RouteBy::mean ? "mean" : "token"},
                      {"steps", o.steps},
                      {"rows", o.rows},
                      {"context", o.context},
                      {"learning_rate", o.learning_rate},
                      {"evaluation_rows", o.evaluation_rows},
                      {"base", base_name(o)}};
  json["unit"] = unit(o);
  json["trainable_parameters"] = f.parameters.trainable;
  json["all_parameters"] = f.parameters.all;
  for (std::size_t t = 0; t < job.tasks.size(); ++t) {
    const languages::Source& source = job.tasks[t].source;
    json["languages"].push_back({{"name", source.name},
                                 {"title", source.title},
                                 {"role", languages::name(source.role)},
                                 {"trained", source.role == languages::Role::trained},
                                 {"before", f.before[t]},
                                 {"after", f.after[t]}});
  }
  json["losses"] = f.losses;
  return json;
}

/// The batch's loss in windows of steps with its range, and the held-out losses on the way.
inline std::string loss_picture(const Options& o, const Findings& f, const std::vector<Index>& experts) {
  moxie::plot::Series batch{.name = "training batches"};
  const std::size_t window = std::max<std::size_t>(1, f.losses.size() / 50);
  for (std::size_t at = 0; at < f.losses.size(); at += window) {
    const auto begin = f.losses.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = f.losses.begin() + static_cast<std::ptrdiff_t>(std::min(at + window, f.losses.size()));
    const auto [low, high] = std::minmax_element(begin, end);
    double mean = 0;
    for (auto it = begin; it != end; ++it) mean += *it / static_cast<double>(end - begin);
    batch.x.push_back(static_cast<double>(at) + static_cast<double>(end - begin) / 2);
    batch.y.push_back(mean);
    batch.low.push_back(*low);
    batch.high.push_back(*high);
  }
  std::vector<moxie::plot::Series> series{batch};
  const auto add = [&](const char* name, const std::vector<double>& y) {
    if (!y.empty()) series.push_back({.name = name, .x = f.watch.steps, .y = y, .marks = true});
  };
  const bool words = o.data.empty();
  add(words ? "held out, trained languages" : "held out", f.watch.trained);
  add("never trained", f.watch.unseen);
  add("English, the base's own", f.watch.memory);
  return moxie::plot::svg(moxie::plot::LineChart{.title = "What the model learns and what it forgets",
                                                 .subtitle = heading(o, experts),
                                                 .x = {.label = "optimiser step"},
                                                 .y = {.label = "loss", .unit = unit(o)},
                                                 .series = series});
}

/// Mutual information of task and expert over the trained tasks, in nats, from mean probabilities.
inline double information(const moxie::RoutingStatistics& s, const std::vector<std::size_t>& tasks) {
  double sum = 0;
  for (Index e = 0; e < s.experts(); ++e) {
    double mean = 0;
    for (const std::size_t t : tasks)
      mean += s.mean_probability(static_cast<Index>(t), e) / static_cast<double>(tasks.size());
    for (const std::size_t t : tasks) {
      const double p = s.mean_probability(static_cast<Index>(t), e);
      if (p > 0 && mean > 0) sum += p * std::log(p / mean) / static_cast<double>(tasks.size());
    }
  }
  return sum;
}

/// Task x expert, one panel a layer: of the layer's projections the one whose experts tell the tasks apart
/// best.
inline std::string routing_picture(const Job& job, const Options& o, const llama::Adapters<S>& adapters,
                                   const std::vector<std::vector<moxie::RoutingStatistics>>& statistics,
                                   const std::vector<Index>& experts) {
  const auto trained = job.of_role(languages::Role::trained);
  const std::string what = o.data.empty() ? "language" : "task";
  moxie::plot::HeatMap map{.title = "Which experts each " + what + " uses",
                           .subtitle = heading(o, experts) +
                                       "; per layer the projection with most mutual information of " + what +
                                       " and expert"};
  for (const auto& [role, title] : {std::pair{languages::Role::trained, "trained"},
                                    {languages::Role::unseen, "never trained"},
                                    {languages::Role::memory, "the base's own"}}) {
    moxie::plot::RowGroup group{.name = title};
    for (const std::size_t t : job.of_role(role)) group.rows.push_back(job.tasks[t].source.title);
    if (!group.rows.empty()) map.rows.push_back(group);
  }
  map.column = {.label = "expert"};
  map.value = {.label = "mean routing probability"};
  map.low = 0.0;
  for (std::size_t layer = 0; layer < statistics.size(); ++layer) {
    std::size_t best = 0;
    for (std::size_t site = 1; site < statistics[layer].size(); ++site)
      if (information(statistics[layer][site], trained) > information(statistics[layer][best], trained))
        best = site;
    const moxie::RoutingStatistics& s = statistics[layer][best];
    moxie::plot::Panel panel{.title = "layer " + std::to_string(layer + 1) + ", " +
                                      std::string(llama::name(adapters.sites()[best])) + "  (" +
                                      examples::fixed(information(s, trained), 3) + " nats)"};
    for (Index e = 0; e < s.experts(); ++e) panel.columns.push_back(std::to_string(e + 1));
    for (const auto role : {languages::Role::trained, languages::Role::unseen, languages::Role::memory})
      for (const std::size_t t : job.of_role(role))
        for (Index e = 0; e < s.experts(); ++e)
          panel.values.push_back(s.mean_probability(static_cast<Index>(t), e));
    map.panels.push_back(panel);
  }
  return moxie::plot::svg(map);
}

}  // namespace finetune
