// SPDX-License-Identifier: MIT
// LoRAMoE (arXiv:2312.09979): what a model forgets of its own language while it learns others, and whether
// groups of experts with localized balancing keep it.

#include <algorithm>
#include <cmath>

#include "study/routing.hpp"
#include "study/study.hpp"

namespace papers {
namespace {

using languages::Role;

constexpr Index experts = 8;  // two groups of four: the first the new languages', the second English's
/// Of the constraint, a sum over 12 routers, as the released code has it, which leaves its weight at 0.
constexpr double weight = 0.1;
/// The learning rates of every method: the best for the new languages, and factors of it, which learn and
/// forget less.
constexpr double factors[] = {1, 0.25, 0.0625};

/// The methods, without replay and with English in a quarter of the rows. The learning rates are where the
/// search for them starts.
std::vector<Method> methods(const Command& command) {
  const Setting loramoe{.method = "loramoe", .experts = {experts}, .rank = 4, .learning_rate = 1e-2};
  Setting balanced = loramoe;
  balanced.balance = weight;
  balanced.delta = 0.5;
  std::vector<Method> all;
  for (const double replay : {0.0, 0.25}) {
    // As many weights as LoRAMoE: LoRA of all projections, and of those that LoRAMoE's experts are in.
    const std::string with = replay > 0 ? ", replay" : "";
    all.push_back({"full fine-tuning" + with, {.method = "full", .learning_rate = 1e-3}});
    all.push_back({"LoRA r21" + with, {.method = "lora", .rank = 21, .learning_rate = 5e-3}});
    all.push_back({"LoRA r35, feed-forward" + with,
                   {.method = "lora", .rank = 35, .feedforward = true, .learning_rate = 5e-3}});
    all.push_back({"LoRAMoE" + with, loramoe});
    if (replay > 0) all.push_back({"LoRAMoE, balanced" + with, balanced});
    for (Method& method : all)
      if (method.title.ends_with(with)) method.setting.replay = replay;
  }
  for (Method& method : all) {
    method.setting.steps = command.steps(160);
    method.setting.schedule = false;  // so that every amount of data on the way is a run of that length
  }
  return all;
}

/// The balance losses beside the one of `methods`.
std::vector<Method> sweep(const Setting& balanced) {
  std::vector<Method> all;
  const auto add = [&](const std::string& title, auto&& change) {
    all.push_back({title, balanced});
    change(all.back().setting);
  };
  for (const double delta : {0.1, 0.3, 0.7, 0.9})
    add("delta " + shortest(delta) + ", weight " + shortest(weight), [&](Setting& s) { s.delta = delta; });
  for (const double other : {0.01, 0.03, 0.3, 1.0})
    add("delta 0.5, weight " + shortest(other), [&](Setting& s) { s.balance = other; });
  // The mean of Z is about 8, and so the quotient by it 8 times the one by its square.
  constexpr double matched = 0.0125;
  for (const double other : {matched, weight})
    add("delta 0.5, weight " + shortest(other) + ", variance / mean as printed",
        [&](Setting& s) { s.balance = other, s.variance_over_mean = true; });
  add("delta 0.5, weight " + shortest(weight) + ", I = 1 - delta where they match",
      [](Setting& s) { s.matching_less = true; });
  return all;
}

/// Steps after which a run is looked at.
std::vector<Index> looks(Index steps) {
  std::vector<Index> all{0};
  for (Index step = 5; step < steps; step *= 2) all.push_back(step);
  all.push_back(steps);
  return all;
}

/// Mean gates of every router over some languages, [router][expert].
std::vector<std::vector<double>> gates_over(Learner& learner, const std::vector<std::size_t>& tasks) {
  std::vector<std::vector<double>> means;
  for (const RouterMeans& router : mean_gates(learner, tasks, 32, learner.setting().tuning)) {
    std::vector<double>& mean = means.emplace_back(router.gates.front().size());
    for (const auto& gates : router.gates)
      for (std::size_t e = 0; e < mean.size(); ++e) mean[e] += gates[e] / double(tasks.size());
  }
  return means;
}

/// Share of the second group, and the dispersion inside the groups (CV^2), means over the routers.
std::pair<double, double> groups(const std::vector<std::vector<double>>& gates) {
  double second = 0, dispersion = 0;
  const auto n = static_cast<double>(gates.size());
  for (const auto& router : gates) {
    const std::size_t half = router.size() / 2;
    for (const std::size_t first : {std::size_t{0}, half}) {
      const Mean m = mean_of(std::span(router).subspan(first, half));
      dispersion += m.spread * m.spread / (m.mean * m.mean) / (2 * n);
      if (first > 0) second += m.mean * double(half) / n;
    }
  }
  return {second, dispersion};
}

/// Norm of the change of the seven projections' effective weights, by their norm: of LoRAs with each expert
/// at its mean gate (`gates` [module][expert]; empty: 1).
double change(Learner& learner, const std::vector<std::vector<double>>& gates) {
  using Dense = Eigen::MatrixXd;
  double changed = 0, all = 0;
  const llama::Model<S>& base = learner.host().base(learner.setting().layers, learner.setting().base);
  const auto weight_of = [&](const llama::Model<S>& model, Index layer, llama::Site site) {
    constexpr llama::Weight weights[] = {llama::Weight::q,   llama::Weight::k,    llama::Weight::v,
                                         llama::Weight::o,   llama::Weight::gate, llama::Weight::up,
                                         llama::Weight::down};
    return Dense(model.weight(weights[static_cast<std::size_t>(site)], layer).cast<double>());
  };
  using llama::Site;
  const std::vector<Site> linears{Site::q, Site::k, Site::v, Site::o, Site::gate, Site::up, Site::down};
  std::size_t module = 0;
  for (Index layer = 0; layer < base.config.layers; ++layer)
    for (const Site site : linears) {
      const Dense before = weight_of(base, layer, site);
      all += before.squaredNorm();
      if (!learner.adapted()) {
        changed += (weight_of(learner.model(), layer, site) - before).squaredNorm();
        continue;
      }
      const auto& sites = learner.adapters().sites();
      if (std::find(sites.begin(), sites.end(), site) == sites.end()) continue;
      auto& set = learner.adapters().set();
      const moxie::Module handle = learner.adapters().module(layer, site);
      std::visit(
          [&](const auto& adapter) {
            if constexpr (requires { adapter.experts().total_rank(); }) {
              const auto& bank = adapter.experts();
              const S* const a = set.theta(handle).data();
              const S* const b = a + bank.total_rank() * bank.in();
              Dense update = Dense::Zero(bank.out(), bank.in());
              for (Index e = 0; e < bank.experts(); ++e) {
                const double gate = gates.empty() ? 1 : gates[module][static_cast<std::size_t>(e)];
                const Index first = bank.begin(e), rank = bank.rank(e);
                update += gate * double(bank.scale(e)) *
                          llama::view<S>(b + first * bank.out(), rank, bank.out())
                              .template cast<double>()
                              .transpose() *
                          llama::view<S>(a + first * bank.in(), rank, bank.in()).template cast<double>();
              }
              changed += update.squaredNorm();
            }
          },
          set.entry(handle).adapter);
      ++module;
    }
  return std::sqrt(changed / all);
}

Json measure(const Host& host, const Setting& setting) {
  Learner learner(host, setting);
  const auto memory = host.of_role(Role::memory);
  Json result = {{"trainable", learner.trainable()}};
  if (setting.tuning) {
    learner.train();
    result["loss"] = rounded(learner.loss(learner.trained(), 64));
    return result;
  }
  for (const Index step : looks(setting.steps)) {
    learner.train(step);
    Json look = {{"step", step},
                 {"new", rounded(learner.loss(learner.trained(), 64))},
                 {"english", rounded(learner.loss(memory, 128))}};
    if (setting.method == "loramoe") {
      const auto english = gates_over(learner, memory), others = gates_over(learner, learner.trained());
      look["second_group"] = {{"english", rounded(groups(english).first)},
                              {"new", rounded(groups(others).first)}};
      look["dispersion"] = {{"english", rounded(groups(english).second)},
                            {"new", rounded(groups(others).second)}};
      look["change"] = {{"english", rounded(change(learner, english))},
                        {"new", rounded(change(learner, others))}};
    } else {
      look["change"] = {{"new", rounded(change(learner, {}))}};
    }
    result["looks"].push_back(look);
  }
  std::vector<std::size_t> all = learner.trained();
  for (const auto role : {Role::unseen, Role::memory})
    for (const std::size_t task : host.of_role(role)) all.push_back(task);
  result["loss"] = losses(learner, all);
  if (learner.adapted()) result["off_is_base"] = learner.off_is_base(memory.front());
  return result;
}

/// A curve of a run's looks, both in nats per byte.
struct Curve {
  std::vector<double> learned, english;

  explicit Curve(const Json& result) {
    for (const Json& look : result["looks"]) {
      learned.push_back(look["new"].get<double>());
      english.push_back(look["english"].get<double>());
    }
  }
  double least() const { return *std::min_element(learned.begin(), learned.end()); }
  /// English where the new languages are first at `level`.
  double english_at(double level) const {
    for (std::size_t i = 1; i < learned.size(); ++i)
      if (learned[i] <= level) {
        const double way = (learned[i - 1] - level) / std::max(1e-12, learned[i - 1] - learned[i]);
        return english[i - 1] + std::clamp(way, 0.0, 1.0) * (english[i] - english[i - 1]);
      }
    return english.back();
  }
};

/// A method at all its learning rates: the least English loss at each loss of the new languages.
struct Frontier {
  std::vector<Curve> curves;

  double least() const {
    double least = HUGE_VAL;
    for (const Curve& curve : curves) least = std::min(least, curve.least());
    return least;
  }
  double english_at(double level) const {
    double english = HUGE_VAL;
    for (const Curve& curve : curves)
      if (curve.least() <= level) english = std::min(english, curve.english_at(level));
    return english;
  }
};

class Report {
 public:
  Report(const Host& host, const Command& command, const Runs& runs, std::vector<Method> methods,
         std::vector<Method> slower, std::vector<Method> sweep)
      : host_(host),
        command_(command),
        runs_(runs),
        methods_(std::move(methods)),
        slower_(std::move(slower)),
        sweep_(std::move(sweep)) {}

  void write() {
    Page page(command_, "Forgetting, and localized balancing");
    page.paragraph(
        "English is the base's own language; the seven others are new. Nats per byte on held-out words. "
        "Constant learning rates, so that each amount of data on the way is a run of that length; the best "
        "for the new languages at the end, chosen on other words, and a quarter and a sixteenth of it. With "
        "replay, a quarter of the rows are English, and of as many bytes in all a quarter fewer are new. At "
        "equal gain: English where both methods first reach the least loss of the new languages of the one "
        "that learns less, each by the learning rate that then forgets least; on the way, new languages are "
        "measured on half as many rows as at the end. Made by `paper_loramoe`.");
    page.paragraph("The bases start at " + start("new") + " on the new languages and at " + start("english") +
                   " on English.");
    page.heading("At the end").table(ends(methods_));
    page.paragraph("At a quarter and at a sixteenth of the learning rate:");
    page.table(ends(slower_));
    page.picture("frontier", frontier(false), "English against new languages, without replay");
    page.picture("frontier-replay", frontier(true), "English against new languages, with replay");
    page.picture("data", data(), "English against the amount of new data");
    page.heading("Claims").claims(claims());
    page.paragraph(
        "Where both learn less by some nats, and at the best learning rate of each alone: English of the "
        "first "
        "less the second's, mean ± half of its 95 % interval.");
    page.table(less_gain());
    page.paragraph("Adapters switched off: " + switched_off());
    page.heading("Groups").paragraph(
        "Mean gates of the second group, English's, and the dispersion inside the groups, at the end.");
    page.table(group_table());
    page.picture(
        "groups",
        group_picture("Gates of English's group over training", "share of the gates", "second_group"),
        "Share of English's group over training");
    page.picture("dispersion",
                 group_picture("Dispersion inside the groups over training",
                               "squared coefficient of variation", "dispersion"),
                 "Dispersion inside the groups over training");
    page.write();
  }

 private:
  const Method& named(const std::string& title) const {
    const bool swept = std::any_of(sweep_.begin(), sweep_.end(),
                                   [&](const Method& method) { return method.title == title; });
    return papers::named(swept ? sweep_ : methods_, title);
  }
  Figures figure(const Method& method, const std::function<double(const Json&)>& f) const {
    return figures(runs_, method.setting, command_, f);
  }
  Figures english(const std::string& title) const {
    return figure(named(title), mean_loss(host_, host_.of_role(Role::memory)));
  }
  Figures learned(const std::string& title) const {
    return figure(named(title), mean_loss(host_, host_.of_role(Role::trained)));
  }
  /// Of each base and seed, at all learning rates or at the best alone.
  std::vector<std::vector<Frontier>> frontiers(const std::string& title, bool best_rate = false) const {
    std::vector<std::vector<Frontier>> all;
    for (const auto* const list : {&methods_, &slower_})
      for (const Method& method : *list) {
        if (method.title != title || (best_rate && list == &slower_)) continue;
        const auto runs = repeated(method.setting, command_);
        all.resize(runs.size());
        for (std::size_t b = 0; b < runs.size(); ++b) {
          all[b].resize(runs[b].size());
          for (std::size_t seed = 0; seed < runs[b].size(); ++seed)
            all[b][seed].curves.emplace_back(runs_.result(runs[b][seed]));
        }
      }
    return all;
  }
  /// English where both have learned as much as the one that learns less at its best, run by run; or so much
  /// `less`.
  Figures at_equal_gain(const std::string& a, const std::string& b, double less = 0,
                        bool best_rate = false) const {
    const auto left = frontiers(a, best_rate), right = frontiers(b, best_rate);
    Figures difference;
    for (std::size_t i = 0; i < left.size(); ++i) {
      difference.emplace_back();
      for (std::size_t j = 0; j < left[i].size(); ++j) {
        const double level = std::max(left[i][j].least(), right[i][j].least()) + less;
        difference.back().push_back(left[i][j].english_at(level) - right[i][j].english_at(level));
      }
    }
    return difference;
  }
  Figures last(const std::string& title, const char* group, const char* name) const {
    return figure(named(title),
                  [&](const Json& result) { return result["looks"].back()[group][name].get<double>(); });
  }

  examples::Table ends(const std::vector<Method>& list) const {
    examples::Table table{{"method", "trainable", "learning rate", "new languages", "never trained",
                           "English", "change of the weights"}};
    for (const Method& method : list) {
      const auto cell = [&](Role role) {
        return text(mean_of(figure(method, mean_loss(host_, host_.of_role(role)))));
      };
      const Json& first = runs_.result(repeated(method.setting, command_)[0][0]);
      table.rows.push_back(
          {method.title, std::to_string(first["trainable"].get<Index>()),
           shortest(method.setting.learning_rate), cell(Role::trained), cell(Role::unseen),
           cell(Role::memory),
           text(mean_of(figure(method,
                               [](const Json& result) {
                                 return result["looks"].back()["change"]["new"].get<double>();
                               })),
                2)});
    }
    return table;
  }

  static std::function<double(const Json&)> of(const char* name) {
    return [name](const Json& look) { return look[name].get<double>(); };
  }
  /// A method's mean over bases and seeds of a number of each look.
  std::vector<double> over_looks(const Method& method, const std::function<double(const Json&)>& f) const {
    std::vector<double> means;
    const auto runs = flat(repeated(method.setting, command_));
    for (const Setting& run : runs) {
      const Json& looks = runs_.result(run)["looks"];
      means.resize(looks.size());
      for (std::size_t i = 0; i < looks.size(); ++i) means[i] += f(looks[i]) / double(runs.size());
    }
    return means;
  }

  std::string start(const char* name) const {
    return examples::fixed(over_looks(methods_.front(), of(name)).front(), 3);
  }

  /// A method's title with its weights.
  std::string weighted(const Method& method) const {
    const Json& first = runs_.result(repeated(method.setting, command_)[0][0]);
    return method.title + " (" + std::to_string(first["trainable"].get<Index>()) + ")";
  }

  std::string frontier(bool replay) const {
    moxie::plot::LineChart chart{
        .title = replay ? "Learning against forgetting, with replay" : "Learning against forgetting",
        .subtitle =
            "the least English loss at three learning rates; mean and range of the runs; trainable "
            "weights in brackets; down and left is better",
        .x = {.label = "new languages", .unit = "nats per byte"},
        .y = {.label = "English", .unit = "nats per byte"},
        .height = 520};
    for (const Method& method : methods_) {
      if ((method.setting.replay > 0) != replay) continue;
      moxie::plot::Series series{.name = weighted(method), .marks = true};
      const auto all = frontiers(method.title);
      double high = HUGE_VAL, low = -HUGE_VAL;  // where every run has a figure
      for (const auto& base : all)
        for (const Frontier& run : base) {
          low = std::max(low, run.least());
          for (const Curve& curve : run.curves) high = std::min(high, curve.learned.front());
        }
      constexpr int points = 12;
      for (int i = 0; i <= points; ++i) {
        const double level = high + (low - high) * i / points;
        std::vector<double> english;
        for (const auto& base : all)
          for (const Frontier& run : base) english.push_back(run.english_at(level));
        series.x.push_back(level);
        series.y.push_back(mean_of(std::span<const double>(english)).mean);
        series.low.push_back(*std::min_element(english.begin(), english.end()));
        series.high.push_back(*std::max_element(english.begin(), english.end()));
      }
      chart.series.push_back(std::move(series));
    }
    return moxie::plot::svg(chart);
  }

  std::string data() const {
    moxie::plot::LineChart chart{.title = "Forgetting against the amount of new data",
                                 .subtitle = "mean over bases and seeds",
                                 .x = {.label = "bytes of new languages", .log = true},
                                 .y = {.label = "English", .unit = "nats per byte"},
                                 .height = 520};
    for (const Method& method : methods_) {
      moxie::plot::Series series{.name = weighted(method), .marks = true};
      const auto steps = over_looks(method, of("step"));
      const auto english = over_looks(method, of("english"));
      for (std::size_t i = 1; i < steps.size(); ++i) {  // a logarithm has no 0
        series.x.push_back(steps[i] * double(rows_per_step * context) * (1 - method.setting.replay));
        series.y.push_back(english[i]);
      }
      chart.series.push_back(std::move(series));
    }
    return moxie::plot::svg(chart);
  }

  std::vector<Claim> claims() const {
    const std::string free = "LoRAMoE, replay", balanced = "LoRAMoE, balanced, replay",
                      alike = "LoRA r35, feed-forward", weights = ", weight " + shortest(weight);
    const std::string printed = "delta 0.5, weight 0.0125, variance / mean as printed",
                      turned = "delta 0.5" + weights + ", I = 1 - delta where they match";
    const auto turn = [&](const std::string& title) {
      return last(title, "second_group", "new") - last(title, "second_group", "english");
    };
    return {
        {"at equal gain LoRA r21 forgets less than full fine-tuning, by 0.02", -0.02,
         at_equal_gain("LoRA r21", "full fine-tuning")},
        {"at equal gain LoRAMoE forgets less than LoRA of its weights and projections, by 0.02", -0.02,
         at_equal_gain("LoRAMoE", alike)},
        {"... with replay", -0.02, at_equal_gain(free, alike + ", replay")},
        {"... with replay and the constraint", -0.02, at_equal_gain(balanced, alike + ", replay")},
        {"replay keeps English, at equal gain: LoRA r21, by 0.1", -0.1,
         at_equal_gain("LoRA r21, replay", "LoRA r21")},
        {"the constraint keeps English, at equal gain, by 0.02", -0.02, at_equal_gain(balanced, free)},
        {"the constraint costs the new languages less than 0.01 at the end", 0.01,
         learned(balanced) - learned(free)},
        {"as printed (variance / mean, a weight 8 times less) English is within 0.01 of CV^2's", 0.01,
         english(printed) - english(balanced)},
        {"the group that matches gets more: English's group has more of English's gates than of the others'",
         0, turn(balanced)},
        {"... with I = 1 - delta where they match", 0, turn(turned)},
        {"... without the constraint", 0, turn(free)}};
  }

  examples::Table less_gain() const {
    const std::string replay = ", replay", alike = "LoRA r35, feed-forward", balanced = "LoRAMoE, balanced";
    const std::pair<std::string, std::string> pairs[] = {
        {"LoRA r21", "full fine-tuning"},          {"LoRAMoE", alike},
        {"LoRAMoE" + replay, alike + replay},      {balanced + replay, alike + replay},
        {"LoRAMoE" + replay, "LoRA r21" + replay}, {"LoRAMoE" + replay, "full fine-tuning" + replay},
        {balanced + replay, "LoRAMoE" + replay},   {"LoRA r21" + replay, "LoRA r21"}};
    constexpr double steps[] = {0, 0.05, 0.1, 0.2};
    examples::Table table{{"the first", "the second", "at equal gain"}};
    for (const double step : steps)
      if (step > 0) table.header.push_back(shortest(step) + " less");
    table.header.push_back("best rates alone");
    for (const auto& [a, b] : pairs) {
      std::vector<std::string> row{a, b};
      for (const double step : steps) row.push_back(interval(mean_of(at_equal_gain(a, b, step))));
      row.push_back(interval(mean_of(at_equal_gain(a, b, 0, true))));
      table.rows.push_back(std::move(row));
    }
    return table;
  }

  std::string switched_off() const {
    std::size_t runs = 0, same = 0;
    for (const auto* list : {&methods_, &slower_, &sweep_})
      for (const Method& method : *list)
        for (const Setting& run : flat(repeated(method.setting, command_)))
          if (const Json& result = runs_.result(run); result.contains("off_is_base")) {
            ++runs;
            same += result["off_is_base"].get<bool>();
          }
    return "in " + std::to_string(same) + " of " + std::to_string(runs) +
           " runs the model gives the base's logits of English to the bit.";
  }

  examples::Table group_table() const {
    examples::Table table{{"LoRAMoE with replay", "new languages", "English", "second group: English",
                           "new languages", "dispersion in the groups", "change of the weights: English",
                           "new languages"}};
    std::vector<const Method*> list{&named("LoRAMoE, replay"), &named("LoRAMoE, balanced, replay")};
    for (const Method& method : sweep_) list.push_back(&method);
    for (const Method* method : list) {
      const std::string& title = method->title;
      const auto cell = [&](const char* group, const char* name, int decimals) {
        return text(mean_of(last(title, group, name)), decimals);
      };
      table.rows.push_back({title == "LoRAMoE, replay"             ? "no constraint"
                            : title == "LoRAMoE, balanced, replay" ? "delta 0.5, weight " + shortest(weight)
                                                                   : title,
                            text(mean_of(learned(title))), text(mean_of(english(title))),
                            cell("second_group", "english", 2), cell("second_group", "new", 2),
                            cell("dispersion", "new", 2), cell("change", "english", 2),
                            cell("change", "new", 2)});
    }
    return table;
  }

  /// Over training, of three settings of the constraint: a figure of the gates of English, and of the
  /// others'.
  std::string group_picture(const char* title, const char* label, const char* group) const {
    moxie::plot::LineChart chart{.title = title,
                                 .subtitle = "mean over routers, bases and seeds",
                                 .x = {.label = "optimiser step"},
                                 .y = {.label = label},
                                 .height = 480};
    const std::pair<std::string, const char*> lines[] = {
        {"LoRAMoE, replay", "no constraint"},
        {"LoRAMoE, balanced, replay", "constraint"},
        {"delta 0.5, weight " + shortest(weight) + ", I = 1 - delta where they match", "turned round"}};
    for (const auto& [method, name] : lines)
      for (const std::string words : {"english", "new"}) {
        const auto of_words = [&](const Json& look) { return look[group][words].get<double>(); };
        chart.series.push_back(
            {.name = std::string(name) + (words == "english" ? ": English" : ": new languages"),
             .x = over_looks(named(method), of("step")),
             .y = over_looks(named(method), of_words),
             .marks = true});
      }
    return moxie::plot::svg(chart);
  }

  const Host& host_;
  const Command& command_;
  const Runs& runs_;
  std::vector<Method> methods_, slower_, sweep_;
};

void study(const Command& command) {
  const Host host(command.bases, command.quick);
  Runs runs = open_runs(command, [&](const Setting& setting) { return measure(host, setting); });
  std::vector<Method> all = methods(command);
  const std::size_t later =
      (3 * all.size() + sweep({}).size()) * static_cast<std::size_t>(command.base_count() * command.seeds());
  all = tuned(runs, std::move(all), later, command);

  std::vector<Method> slower;
  for (const double factor : factors)
    for (const Method& method : all) {
      if (factor == 1) continue;
      slower.push_back(method);
      slower.back().setting.learning_rate *= factor;
    }
  const std::vector<Method> balances = sweep(all.back().setting);
  std::vector<Method> measured = all;
  measured.insert(measured.end(), slower.begin(), slower.end());
  measured.insert(measured.end(), balances.begin(), balances.end());
  runs.run(repeated(measured, command));
  runs.tidy();
  Report(host, command, runs, all, slower, balances).write();
}

}  // namespace
}  // namespace papers

int main(int argc, char** argv) {
  return papers::study_main(argc, argv, "loramoe",
                            "LoRAMoE: what is forgotten while other languages are learned, and what keeps it",
                            papers::study);
}
