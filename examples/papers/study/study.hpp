// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/plot/svg.hpp>

#include <filesystem>
#include <functional>

#include "learner.hpp"
#include "runs.hpp"
#include "statistics.hpp"

namespace papers {

/// What the command line of a study says.
struct Command {
  std::filesystem::path out;    ///< folder of the runs, the tables and the pictures
  std::filesystem::path bases;  ///< folder of the bases, which the studies share
  bool report = false;          ///< tables and pictures of the runs that are there
  bool fresh = false;           ///< does not go on with runs that are there
  bool quick = false;           ///< a few steps of everything, to see that it works; says nothing
  int workers = 2;
  int base_count() const { return quick ? 1 : 2; }
  int seeds() const { return quick ? 2 : 3; }
  /// Steps of a study, 1 where it is quick.
  Index steps(Index full) const { return quick ? std::min<Index>(full, 1) : full; }
};

/// Reads the command line and runs a study; an error is one line on stderr, and 1.
int study_main(int argc, char** argv, const char* name, const char* description,
               const std::function<void(const Command&)>& study);

/// The runs of a study; with --report none is measured, and one that is not there is an error.
Runs open_runs(const Command& command, Runs::Measure measure);

/// A setting once for each base and seed: [base][seed].
std::vector<std::vector<Setting>> repeated(const Setting& setting, const Command& command);
/// All of them in a row.
std::vector<Setting> flat(const std::vector<std::vector<Setting>>& settings);

/// A line of a study's tables.
struct Method {
  std::string title;
  Setting setting;
};
/// Each at the learning rate that is best for it, searched from its own (Runs::tuned).
std::vector<Method> tuned(Runs& runs, std::vector<Method> methods, std::size_t more, const Command& command);
/// Throws std::logic_error where there is none of that title.
const Method& named(const std::vector<Method>& methods, const std::string& title);
/// Those of all methods for each base and seed.
std::vector<Setting> repeated(const std::vector<Method>& methods, const Command& command);

/// A figure of each run of a setting, [base][seed].
using Figures = std::vector<std::vector<double>>;
Figures figures(const Runs& runs, const Setting& setting, const Command& command,
                const std::function<double(const Json&)>& figure);
/// Of a result with `loss` by language: the mean over some.
std::function<double(const Json&)> mean_loss(const Host& host, const std::vector<std::size_t>& tasks);
/// `loss` by language, as it goes into a result.
Json losses(Learner& learner, const std::vector<std::size_t>& tasks, std::size_t most = 128);
/// Run by run.
Figures operator-(const Figures& a, const Figures& b);
std::vector<double> flat(const Figures& figures);
inline Mean mean_of(const Figures& f) { return mean_of(std::span<const double>(flat(f))); }

/// A page of tables with the pictures beside it.
class Page {
 public:
  Page(const Command& command, const std::string& title);
  Page& heading(const std::string& text);
  Page& paragraph(const std::string& text);
  Page& table(const examples::Table& table);
  /// Writes NAME.svg and shows it.
  Page& picture(const std::string& name, const std::string& svg, const std::string& alt);
  /// Each claim with its figure and verdict.
  Page& claims(const std::vector<Claim>& claims);
  /// Writes tables.md.
  void write() const;

 private:
  std::filesystem::path out_;
  std::string text_;
};

}  // namespace papers
