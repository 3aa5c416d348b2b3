// SPDX-License-Identifier: MIT
// What the studies of the papers measure with: information, claims, and runs that are kept.
#include <support/catch.hpp>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "../../examples/papers/study/information.hpp"
#include "../../examples/papers/study/runs.hpp"
#include "../../examples/papers/study/statistics.hpp"

namespace {

using namespace papers;

/// A file that is not there, and is gone afterwards.
struct Temporary {
  std::filesystem::path path;
  Temporary() {
    std::string name = (std::filesystem::temp_directory_path() / "moxie-papers-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Temporary() { std::filesystem::remove_all(path); }
  std::string file() const { return (path / "runs.jsonl").string(); }
};

TEST_CASE("information of experts that follow the label, the byte, both or nothing") {
  const double log2 = std::log(2.0);
  const auto of = [](auto&& expert_of) {
    GateSums sums(2, 2);
    for (std::size_t label = 0; label < 2; ++label)
      for (std::size_t byte = 0; byte < 2; ++byte)
        for (int times = 0; times < 8; ++times) {
          double shares[2] = {0, 0};
          shares[expert_of(label, byte, times)] = 1;
          sums.add(label, byte, shares);
        }
    return information(sums);
  };
  const auto label = of([](std::size_t l, std::size_t, int) { return l; });
  CHECK(label.label == Approx(log2));
  CHECK(label.byte == Approx(0).margin(1e-12));
  CHECK(label.label_given_byte == Approx(log2));
  const auto byte = of([](std::size_t, std::size_t b, int) { return b; });
  CHECK(byte.label == Approx(0).margin(1e-12));
  CHECK(byte.byte == Approx(log2));
  CHECK(byte.label_given_byte == Approx(0).margin(1e-12));
  // Exclusive or: each alone tells nothing, the two together all.
  const auto both = of([](std::size_t l, std::size_t b, int) { return l ^ b; });
  CHECK(both.label == Approx(0).margin(1e-12));
  CHECK(both.byte == Approx(0).margin(1e-12));
  CHECK(both.label_given_byte == Approx(log2));
  const auto nothing = of([](std::size_t, std::size_t, int t) { return static_cast<std::size_t>(t % 2); });
  CHECK(nothing.label == Approx(0).margin(1e-12));
  CHECK(nothing.label_given_byte == Approx(0).margin(1e-12));
  CHECK(nothing.entropy == Approx(log2));
  // Soft gates: of 3/4 and 1/4 by label, log 2 less the entropy of (3/4, 1/4).
  GateSums soft(2, 2);
  const double one[2] = {0.75, 0.25}, other[2] = {0.25, 0.75};
  soft.add(0, 7, one);
  soft.add(1, 7, other);
  CHECK(information(soft).label == Approx(log2 + 0.75 * std::log(0.75) + 0.25 * std::log(0.25)));
}

TEST_CASE("a claim is true, false or not decidable by the rule") {
  const auto verdict = [](double threshold, std::vector<std::vector<double>> values) {
    return decide({"", threshold, std::move(values)}).verdict;
  };
  CHECK(verdict(0, {{-1, -1.1, -0.9}, {-1, -1.05, -0.95}}) == Verdict::true_);
  CHECK(verdict(0, {{1, 1.1, 0.9}, {1, 1.05, 0.95}}) == Verdict::false_);
  CHECK(verdict(0, {{-1, 1, 0}, {0.5, -0.5, 0.1}}) == Verdict::undecidable);
  // The interval is below, one base is not.
  CHECK(verdict(0, {{-3, -3, -3}, {0.001, 0.001, 0.001}}) == Verdict::undecidable);
  // A mean below the threshold that six runs cannot tell from it.
  CHECK(verdict(-0.5, {{-1, -0.2, -0.9}, {-1, 0, -0.4}}) == Verdict::undecidable);
  const Decision d = decide({"", 0, {{1, 2}, {3, 4}}});
  CHECK(d.mean.mean == Approx(2.5));
  CHECK(d.half == Approx(3.182 * std::sqrt(5.0 / 3) / 2));
  CHECK(verdict(0, {{-1}}) == Verdict::undecidable);
}

TEST_CASE("runs are measured once, kept, and go on behind a line that was cut short") {
  const Temporary folder;
  std::vector<int> measured;
  const auto measure = [&](const Setting& s) {
    measured.push_back(s.seed);
    return Json{{"loss", s.seed * 0.5}};
  };
  std::vector<Setting> settings(3);
  for (int seed = 0; seed < 3; ++seed) settings[static_cast<std::size_t>(seed)].seed = seed;
  {
    Runs runs(folder.file(), measure, 1);
    runs.run({settings[2], settings[0], settings[2]});
    CHECK(measured == std::vector<int>{2, 0});
    CHECK(runs.result(settings[2])["loss"] == 1.0);
    CHECK_THROWS(runs.result(settings[1]));
  }
  std::ofstream(folder.file(), std::ios::app) << R"({"setting":{"method":"lo)";
  {
    Runs runs(folder.file(), measure, 1);
    runs.run(settings);
    CHECK(measured == std::vector<int>{2, 0, 1});
    runs.tidy();
  }
  std::ifstream in(folder.file());
  std::vector<int> seeds;
  for (std::string line; std::getline(in, line);)
    seeds.push_back(Json::parse(line)["setting"]["seed"].get<int>());
  CHECK(seeds == std::vector<int>{0, 1, 2});
  Runs read_only(folder.file(), {}, 1);
  CHECK_NOTHROW(read_only.run(settings));
  settings[0].rank = 3;
  CHECK_THROWS(read_only.run(settings));
  std::ofstream(folder.file()) << "[1]\n{}\n";
  CHECK_THROWS(Runs(folder.file(), measure, 1));
}

TEST_CASE("two workers measure every run once, and an error of one ends all") {
  const Temporary folder;
  std::vector<Setting> settings(20);
  for (int seed = 0; seed < 20; ++seed) settings[static_cast<std::size_t>(seed)].seed = seed;
  std::array<std::atomic<int>, 20> times{};
  {
    Runs runs(
        folder.file(),
        [&](const Setting& s) {
          ++times[static_cast<std::size_t>(s.seed)];
          return Json{{"loss", 0}};
        },
        2);
    runs.run(settings);
  }
  for (const auto& n : times) CHECK(n == 1);
  settings[0].rank = 1;
  Runs runs(
      folder.file(), [](const Setting&) -> Json { throw std::runtime_error("no"); }, 2);
  CHECK_THROWS_WITH(runs.run(settings), "no");
}

TEST_CASE("the search for a learning rate goes on until it is no longer at an edge") {
  const Temporary folder;
  std::vector<double> tried;
  // Lowest at 2^-3.5 for one setting, at 1 for the other, ever lower for the third.
  Runs runs(
      folder.file(),
      [&](const Setting& s) {
        CHECK((s.tuning && s.seed == 100));  // which no table has
        tried.push_back(s.learning_rate);
        const double power = std::log2(s.learning_rate);
        return Json{{"loss", s.rank == 0 ? std::abs(power + 3.5) : s.rank == 1 ? std::abs(power) : -power}};
      },
      1);
  std::vector<Setting> settings(3);
  for (int i = 0; i < 3; ++i) {
    settings[static_cast<std::size_t>(i)].rank = i;
    settings[static_cast<std::size_t>(i)].learning_rate = 1;
  }
  const auto tuned = runs.tuned(settings, 0, true);
  CHECK(tuned[0].learning_rate == 0.088);  // half-way between two powers of two, in two digits
  CHECK(tuned[1].learning_rate == 1);
  CHECK(tuned[2].learning_rate == 45);
  CHECK(tuned[0].seed == settings[0].seed);
  CHECK_FALSE(tuned[0].tuning);
  CHECK(tried.size() == 8 + 5 + 9);
}

}  // namespace
