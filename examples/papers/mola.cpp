// SPDX-License-Identifier: MIT
// MoLA (arXiv:2402.08562): which layers need more experts, on a base of eight layers; whether the differences
// of the experts tell it; and learning rates by layer beside experts by layer.

#include <moxie/analysis.hpp>

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "study/study.hpp"

namespace papers {
namespace {

using languages::Role;

constexpr Index layers = 8;

const std::string triangle = "triangle 8-6-4-2", inverted = "inverted triangle 2-4-6-8",
                  hourglass = "hourglass 8-2-2-8", rectangle = "rectangle 5-5-5-5",
                  middle = "middle-heavy 2-8-8-2", by_differences = "by the measured differences";
/// The paper's shapes and one more, two layers a group, 40 experts each.
const std::vector<std::pair<std::string, std::vector<Index>>>& shapes() {
  static const std::vector<std::pair<std::string, std::vector<Index>>> all = {{triangle, {8, 6, 4, 2}},
                                                                              {inverted, {2, 4, 6, 8}},
                                                                              {hourglass, {8, 2, 2, 8}},
                                                                              {rectangle, {5, 5, 5, 5}},
                                                                              {middle, {2, 8, 8, 2}}};
  return all;
}

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
    std::vector<Method> kinds = others();
    for (const auto& [title, experts] : shapes()) kinds.push_back({title, mola(experts)});
    std::vector<Method> best;  // [round][kind]
    for (const Round& round : rounds_)
      for (const Method& kind : kinds) best.push_back({kind.title, in_round(kind.setting, round)});
    const std::size_t later = (2 * (5 * 2 + 4 + 1) + 6) * repetitions;
    best = tuned(runs_, std::move(best), later, command_);
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      const auto first = best.begin() + static_cast<std::ptrdiff_t>(r * kinds.size());
      std::vector<Method>& list =
          methods_.emplace_back(first, first + static_cast<std::ptrdiff_t>(kinds.size()));
      // With a balance of ten times the released weight, at the same learning rate.
      for (const auto& [title, experts] : shapes()) {
        list.push_back({title + ", balance", method(r, title).setting});
        list.back().setting.balance = 0.01;
      }
    }
    // What these runs can see is computed, and told, before the others are run.
    std::vector<Method> pair;
    for (std::size_t r = 0; r < rounds_.size(); ++r)
      for (const std::string& shape : {rectangle, inverted}) pair.push_back(method(r, shape));
    runs_.run(repeated(pair, command_), later);
    std::fprintf(stderr, "%s", power().text().c_str());
    measure_all();
    // What nobody has shown: an allocation from the differences, and learning rates by layer.
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      methods_[r].push_back({by_differences, method(r, rectangle).setting});
      methods_[r].back().setting.experts = by_difference(differences_by_layer(r).first, 40);
    }
    for (const std::string& shape : {triangle, inverted, rectangle})
      for (const bool rising : {true, false}) {
        methods_[0].push_back(
            {shape + (rising ? ", rates rising" : ", rates falling"), method(0, shape).setting});
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

  /// Of one run of the rectangle, the mean difference of each layer's experts over its projections, at the
  /// end.
  std::vector<double> differences_of(const Setting& run) const {
    std::vector<double> means;
    for (const Json& layer : runs_.result(run)["differences"].back()["layers"]) {
      double mean = 0;
      for (const Json& value : layer) mean += value.get<double>() / double(layer.size());
      means.push_back(mean);
    }
    return means;
  }
  /// Mean and spread of it over the runs, by layer.
  std::pair<std::vector<double>, std::vector<double>> differences_by_layer(std::size_t round) const {
    std::vector<std::vector<double>> by_layer(layers);
    for (const Setting& run : flat(repeated(method(round, rectangle).setting, command_))) {
      const std::vector<double> own = differences_of(run);
      for (std::size_t l = 0; l < own.size(); ++l) by_layer[l].push_back(own[l]);
    }
    std::pair<std::vector<double>, std::vector<double>> all;
    for (const auto& values : by_layer) {
      const Mean m = mean_of(std::span<const double>(values));
      all.first.push_back(m.mean);
      all.second.push_back(m.spread);
    }
    return all;
  }
  /// Rank correlation, over the five shapes, of experts put where the differences are large with low loss;
  /// of each base and seed.
  Figures correlations(std::size_t round) const {
    Figures all;
    const auto runs = repeated(method(round, rectangle).setting, command_);
    for (std::size_t b = 0; b < runs.size(); ++b) {
      all.emplace_back();
      for (std::size_t seed = 0; seed < runs[b].size(); ++seed) {
        const std::vector<double> difference = differences_of(runs[b][seed]);
        std::vector<double> promised, gained;
        for (const auto& [title, groups] : shapes()) {
          const auto experts = moxie::experts_per_layer(std::span<const Index>(groups), layers);
          double sum = 0;
          for (std::size_t l = 0; l < difference.size(); ++l) sum += double(experts[l]) * difference[l];
          promised.push_back(sum);
          gained.push_back(-downstream(round, title)[b][seed]);
        }
        all.back().push_back(rank_correlation(promised, gained));
      }
    }
    return all;
  }

  void report() const {
    Page page(command_, "Experts by layer");
    page.paragraph(
        "A base of eight layers that knows English; Portuguese and Catalan are learned directly, or after a "
        "first round on seven other languages. Nats per byte on held-out words. MoLA's routing (top-2, "
        "renormalised), rank 4, 40 experts in all; balance has ten times the released weight. Differences "
        "are taken run by run, their ± is half of the 95 % interval. Made by `paper_mola`.");
    page.heading("Power")
        .paragraph(
            "From two shapes, before the others were run: what differs between two shapes by less is not "
            "found in four of five studies of this size. A claim's threshold comes on top.")
        .table(power());
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

  examples::Table power() const {
    examples::Table table{{"trained", "spread of the rectangle's loss within a base",
                           "spread of its difference to the inverted triangle's", "smallest difference"}};
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      const Figures own = downstream(r, rectangle);
      double within = 0;
      for (const auto& base : own) within += mean_of(base).spread * mean_of(base).spread / double(own.size());
      const Mean pairs = mean_of(downstream(r, inverted) - own);
      table.rows.push_back({rounds_[r].title, examples::fixed(std::sqrt(within), 4),
                            examples::fixed(pairs.spread, 4),
                            examples::fixed(smallest_effect(pairs.spread, pairs.n), 4)});
    }
    return table;
  }

  examples::Table losses_table(std::size_t r) const {
    examples::Table table{{"experts by layer", "trainable", "learning rate", "Portuguese and Catalan",
                           "less the rectangle's", "less LoRA r22's", "English"}};
    const auto less = [&](const std::string& title, const std::string& other) {
      return title == other ? "" : interval(mean_of(downstream(r, title) - downstream(r, other)), 4);
    };
    if (r > 0) table.header.push_back("the seven, after the first round");
    for (const Method& m : methods_[r]) {
      std::vector<std::string> row{
          m.title + (m.title == by_differences ? " " + listed(m.setting.experts) : ""),
          std::to_string(runs_.result(repeated(m.setting, command_)[0][0])["trainable"].get<Index>()),
          shortest(m.setting.learning_rate),
          text(mean_of(downstream(r, m.title)), 4),
          less(m.title, rectangle),
          less(m.title, "LoRA r22"),
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
    std::vector<Claim> all;
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      const std::string when = ", " + rounds_[r].title;
      const auto less = [&](const std::string& text, const std::string& a, const std::string& b, double by) {
        all.push_back({text + when, -by, downstream(r, a) - downstream(r, b)});
      };
      less("more experts in the upper layers beat more in the lower, by 0.005", inverted, triangle, 0.005);
      less("... beat five in every layer, by 0.005", inverted, rectangle, 0.005);
      less("... beat the hourglass, by 0.005", inverted, hourglass, 0.005);
      less("... beat the middle-heavy, by 0.005", inverted, middle, 0.005);
      less("the middle-heavy beats more in the upper layers, by 0.005", middle, inverted, 0.005);
      less("balance helps the rectangle, by 0.005", rectangle + ", balance", rectangle, 0.005);
      less("the rectangle beats LoRA of its weights, by 0.005", rectangle, "LoRA r22", 0.005);
      less("the rectangle beats soft routing of its weights, by 0.005", rectangle, "MoLoRA-5 r4, soft",
           0.005);
      less("experts by the measured differences beat five in every layer, by 0.005", by_differences,
           rectangle, 0.005);
      Figures opposite = correlations(r);
      for (auto& base : opposite)
        for (double& rho : base) rho = -rho;
      all.push_back(
          {"the differences predict the order of the shapes: less the rank correlation is below 0" + when, 0,
           opposite});
    }
    const auto rate = [&](const std::string& text, const std::string& shape, const char* which) {
      all.push_back({text, -0.005, downstream(0, shape + which) - downstream(0, shape)});
    };
    rate("learning rates that rise over the layers help the rectangle, by 0.005", rectangle,
         ", rates rising");
    rate("... that fall", rectangle, ", rates falling");
    rate("... that rise help the inverted triangle, by 0.005", inverted, ", rates rising");
    rate("... that fall", inverted, ", rates falling");
    rate("... that rise help the triangle, by 0.005", triangle, ", rates rising");
    rate("... that fall", triangle, ", rates falling");
    return all;
  }

  std::string predictions() const {
    std::string all;
    for (std::size_t r = 0; r < rounds_.size(); ++r) {
      const auto [means, spreads] = differences_by_layer(r);
      std::string numbers;
      for (std::size_t l = 0; l < means.size(); ++l)
        numbers += (l == 0 ? "" : ", ") + text(Mean{means[l], spreads[l], 0}, 2);
      all += (all.empty() ? "" : "\n\n") + std::string("Trained ") + rounds_[r].title +
             ": mean difference by layer " + numbers +
             "; rank correlation over the five shapes of experts put where differences are large with low "
             "loss " +
             text(mean_of(correlations(r)), 2) + ".";
    }
    return all;
  }

  std::string shapes_picture() const {
    moxie::plot::BarChart chart{.title = "Loss by where the experts are",
                                .subtitle = "Portuguese and Catalan, mean and 95 % interval over the runs",
                                .x = {.label = "experts of each quarter of the layers"},
                                .y = {.label = "loss less the rectangle's", .unit = "nats per byte"},
                                .height = 480};
    for (const auto& [title, experts] : shapes())
      if (title != rectangle) chart.groups.push_back(title);
    for (std::size_t r = 0; r < rounds_.size(); ++r)
      for (const char* const balance : {"", ", balance"}) {
        moxie::plot::Bars bars{.name = rounds_[r].title + balance};
        for (const std::string& title : chart.groups) {
          const Mean m = mean_of(downstream(r, title + balance) - downstream(r, rectangle + balance));
          bars.values.push_back(m.mean);
          bars.low.push_back(m.mean - half_interval(m));
          bars.high.push_back(m.mean + half_interval(m));
        }
        chart.series.push_back(std::move(bars));
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
};

}  // namespace
}  // namespace papers

int main(int argc, char** argv) {
  return papers::study_main(argc, argv, "mola", "MoLA: experts, and learning rates, by layer",
                            [](const papers::Command& command) { papers::Study(command).run(); });
}
