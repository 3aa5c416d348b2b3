// SPDX-License-Identifier: MIT
// Several plain adapters as the experts of one bank.
#include "support/catch.hpp"

#include "io/disk.hpp"

#include <moxie/io/adapter_experts.hpp>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;

namespace {

const std::string q0 = "model.layers.0.self_attn.q_proj", prefix = "base_model.model.";

/// Three adapters of ranks 3, 5 and 3 and scales 2, 6/5 and 3.
struct Three {
  TemporaryFolder folder;
  std::vector<Path> paths;
  std::vector<Disk> disks;
  Three() {
    for (const std::string name : {"a", "b", "c"}) {
      Disk disk = peft_lora();
      if (name == "b") {
        disk.config["r"] = 5;
        for (auto& [tensor, t] : peft_lora().tensors)
          disk.add(tensor, t.shape[0] == 3 ? std::vector<Index>{5, 12} : std::vector<Index>{t.shape[0], 5});
      }
      if (name == "c") {
        disk.config["lora_alpha"] = 9;
        for (auto& [tensor, t] : disk.tensors)
          for (double& v : t.values) v = v / 2 + 0.25;
      }
      paths.push_back(folder.path / name);
      disks.push_back(disk);
      disk.write(paths.back());
    }
  }
  void spoil(std::size_t e, const std::function<void(Disk&)>& f) const {
    Disk disk = disks[e];
    f(disk);
    disk.write(paths[e]);
  }
};
/// What adapter e alone adds to y.
std::vector<double> alone(const Three& three, std::size_t e) {
  return run_module(load<float>(three.paths[e]).set, q0, some_input(12));
}
std::vector<double> weighed(const Three& three, const std::vector<double>& weights) {
  std::vector<double> y(10, 0);
  for (std::size_t e = 0; e < 3; ++e) {
    const auto one = alone(three, e);
    for (std::size_t o = 0; o < y.size(); ++o) y[o] += weights[e] * one[o];
  }
  return y;
}

}  // namespace

TEST_CASE("adapters of different ranks and scales become experts, each with its own", "[io]") {
  const Three three;
  const auto mean = load_experts<float>(three.paths, {.router = RouterKind::uniform});
  CHECK(mean.set.modules() == 4);
  CHECK(mean.report.matched.size() == 24);
  CHECK(near(run_module(mean.set, q0, some_input(12)), weighed(three, {1.0 / 3, 1.0 / 3, 1.0 / 3})));

  // Gates from outside: adapter 1 alone gives its own bits.
  const auto given = load_experts<float>(three.paths);
  const Module q = given.set.find(q0);
  Cache<float> cache;
  Workspace<float> workspace;
  cache.routing.resize(1, 3, 1, 3);
  for (std::size_t e = 0; e < 3; ++e) cache.routing.gates[e] = cache.routing.probs[e] = e == 1;
  cache.routing.choose_all(0);
  Matrix<float> x(1, 12), y = Matrix<float>::Zero(1, 10);
  for (Index i = 0; i < 12; ++i) x(0, i) = static_cast<float>(some_input(12)[static_cast<std::size_t>(i)]);
  given.set.forward(q, x, y, cache, workspace);
  const auto one = alone(three, 1);
  for (Index o = 0; o < 10; ++o) CHECK(static_cast<double>(y(0, o)) == one[static_cast<std::size_t>(o)]);
}

TEST_CASE("a new router starts from its seed and weighs the experts", "[io]") {
  const Three three;
  for (const RouterKind router : {RouterKind::soft, RouterKind::top_k}) {
    const auto loaded = load_experts<float>(three.paths, {.router = router, .top_k = 1, .seed = 5});
    const Module q = loaded.set.find(q0);
    const auto theta = loaded.set.theta(q);
    std::vector<double> z(3, 0);
    for (std::size_t e = 0; e < 3; ++e)
      for (std::size_t i = 0; i < 12; ++i)
        z[e] += static_cast<double>(theta[theta.size() - 36 + 12 * e + i]) * some_input(12)[i];
    CHECK((z[0] != z[1] && z[0] != 0));
    auto w = softmax(z);
    if (router == RouterKind::top_k) {
      const double most = std::max({w[0], w[1], w[2]});
      for (double& v : w) v = v == most;
    }
    CHECK(near(run_module(loaded.set, q0, some_input(12)), weighed(three, w)));
    CHECK(bits(load_experts<float>(three.paths, {.router = router, .top_k = 1, .seed = 5}).set) ==
          bits(loaded.set));
    CHECK(bits(load_experts<float>(three.paths, {.router = router, .top_k = 1, .seed = 6}).set) !=
          bits(loaded.set));

    // And is saved with its experts.
    const TemporaryFolder folder;
    save(loaded.set, folder.path, loaded.info);
    const auto again = load<float>(folder.path);
    CHECK(bits(again.set) == bits(loaded.set));
    CHECK(run_module(again.set, q0, some_input(12)) == run_module(loaded.set, q0, some_input(12)));
    CHECK(again.info.config["base_model_name_or_path"] == "some/base");
  }
}

TEST_CASE("scales that no alpha gives to the bit are saved as the nearest that is", "[io]") {
  const TemporaryFolder folder;
  std::vector<Path> paths;
  for (const int r : {5, 7, 11}) {
    Disk disk = peft_lora();
    disk.config.update({{"r", r}, {"lora_alpha", 1}, {"use_rslora", true}});
    for (auto& [name, t] : peft_lora().tensors)
      disk.add(name, t.shape[0] == 3 ? std::vector<Index>{r, 12} : std::vector<Index>{t.shape[0], r});
    paths.push_back(folder.path / std::to_string(r));
    disk.write(paths.back());
  }
  const auto loaded = load_experts<double>(paths);
  save(loaded.set, folder.path / "all", loaded.info);
  const auto again = load<double>(folder.path / "all");
  CHECK((bits(again.set) == bits(loaded.set)));
}

TEST_CASE("adapters that do not fit together are refused by the folder", "[io]") {
  const auto check = [](std::size_t e, const std::function<void(Disk&)>& f, Code code,
                        const std::string& word) {
    const Three three;
    three.spoil(e, f);
    refused([&] { load_experts<float>(three.paths); }, code, {word});
  };
  const auto drop = [](Disk& d) {
    for (const char* part : {".lora_A.weight", ".lora_B.weight"}) d.tensors.erase(prefix + q0 + part);
  };
  check(1, drop, Code::missing_tensor, "/b'");
  check(0, drop, Code::missing_tensor, "/a'");
  check(
      2, [](Disk& d) { d.config["base_model_name_or_path"] = "another"; }, Code::config_mismatch, "another");
  check(
      1,
      [](Disk& d) {
        for (auto& [n, t] : peft_lora().tensors)
          d.add(n, t.shape[0] == 3 ? std::vector<Index>{5, 13} : std::vector<Index>{t.shape[0], 5});
      },
      Code::shape_mismatch, "in 13");
  check(
      1,
      [](Disk& d) {
        d.config["lora_bias"] = true;
        for (auto& [n, t] : peft_lora().tensors)
          if (t.shape[1] == 3) d.add(n.substr(0, n.size() - 6) + "bias", {t.shape[0]});
      },
      Code::config_mismatch, "lora_bias");
  check(
      2,
      [](Disk& d) {
        d.config["modules_to_save"] = {"score"};
        d.add(prefix + "score.weight", {2, 2});
      },
      Code::unsupported_option, "score");
  check(
      1, [](Disk& d) { d.config["r"] = 4; }, Code::rank_mismatch, "/b");
  refused([&] { load_experts<float>(std::vector<Path>{}); }, Code::config_range);
  const Three three;
  refused([&] { load_experts<float>(three.paths, {.router = RouterKind::top_k, .top_k = 4}); },
          Code::config_range);
}
