// SPDX-License-Identifier: MIT
// IA3 and the mixtures, in the names and shapes of each one's official code: what they compute, how they come
// back, and what is refused. The sums here are written from the formulas, over the tensors as they lie on
// disk.
#include "support/catch.hpp"

#include "io/mixture_disks.hpp"

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;

namespace {

using nlohmann::json;

/// The same names, shapes and numbers as the official code's, too.
template <class S>
void check_round_trip(const Loaded<S>& loaded, const Disk& disk, const LoadOptions& options = {}) {
  test::check_round_trip(loaded, options);
  const TemporaryFolder folder;
  save(loaded.set, folder.path, loaded.info);
  const TensorFile file = TensorFile::read(folder.path / tensors_name);
  CHECK(file.tensors().size() == disk.tensors.size());
  for (const auto& [name, t] : disk.tensors) {
    INFO(name);
    const TensorInfo* const found = file.find(name);
    REQUIRE(found != nullptr);
    CHECK(found->shape == t.shape);
    Numbers values(t.values.size());
    file.load(*found, std::span<double>(values));
    CHECK(values == t.values);
  }
  auto target = loaded.set;
  Rng(77).fill(target.theta(), -1, 1);
  CHECK(load_into(target, folder.path, options).clean());
  CHECK((bits(target) == bits(loaded.set)));
}

}  // namespace

TEST_CASE("an IA3 folder scales outputs, and the input of its feedforward modules", "[io]") {
  const Disk disk = ia3_disk();
  const auto loaded = load_disk<float>(disk);
  REQUIRE(loaded.set.modules() == 6);
  for (const auto& [module, d] : {std::pair{"model.layers.0.self_attn.v_proj", Index{8}},
                                  std::pair{"model.layers.1.mlp.down_proj", Index{12}}}) {
    const Numbers x = some_input(d);
    Numbers wanted = disk[prefix + module + ".ia3_l"].values;
    for (std::size_t i = 0; i < x.size(); ++i) wanted[i] *= x[i];
    CHECK(near(run_module(loaded.set, module, x), wanted));
    CHECK(loaded.set.entry(loaded.set.find(module)).method == Method::ia3);
  }
  check_round_trip(loaded, disk);

  Disk by_expression = disk;
  by_expression.config["feedforward_modules"] = R"(.*\.mlp\..*)";
  check_round_trip(load_disk<double>(by_expression), by_expression);
  Disk none = disk;  // all vectors on outputs, as for models whose projections have no feedforward modules
  none.config["feedforward_modules"] = nullptr;
  none.add(prefix + "model.layers.0.mlp.down_proj.ia3_l", {12, 1});
  none.add(prefix + "model.layers.1.mlp.down_proj.ia3_l", {12, 1});
  check_round_trip(load_disk<float>(none), none);
}

TEST_CASE("the catalogue for IA3", "[io]") {
  const std::string k0 = prefix + "model.layers.0.self_attn.k_proj.ia3_l",
                    down = prefix + "model.layers.0.mlp.down_proj.ia3_l";
  check_refused(
      ia3_disk(),
      {
          {105,
           "a feedforward vector that stands",
           [=](Disk& d) {
             d.add(down, {12, 1});
           },
           Code::config_mismatch,
           {"feedforward_modules"}},
          {105, "an output's vector that lies",
           [=](Disk& d) {
             d.add(k0, {1, 6});
           },
           Code::config_mismatch},
          {105, "feedforward_modules are of others",
           [](Disk& d) { d.config["feedforward_modules"] = {"k_proj"}; }, Code::config_mismatch},
          {105, "one dimension", [=](Disk& d) { d.add(k0, {6}); }, Code::shape_mismatch},
          {105, "a convolution's",
           [=](Disk& d) {
             d.add(k0, {1, 6, 1, 1});
           },
           Code::shape_mismatch},
          {105, "a matrix",
           [=](Disk& d) {
             d.add(k0, {6, 2});
           },
           Code::shape_mismatch},
          {105, "empty",
           [=](Disk& d) {
             d.add(k0, {0, 1});
           },
           Code::shape_mismatch},
          {121, "LoRA's tensors",
           [=](Disk& d) {
             d.add(prefix + "k_proj.lora_A.weight", {2, 2});
           },
           Code::adapter_kind},
          {89, "a router",
           [=](Disk& d) {
             d.add(prefix + "model.layers.0.self_attn.k_proj.router.weight", {2, 6});
           },
           Code::unexpected_tensor},
          {115, "LoRA's keys", [](Disk& d) { d.config["r"] = 8; }, Code::unknown_config_key, {"'r'"}},
          {123, "no targets", [](Disk& d) { d.config["target_modules"] = nullptr; }, Code::nothing_matched},
          {120, "feedforward_modules", [](Disk& d) { d.config["feedforward_modules"] = "(*"; },
           Code::pattern_syntax},
          {116, "feedforward_modules", [](Disk& d) { d.config["feedforward_modules"] = 3; },
           Code::config_type},
      });
  const TemporaryFolder folder;
  ia3_disk().write(folder.path);
  auto set = load<float>(folder.path).set;
  AdapterSet<float> other;
  for (const auto& entry : set.entries()) other.add(entry.name, ia3<float>({.features = 6}));
  other.init(1);
  const std::string before = bits(other);
  refused([&] { load_into(other, folder.path); }, Code::shape_mismatch, {"features 8", "wanted 6"});
  CHECK((bits(other) == before));
}

TEST_CASE("MoLA's own folder: experts and ranks per layer, the top 2 renormalised", "[io]") {
  const Disk disk = mola_disk();
  const auto loaded = load_disk<float>(disk);
  REQUIRE(loaded.set.modules() == 4);
  CHECK(loaded.info.format == Format::mola);
  for (const std::size_t l : {0u, 1u}) {
    const std::string module = "model.layers." + std::to_string(l) + ".mlp.down_proj";
    CHECK(near(run_module(loaded.set, module, some_input(12)),
               mixture(disk, mola_names, prefix + module, 2, {l == 0 ? 2.0 : 3.0}, some_input(12))));
    const auto& entry = loaded.set.entry(loaded.set.find(module));
    CHECK(entry.method == Method::mola);
    CHECK(std::get<MoLA<float>>(entry.adapter).experts().experts() == (l == 0 ? 2 : 4));
    CHECK(std::get<MoLA<float>>(entry.adapter).experts().config().mask == DropoutMask::shared);
  }
  check_round_trip(loaded, disk);

  // The file does not say k: another one is the caller's, and comes back from our own save.
  const auto other = load_disk<float>(disk, {.top_k = {2, 3}});
  CHECK(std::get<MoLA<float>>(other.set.entries()[3].adapter).router().config().k == 3);
  check_round_trip(other, disk);
  const TemporaryFolder folder;
  disk.write(folder.path);
  auto target = other.set;
  CHECK(load_into(target, folder.path).clean());  // a set's own k stands where the file says none
  refused([&] { load_into(target, folder.path, {.top_k = {2}}); }, Code::config_mismatch, {"top_k"});
  REQUIRE(loaded.report.notes.size() == 1);
  CHECK(loaded.report.notes[0].name == "top_k");
  CHECK(other.report.notes.empty());
  for (const Index k : {0, -1})
    refused([&] { load_disk<float>(disk, {.top_k = {k}}); }, Code::config_range, {"top_k"});
  refused([&] { load_disk<float>(disk, {.top_k = {3}}); }, Code::config_range, {"top_k", "2 experts"});
  refused([&] { load_disk<float>(disk, {.top_k = {1, 1, 1}}); }, Code::config_range);
}

TEST_CASE("the catalogue for mixtures of numbered experts", "[io]") {
  const std::string q1 = prefix + "model.layers.1.self_attn.q_proj";
  const auto rename = [q1](Disk& d, const std::string& from, const std::string& to) {
    for (const std::string part : {".lora_A_", ".lora_B_"}) {
      d.tensors[q1 + part + to + ".weight"] = d[q1 + part + from + ".weight"];
      d.tensors.erase(q1 + part + from + ".weight");
    }
  };
  std::vector<BadAdapter> bad{
      {88,
       "no B of an expert",
       [=](Disk& d) { d.tensors.erase(q1 + ".lora_B_2.weight"); },
       Code::missing_tensor,
       {"expert 2"}},
      {88,
       "no A of an expert",
       [=](Disk& d) { d.tensors.erase(q1 + ".lora_A_0.weight"); },
       Code::missing_tensor,
       {"expert 0"}},
      {92, "an expert's rank",
       [=](Disk& d) {
         d.add(q1 + ".lora_A_2.weight", {3, 12});
       },
       Code::rank_mismatch},
      {93, "an expert's width",
       [=](Disk& d) {
         d.add(q1 + ".lora_A_2.weight", {2, 11});
       },
       Code::shape_mismatch},
      {93, "an expert's out",
       [=](Disk& d) {
         d.add(q1 + ".lora_B_2.weight", {9, 2});
       },
       Code::shape_mismatch},
      {102,
       "a router of another number",
       [=](Disk& d) {
         d.add(q1 + ".router.router.weight", {3, 12});
       },
       Code::shape_mismatch,
       {"[3, 12]", "[4, 12]"}},
      {102, "a router of another width",
       [=](Disk& d) {
         d.add(q1 + ".router.router.weight", {4, 13});
       },
       Code::shape_mismatch},
      {102,
       "a router transposed",
       [=](Disk& d) {
         d.add(q1 + ".router.router.weight", {12, 4});
       },
       Code::shape_mismatch,
       {"transposed"}},
      {102,
       "no router",
       [=](Disk& d) { d.tensors.erase(q1 + ".router.router.weight"); },
       Code::missing_tensor,
       {"router"}},
      {103, "ranks of fewer layers", [](Disk& d) { d.config["r"] = {3}; }, Code::rank_mismatch},
      {103,
       "ranks of more layers",
       [](Disk& d) {
         d.config["r"] = {3, 2, 2};
       },
       Code::config_range,
       {"3 layers"}},
      {103, "a layer of rank 0",
       [](Disk& d) {
         d.config["r"] = {3, 0};
       },
       Code::config_range},
      {103, "no ranks", [](Disk& d) { d.config["r"] = json::array(); }, Code::config_range},
      {103, "ranks that are texts",
       [](Disk& d) {
         d.config["r"] = {"3", "2"};
       },
       Code::config_type},
      {124, "top_k of more than the experts", [](Disk& d) { d.config["top_k"] = 3; }, Code::config_range},
      {124, "top_k 0", [](Disk& d) { d.config["top_k"] = 0; }, Code::config_range},
      {124, "top_k of a list",
       [](Disk& d) {
         d.config["top_k"] = {2, 2, 2};
       },
       Code::config_range},
      {100,
       "an expert is left out",
       [=](Disk& d) { rename(d, "3", "4"); },
       Code::expert_index,
       {"0, 1, 2, 4"}},
      {122, "use_rslora, which MoLA has not", [](Disk& d) { d.config["use_rslora"] = true; },
       Code::unsupported_option},
      {100,
       "another number than the config's",
       [](Disk& d) { d.config["num_experts"] = 4; },
       Code::expert_index,
       {"2 experts", "4"}},
  };
  for (const char* id : {"-1", "007", "01", "1e1", "99999999999", "99999999999999999999", "3x"})
    bad.push_back({100, id, [=](Disk& d) { rename(d, "3", id); }, Code::expert_index, {}});
  bad.push_back({100, "no number at all", [=](Disk& d) { rename(d, "3", "x"); }, Code::shape_mismatch});
  bad.push_back({101, "an alias of another's number",
                 [=](Disk& d) { d.tensors[q1 + ".lora_A_01.weight"] = d[q1 + ".lora_A_1.weight"]; },
                 Code::expert_index});
  check_refused(mola_disk(), bad);
}

TEST_CASE("LoRAMoE's own folder: a soft mixture", "[io]") {
  const Disk disk = loramoe_disk(false);
  const auto loaded = load_disk<float>(disk);
  CHECK(loaded.info.format == Format::loramoe);
  const std::string module = "model.layers.0.mlp.up_proj";
  CHECK(near(run_module(loaded.set, module, some_input(12)),
             mixture(disk, loramoe_names, prefix + module, 3, {8}, some_input(12))));
  const auto& entry = loaded.set.entries()[0];
  CHECK(entry.method == Method::loramoe);
  CHECK(std::get<LoRAMoE<float>>(entry.adapter).experts().config().mask == DropoutMask::per_expert);
  CHECK(loaded.info.config["blc_weight"] == 0.1);
  check_round_trip(loaded, disk);
  check_refused(
      disk,
      {
          {100, "lora_nums", [](Disk& d) { d.config["lora_nums"] = 4; }, Code::expert_index, {"3", "4"}},
          {124, "lora_nums 0", [](Disk& d) { d.config["lora_nums"] = 0; }, Code::config_range},
          {124, "lora_nums a text", [](Disk& d) { d.config["lora_nums"] = "3"; }, Code::config_type},
          {127, "blc_alpha negative", [](Disk& d) { d.config["blc_alpha"] = -0.1; }, Code::config_range},
          {127, "blc_weight a text", [](Disk& d) { d.config["blc_weight"] = "x"; }, Code::config_type},
          {102, "no router", [=](Disk& d) { d.tensors.erase(prefix + module + ".lora_route.weight"); },
           Code::missing_tensor},
          {122, "fused projections",
           [](Disk& d) {
             d.config["enable_lora"] = {true, false};
           },
           Code::unsupported_option},
          {100, "another num_experts", [](Disk& d) { d.config["num_experts"] = 5; }, Code::expert_index},
          {124, "top_k", [](Disk& d) { d.config["top_k"] = 2; }, Code::config_mismatch},
          {122, "use_rslora", [](Disk& d) { d.config["use_rslora"] = true; }, Code::unsupported_option},
          {119, "ranks in a list",
           [](Disk& d) {
             d.config["r"] = {4, 4};
           },
           Code::config_type},
      });
  Disk inferred = disk;  // the config need not say how many
  inferred.config.erase("lora_nums");
  CHECK((bits(load_disk<float>(inferred).set) == bits(loaded.set)));
}

TEST_CASE("HydraLoRA's own folder: one A for all experts", "[io]") {
  const Disk disk = loramoe_disk(true);
  const auto loaded = load_disk<float>(disk);
  CHECK(loaded.info.format == Format::hydralora);
  const std::string module = "model.layers.0.mlp.up_proj";
  CHECK(near(run_module(loaded.set, module, some_input(12)),
             mixture(disk, hydralora_names, prefix + module, 3, {8}, some_input(12))));
  CHECK(loaded.set.entries()[0].method == Method::hydralora);
  check_round_trip(loaded, disk);
  check_refused(
      disk, {
                {88,
                 "no A",
                 [=](Disk& d) { d.tensors.erase(prefix + module + ".lora_A.weight"); },
                 Code::missing_tensor,
                 {"A"}},
                {88, "no B of an expert",
                 [=](Disk& d) { d.tensors.erase(prefix + module + ".lora_B0.weight"); }, Code::expert_index},
                {88, "no B of the last expert",
                 [=](Disk& d) { d.tensors.erase(prefix + module + ".lora_B2.weight"); }, Code::expert_index},
                {92, "rank of A",
                 [=](Disk& d) {
                   d.add(prefix + module + ".lora_A.weight", {3, 12});
                 },
                 Code::rank_mismatch},
                {92, "rank of a B",
                 [=](Disk& d) {
                   d.add(prefix + module + ".lora_B1.weight", {10, 3});
                 },
                 Code::rank_mismatch},
                {93, "out of a B",
                 [=](Disk& d) {
                   d.add(prefix + module + ".lora_B1.weight", {9, 4});
                 },
                 Code::shape_mismatch},
                {102, "no router", [=](Disk& d) { d.tensors.erase(prefix + module + ".lora_route.weight"); },
                 Code::missing_tensor},
                {100, "lora_nums", [](Disk& d) { d.config["lora_nums"] = 2; }, Code::expert_index},
            });
  AdapterSet<float> set;  // of the same names and sizes, but each expert with its A
  for (const auto& entry : loaded.set.entries())
    set.add(entry.name, loramoe<float>({.in = 12, .out = 10, .experts = 3}));
  set.init(1);
  const TemporaryFolder folder;
  disk.write(folder.path);
  const std::string before = bits(set);
  refused([&] { load_into(set, folder.path); }, Code::adapter_kind);
  CHECK((bits(set) == before));
}

TEST_CASE("MoE-PEFT's mola and loramoe", "[io]") {
  const Disk mola = moe_peft_disk(true);
  const auto loaded = load_disk<float>(mola);
  CHECK(loaded.info.format == Format::moe_peft);
  const std::string q = "model.layers.0.self_attn.q_proj", up = "model.layers.0.mlp.up_proj";
  const Numbers x = some_input(12);
  CHECK(near(run_module(loaded.set, up, x),
             mixture(mola, moe_peft_mola_names, "mola.layers.0.mlp.up_proj", 3, {2}, x)));
  check_round_trip(loaded, mola);

  Disk loramoe = moe_peft_disk(false);
  const auto soft = load_disk<float>(loramoe);
  CHECK(near(run_module(soft.set, up, x),
             mixture(loramoe, moe_peft_loramoe_names, "loramoe.layers.0.mlp.up_proj", 4, {2}, x)));
  const std::string plain = "loramoe.layers.0.self_attn.q_proj.lora_";
  Numbers attention = lora_delta(loramoe[plain + "A.weight"], loramoe[plain + "B.weight"], x);
  for (double& v : attention) v *= 2;
  CHECK(near(run_module(soft.set, q, x), attention));
  check_round_trip(soft, loramoe);
  loramoe.add("classifier", {2, 12});
  CHECK(load_disk<float>(loramoe).info.kept.size() == 1);

  check_refused(
      mola,
      {
          {122,
           "whole feed-forward experts",
           [](Disk& d) { d.config["peft_type"] = "MIXLORA"; },
           Code::unsupported_option,
           {"MIXLORA"}},
          {122,
           "experts of their own options",
           [](Disk& d) {
             d.config["expert_lora"] = {{"r", 4}};
           },
           Code::unsupported_option,
           {"expert_lora"}},
          {122, "top_p", [](Disk& d) { d.config["top_p"] = 0.8; }, Code::unsupported_option, {"top_p"}},
          {122, "use_dora", [](Disk& d) { d.config["use_dora"] = true; }, Code::unsupported_option},
          {125, "another strategy", [](Disk& d) { d.config["routing_strategy"] = "mixlora"; },
           Code::config_mismatch},
          {125, "the other's strategy", [](Disk& d) { d.config["routing_strategy"] = "loramoe"; },
           Code::config_mismatch},
          {125, "temperature 0", [](Disk& d) { d.config["temperature"] = 0; }, Code::config_range},
          {125, "temperature 2", [](Disk& d) { d.config["temperature"] = 2; }, Code::unsupported_option},
          {124, "top_k 5", [](Disk& d) { d.config["top_k"] = 5; }, Code::config_range},
          {124, "num_experts 0", [](Disk& d) { d.config["num_experts"] = 0; }, Code::config_range},
          {124, "num_experts -1", [](Disk& d) { d.config["num_experts"] = -1; }, Code::config_range},
          {124, "num_experts 2^31", [](Disk& d) { d.config["num_experts"] = std::int64_t{1} << 31; },
           Code::config_range},
          {100, "num_experts 5", [](Disk& d) { d.config["num_experts"] = 5; }, Code::expert_index},
          {100, "no experts at all",
           [](Disk& d) {
             d.tensors.clear();
             d.add("mola.layers.0.self_attn.q_proj.lora_A.weight", {3, 12});
             d.add("mola.layers.0.self_attn.q_proj.lora_B.weight", {10, 3});
             d.config["target_modules"] = {"q_proj"};
           },
           Code::expert_index},
          {102, "no gate", [](Disk& d) { d.tensors.erase("mola.layers.0.mlp.up_proj.moe_gate.weight"); },
           Code::missing_tensor},
          {127, "router_aux_loss_coef", [](Disk& d) { d.config["router_aux_loss_coef"] = -1; },
           Code::config_range},
          {90,
           "PEFT's prefix",
           [](Disk& d) {
             Disk o = d;
             o.tensors.clear();
             for (auto& [n, t] : d.tensors) o.tensors[prefix + n] = t;
             d = o;
           },
           Code::nothing_matched,
           {"mola."}},
      });
}

TEST_CASE("our own MoLoRA: experts of different ranks and scales", "[io]") {
  const Disk disk = molora_disk();
  const auto loaded = load_disk<float>(disk);
  CHECK(loaded.info.format == Format::mixture);
  const std::string module = "layers.0.v";
  CHECK(near(run_module(loaded.set, module, some_input(12)),
             mixture(disk, molora_names, prefix + module, 2, {2, 1.5}, some_input(12))));
  CHECK(loaded.set.entries()[0].method == Method::molora);
  check_round_trip(loaded, disk);
  check_refused(
      disk,
      {
          {92, "ranks in another order",
           [](Disk& d) {
             d.config["r"] = {5, 2};
           },
           Code::rank_mismatch},
          {116, "ranks of three experts",
           [](Disk& d) {
             d.config["r"] = {2, 5, 5};
           },
           Code::config_range},
          {117, "alphas of three experts",
           [](Disk& d) {
             d.config["lora_alpha"] = {2, 5, 5};
           },
           Code::config_range},
          {100, "num_experts", [](Disk& d) { d.config["num_experts"] = 3; }, Code::expert_index},
          {102, "no router", [=](Disk& d) { d.tensors.erase(prefix + module + ".router.weight"); },
           Code::missing_tensor},
          {102,
           "a router where none is",
           [](Disk& d) { d.config["router_type"] = "uniform"; },
           Code::unexpected_tensor,
           {"router"}},
          {125,
           "a choice under a router that does not choose",
           [](Disk& d) { d.config["top_k"] = 2; },
           Code::config_mismatch,
           {"top_k", "soft"}},
          {125, "weights of a choice", [](Disk& d) { d.config["router_weights"] = "masked"; },
           Code::config_mismatch},
          {125, "noise of a choice", [](Disk& d) { d.config["router_noise"] = "learned"; },
           Code::config_mismatch},
          {125,
           "no choice",
           [](Disk& d) { d.config["router_type"] = "top_k"; },
           Code::missing_field,
           {"top_k"}},
          {125, "a temperature of nothing",
           [](Disk& d) {
             d.config["router_type"] = "given";
             d.config["router_temperature"] = 2;
           },
           Code::config_mismatch},
          {102, "noise where none is",
           [=](Disk& d) {
             d.add(prefix + module + ".router_noise.weight", {2, 12});
           },
           Code::unexpected_tensor},
          {125,
           "an unknown router",
           [](Disk& d) { d.config["router_type"] = "sigmoid"; },
           Code::config_range,
           {"sigmoid", "top_k"}},
          {125, "temperature 0", [](Disk& d) { d.config["router_temperature"] = 0; }, Code::config_range},
          {125, "temperature negative", [](Disk& d) { d.config["router_temperature"] = -1; },
           Code::config_range},
          {125, "temperature a text", [](Disk& d) { d.config["router_temperature"] = "1"; },
           Code::config_type},
          {125, "temperature too small for float", [](Disk& d) { d.config["router_temperature"] = 1e-300; },
           Code::config_range},
          {125, "jitter negative", [](Disk& d) { d.config["router_jitter"] = -0.1; }, Code::config_range},
          {125, "jitter 1", [](Disk& d) { d.config["router_jitter"] = 1; }, Code::config_range},
          {125, "weights unknown", [](Disk& d) { d.config["router_weights"] = "some"; }, Code::config_range},
          {121, "IA3's vectors",
           [](Disk& d) {
             d.tensors.clear();
             d.add(prefix + "layers.0.q.ia3_l", {2, 12});
           },
           Code::adapter_kind},
      });
}

TEST_CASE("our own MoV: vectors per head or for the whole activation", "[io]") {
  const Disk disk = mov_disk();
  const auto loaded = load_disk<float>(disk);
  const Numbers x = some_input(12);
  const auto& l = disk[prefix + "layers.0.k.ia3_l"].values;
  Numbers wanted(12, 0);
  for (std::size_t h = 0; h < 3; ++h) {
    const std::span<const double> head(x.data() + 4 * h, 4);
    const Numbers p = softmax(logits(disk[prefix + "layers.0.k.router.weight"], head));
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t e = 0; e < 5; ++e) wanted[4 * h + i] += head[i] * p[e] * l[(h * 5 + e) * 4 + i];
  }
  CHECK(near(run_module(loaded.set, "layers.0.k", x), wanted));
  CHECK(loaded.set.entries()[0].method == Method::mov);
  check_round_trip(loaded, disk);
  check_refused(disk,
                {
                    {100, "num_experts", [](Disk& d) { d.config["num_experts"] = 4; }, Code::expert_index},
                    {102, "a router of the whole activation over heads",
                     [](Disk& d) {
                       d.add(prefix + "layers.0.k.router.weight", {5, 12});
                     },
                     Code::shape_mismatch},
                    {105, "one dimension", [](Disk& d) { d.add(prefix + "layers.0.k.ia3_l", {12}); },
                     Code::shape_mismatch},
                    {105, "no heads",
                     [](Disk& d) {
                       d.add(prefix + "layers.0.k.ia3_l", {0, 5, 4});
                     },
                     Code::shape_mismatch},
                    {88, "no vectors", [](Disk& d) { d.tensors.erase(prefix + "layers.0.k.ia3_l"); },
                     Code::missing_tensor},
                    {121, "LoRA's tensors",
                     [](Disk& d) {
                       d.add(prefix + "layers.0.k.lora_A.0.weight", {2, 2});
                     },
                     Code::adapter_kind},
                });
}

TEST_CASE("one vector under a router per head is taken only where the heads are the set's", "[io]") {
  const auto saved = [](Index heads) {
    AdapterSet<float> set;
    set.add("k", mov<float>({.features = 8, .heads = heads, .experts = 1}));
    set.init(1);
    return set;
  };
  for (const Index heads : {1, 2}) {
    const TemporaryFolder folder;
    save(saved(heads), folder.path);
    auto same = saved(heads), other = saved(3 - heads);
    Rng(3).fill(same.theta(), -1, 1);
    Rng(3).fill(other.theta(), -1, 1);
    const std::string before = bits(other);
    refused([&] { load_into(other, folder.path); }, Code::shape_mismatch, {"heads"});
    CHECK((bits(other) == before));
    CHECK(load_into(same, folder.path).clean());
    CHECK((bits(same) == bits(saved(heads))));
  }
}

TEST_CASE("every kind of a set is saved and comes back in our own format", "[io]") {
  const auto check = [](auto adapter) {
    using S = typename decltype(adapter)::Scalar;
    AdapterSet<S> set;
    set.add("a.q", adapter);
    set.add("b.q", adapter);
    set.init(3);
    Rng(4).fill(set.theta(), -1, 1);
    const TemporaryFolder folder;
    save(set, folder.path, {}, {.format = Format::mixture});
    const auto loaded = load<S>(folder.path);
    CHECK((bits(loaded.set) == bits(set)));
    CHECK(loaded.set.entries()[0].adapter.index() == set.entries()[0].adapter.index());
    auto target = set;
    target.init(9);
    CHECK(load_into(target, folder.path).clean());
    CHECK((bits(target) == bits(set)));
  };
  const LoraBank<double> bank({.in = 6,
                               .out = 5,
                               .experts = 3,
                               .rank = 2,
                               .bias = true,
                               .dropout = 0.1,
                               .mask = DropoutMask::per_expert});
  const Ia3Bank<float> vectors({.features = 6, .heads = 2, .experts = 3});
  check(MoeAdapter(LoraBank<double>({.in = 6, .out = 5}), UniformRouter<double>({.experts = 1})));
  check(MoeAdapter(bank, SoftRouter<double>({.in = 6, .experts = 3, .temperature = 0.3, .jitter = 0.1})));
  for (const TopKWeights weights :
       {TopKWeights::renormalised, TopKWeights::masked, TopKWeights::softmax_of_chosen})
    for (const RouterNoise noise : {RouterNoise::none, RouterNoise::fixed, RouterNoise::learned})
      check(MoeAdapter(
          bank,
          TopKRouter<double>(
              {.in = 6, .experts = 3, .k = 2, .weights = weights, .noise = noise, .noise_scale = 0.5})));
  check(MoeAdapter(bank, GivenRouter<double>({.experts = 3})));
  check(MoeAdapter(vectors, SoftRouter<float>({.in = 6, .experts = 3, .heads = 2})));
  check(MoeAdapter(vectors, TopKRouter<float>({.in = 6, .experts = 3, .k = 1, .heads = 2})));
  check(MoeAdapter(vectors, UniformRouter<float>({.experts = 3, .heads = 2})));
  check(MoeAdapter(vectors, GivenRouter<float>({.experts = 3, .heads = 2})));
  const TemporaryFolder folder;
  AdapterSet<double> frozen;
  frozen.add("q", MoeAdapter(bank, TopKRouter<double>({.in = 6, .experts = 3, .k = 2, .frozen = true})));
  frozen.init(1);
  refused([&] { save(frozen, folder.path); }, Code::unsupported_option, {"frozen"});
}

TEST_CASE("a set is written in the format of its method, and in others where they can hold it", "[io]") {
  const auto saved_set = [](AdapterSet<float> set, std::optional<Format> format = {}) {
    set.init(1);
    Rng(4).fill(set.theta(), -1, 1);
    const TemporaryFolder folder;
    save(set, folder.path, {}, {.format = format});
    const auto loaded = load<float>(folder.path);
    CHECK((bits(loaded.set) == bits(set)));
    return *loaded.info.format;
  };
  const auto saved_as = [&](const auto& adapter, const char* name, std::optional<Format> format = {}) {
    AdapterSet<float> set;
    set.add(name, adapter);
    return saved_set(std::move(set), format);
  };
  const char* const q = "model.layers.0.self_attn.q_proj";
  const auto chosen = mola<float>({.in = 6, .out = 5, .experts = 4});
  const auto soft = loramoe<float>({.in = 6, .out = 5});
  CHECK(saved_as(lora<float>({.in = 6, .out = 5}), "q") == Format::peft);
  CHECK(saved_as(ia3<float>({.features = 6}), "q") == Format::peft);
  CHECK(saved_as(chosen, q) == Format::mola);
  const MoeAdapter silent(LoraBank<float>({.in = 6, .out = 5, .experts = 4}),
                          TopKRouter<float>({.in = 6, .experts = 4, .k = 2, .noise_scale = 0.5}));
  CHECK(saved_as(silent, q, Format::mola) == Format::mola);  // the scale of a noise that it has not
  CHECK(saved_as(soft, q) == Format::loramoe);
  CHECK(saved_as(molora<float>({.in = 6, .out = 5}), q) == Format::mixture);
  AdapterSet<float> unequal;  // LoRAMoE's config has one number of experts
  unequal.add("layers.0.up_proj", loramoe<float>({.in = 6, .out = 5, .experts = 2}));
  unequal.add("layers.1.up_proj", loramoe<float>({.in = 6, .out = 5, .experts = 3}));
  CHECK(saved_set(std::move(unequal)) == Format::mixture);
  // Nor have the released programs words for these.
  const auto saved_pair = [&](const auto& one, const char* name, const auto& other, const char* second) {
    AdapterSet<float> set;
    set.add(name, one);
    set.add(second, other);
    return saved_set(std::move(set));
  };
  const char* const v = "model.layers.0.self_attn.v_proj";
  const auto thin = mola<float>({.in = 6, .out = 5, .experts = 4, .rank = 2}),
             strong = mola<float>({.in = 6, .out = 5, .experts = 4, .alpha = 3});
  CHECK(saved_pair(chosen, q, chosen, v) == Format::mola);
  CHECK(saved_pair(chosen, q, thin, v) == Format::mixture);
  CHECK(saved_pair(chosen, q, strong, v) == Format::mixture);
  CHECK(saved_pair(chosen, q, thin, "model.layers.1.self_attn.q_proj") == Format::mola);
  CHECK(saved_as(chosen, "q") == Format::mixture);
  CHECK(saved_as(chosen, "layers.0.q") == Format::mixture);
  CHECK(saved_pair(soft, q, loramoe<float>({.in = 6, .out = 5, .rank = 2}), v) == Format::mixture);
  CHECK(saved_pair(soft, q, loramoe<float>({.in = 6, .out = 5, .alpha = 2}), v) == Format::mixture);
  CHECK(saved_as(mov<float>({.features = 6}), q) == Format::mixture);
  CHECK(saved_as(chosen, q, Format::moe_peft) == Format::moe_peft);
  CHECK(saved_as(soft, "model.layers.0.mlp.up_proj", Format::moe_peft) == Format::moe_peft);
  CHECK(saved_as(chosen, q, Format::mixture) == Format::mixture);
  CHECK(saved_as(molora<float>({.in = 6, .out = 5}), q, Format::loramoe) == Format::loramoe);
  const auto cannot = [&](const auto& adapter, const char* name, Format format) {
    refused([&] { saved_as(adapter, name, format); }, Code::unsupported_option);
  };
  CHECK(saved_as(hydralora<float>({.in = 6, .out = 5}), q) == Format::hydralora);
  for (const Format format : {Format::loramoe, Format::mixture, Format::moe_peft})
    cannot(hydralora<float>({.in = 6, .out = 5}), q, format);
  cannot(soft, q, Format::hydralora);
  cannot(chosen, q, Format::loramoe);
  cannot(soft, q, Format::mola);
  cannot(soft, q, Format::peft);
  cannot(chosen, "q", Format::mola);                          // outside of the layers
  cannot(chosen, "q", Format::moe_peft);                      // whose names begin with "model."
  cannot(chosen, "model.layers.0.mlp.w1", Format::moe_peft);  // which it would pass over
  cannot(soft, q, Format::moe_peft);                          // whose loramoe is of the feed-forward block
  const auto cannot_pair = [&](const auto& one, const char* name, const auto& other, const char* second) {
    AdapterSet<float> set;
    set.add(name, one);
    set.add(second, other);
    refused([&] { saved_set(std::move(set), Format::moe_peft); }, Code::unsupported_option);
  };
  cannot_pair(chosen, q, lora<float>({.in = 6, .out = 5, .rank = 8, .alpha = 16, .dropout = 0.05}),
              v);                                                     // plain beside mola
  cannot_pair(chosen, q, chosen, "model.layers.1.self_attn.v_proj");  // its targets are of every layer
  cannot(mola<float>({.in = 6, .out = 5, .alpha = 2.5}), q, Format::moe_peft);  // it wants an integer
  cannot(mov<float>({.features = 6}), q, Format::mola);
  cannot(lora<float>({.in = 6, .out = 5}), q, Format::loramoe);
  CHECK(saved_as(lora<float>({.in = 6, .out = 5, .alpha = 8}), q, Format::moe_peft) ==
        Format::peft);  // its own files
  cannot(lora<float>({.in = 6, .out = 5, .alpha = 2.5}), q, Format::moe_peft);
  AdapterSet<float> plain;  // of a config that says nothing, or what PEFT's does not
  plain.add(q, lora<float>({.in = 6, .out = 5, .alpha = 8}));
  plain.init(1);
  for (const json& config : {json::array(), json{{"act_fn", "silu"}, {"router_init_range", 0.02}}}) {
    const TemporaryFolder folder;
    save(plain, folder.path, {.format = Format::moe_peft, .config = config});
    CHECK(load<float>(folder.path).info.format == Format::peft);
  }
}

TEST_CASE("a folder of one format is written in another, with what its config says of the base", "[io]") {
  const TemporaryFolder folder;
  const auto converted = [&](const AdapterSet<float>& set, const AdapterInfo& info, Format format) {
    save(set, folder.path, info, {.format = format});
    const auto again = load<float>(folder.path);
    CHECK((bits(again.set) == bits(set)));
    CHECK(again.info.format == format);
    CHECK(again.info.config["base_model_name_or_path"] == "some/base");
    return again.info.config;
  };
  const Loaded<float> mola = load_disk<float>(mola_disk()), soft = load_disk<float>(loramoe_disk(false));
  converted(mola.set, mola.info, Format::mixture);
  CHECK_FALSE(converted(soft.set, soft.info, Format::moe_peft).contains("blc_weight"));
  // Of one peft_type, but other programs' words.
  AdapterInfo info = soft.info;
  info.config["target_modules"] = {"q_proj", "down_proj"};
  const nlohmann::json config = converted(mola.set, info, Format::mola);
  for (const char* key : {"blc_alpha", "blc_weight", "merge_weights", "enable_lora", "lora_nums"})
    CHECK_FALSE(config.contains(key));
  // MoE-PEFT insists on a float.
  AdapterSet<float> dry;
  dry.add("model.layers.0.mlp.up_proj", loramoe<float>({.in = 6, .out = 5, .dropout = 0}));
  dry.init(1);
  save(dry, folder.path, {}, {.format = Format::moe_peft});
  CHECK(content(folder.path / config_name).find("\"lora_dropout\": 0.0,") != std::string::npos);
  // Its targets are projections, whatever another config calls them.
  AdapterInfo targets = mola.info;
  AdapterSet<float> regular;
  for (const char* name : {"model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"})
    regular.add(name, moxie::mola<float>({.in = 6, .out = 5}));
  regular.init(1);
  targets.config["target_modules"] = ".*_proj";
  CHECK(converted(regular, targets, Format::moe_peft)["target_modules"] == json({"down_proj", "q_proj"}));
  targets.config["layers_to_transform"] = {0};
  refused([&] { converted(regular, targets, Format::moe_peft); }, Code::unsupported_option);
  // In its own format, or in none that is known, a config stays as it is.
  CHECK(converted(soft.set, soft.info, Format::loramoe)["blc_weight"] == 0.1);
  info = {.config = {{"base_model_name_or_path", "some/base"}, {"blc_weight", 0.25}}};
  CHECK(converted(soft.set, info, Format::loramoe)["blc_weight"] == 0.25);
}
