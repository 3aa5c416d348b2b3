// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <thread>

#include "../llama/adapters.hpp"
#include "state.hpp"

namespace finetune {

using llama::Index;

/// The ways to change the base: moxie's methods, or all of its weights.
enum class How { lora, ia3, mov, molora, loramoe, mola, full };

struct Options {
  How how = How::molora;
  std::string base, tokenizer, out = "finetune-out";
  std::string save, load;  ///< folder to save into, folder to evaluate; empty: none
  bool resume = false;     ///< goes on with what is in `save`
  Index save_every = 0;    ///< steps between saves; 0: only at the start and the end
  std::string trace;       ///< folder for what another program needs to take the same steps; empty: none
  bool report = true;      ///< evaluation, table, pictures and results
  std::vector<std::string> data;     ///< NAME=FILE; empty: the word lists
  std::vector<std::string> targets;  ///< of q, k, v, o, gate, up, down; empty: the method's own
  std::vector<Index> experts;        ///< for all layers, per layer or per group; empty: the method's own
  Index rank = 0, top_k = 0;         ///< 0: the method's own
  double alpha = 0, learning_rate = 0;
  double dropout = -1, balance = -1, replay = -1;  ///< below 0: the method's own
  llama::RouteBy route = llama::RouteBy::token;
  Index steps = 300, rows = 32, context = 64, evaluation_rows = 128;
  std::uint64_t seed = 0;
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));

  bool full() const { return how == How::full; }
  bool vectors() const { return how == How::ia3 || how == How::mov; }
  bool routed() const { return how != How::lora && how != How::ia3 && how != How::full; }
};

inline constexpr std::array<std::string_view, 7> how_names = {"lora",    "ia3",  "mov", "molora",
                                                              "loramoe", "mola", "full"};
inline std::string_view name(How how) { return how_names[static_cast<std::size_t>(how)]; }
inline moxie::Method method(How how) {
  constexpr moxie::Method methods[] = {moxie::Method::lora,   moxie::Method::ia3,     moxie::Method::mov,
                                       moxie::Method::molora, moxie::Method::loramoe, moxie::Method::mola,
                                       moxie::Method::other};
  return methods[static_cast<std::size_t>(how)];
}

/// The projections, in the order of llama::Site.
inline constexpr std::array<std::string_view, 7> target_names = {"q", "k", "v", "o", "gate", "up", "down"};

/// What a method uses where the command line is silent: the preset's own settings, and a learning rate tuned
/// for 300 steps on the word lists.
struct Defaults {
  std::vector<std::string> targets = {};
  std::vector<Index> experts = {};
  Index rank = 0, top_k = 0;
  double alpha = 0, dropout = 0, learning_rate = 0, balance = 0, replay = 0;
};

inline Defaults defaults(How how) {
  const std::vector<std::string> all(target_names.begin(), target_names.end());
  switch (how) {
    case How::lora:
      return {.targets = all, .experts = {1}, .rank = 8, .alpha = 8, .learning_rate = 2e-2};
    case How::ia3:
      return {.targets = {"k", "v", "down"}, .experts = {1}, .learning_rate = 0.1};
    case How::mov:
      return {.targets = {"k", "v", "gate"}, .experts = {10}, .learning_rate = 0.1};
    case How::molora:
      return {.targets = all, .experts = {10}, .rank = 4, .alpha = 16, .learning_rate = 1e-2};
    case How::loramoe:
      return {.targets = {"gate", "up", "down"},
              .experts = {8},
              .rank = 4,
              .alpha = 32,
              .dropout = 0.05,
              .learning_rate = 1e-2,
              .balance = moxie::loramoe_balance_weight,
              .replay = 0.25};
    case How::mola:
      return {.targets = all,
              .experts = {2, 4, 6, 8},
              .rank = 8,
              .top_k = 2,
              .alpha = 16,
              .dropout = 0.05,
              .learning_rate = 1e-2,
              .balance = moxie::mola_balance_weight};
    case How::full:
      return {.learning_rate = 3e-3};
  }
  return {};
}

/// Every option that decides a run, with its value; not those that the method does not use.
inline Texts settings(const Options& o) {
  const auto number = [](double value) {
    char buffer[40];
    return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  };
  const auto list = [](const auto& values, const auto& text) {
    std::string all;
    for (const auto& value : values) all.append(all.empty() ? "" : ",").append(text(value));
    return all;
  };
  const auto count = [](Index n) { return std::to_string(n); };
  Texts s{{"method", std::string(name(o.how))},
          {"steps", count(o.steps)},
          {"rows", count(o.rows)},
          {"context", count(o.context)},
          {"evaluation-rows", count(o.evaluation_rows)},
          {"lr", number(o.learning_rate)},
          {"replay", number(o.replay)},
          {"seed", std::to_string(o.seed)}};
  if (!o.full()) s["targets"] = list(o.targets, [](const std::string& target) { return target; });
  if (!o.full() && !o.vectors()) {
    s["rank"] = count(o.rank);
    s["alpha"] = number(o.alpha);
    s["dropout"] = number(o.dropout);
  }
  if (o.routed()) {
    s["experts"] = list(o.experts, count);
    s["route"] = o.route == llama::RouteBy::mean ? "mean" : "token";
  }
  if (o.how == How::mola) s["top-k"] = count(o.top_k);
  if (o.how == How::mola || o.how == How::loramoe) s["balance"] = number(o.balance);
  return s;
}
/// Those of them that a trained adapter cannot be evaluated without.
inline bool shapes_model(std::string_view setting) {
  for (const std::string_view key : {"method", "targets", "rank", "alpha", "experts", "route", "top-k"})
    if (setting == key) return true;
  return false;
}

/// Where a saved run is evaluated or gone on with, the options that were not given become the run's. False
/// where there is none. Throws where an option does not go with it.
inline bool take_saved_settings(CLI::App& app, const Options& o, const std::string& how,
                                std::vector<std::string> arguments) {
  const auto given = [&](const std::string& option) { return app.count(option) > 0; };
  if (!o.load.empty())
    for (const char* option : {"--save", "--save-every", "--resume", "--steps", "--lr", "--dropout",
                               "--balance", "--replay", "--trace", "--no-report"})
      if (given(option))
        throw std::runtime_error(std::string(option) + ": --load evaluates, without training");
  if ((o.resume || given("--save-every")) && o.save.empty())
    throw std::runtime_error(std::string(o.resume ? "--resume" : "--save-every") + ": wanted with --save");
  if (o.resume && !o.trace.empty())
    throw std::runtime_error("--trace: a run that goes on has no start to write, wanted without --resume");
  if (o.load.empty() && !o.resume) return false;
  const std::vector<TrainingState> states = read_states(o.resume ? o.save : o.load);
  if (states.empty()) return false;
  for (const auto& [key, value] : states.front().settings) {
    if (key == "method" && given("--method") && how != value)
      throw std::runtime_error("--method: got " + how + ", wanted " + value + " as in the saved run");
    if (!given("--" + key)) arguments.push_back("--" + key + "=" + value);
  }
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  app.parse(std::move(arguments));
  return true;
}

/// Reads the command line; --help and --version end the program. Throws an exception of one line.
inline Options parse(int argc, const char* const* argv) {
  Options o;
  CLI::App app(
      "Fine-tunes a small Llama model with mixture-of-experts adapters and shows what the experts learned.\n"
      "Without --data it trains on seven languages' word lists and watches two more and English.");
  app.option_defaults()->always_capture_default();
  std::string how = "molora", route = "token";
  app.add_option("--method", how, "how the model learns")
      ->check(CLI::IsMember(std::vector<std::string>(how_names.begin(), how_names.end())));
  app.add_option("--experts", o.experts, "experts per layer: one number, or one per layer or group (2,4,6,8)")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--rank", o.rank, "rank of an expert; 0: the method's own");
  app.add_option("--alpha", o.alpha, "LoRA alpha; 0: the method's own");
  app.add_option("--top-k", o.top_k, "experts per token (mola); 0: the method's own");
  app.add_option("--targets", o.targets, "projections that get adapters: q,k,v,o,gate,up,down")
      ->delimiter(',');
  app.add_option("--route", route, "what routers read: the token, or the mean of the positions so far")
      ->check(CLI::IsMember({"token", "mean"}));
  app.add_option("--steps", o.steps, "optimiser steps")->check(CLI::Range(Index{0}, Index{1000000}));
  app.add_option("--rows", o.rows, "sequences per step")->check(CLI::Range(Index{1}, Index{65536}));
  app.add_option("--context", o.context, "tokens per sequence, at most the model's")
      ->check(CLI::Range(Index{1}, Index{65536}));
  app.add_option("--lr", o.learning_rate, "peak learning rate; 0: the method's own")
      ->check(CLI::Range(0.0, 10.0));
  app.add_option("--dropout", o.dropout, "dropout on the experts' input; below 0: the method's own");
  app.add_option("--balance", o.balance,
                 "weight of the method's balance loss (mola, loramoe); below 0: the method's own");
  app.add_option("--replay", o.replay, "share of rows from the base's own data; below 0: the method's own")
      ->check(CLI::Range(-1.0, 1.0));
  app.add_option("--seed", o.seed, "of adapters, data order and dropout");
  app.add_option("--threads", o.threads, "threads; no result depends on them")->check(CLI::Range(1, 256));
  app.add_option("--base", o.base,
                 "llama2.c checkpoint; default: the byte-level model that comes with moxie");
  app.add_option("--tokenizer", o.tokenizer, "llama2.c tokenizer of that checkpoint; default: bytes");
  app.add_option("--data", o.data, "NAME=FILE, repeatable: texts to learn in place of the word lists");
  app.add_option("--evaluation-rows", o.evaluation_rows, "held-out sequences per task")
      ->check(CLI::Range(Index{1}, Index{100000}));
  app.add_option("--out", o.out, "folder for loss.svg, routing.svg and results.json");
  bool no_report = false;
  app.add_flag("--no-report", no_report, "only train: no evaluation, table or pictures, nothing in --out");
  app.add_option("--save", o.save, "folder for the trained adapter and the state of its training");
  app.add_option("--save-every", o.save_every, "steps between saves; 0: only at the start and the end")
      ->check(CLI::Range(Index{0}, Index{1000000}));
  app.add_flag("--resume", o.resume,
               "go on with the run in the folder of --save; its settings need not be given again");
  app.add_option("--load", o.load, "folder of an adapter to evaluate, without training");
  app.add_option("--trace", o.trace,
                 "folder for initial weights, tokens, losses and seconds of every step, for another program "
                 "to take the same steps");
  app.set_version_flag("--version", std::string(MOXIE_VERSION));
  bool saved = false;
  try {
    app.parse(argc, argv);
    saved = take_saved_settings(app, o, how, {argv + 1, argv + argc});
  } catch (const CLI::Success& asked) {  // --help, --version
    std::exit(app.exit(asked));
  }

  if (std::isnan(o.replay)) throw std::runtime_error("--replay: got nan, wanted a number of at most 1");
  if (!std::isfinite(o.balance)) throw std::runtime_error("--balance: got no finite number, wanted one");

  o.report = !no_report;
  const auto found = std::find(how_names.begin(), how_names.end(), how);
  o.how = static_cast<How>(found - how_names.begin());
  o.route = route == "mean" ? llama::RouteBy::mean : llama::RouteBy::token;
  const Defaults d = defaults(o.how);
  const auto takes = [&](const char* option, bool used, const char* wanted) {
    if (!used && app.count(option) > 0)
      throw std::runtime_error(std::string(option) + ": " + how + " does not use it, wanted " + wanted);
  };
  takes("--experts", o.routed(), "mov, molora, loramoe or mola");
  takes("--top-k", o.how == How::mola, "mola");
  for (const char* option : {"--rank", "--alpha", "--dropout"})
    takes(option, !o.full() && !o.vectors(), "lora, molora, loramoe or mola");
  takes("--balance", o.how == How::mola || o.how == How::loramoe, "mola or loramoe");
  takes("--targets", !o.full(), "a method with adapters");
  if (o.targets.empty()) o.targets = d.targets;
  if (o.experts.empty()) o.experts = d.experts;
  if (o.rank == 0) o.rank = d.rank;
  if (o.top_k == 0) o.top_k = d.top_k;
  if (o.alpha == 0) o.alpha = d.alpha;
  if (o.learning_rate == 0) o.learning_rate = d.learning_rate;
  if (o.dropout < 0) o.dropout = d.dropout;
  if (o.balance < 0) o.balance = d.balance;
  if (o.replay < 0) o.replay = o.data.empty() ? d.replay : 0;
  if (o.full()) o.experts.clear();
  if (!o.load.empty() && !saved) o.steps = 0;
  for (const Index experts : o.experts)
    if (o.how == How::loramoe && experts % 2 != 0)
      throw std::runtime_error("--experts: got " + std::to_string(experts) +
                               ", wanted an even number for loramoe's two groups");
  if (o.route == llama::RouteBy::mean && !o.routed())
    throw std::runtime_error("--route mean: " + how + " has no router, wanted mov, molora, loramoe or mola");
  if (!o.base.empty() && o.data.empty() && !o.tokenizer.empty())
    throw std::runtime_error(
        "--tokenizer without --data: the word lists are for byte models, wanted --data NAME=FILE");
  return o;
}

/// The sites of the targets. Throws std::runtime_error for an unknown or a repeated one.
inline std::vector<llama::Site> sites(const Options& o) {
  using llama::Site;
  std::vector<Site> result;
  for (const std::string& target : o.targets) {
    const auto at = std::find(target_names.begin(), target_names.end(), target);
    if (at == target_names.end())
      throw std::runtime_error("--targets: unknown target " + target +
                               ", wanted some of q,k,v,o,gate,up,down");
    Site site = static_cast<Site>(at - target_names.begin());
    if (o.vectors()) {
      // Vectors scale activations: keys, values, the gated activation (MoV) or the input of down (IA3).
      if (site == Site::k)
        site = Site::key;
      else if (site == Site::v)
        site = Site::value;
      else if (site == Site::gate)
        site = Site::gated;
      else if (site == Site::down)
        site = Site::down_input;
      else
        throw std::runtime_error("--targets: " + target + " has no activation that " +
                                 std::string(name(o.how)) + " scales, wanted some of k,v,gate,down");
    }
    if (std::find(result.begin(), result.end(), site) != result.end())
      throw std::runtime_error("--targets: " + target + " given twice");
    result.push_back(site);
  }
  return result;
}

/// Makes the folder that an option names, before any work is done that would be lost without it.
inline void make_folder(const char* option, const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error || !std::filesystem::is_directory(folder))
    throw std::runtime_error(std::string(option) + ": cannot make the folder " + folder.string() +
                             (error ? ", " + error.message() : ": there is something else"));
}

}  // namespace finetune
