// SPDX-License-Identifier: MIT
#include "runs.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <thread>

namespace papers {

double rounded(double value) { return std::round(value * 1e5) / 1e5; }

namespace {
/// A learning rate as one would write it.
double two_digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", value);
  return std::strtod(text, nullptr);
}
}  // namespace

Runs::Runs(std::string file, Measure measure, int workers)
    : file_(std::move(file)), measure_(std::move(measure)), workers_(std::max(1, workers)) {
  std::ifstream in(file_);
  std::size_t number = 0;
  for (std::string line; std::getline(in, line); ++number) {
    Json json = Json::parse(line, nullptr, false);
    // A line cut short is a run that was being written when the study was stopped.
    if (json.is_discarded() && in.peek() == std::ifstream::traits_type::eof()) break;
    if (!json.is_object() || !json.contains("setting"))
      throw std::runtime_error(file_ + ", line " + std::to_string(number + 1) + ": no result of a run");
    std::string key = json["setting"].dump();
    results_.insert_or_assign(std::move(key), std::move(json));
  }
}

void Runs::run(const std::vector<Setting>& settings, std::size_t more) {
  std::vector<std::pair<std::string, Setting>> missing;
  std::set<std::string> planned;
  for (const Setting& setting : settings) {
    std::string key = setting.json().dump();
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) asked_.push_back(key);
    if (!results_.contains(key) && planned.insert(key).second) missing.emplace_back(std::move(key), setting);
  }
  if (missing.empty()) return;
  if (!measure_)
    throw std::runtime_error(file_ + " lacks " + std::to_string(missing.size()) +
                             " runs, the first of them " + missing.front().first);
  tidy();  // a line cut short must not have another behind it

  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  std::size_t done = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < missing.size(); i = next++) {
      try {
        const auto begin = std::chrono::steady_clock::now();
        Json result = {{"setting", missing[i].second.json()}};
        result.update(measure_(missing[i].second));
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        const std::lock_guard lock(mutex);
        std::ofstream out(file_, std::ios::app);
        out << result.dump() << '\n' << std::flush;
        if (!out) throw std::runtime_error("cannot write " + file_);
        results_.insert_or_assign(missing[i].first, std::move(result));
        seconds_ += seconds;
        ++measured_;
        const double left = seconds_ / static_cast<double>(measured_) *
                            static_cast<double>(missing.size() - ++done + more) / workers_;
        std::fprintf(stderr, "%zu of %zu  %s  %.0f s; about %.0f min left\n", done, missing.size() + more,
                     missing[i].first.c_str(), seconds, std::ceil(left / 60));
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = missing.size();
      }
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < workers_; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
}

const Json& Runs::result(const Setting& setting) const {
  const auto found = results_.find(setting.json().dump());
  if (found == results_.end()) throw std::runtime_error(file_ + " has no run " + setting.json().dump());
  return found->second;
}

std::vector<Setting> Runs::tuned(std::vector<Setting> settings, std::size_t more, bool widen) {
  constexpr int tuning_seed = 100;
  struct Grid {
    std::set<int> powers;  ///< of the root of two
    bool done = false;
  };
  std::vector<Grid> grids(settings.size(), Grid{.powers = {0}, .done = !widen});
  if (widen)
    for (Grid& grid : grids) grid.powers = {-2, 0, 2};
  const auto at = [&](std::size_t i, int power) {
    Setting setting = settings[i];
    setting.tuning = true;
    setting.seed = tuning_seed;
    setting.learning_rate = two_digits(settings[i].learning_rate * std::exp2(power / 2.0));
    return setting;
  };
  const auto best = [&](std::size_t i) {
    const auto loss = [&](int power) { return result(at(i, power))["loss"].get<double>(); };
    return *std::min_element(grids[i].powers.begin(), grids[i].powers.end(),
                             [&](int a, int b) { return loss(a) < loss(b); });
  };
  const auto measure = [&] {
    std::vector<Setting> wanted;
    for (std::size_t i = 0; i < settings.size(); ++i)
      for (const int power : grids[i].powers) wanted.push_back(at(i, power));
    run(wanted, more);
  };
  measure();
  for (bool open = widen; open;) {
    open = false;
    for (std::size_t i = 0; i < settings.size(); ++i) {
      Grid& grid = grids[i];
      if (grid.done) continue;
      const int power = best(i);
      const int next = power == *grid.powers.begin()    ? power - 2
                       : power == *grid.powers.rbegin() ? power + 2
                                                        : power;
      if (next == power || grid.powers.size() == 7) {
        grid.done = true;
        grid.powers.insert({power - 1, power + 1});
      } else {
        grid.powers.insert(next);
        open = true;
      }
    }
    measure();
  }
  for (std::size_t i = 0; i < settings.size(); ++i) settings[i].learning_rate = at(i, best(i)).learning_rate;
  return settings;
}

void Runs::tidy() {
  const std::string temporary = file_ + ".part";
  std::ofstream out(temporary, std::ios::trunc);
  std::set<std::string> written;
  for (const std::string& key : asked_)
    if (const auto found = results_.find(key); found != results_.end() && written.insert(key).second)
      out << found->second.dump() << '\n';
  for (const auto& [key, result] : results_)
    if (!written.contains(key)) out << result.dump() << '\n';
  out.close();
  if (!out || std::rename(temporary.c_str(), file_.c_str()) != 0)
    throw std::runtime_error("cannot write " + file_);
}

}  // namespace papers
