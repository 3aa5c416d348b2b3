// SPDX-License-Identifier: MIT
// MoLA (arXiv:2402.08562): which layers need more experts, on a base of eight layers; whether the differences
// of the experts tell it; and learning rates by layer beside experts by layer.

#include <moxie/analysis.hpp>

#include <algorithm>
#include <numeric>

#include "study/study.hpp"

namespace papers {
namespace {

using languages::Role;

constexpr Index layers = 8;

/// The paper's shapes and one more, two layers a group, 40 experts each.
const std::vector<std::pair<std::string, std::vector<Index>>>& shapes() {
  static const std::vector<std::pair<std::string, std::vector<Index>>> all = {
      {"triangle 8-6-4-2", {8, 6, 4, 2}},
      {"inverted triangle 2-4-6-8", {2, 4, 6, 8}},
      {"hourglass 8-2-2-8", {8, 2, 2, 8}},
      {"rectangle 5-5-5-5", {5, 5, 5, 5}},
      {"middle-heavy 2-8-8-2", {2, 8, 8, 2}}};
  return all;
}
const std::string rectangle = "rectangle 5-5-5-5";

/// The two settings of the paper: on the two languages of the tables directly, or after a first round on the
/// seven others together.
struct Round {
  std::string title;
  Index mixed_steps, steps;
};
std::vector<Round> rounds(const Command& command) {
  return {{"directly", 0, command.steps(80)}, {"after a mixed round", command.steps(60), command.steps(40)}};
}
Setting in_round(Setting setting, const Round& round) {
  setting.tasks = {"pt", "ca"};
  setting.mixed_steps = round.mixed_steps;
  setting.steps = round.steps;
  return setting;
}

Setting mola(const std::vector<Index>& experts) {
  return {
      .method = "mola", .layers = layers, .experts = experts, .rank = 4, .top_k = 2, .learning_rate = 2e-2};
}

/// The other kinds with as many weights as 40 experts of rank 4 and their routers (219,520).
std::vector<Method> others() {
  return {{"LoRA r22", {.method = "lora", .layers = layers, .rank = 22, .learning_rate = 1e-2}},
          {"MoLoRA-5 r4, soft",
           {.method = "molora", .layers = layers, .experts = {5}, .rank = 4, .learning_rate = 2e-2}},
          {"HydraLoRA-4 r8, soft",
           {.method = "hydralora", .layers = layers, .experts = {4}, .rank = 8, .learning_rate = 1e-2}},
          {"MoV-53, soft", {.method = "mov", .layers = layers, .experts = {53}, .learning_rate = 0.1}}};
}

/// Mean difference of the experts of each layer's projections, [layer][site].
Json differences(Learner& learner) {
  Json all;
  auto& adapters = learner.adapters();
  for (Index layer = 0; layer < adapters.layers(); ++layer) {
    Json row;
    for (const llama::Site site : adapters.sites()) {
      const moxie::Module module = adapters.module(layer, site);
      const std::span<const S> theta = adapters.set().theta(module);
      std::visit(
          [&](const auto& adapter) {
            if constexpr (requires { moxie::expert_differences(adapter.experts(), theta); })
              row.push_back(
                  rounded(moxie::mean_difference(moxie::expert_differences(adapter.experts(), theta))));
          },
          adapters.set().entry(module).adapter);
    }
    all.push_back(row);
  }
  return all;
}

Json measure(const Host& host, const Setting& setting) {
  Learner learner(host, setting);
  Json result = {{"trainable", learner.trainable()}};
  const bool differs = setting.method == "mola" && !setting.tuning;
  const auto look = [&](Index step) {
    learner.train(step);
    if (differs) result["differences"].push_back({{"step", step}, {"layers", differences(learner)}});
  };
  // During training and after: thirds of the first round, the end of the second.
  const Index first = setting.mixed_steps > 0 ? setting.mixed_steps : setting.steps;
  for (const Index third : {1, 2, 3}) look(first * third / 3);
  if (setting.mixed_steps > 0) {
    if (!setting.tuning) result["mixed"] = rounded(learner.loss(host.of_role(Role::trained), 64));
    look(setting.mixed_steps + setting.steps);
  }
  if (setting.tuning) {
    result["loss"] = rounded(learner.loss(learner.trained(), 64));
    return result;
  }
  std::vector<std::size_t> tasks = learner.trained();
  for (const std::size_t task : host.of_role(Role::memory)) tasks.push_back(task);
  result["loss"] = losses(learner, tasks);
  return result;
}

/// As many experts for each layer as its share of the differences, two at least, as many in all as `total`.
std::vector<Index> by_difference(const std::vector<double>& differences, Index total) {
  const auto n = static_cast<Index>(differences.size());
  const double sum = std::accumulate(differences.begin(), differences.end(), 0.0);
  std::vector<Index> experts(differences.size(), 2);
  // What is left goes, one by one, where the share is missed most; the lower layer wins ties.
  for (Index given = 2 * n; given < total; ++given) {
    std::size_t most = 0;
    const auto missed = [&](std::size_t l) {
      return (sum > 0 ? differences[l] / sum : 1 / double(n)) * double(total) - double(experts[l]);
    };
    for (std::size_t l = 1; l < experts.size(); ++l)
      if (missed(l) > missed(most)) most = l;
    ++experts[most];
  }
  return experts;
}

/// Spearman's rank correlation of numbers without ties.
double rank_correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const auto ranks = [](const std::vector<double>& v) {
    std::vector<double> r;
    for (const double a : v)
      r.push_back(double(std::count_if(v.begin(), v.end(), [&](double b) { return b < a; })));
    return r;
  };
  const std::vector<double> a = ranks(x), b = ranks(y);
  double squares = 0;
  for (std::size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  const auto n = double(a.size());
  return 1 - 6 * squares / (n * (n * n - 1));
}

/// Learning rates that rise or fall over the layers by a factor of four in all, 1 in the geometric mean.
std::vector<double> rates(bool rising) {
  std::vector<double> all;
  for (Index layer = 0; layer < layers; ++layer) {
    const double place = double(layer) / double(layers - 1) - 0.5;  // -1/2 to 1/2
    all.push_back(std::round(1e4 * std::pow(4.0, rising ? place : -place)) / 1e4);
  }
  return all;
}

class Study {
 public:
  explicit Study(const Command& command)
      : command_(command),
        host_(command.bases, command.quick),
        rounds_(rounds(command)),
        runs_(open_runs(command, [this](const Setting& setting) { return measure(host_, setting); })) {}

  void run() {
    const auto repetitions = static_cast<std::size_t>(command_.base_count() * command_.seeds());
    // MoLA's learning rate is the rectangle's for all shapes.
    std::vector<Method> kinds = others();
    kinds.push_back({rectangle, mola({5})});
    std::vector<Method> best;  // [round][kind]
    for (const Round& round : rounds_)
      for (const Method& kind : kinds) best.push_back({kind.title, in_round(kind.setting, round)});
    const std::size_t later = (2 * (5 * 2 + 4 + 1) + 6) * repetitions;
    best = tuned(runs_, std::move(best), later, command_);
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      std::vector<Method>& list = methods_.emplace_back();
      const Setting& of_mola = best[(r + 1) * kinds.size() - 1].setting;
      for (const double balance : {0.0, 0.01})
        for (const auto& [title, experts] : shapes()) {
          list.push_back({title + (balance > 0 ? ", balance" : ""), of_mola});
          list.back().setting.experts = experts;
          list.back().setting.balance = balance;
        }
      for (std::size_t k = 0; k + 1 < kinds.size(); ++k) list.push_back(best[r * kinds.size() + k]);
    }
    measure_all();
    // What nobody has shown: an allocation from the differences, and learning rates by layer.
    const std::vector<double> measured = differences_by_layer(0);
    chosen_ = by_difference(measured, 40);
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      methods_[r].push_back({"by the measured differences", method(r, rectangle).setting});
      methods_[r].back().setting.experts = chosen_;
    }
    for (const char* const shape : {"triangle 8-6-4-2", "inverted triangle 2-4-6-8", "rectangle 5-5-5-5"})
      for (const bool rising : {true, false}) {
        methods_[0].push_back(
            {std::string(shape) + (rising ? ", rates rising" : ", rates falling"), method(0, shape).setting});
        methods_[0].back().setting.layer_rates = rates(rising);
      }
    measure_all();
    runs_.tidy();
    report();
  }

 private:
  void measure_all() {
    std::vector<Method> all;
    for (const auto& list : methods_) all.insert(all.end(), list.begin(), list.end());
    runs_.run(repeated(all, command_));
  }

  const Method& method(std::size_t round, const std::string& title) const {
    return named(methods_[round], title);
  }
  Figures downstream(std::size_t round, const std::string& title) const {
    return figures(runs_, method(round, title).setting, command_,
                   mean_loss(host_, host_.of_role(Role::unseen)));
  }

  /// Mean over the projections and runs of the rectangle, at the end of its training.
  std::vector<double> differences_by_layer(std::size_t round) const {
    std::vector<double> mean(layers);
    const auto runs = flat(repeated(method(round, rectangle).setting, command_));
    for (const Setting& run : runs) {
      const Json& end = runs_.result(run)["differences"].back()["layers"];
      for (std::size_t l = 0; l < mean.size(); ++l)
        for (const Json& value : end[l])
          mean[l] += value.get<double>() / double(end[l].size()) / double(runs.size());
    }
    return mean;
  }

  void report() const {
    Page page(command_, "Experts by layer");
    page.paragraph(
        "A base of eight layers that knows English; Portuguese and Catalan are learned directly, or "
        "after a first round on seven other languages. Nats per byte on held-out words, mean ± spread "
        "over bases and seeds. MoLA's routing (top-2, renormalised), rank 4, 40 experts in all.");
    power(page);
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      page.heading("Trained " + rounds_[r].title);
      page.table(losses_table(r));
    }
    page.picture("shapes", shapes_picture(), "Loss by shape");
    page.heading("Claims").claims(claims());
    page.heading("Differences of the experts");
    page.paragraph(predictions());
    page.picture("differences", differences_picture(), "Differences of the experts by layer and projection");
    page.write();
  }

  /// What these runs could have seen, from the spread of pairs that differ in nothing but the seed.
  void power(Page& page) const {
    examples::Table table{{"trained", "spread of a run's loss within a base",
                           "spread of the difference of two shapes",
                           "smallest difference that is found in four of five studies"}};
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      double within = 0, paired = 0;
      const Figures own = downstream(r, rectangle);
      for (const auto& base : own) within += mean_of(base).spread / double(own.size());
      double n = 0;
      for (const auto& [title, experts] : shapes())
        if (title != rectangle) {
          paired += mean_of(downstream(r, title) - own).spread;
          n += 1;
        }
      table.rows.push_back({rounds_[r].title, examples::fixed(within, 4), examples::fixed(paired / n, 4),
                            examples::fixed(smallest_effect(paired / n, flat(own).size()), 4)});
    }
    page.heading("Power").table(table);
  }

  examples::Table losses_table(std::size_t r) const {
    examples::Table table{
        {"experts by layer", "trainable", "learning rate", "Portuguese and Catalan", "English"}};
    if (r > 0) table.header.push_back("the seven, after the first round");
    for (const Method& m : methods_[r]) {
      std::vector<std::string> row{
          m.title + (m.title == "by the measured differences" ? " " + listed(m.setting.experts) : ""),
          std::to_string(runs_.result(repeated(m.setting, command_)[0][0])["trainable"].get<Index>()),
          shortest(m.setting.learning_rate), text(mean_of(downstream(r, m.title)), 4),
          text(mean_of(figures(runs_, m.setting, command_, mean_loss(host_, host_.of_role(Role::memory)))))};
      if (r > 0)
        row.push_back(text(mean_of(figures(runs_, m.setting, command_,
                                           [](const Json& result) { return result["mixed"].get<double>(); })),
                           4));
      table.rows.push_back(row);
    }
    return table;
  }
  static std::string listed(const std::vector<Index>& experts) {
    std::string text;
    for (const Index n : experts) text += (text.empty() ? "" : "-") + std::to_string(n);
    return text;
  }

  std::vector<Claim> claims() const {
    const std::string up = "inverted triangle 2-4-6-8", down = "triangle 8-6-4-2", hour = "hourglass 8-2-2-8",
                      chosen = "by the measured differences";
    std::vector<Claim> all;
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      const std::string when = ", " + rounds_[r].title;
      const auto less = [&](const std::string& text, const std::string& a, const std::string& b, double by) {
        all.push_back({text + when, -by, downstream(r, a) - downstream(r, b)});
      };
      less("more experts in the upper layers beat more in the lower, by 0.005", up, down, 0.005);
      less("... beat as many in all, by 0.005", up, rectangle, 0.005);
      less("... beat the hourglass, by 0.005", up, hour, 0.005);
      less(
          "any of the shapes is worth 0.02: the best (inverted triangle, as the paper has it) against the "
          "middle-heavy",
          up, "middle-heavy 2-8-8-2", 0.02);
      less("balance helps the rectangle, by 0.005", rectangle + ", balance", rectangle, 0.005);
      less("the rectangle beats LoRA of its weights, by 0.005", rectangle, "LoRA r22", 0.005);
      less("the rectangle beats soft routing of its weights, by 0.005", rectangle, "MoLoRA-5 r4, soft",
           0.005);
      less("experts by the measured differences beat as many in all, by 0.005", chosen, rectangle, 0.005);
    }
    const auto rate = [&](const std::string& text, const std::string& shape, const char* which) {
      all.push_back({text, -0.005, downstream(0, shape + which) - downstream(0, shape)});
    };
    rate("learning rates that rise over the layers help the rectangle, by 0.005", rectangle,
         ", rates rising");
    rate("... that fall", rectangle, ", rates falling");
    rate("... that rise help the inverted triangle, by 0.005", up, ", rates rising");
    rate("... that fall", up, ", rates falling");
    rate("... that rise help the triangle, by 0.005", down, ", rates rising");
    rate("... that fall", down, ", rates falling");
    return all;
  }

  /// Whether shapes that put experts where the differences are large are the better ones.
  std::string predictions() const {
    std::string all;
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      const std::vector<double> difference = differences_by_layer(r);
      std::vector<double> promised, gained;
      for (const auto& [title, groups] : shapes()) {
        const auto experts = moxie::experts_per_layer(std::span<const Index>(groups), layers);
        double sum = 0;
        for (std::size_t l = 0; l < difference.size(); ++l) sum += double(experts[l]) * difference[l];
        promised.push_back(sum);
        gained.push_back(-mean_of(downstream(r, title)).mean);
      }
      std::string numbers;
      for (const double d : difference) numbers += (numbers.empty() ? "" : ", ") + examples::fixed(d, 2);
      all += (all.empty() ? "" : "\n\n") + std::string("Trained ") + rounds_[r].title +
             ": mean difference by layer " + numbers +
             "; rank correlation over the five shapes of experts put where differences are large with low "
             "loss: " +
             examples::fixed(rank_correlation(promised, gained), 2, true) +
             " (five shapes: one order in 120 has 1, so no correlation below 1 is evidence).";
    }
    return all;
  }

  std::string shapes_picture() const {
    moxie::plot::LineChart chart{
        .title = "Loss by where the experts are",
        .subtitle = "Portuguese and Catalan; bands: lowest to highest run",
        .x = {.label = "experts in the upper half of the layers less those in the lower"},
        .y = {.label = "loss less the rectangle's", .unit = "nats per byte"},
        .height = 480};
    for (std::size_t r = 0; r < rounds_.size(); ++r)
      for (const char* const balance : {"", ", balance"}) {
        moxie::plot::Series series{.name = rounds_[r].title + balance, .line = true, .marks = true};
        for (const char* const shape :
             {"triangle 8-6-4-2", "rectangle 5-5-5-5", "inverted triangle 2-4-6-8"}) {
          const auto values =
              flat(downstream(r, std::string(shape) + balance) - downstream(r, rectangle + balance));
          const auto& groups = method(r, shape).setting.experts;
          series.x.push_back(2.0 * double(groups[2] + groups[3] - groups[0] - groups[1]));
          series.y.push_back(mean_of(std::span<const double>(values)).mean);
          series.low.push_back(*std::min_element(values.begin(), values.end()));
          series.high.push_back(*std::max_element(values.begin(), values.end()));
        }
        chart.series.push_back(std::move(series));
      }
    return moxie::plot::svg(chart);
  }

  std::string differences_picture() const {
    moxie::plot::HeatMap map{
        .title = "Differences of the experts during training",
        .subtitle = "Frobenius norm between updates, mean over pairs and runs; rectangle",
        .rows = {{.name = "layer"}}};
    for (Index layer = 1; layer <= layers; ++layer) map.rows.front().rows.push_back(std::to_string(layer));
    map.column = {.label = "projection"};
    map.value = {.label = "mean difference"};
    map.low = 0.0;
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      const auto runs = flat(repeated(method(r, rectangle).setting, command_));
      const std::size_t points = runs_.result(runs.front())["differences"].size();
      for (std::size_t p = 0; p < points; ++p) {
        if (r > 0 && p + 1 < points && p + 2 < points) continue;  // the first round's first thirds are alike
        moxie::plot::Panel panel{
            .title = rounds_[r].title + ", step " +
                     std::to_string(runs_.result(runs.front())["differences"][p]["step"].get<Index>()),
            .columns = {"q", "k", "v", "o", "gate", "up", "down"},
            .values = std::vector<double>(static_cast<std::size_t>(layers) * 7)};
        for (const Setting& run : runs) {
          const Json& values = runs_.result(run)["differences"][p]["layers"];
          for (std::size_t i = 0; i < panel.values.size(); ++i)
            panel.values[i] += values[i / 7][i % 7].get<double>() / double(runs.size());
        }
        map.panels.push_back(std::move(panel));
      }
    }
    return moxie::plot::svg(map);
  }

  const Command& command_;
  Host host_;
  std::vector<Round> rounds_;
  Runs runs_;
  std::vector<std::vector<Method>> methods_;  ///< [round]
  std::vector<Index> chosen_;                 ///< experts of each layer, by the measured differences
};

}  // namespace
}  // namespace papers

int main(int argc, char** argv) {
  return papers::study_main(argc, argv, "mola", "MoLA: experts, and learning rates, by layer",
                            [](const papers::Command& command) { papers::Study(command).run(); });
}
