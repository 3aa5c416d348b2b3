// SPDX-License-Identifier: MIT
// Mixtures of vectors and of LoRAs (arXiv:2309.05444) on seven languages that an English model has never
// seen: what they learn for their weights, and whether their experts specialise.

#include <moxie/analysis.hpp>

#include <numeric>

#include "study/routing.hpp"
#include "study/study.hpp"

namespace papers {
namespace {

/// The learning rates are where the search for them starts.
std::vector<Method> methods(const Command& command) {
  const Index steps = command.steps(200);
  std::vector<Method> all = {{"full fine-tuning", {.method = "full", .learning_rate = 3e-3}},
                             {"IA3", {.method = "ia3", .learning_rate = 0.1}}};
  // Beside 4, 8, 16 and 32 one for the weights of every mixture (r4 is also MoV-10's).
  for (const Index rank : {2, 4, 7, 8, 12, 15, 16, 22, 28, 32, 44, 67})
    all.push_back({"LoRA r" + std::to_string(rank),
                   {.method = "lora", .rank = rank, .learning_rate = rank < 16 ? 2e-2 : 1e-2}});
  for (const Index experts : {5, 10, 30})
    all.push_back(
        {"MoV-" + std::to_string(experts), {.method = "mov", .experts = {experts}, .learning_rate = 0.1}});
  for (const Index rank : {1, 4})
    for (const Index experts : {5, 10, 15})
      all.push_back({"MoLoRA-" + std::to_string(experts) + " r" + std::to_string(rank),
                     {.method = "molora", .experts = {experts}, .rank = rank, .learning_rate = 2e-2}});
  const Setting ten{.method = "molora", .experts = {10}, .rank = 4, .learning_rate = 2e-2};
  for (const Index k : {1, 2})
    for (const bool masked : {false, true}) {
      Setting top = ten;
      top.method = "mola";
      top.top_k = k;
      top.masked = masked;
      all.push_back({"MoLoRA-10 r4, top-" + std::to_string(k) + (masked ? " masked" : " renormalised"), top});
    }
  all.push_back({"MoLoRA-10 r4, started as released", ten});
  all.back().setting.released_start = true;
  all.push_back({"MoLoRA-10 r4, router on the mean so far", ten});
  all.back().setting.route = "mean";
  all.push_back({"oracle: an expert r4 for each language",
                 {.method = "molora", .experts = {7}, .rank = 4, .route = "oracle", .learning_rate = 2e-2}});
  for (Method& method : all) method.setting.steps = steps;
  return all;
}

bool routed(const Setting& s) {
  return s.route != "oracle" && (s.method == "mov" || s.method == "molora" || s.method == "mola");
}

Json measure(const Host& host, const Setting& setting) {
  Learner learner(host, setting);
  std::optional<RoutingAnalysis> untrained;
  if (routed(setting) && !setting.tuning) untrained = analyse_routing(learner);
  learner.train();
  Json result = {{"trainable", learner.trainable()}};
  if (setting.tuning) {
    result["loss"] = rounded(learner.loss(learner.trained(), 64));
    return result;
  }
  std::vector<std::size_t> tasks = learner.trained();
  if (setting.route != "oracle")
    for (const auto role : {languages::Role::unseen, languages::Role::memory})
      for (const std::size_t task : host.of_role(role)) tasks.push_back(task);
  result["loss"] = losses(learner, tasks);
  if (!untrained) return result;
  const RoutingAnalysis analysis = analyse_routing(learner);
  result["untrained"] = untrained->figures.json();
  result["routing"] = analysis.figures.json();
  if (!setting.masked) result["gates"] = swap_gates(learner).json();
  // The pictures' routers: the upper half of the layers of one run.
  if (setting.base == 0 && setting.seed == 0)
    for (const RouterMeans& router : analysis.routers) {
      if (router.layer < learner.adapters().layers() / 2 || router.head > 0) continue;
      Json json = {{"layer", router.layer},
                   {"site", llama::name(router.site)},
                   {"language", rounded(router.language)}};
      for (const auto& gates : router.gates) {
        Json row;
        for (const double gate : gates) row.push_back(std::round(gate * 1e3) / 1e3);
        json["gates"].push_back(row);
      }
      result["routers"].push_back(json);
    }
  return result;
}

class Report {
 public:
  Report(const Host& host, const Command& command, const Runs& runs, std::vector<Method> tuned)
      : host_(host), command_(command), runs_(runs), methods_(std::move(tuned)) {}

  void write() {
    Page page(command_, "Mixtures of vectors and of LoRAs on languages");
    page.paragraph(
        "Nats per byte on held-out words, over " + std::to_string(command_.base_count()) + " bases and " +
        std::to_string(command_.seeds()) +
        " seeds of adapters and data. Every method trains on the same number of bytes, at a learning "
        "rate chosen for it on other words; English is what the bases knew. Made by `paper_mov`.");
    page.heading("Loss").table(losses());
    page.picture("loss", loss_picture(languages::Role::trained), "Loss against trainable weights");
    page.picture("loss-never-trained", loss_picture(languages::Role::unseen),
                 "Loss against trainable weights, languages that were never trained");
    page.heading("Claims")
        .paragraph("Each is about one figure, taken run by run on the same base and seed.")
        .claims(claims());
    page.heading("What the routers tell")
        .paragraph(
            "Mutual information with the expert in nats, mean over the routers: of the language, of the "
            "current "
            "byte, and of the language where the byte is known. \"Permuted\" are the same gates with the "
            "languages of the rows exchanged, \"untrained\" is the same model before its first step. The "
            "router "
            "of top-1 renormalised cannot learn, since its weight is always 1: what its row has above the "
            "untrained one comes from the layers below it.");
    page.table(routing());
    page.heading("Gates taken away")
        .paragraph(
            "Loss over 64 rows of each trained language where each token gets its own gates, its language's "
            "mean "
            "gates, another language's, or all experts alike. The means are of other rows; they tell the "
            "model "
            "the language, which its own gates have to find out.");
    page.table(gates());
    page.heading("Related languages")
        .paragraph(
            "Cosine between languages of their mean gates over all routers, as deviations from the mean of "
            "the "
            "seven: their mean within the Romance three and the Germanic four less that between them, and "
            "the "
            "rank of this among the 35 ways to split seven languages so. The deviations are small: most "
            "experts are everybody's.");
    page.table(families());
    page.picture("families", similarity_picture(), "How alike the languages' gates are");
    page.picture("routing", routing_picture(named("MoLoRA-10 r4")), "Routing by the token");
    page.picture("routing-mean", routing_picture(named("MoLoRA-10 r4, router on the mean so far")),
                 "Routing by the mean so far");
    page.heading("Trainable weights of published models").table(counts());
    page.write();
  }

 private:
  const Method& named(const std::string& title) const { return papers::named(methods_, title); }
  std::function<double(const Json&)> of_role(languages::Role role) const {
    return mean_loss(host_, host_.of_role(role));
  }
  Figures trained(const std::string& title) const {
    return figures(runs_, named(title).setting, command_, of_role(languages::Role::trained));
  }
  Figures figure(const std::string& title, const char* group, const char* name) const {
    return figures(runs_, named(title).setting, command_,
                   [&](const Json& result) { return result[group][name].get<double>(); });
  }
  double trainable(const Method& method) const {
    return runs_.result(repeated(method.setting, command_)[0][0])["trainable"].get<double>();
  }

  examples::Table losses() const {
    examples::Table table{{"method", "trainable", "learning rate", "trained", "never trained", "English"}};
    for (const Method& method : methods_) {
      const bool oracle = method.setting.route == "oracle";
      const auto cell = [&](languages::Role role) {
        return oracle && role != languages::Role::trained
                   ? std::string("-")
                   : text(mean_of(figures(runs_, method.setting, command_, of_role(role))));
      };
      table.rows.push_back(
          {method.title, method.setting.steps == 0 ? "-" : examples::fixed(trainable(method), 0),
           method.setting.steps == 0 ? "-" : shortest(method.setting.learning_rate),
           cell(languages::Role::trained), cell(languages::Role::unseen), cell(languages::Role::memory)});
    }
    return table;
  }

  std::string loss_picture(languages::Role role) const {
    moxie::plot::LineChart chart{
        .title = "What a method learns for its weights",
        .subtitle = std::string(role == languages::Role::trained
                                    ? "mean over the seven trained languages"
                                    : "mean over two languages that no method has trained on") +
                    "; bands: lowest to highest run",
        .x = {.label = "trainable weights", .log = true},
        .y = {.label = "held-out loss", .unit = "nats per byte"},
        .height = 520};
    const auto add = [&](const std::string& name, const std::vector<std::string>& titles) {
      moxie::plot::Series series{.name = name, .line = titles.size() > 1, .marks = true};
      for (const std::string& title : titles) {
        const std::vector<double> runs = flat(figures(runs_, named(title).setting, command_, of_role(role)));
        series.x.push_back(trainable(named(title)));
        series.y.push_back(mean_of(std::span<const double>(runs)).mean);
        series.low.push_back(*std::min_element(runs.begin(), runs.end()));
        series.high.push_back(*std::max_element(runs.begin(), runs.end()));
      }
      chart.series.push_back(std::move(series));
    };
    std::vector<std::string> loras;
    for (const Method& method : methods_)
      if (method.title.starts_with("LoRA")) loras.push_back(method.title);
    add("LoRA", loras);
    add("MoLoRA r4", {"MoLoRA-5 r4", "MoLoRA-10 r4", "MoLoRA-15 r4"});
    add("MoLoRA r1", {"MoLoRA-5 r1", "MoLoRA-10 r1", "MoLoRA-15 r1"});
    add("MoV", {"MoV-5", "MoV-10", "MoV-30"});
    add("IA3", {"IA3"});
    add("full", {"full fine-tuning"});
    add("top-2", {"MoLoRA-10 r4, top-2 renormalised"});
    if (role == languages::Role::trained) add("oracle", {"oracle: an expert r4 for each language"});
    return moxie::plot::svg(chart);
  }

  std::vector<Claim> claims() const {
    const std::string ten = "MoLoRA-10 r4", mean = "MoLoRA-10 r4, router on the mean so far",
                      oracle = "oracle: an expert r4 for each language",
                      stuck = "MoLoRA-10 r4, top-1 renormalised";
    const auto unseen = [&](const std::string& title) {
      return figures(runs_, named(title).setting, command_, of_role(languages::Role::unseen));
    };
    const auto above = [&](const std::string& title, const char* name, const char* group, const char* low) {
      return figure(title, group, low) - figure(title, "routing", name);
    };
    return {
        {"MoLoRA-10 r4 comes within 0.02 nats of full fine-tuning", 0.02,
         trained(ten) - trained("full fine-tuning")},
        {"MoLoRA-10 r4 beats LoRA of its weights (r44) by 0.005", -0.005, trained(ten) - trained("LoRA r44")},
        {"MoLoRA-15 r4 beats LoRA of its weights (r67) by 0.005", -0.005,
         trained("MoLoRA-15 r4") - trained("LoRA r67")},
        {"MoLoRA-10 r4 beats LoRA r44 on never trained languages by 0.005", -0.005,
         unseen(ten) - unseen("LoRA r44")},
        {"MoLoRA-15 r4 beats LoRA r67 on never trained languages by 0.005", -0.005,
         unseen("MoLoRA-15 r4") - unseen("LoRA r67")},
        {"MoV-10 beats IA3 by 0.05", -0.05, trained("MoV-10") - trained("IA3")},
        {"MoV-10 beats LoRA of its weights (r4) by 0.005", -0.005, trained("MoV-10") - trained("LoRA r4")},
        {"more experts are better: MoLoRA-15 r4 beats MoLoRA-5 r4 by 0.005", -0.005,
         trained("MoLoRA-15 r4") - trained("MoLoRA-5 r4")},
        {"soft routing beats top-2 (renormalised) by 0.005", -0.005,
         trained(ten) - trained("MoLoRA-10 r4, top-2 renormalised")},
        {"soft routing beats top-1 (masked) by 0.005", -0.005,
         trained(ten) - trained("MoLoRA-10 r4, top-1 masked")},
        {"a router on the mean so far beats one on the token by 0.005", -0.005, trained(mean) - trained(ten)},
        {"knowing the language beats a router on the token by 0.1", -0.1, trained(oracle) - trained(ten)},
        {"knowing the language beats a router on the mean by 0.1", -0.1, trained(oracle) - trained(mean)},
        {"routers on the token tell languages apart: above permuted rows", 0,
         above(ten, "language", "routing", "language_permuted")},
        {"... and above untrained routers", 0, above(ten, "language", "untrained", "language")},
        {"... and where the byte is known, above untrained routers", 0,
         above(ten, "language_given_byte", "untrained", "language_given_byte")},
        {"routers on the mean tell languages apart, above permuted rows", 0,
         above(mean, "language", "routing", "language_permuted")},
        {"... and above untrained routers", 0, above(mean, "language", "untrained", "language")},
        {"routers on the token tell more of the language (given the byte) than of the byte", 0,
         above(ten, "language_given_byte", "routing", "byte")},
        {"routers on the mean do", 0, above(mean, "language_given_byte", "routing", "byte")},
        {"another language's gates cost 0.1 more than one's own mean, routers on the token", -0.1,
         figure(ten, "gates", "mean") - figure(ten, "gates", "other")},
        {"... routers on the mean", -0.1, figure(mean, "gates", "mean") - figure(mean, "gates", "other")},
        {"related languages share experts more after training than before", 0,
         above(ten, "families", "untrained", "families")},
        {"... and more than under routers that cannot learn (top-1 renormalised)", 0,
         figure(stuck, "routing", "families") - figure(ten, "routing", "families")}};
  }

  examples::Table routing() const {
    examples::Table table{{"routers of", "language", "permuted", "untrained", "byte", "untrained",
                           "language given byte", "permuted", "untrained", "effective experts", "untrained"}};
    for (const Method& method : methods_) {
      if (!routed(method.setting)) continue;
      const auto cell = [&](const char* group, const char* name, int decimals) {
        return text(mean_of(figure(method.title, group, name)), decimals);
      };
      table.rows.push_back(
          {method.title, cell("routing", "language", 4), cell("routing", "language_permuted", 4),
           cell("untrained", "language", 4), cell("routing", "byte", 3), cell("untrained", "byte", 3),
           cell("routing", "language_given_byte", 4), cell("routing", "language_given_byte_permuted", 4),
           cell("untrained", "language_given_byte", 4), cell("routing", "effective_experts", 1),
           cell("untrained", "effective_experts", 1)});
    }
    return table;
  }

  examples::Table gates() const {
    examples::Table table{
        {"routers of", "own gates", "own language's mean", "another language's mean", "all alike"}};
    for (const Method& method : methods_) {
      if (!routed(method.setting) || method.setting.masked) continue;
      std::vector<std::string> row{method.title};
      for (const char* const name : {"own", "mean", "other", "uniform"})
        row.push_back(text(mean_of(figure(method.title, "gates", name))));
      table.rows.push_back(row);
    }
    return table;
  }

  examples::Table families() const {
    examples::Table table{
        {"routers of", "score", "permuted", "untrained", "rank of the true split", "untrained"}};
    for (const Method& method : methods_) {
      if (!routed(method.setting)) continue;
      const auto ranks = [&](const char* group) {
        std::string all;
        for (const double rank : flat(figure(method.title, group, "families_rank")))
          all += (all.empty() ? "" : " ") + examples::fixed(rank, 0);
        return all;
      };
      table.rows.push_back({method.title, text(mean_of(figure(method.title, "routing", "families")), 2),
                            text(mean_of(figure(method.title, "routing", "families_permuted")), 2),
                            text(mean_of(figure(method.title, "untrained", "families")), 2), ranks("routing"),
                            ranks("untrained")});
    }
    return table;
  }

  std::vector<moxie::plot::RowGroup> language_rows() const {
    std::vector<moxie::plot::RowGroup> groups;
    for (const auto& [role, title] : {std::pair{languages::Role::trained, "trained"},
                                      {languages::Role::unseen, "never trained"},
                                      {languages::Role::memory, "the base's own"}}) {
      groups.push_back({.name = title});
      for (const std::size_t t : host_.of_role(role))
        groups.back().rows.push_back(host_.tasks()[t].source.title);
    }
    return groups;
  }

  std::string similarity_picture() const {
    moxie::plot::HeatMap map{
        .title = "How alike the languages' gates are",
        .subtitle =
            "cosine of mean gates as deviations from the mean of the seven, MoLoRA-10 r4, mean over all runs",
        .rows = language_rows(),
        .low = -1.0,
        .high = 1.0,
        .decimals = 1};
    map.column = {.label = "language"};
    map.value = {.label = "cosine"};
    for (const auto& [group, title] :
         {std::pair{"untrained", "before training"}, {"routing", "after training"}}) {
      moxie::plot::Panel panel{.title = title};
      const auto runs = flat(repeated(named("MoLoRA-10 r4").setting, command_));
      for (std::size_t a = 0; a < host_.tasks().size(); ++a) {
        panel.columns.push_back(host_.tasks()[a].source.name);
        for (std::size_t b = 0; b < host_.tasks().size(); ++b) {
          double mean = 0;
          for (const Setting& run : runs)
            mean +=
                runs_.result(run)[group]["similarity"][a][b].get<double>() / static_cast<double>(runs.size());
          panel.values.push_back(mean);
        }
      }
      map.panels.push_back(std::move(panel));
    }
    return moxie::plot::svg(map);
  }

  /// Per layer of the upper half the router that tells most about the language.
  std::string routing_picture(const Method& method) const {
    moxie::plot::HeatMap map{.title = "Which experts each language uses",
                             .subtitle = method.title +
                                         "; base 0, seed 0; of each layer the projection that tells "
                                         "most about the language",
                             .rows = language_rows(),
                             .low = 0.0};
    map.column = {.label = "expert"};
    map.value = {.label = "mean routing probability"};
    const Json& routers = runs_.result(repeated(method.setting, command_)[0][0])["routers"];
    for (Index layer = 0; layer < 64; ++layer) {
      const Json* best = nullptr;
      std::vector<double> nats;
      for (const Json& router : routers) {
        if (router["layer"] != layer) continue;
        nats.push_back(router["language"].get<double>());
        if (!best || nats.back() > (*best)["language"].get<double>()) best = &router;
      }
      if (!best) continue;
      std::sort(nats.begin(), nats.end());
      moxie::plot::Panel panel{.title = "layer " + std::to_string(layer + 1) + ", " +
                                        (*best)["site"].get<std::string>() + "  (" +
                                        examples::fixed(nats.back(), 3) + " nats; median " +
                                        examples::fixed(nats[nats.size() / 2], 3) + ")"};
      for (const Json& row : (*best)["gates"])
        for (const Json& gate : row) panel.values.push_back(gate.get<double>());
      for (std::size_t e = 0; e < (*best)["gates"][0].size(); ++e)
        panel.columns.push_back(std::to_string(e + 1));
      map.panels.push_back(std::move(panel));
    }
    return moxie::plot::svg(map);
  }

  examples::Table counts() const;

  const Host& host_;
  const Command& command_;
  const Runs& runs_;
  std::vector<Method> methods_;
};

/// Shapes alone: no weight is ever made.
examples::Table Report::counts() const {
  using moxie::AdapterSet;
  // T5 v1.1 XL: 24 encoder layers with self-attention, 24 decoder layers with self- and cross-attention.
  constexpr Index t5 = 2849757184, llama = 6738415616;
  const auto t5_vectors = [](Index experts) {
    AdapterSet<float> set;
    for (Index block = 0; block < 72; ++block)
      for (const char* const name : {".k", ".v"}) {
        const std::string path = "attention." + std::to_string(block) + name;
        if (experts == 1)
          set.add(path, moxie::ia3<float>({.features = 2048, .heads = 32}));
        else
          set.add(path, moxie::mov<float>({.features = 2048, .heads = 32, .experts = experts}));
      }
    for (Index layer = 0; layer < 48; ++layer) {
      const std::string path = "ffn." + std::to_string(layer);
      if (experts == 1)
        set.add(path, moxie::ia3<float>({.features = 5120}));
      else
        set.add(path, moxie::mov<float>({.features = 5120, .experts = experts}));
    }
    return set;
  };
  const auto t5_loras = [](Index experts, bool both_wi) {
    AdapterSet<float> set;
    const auto add = [&](const std::string& path, Index in, Index out) {
      if (experts == 1)
        set.add(path, moxie::lora<float>({.in = in, .out = out, .rank = 4}));
      else
        set.add(path, moxie::molora<float>({.in = in, .out = out, .experts = experts, .rank = 4}));
    };
    for (Index block = 0; block < 72; ++block)
      for (const char* const name : {".q", ".k", ".v", ".o"})
        add("attention." + std::to_string(block) + name, 2048, 2048);
    for (Index layer = 0; layer < 48; ++layer) {
      const std::string path = "ffn." + std::to_string(layer);
      add(path + ".wi_0", 2048, 5120);
      if (both_wi) add(path + ".wi_1", 2048, 5120);
      add(path + ".wo", 5120, 2048);
    }
    return set;
  };
  const auto llama_mola = [](const std::vector<Index>& groups) {
    AdapterSet<float> set;
    const auto experts = moxie::experts_per_layer(std::span<const Index>(groups), 32);
    for (Index layer = 0; layer < 32; ++layer) {
      const auto add = [&](const char* name, Index in, Index out) {
        set.add(std::to_string(layer) + name,
                moxie::mola<float>(
                    {.in = in, .out = out, .experts = experts[static_cast<std::size_t>(layer)], .rank = 8}));
      };
      for (const char* const name : {".q", ".k", ".v", ".o"}) add(name, 4096, 4096);
      for (const char* const name : {".gate", ".up"}) add(name, 4096, 11008);
      add(".down", 11008, 4096);
    }
    return set;
  };
  examples::Table table{
      {"model and method", "trainable", "% of base", "% of base and adapter", "published", "remark"}};
  const auto row = [&](const std::string& title, const AdapterSet<float>& set, Index base,
                       const std::string& published, const std::string& remark) {
    const moxie::ParameterCount count = moxie::count_parameters(set, base);
    table.rows.push_back({title, std::to_string(count.trainable),
                          examples::fixed(100 * double(count.trainable) / double(base), 3),
                          examples::fixed(count.percent(), 3), published, remark});
  };
  row("IA3, T5 XL", t5_vectors(1), t5, "0.018", "the same, cut off");
  row("LoRA r4, T5 XL, as the code has it", t5_loras(1, false), t5, "0.3", "the code leaves wi_1 out");
  row("LoRA r4, T5 XL, with wi_1", t5_loras(1, true), t5, "0.3", "the figures of r8 and r16 fit only this");
  row("MoV-10, T5 XL", t5_vectors(10), t5, "0.32", "the code's routers do not give the paper's figure");
  row("MoV-30, T5 XL", t5_vectors(30), t5, "0.68", "nor here, and to the other side");
  row("MoLoRA-10 r4, T5 XL", t5_loras(10, false), t5, "3.18", "less; with wi_1 it would be more");
  row("MoLoRA-15 r4, T5 XL", t5_loras(15, false), t5, "4.69", "less; with wi_1 it would be more");
  row("MoLA 2-4-6-8, r8, LLaMA-2 7B", llama_mola({2, 4, 6, 8}), llama, "1.5", "the same");
  row("MoLA 5-5-5-5", llama_mola({5, 5, 5, 5}), llama, "1.5", "the same");
  row("MoLA 8-8-8-8", llama_mola({8, 8, 8, 8}), llama, "2.4", "the same, of base and adapter");
  return table;
}

void study(const Command& command) {
  const Host host(command.bases, command.quick);
  Runs runs = open_runs(command, [&](const Setting& setting) { return measure(host, setting); });
  std::vector<Method> all = methods(command);
  const std::size_t tables =
      (all.size() + 1) * static_cast<std::size_t>(command.base_count() * command.seeds());
  all = tuned(runs, std::move(all), tables, command);
  all.insert(all.begin(), {"frozen base", {.method = "full"}});
  runs.run(repeated(all, command));
  runs.tidy();
  Report(host, command, runs, all).write();
}

}  // namespace
}  // namespace papers

int main(int argc, char** argv) {
  return papers::study_main(argc, argv, "mov",
                            "MoV and MoLoRA on languages: what they learn, and what their experts do",
                            papers::study);
}
