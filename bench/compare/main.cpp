// SPDX-License-Identifier: MIT
// moxie_compare: ours beside plain Eigen, libtorch and oneDNN, cell by cell, in one process and interleaved.
#include "environment.hpp"
#include "measure.hpp"
#include "report.hpp"

#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <set>

namespace {

using namespace compare;

// What the parent tells its children, who are this program again.
constexpr const char *probe_variable = "MOXIE_COMPARE_PROBE", *worker_variable = "MOXIE_COMPARE_WORKER",
                     *file_variable = "MOXIE_COMPARE_FILE", *deadline_variable = "MOXIE_COMPARE_DEADLINE";

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

struct Options {
  Selection selection;
  std::string json, summary_of, table_of, svg;
  bool markdown = false, system_malloc = false;
  double minutes = 58;
};

std::vector<Cell> left_of(const Options& options, const std::string& file, int threads) {
  std::set<std::string> finished;
  for (const Result& r : read_results(file).results) finished.insert(r.cell.text());
  std::vector<Cell> left;
  for (const Cell& c : cells(options.selection))
    if ((threads == 0 || c.threads == threads) && !finished.contains(c.text())) left.push_back(c);
  return left;
}

/// Whether the last line has no end, because the program was stopped while it wrote.
bool torn(const std::string& file) {
  std::ifstream in(file, std::ios::ate);
  return in.tellg() > 0 && in.seekg(-1, std::ios::end).get() != '\n';
}

/// Guesses what a cell takes, for the time left: seconds of a call, rounds of all contestants, and the
/// making.
double cost(const Cell& c) {
  const double calls =
      4e-11 * static_cast<double>(c.tokens * (c.weights() + 20 * c.d)) * (c.backward ? 3 : 1);
  return 0.5 + std::min(60 * calls, 30.0);
}

/// A child with the right environment: measures the cells of one number of threads that the file lacks.
int work(const Options& options, int threads, const std::string& file, const std::string& command) {
  flush_denormals();
  if (!options.system_malloc) keep_memory();
  torch_threads(threads);
  const Limits limits = bench::measure_limits(threads);
  std::fprintf(stderr, "%s\n", text(limits).c_str());
  const auto setting = [](const char* name) { return std::getenv(name) != nullptr ? std::getenv(name) : ""; };
  const Json header = {
      {"limits", to_json(limits)},
      {"threads", threads},
      {"command", command},
      {"processor", processor_name()},
      {"compiler", compiler_name()},
      {"flags", MOXIE_COMPARE_FLAGS},
      {"versions",
       {{"moxie", MOXIE_VERSION},
        {"eigen", std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
                      std::to_string(EIGEN_MINOR_VERSION)},
        {"libtorch", torch_version()},
        {"onednn", onednn_version()}}},
      {"malloc", options.system_malloc ? "system" : "keeps memory"},
      {"OPENBLAS_CORETYPE", setting("OPENBLAS_CORETYPE")},
      {"ATEN_CPU_CAPABILITY", setting("ATEN_CPU_CAPABILITY")}};
  std::ofstream out(file, std::ios::app);
  out << (torn(file) ? "\n" : "") << header.dump() << std::endl;

  const bool quick = options.selection.quick;
  const Effort effort{
      .seconds = quick ? 0.25 : 0.7, .most_seconds = quick ? 3.0 : 12.0, .rounds = quick ? 11 : 31};
  const double deadline = std::atof(std::getenv(deadline_variable)), start = now();
  const std::vector<Cell> left = left_of(options, file, threads);
  double wanted = 0, done = 0;
  for (const Cell& c : left) wanted += cost(c);
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (now() > deadline) {
      std::fprintf(stderr, "out of time with %zu cells left; the same command goes on from here\n",
                   left.size() - i);
      break;
    }
    const Result result = measure(left[i], limits, effort);
    out << to_json(result).dump() << std::endl;
    done += cost(left[i]);
    const double seconds = (now() - start) / done * (wanted - done);
    const bool long_run = seconds > 100;
    std::fprintf(stderr, "%4zu/%zu, about %.0f %s left  %s: %.1f us, %.0f %% of the bound\n", i + 1,
                 left.size(), long_run ? seconds / 60 : seconds, long_run ? "min" : "s",
                 left[i].text().c_str(), result.ours_us, 100 * result.share());
  }
  return out ? 0 : 1;
}

/// A child with one of OpenBLAS's core types: prints GFLOP/s.
int probe() {
  torch_threads(1);
  double best = 1e9;
  for (int i = 0; i < 30; ++i) {
    const double start = now();
    torch_product();
    best = std::min(best, now() - start);
  }
  std::printf("%f\n", 2e-9 * 512 * 768 * 768 / best);
  return 0;
}

/// The kernels of OpenBLAS that are fastest here under libtorch; its own detection is not to be trusted on
/// virtual machines.
std::string choose_core_type() {
  if (const char* chosen = std::getenv("OPENBLAS_CORETYPE")) return chosen;
  std::vector<std::pair<std::string, double>> speeds;
  for (const std::string& type : core_types()) speeds.push_back({type, 0});
  if (torch_version().empty() || speeds.empty()) return {};
  for (int pass = 0; pass < 2; ++pass)
    for (auto& [type, speed] : speeds) {
      Environment environment = settings(1, type);
      environment[probe_variable] = "1";
      std::string printed;
      if (run_self({}, environment, 1, &printed) == 0) speed = std::max(speed, std::atof(printed.c_str()));
    }
  // The first is the one for the widest packets; noise alone does not unseat it.
  std::pair<std::string, double> best = speeds.front();
  std::string told;
  for (const auto& candidate : speeds) {
    told += " " + candidate.first + " " + std::to_string(static_cast<int>(candidate.second));
    if (candidate.second > 1.03 * best.second) best = candidate;
  }
  std::fprintf(stderr, "OpenBLAS, GFLOP/s of a 512 x 768 x 768 product by core type:%s; taken: %s\n",
               told.c_str(), best.first.c_str());
  return best.first;
}

/// Starts a child per number of threads and reports on what they leave in the file.
int coordinate(const Options& options, const std::vector<std::string>& arguments) {
  const bool kept = !options.json.empty() && options.json != "-";
  std::string file = options.json;
  if (!kept) {
    file = (std::getenv("TMPDIR") != nullptr ? std::getenv("TMPDIR") : "/tmp") +
           std::string("/moxie_compare.XXXXXX");
    const int descriptor = mkstemp(file.data());
    if (descriptor < 0) throw std::runtime_error("no temporary file " + file);
    close(descriptor);
  }
  for (const auto& [library, version] :
       {std::pair("libtorch", torch_version()), {"oneDNN", onednn_version()}})
    std::fprintf(
        stderr, "%s %s\n", library,
        version.empty() ? "was not found when this was built: its peers are absent" : version.c_str());
  const std::string core_type = choose_core_type();
  const double deadline = now() + 60 * options.minutes;
  int status = 0;
  for (const int threads : {1, 2, 4, 8, 16, 32, 64}) {
    if (left_of(options, file, threads).empty()) continue;
    if (threads > processors()) {
      std::fprintf(stderr, "%d threads: left out, there are %d processors\n", threads, processors());
      continue;
    }
#if !defined(_OPENMP)
    if (threads > 1) {
      std::fprintf(stderr, "%d threads: left out, built without OpenMP\n", threads);
      continue;
    }
#endif
    Environment environment = settings(threads, core_type);
    environment[worker_variable] = std::to_string(threads);
    environment[file_variable] = file;
    environment[deadline_variable] = std::to_string(deadline);
    status = run_self(arguments, environment, threads);
    if (status != 0) break;
  }
  const Results all = read_results(file);
  if (options.json == "-") {
    std::ifstream in(file);
    std::cout << in.rdbuf();
  } else {
    std::cout << table(all.results) << "\n" << summary(all, options.markdown);
  }
  if (!options.svg.empty()) std::ofstream(options.svg) << scaling(all.results);
  if (!kept) unlink(file.c_str());
  return status;
}

int run(int argc, char** argv) {
  Options options;
  Selection& selection = options.selection;
  CLI::App app("moxie beside plain Eigen, libtorch and oneDNN: interleaved, checked, pinned");
  app.add_flag("--quick", selection.quick, "A part of the sweep in under two minutes");
  app.add_option("--op", selection.ops, "lora ia3 mov soft top2")
      ->delimiter(',')
      ->check(CLI::IsMember({"lora", "ia3", "mov", "soft", "top2"}));
  app.add_option("--pass", selection.passes, "forward forward+backward")
      ->delimiter(',')
      ->check(CLI::IsMember({"forward", "forward+backward"}));
  app.add_option("--d", selection.d, "Widths")->delimiter(',')->check(CLI::Range(1, 65536));
  app.add_option("--tokens", selection.tokens, "Numbers of tokens")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--experts", selection.experts, "Numbers of experts")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  app.add_option("--rank", selection.ranks, "Ranks")->delimiter(',')->check(CLI::Range(1, 4096));
  app.add_option("--threads", selection.threads, "Numbers of threads")
      ->delimiter(',')
      ->check(CLI::IsMember({1, 2, 4, 8, 16, 32, 64}));
  app.add_option("--minutes", options.minutes, "Stops after the cell at which this is over")
      ->capture_default_str();
  app.add_option(
      "--json", options.json,
      "Appends one object per line to this file and leaves out the cells that are in it; - prints them");
  app.add_option("--svg", options.svg, "Draws how cost grows into this file");
  app.add_option("--table", options.table_of, "Prints the table of this file of results, and runs nothing");
  app.add_option("--summary", options.summary_of,
                 "Prints the summary of this file of results, and runs nothing");
  app.add_flag("--system-malloc", options.system_malloc,
               "Leaves malloc as it is, as libtorch is mostly run: large fresh tensors then pay page faults");
  app.add_flag("--markdown", options.markdown, "The summary as Markdown");
  CLI11_PARSE(app, argc, argv);

  if (const char* threads = std::getenv(worker_variable)) {
    std::string command = "moxie_compare";
    for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
    return work(options, std::atoi(threads), std::getenv(file_variable), command);
  }
  const std::string& file = options.table_of.empty() ? options.summary_of : options.table_of;
  if (file.empty()) return coordinate(options, {argv + 1, argv + argc});
  const Results all = read_results(file);
  if (!options.table_of.empty()) std::cout << table(all.results);
  if (!options.summary_of.empty()) std::cout << summary(read_results(options.summary_of), options.markdown);
  if (!options.svg.empty()) std::ofstream(options.svg) << scaling(all.results);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (std::getenv(probe_variable) != nullptr) return probe();
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "moxie_compare: %s\n", e.what());
    return 1;
  }
}
