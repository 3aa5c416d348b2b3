// SPDX-License-Identifier: MIT
#include "study.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <thread>

#include "../../llama/checkpoint.hpp"

namespace papers {

int study_main(int argc, char** argv, const char* name, const char* description,
               const std::function<void(const Command&)>& study) {
  Command command;
  command.out = std::string("papers-out/") + name;
  command.workers = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::string out = command.out.string(), bases;
  CLI::App app(description);
  app.add_option("--out", out, "folder of runs, tables and pictures; what is there is kept")
      ->capture_default_str();
  app.add_option("--bases", bases, "folder of the base models, trained where missing; default: beside --out");
  app.add_flag("--report", command.report, "tables and pictures of the runs that are there; trains nothing");
  app.add_flag("--quick", command.quick, "a few steps of everything: that it works, not what it finds");
  app.add_flag("--fresh", command.fresh, "throw the runs that are there away");
  app.add_option("--workers", command.workers, "runs at a time, a thread each")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    command.out = out;
    command.bases = bases.empty() ? command.out.parent_path() / "bases" : std::filesystem::path(bases);
    std::filesystem::create_directories(command.out);
    std::filesystem::create_directories(command.bases);
    if (command.fresh) std::filesystem::remove(command.out / "runs.jsonl");
    study(command);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 1;
  }
}

Runs open_runs(const Command& command, Runs::Measure measure) {
  return {(command.out / "runs.jsonl").string(), command.report ? Runs::Measure{} : std::move(measure),
          command.workers};
}

std::vector<std::vector<Setting>> repeated(const Setting& setting, const Command& command) {
  std::vector<std::vector<Setting>> all(static_cast<std::size_t>(command.base_count()));
  for (int base = 0; base < command.base_count(); ++base)
    for (int seed = 0; seed < command.seeds(); ++seed) {
      Setting one = setting;
      one.base = base;
      one.seed = seed;
      all[static_cast<std::size_t>(base)].push_back(one);
    }
  return all;
}

std::vector<Setting> flat(const std::vector<std::vector<Setting>>& settings) {
  std::vector<Setting> all;
  for (const auto& row : settings) all.insert(all.end(), row.begin(), row.end());
  return all;
}

std::vector<Method> tuned(Runs& runs, std::vector<Method> methods, std::size_t more, const Command& command) {
  std::vector<Setting> settings;
  for (const Method& method : methods) settings.push_back(method.setting);
  settings = runs.tuned(std::move(settings), more, !command.quick);
  for (std::size_t i = 0; i < methods.size(); ++i) methods[i].setting = settings[i];
  return methods;
}

const Method& named(const std::vector<Method>& methods, const std::string& title) {
  for (const Method& method : methods)
    if (method.title == title) return method;
  throw std::logic_error("no method " + title);
}

std::vector<Setting> repeated(const std::vector<Method>& methods, const Command& command) {
  std::vector<Setting> all;
  for (const Method& method : methods)
    for (const Setting& setting : flat(repeated(method.setting, command))) all.push_back(setting);
  return all;
}

Figures figures(const Runs& runs, const Setting& setting, const Command& command,
                const std::function<double(const Json&)>& figure) {
  Figures all;
  for (const auto& row : repeated(setting, command)) {
    all.emplace_back();
    for (const Setting& one : row) all.back().push_back(figure(runs.result(one)));
  }
  return all;
}

std::function<double(const Json&)> mean_loss(const Host& host, const std::vector<std::size_t>& tasks) {
  std::vector<std::string> names;
  for (const std::size_t task : tasks) names.push_back(host.tasks()[task].source.name);
  return [names](const Json& result) {
    double mean = 0;
    for (const std::string& name : names)
      mean += result["loss"].at(name).get<double>() / double(names.size());
    return mean;
  };
}

Json losses(Learner& learner, const std::vector<std::size_t>& tasks, std::size_t most) {
  Json json;
  for (const std::size_t task : tasks)
    json[learner.host().tasks()[task].source.name] = rounded(learner.loss(task, most));
  return json;
}

Figures operator-(const Figures& a, const Figures& b) {
  Figures difference = a;
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::size_t j = 0; j < a[i].size(); ++j) difference[i][j] -= b[i][j];
  return difference;
}

std::vector<double> flat(const Figures& figures) {
  std::vector<double> all;
  for (const auto& row : figures) all.insert(all.end(), row.begin(), row.end());
  return all;
}

Page::Page(const Command& command, const std::string& title)
    : out_(command.out), text_("# " + title + "\n\n") {
  if (command.quick) paragraph("**A quick run of a few steps: the figures say nothing.**");
}
Page& Page::heading(const std::string& text) {
  text_ += "## " + text + "\n\n";
  return *this;
}
Page& Page::paragraph(const std::string& text) {
  text_ += text + "\n\n";
  return *this;
}
Page& Page::table(const examples::Table& table) {
  text_ += markdown(table);
  return *this;
}
Page& Page::picture(const std::string& name, const std::string& svg, const std::string& alt) {
  llama::write_atomically((out_ / (name + ".svg")).string(), [&](std::ostream& out) { out << svg; });
  text_ += "![" + alt + "](" + name + ".svg)\n\n";
  return *this;
}
Page& Page::claims(const std::vector<Claim>& claims) {
  examples::Table table{{"claim", "figure: mean ± half of its 95 % interval", "must be below", "verdict"}};
  for (const Claim& claim : claims) {
    const Decision d = decide(claim);
    table.rows.push_back({claim.text,
                          examples::fixed(d.mean.mean, 4, true) + " ± " + examples::fixed(d.half, 4),
                          examples::fixed(claim.threshold, 3), "**" + name(d.verdict) + "**"});
  }
  return this->table(table);
}
void Page::write() const {
  llama::write_atomically((out_ / "tables.md").string(), [&](std::ostream& out) { out << text_; });
}

}  // namespace papers
