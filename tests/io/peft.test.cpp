// SPDX-License-Identifier: MIT
// PEFT's LoRA and IA3 folders: what they mean, how they come back, and what is refused.
#include "support/catch.hpp"

#include "io/disk.hpp"

#include <ctime>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;

namespace {

const std::string q0 = "model.layers.0.self_attn.q_proj", v1 = "model.layers.1.self_attn.v_proj";
const std::string prefix = "base_model.model.";

std::vector<double> wanted_delta(const Disk& disk, const std::string& module, double scale) {
  const auto& a = disk[prefix + module + ".lora_A.weight"];
  auto y = lora_delta(a, disk[prefix + module + ".lora_B.weight"], some_input(a.shape[1]));
  for (double& v : y) v *= scale;
  return y;
}
double scale_of(const AdapterSet<float>& set, const std::string& name) {
  return static_cast<double>(std::get<Lora<float>>(set.entry(set.find(name)).adapter).experts().scale(0));
}
}  // namespace

TEST_CASE("a PEFT LoRA computes what PEFT computes", "[io]") {
  const Disk disk = peft_lora();
  const Loaded<float> loaded = load_disk<float>(disk);
  REQUIRE(loaded.set.modules() == 4);
  CHECK(loaded.set.entries()[0].name == q0);
  CHECK(loaded.set.entries()[3].name == v1);
  CHECK(loaded.set.entries()[0].method == Method::lora);
  for (const std::string& module : {q0, v1})
    CHECK(near(run_module(loaded.set, module, some_input(12)), wanted_delta(disk, module, 2)));
  CHECK(std::get<Lora<float>>(loaded.set.entries()[0].adapter).experts().config().dropout == 0.25);
  CHECK((loaded.report.clean() && loaded.report.matched.size() == 8 && loaded.report.converted.empty()));
  CHECK(loaded.info.config["base_model_name_or_path"] == "some/base");
  check_round_trip(loaded);
}

TEST_CASE("a double set takes float tensors, and says so", "[io]") {
  const Disk disk = peft_lora();
  const Loaded<double> loaded = load_disk<double>(disk);
  CHECK(near(run_module(loaded.set, q0, some_input(12)), wanted_delta(disk, q0, 2), 1e-12));
  CHECK(loaded.report.converted.size() == 8);
  check_round_trip(loaded);
}

TEST_CASE("rank_pattern, alpha_pattern and use_rslora decide rank and scale per module", "[io]") {
  Disk disk = peft_lora();
  disk.add(prefix + q0 + ".lora_A.weight", {5, 12});
  disk.add(prefix + q0 + ".lora_B.weight", {10, 5});
  disk.config["rank_pattern"] = {{R"(layers\.0\.self_attn\.q_proj)", 5}};
  disk.config["alpha_pattern"] = {{"v_proj", 12}, {"layers.0.self_attn.v_proj", 9}};
  Loaded<float> loaded = load_disk<float>(disk);
  CHECK(scale_of(loaded.set, q0) == static_cast<double>(static_cast<float>(6.0 / 5)));
  CHECK(scale_of(loaded.set, v1) == static_cast<double>(static_cast<float>(12.0 / 3)));
  CHECK(scale_of(loaded.set, "model.layers.0.self_attn.v_proj") ==
        static_cast<double>(static_cast<float>(9.0 / 3)));
  CHECK(near(run_module(loaded.set, q0, some_input(12)), wanted_delta(disk, q0, 6.0 / 5)));
  check_round_trip(loaded);
  disk.config["use_rslora"] = true;
  loaded = load_disk<float>(disk);
  CHECK(scale_of(loaded.set, q0) == static_cast<double>(static_cast<float>(6 / std::sqrt(5.0))));
  CHECK(near(run_module(loaded.set, v1, some_input(12)), wanted_delta(disk, v1, 12 / std::sqrt(3.0))));
  check_round_trip(loaded);
}

TEST_CASE("lora_bias adds the bias of B, scaled", "[io]") {
  Disk disk = peft_lora();
  disk.config["lora_bias"] = true;
  for (const char* module : {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"})
    disk.add(prefix + module + ".lora_B.bias", {10});
  for (const char* module : {"model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"})
    disk.add(prefix + module + ".lora_B.bias", {7});
  const Loaded<float> loaded = load_disk<float>(disk);
  std::vector<double> wanted = wanted_delta(disk, v1, 2);
  for (std::size_t o = 0; o < wanted.size(); ++o)
    wanted[o] += 2 * disk[prefix + v1 + ".lora_B.bias"].values[o];
  CHECK(near(run_module(loaded.set, v1, some_input(12)), wanted));
  check_round_trip(loaded);
}

TEST_CASE("modules_to_save and the base's biases are kept, reported and written back", "[io]") {
  Disk disk = peft_lora();
  disk.config["modules_to_save"] = {"score", "lm_head"};
  disk.config["bias"] = "all";
  disk.add(prefix + "score.weight", {2, 12}, Dtype::bf16);
  disk.add(prefix + "score.dense.bias", {5}, Dtype::f16);
  disk.add(prefix + "model.layers.0.self_attn.q_proj.base_layer.bias", {10});
  const Loaded<float> loaded = load_disk<float>(disk);
  REQUIRE(loaded.info.kept.size() == 3);
  CHECK(loaded.report.notes.size() == 3);
  for (const Kept& kept : loaded.info.kept) {
    INFO(kept.name);
    const auto& t = disk[kept.name];
    CHECK((kept.shape == t.shape && kept.dtype == t.dtype));
    std::vector<double> values;
    for (std::size_t at = 0; at < kept.bytes.size(); at += facts(kept.dtype).bits / 8)
      values.push_back(io::detail::load_number(kept.dtype, kept.bytes.data() + at));
    CHECK(values == t.values);
  }
  check_round_trip(loaded);
}

TEST_CASE("heads that PEFT trains with a task are kept without a word in modules_to_save", "[io]") {
  for (const auto& [task, head] : {std::pair{"SEQ_CLS", "score"},
                                   {"SEQ_CLS", "classifier"},
                                   {"TOKEN_CLS", "classifier"},
                                   {"QUESTION_ANS", "qa_outputs"}}) {
    Disk disk = peft_lora();
    disk.config["task_type"] = task;
    disk.add(prefix + head + ".weight", {2, 12});
    const auto loaded = load_disk<float>(disk);
    REQUIRE(loaded.info.kept.size() == 1);
    CHECK(loaded.info.kept[0].name == prefix + head + ".weight");
    check_round_trip(loaded);
    disk.config["task_type"] = "CAUSAL_LM";
    refused([&] { load_disk<float>(disk); }, Code::unexpected_tensor, {head});
  }
}

TEST_CASE("kept tensors come back as they lay in the file, whatever the set's scalar is", "[io]") {
  Disk disk = peft_lora();
  disk.config["modules_to_save"] = {"score"};
  disk.add(prefix + "score.weight", {2, 2}, Dtype::f64);
  disk.tensors[prefix + "score.weight"].values = {0.1, -1e300, 1e-300, 3};
  disk.tensors[prefix + "score.ids"] = {{3}, {}, Dtype::i64, std::string(23, '\1') + '\xff'};
  const TemporaryFolder folder, second;
  disk.write_plain(folder.path);
  const auto check = [&](const auto& loaded) {
    REQUIRE(loaded.info.kept.size() == 2);
    CHECK(loaded.report.notes.size() == 2);
    save(loaded.set, second.path, loaded.info);
    const TensorFile from = TensorFile::read(folder.path / tensors_name),
                     to = TensorFile::read(second.path / tensors_name);
    for (const char* name : {"score.weight", "score.ids"}) {
      const TensorInfo *const a = from.find(prefix + name), *const b = to.find(prefix + name);
      REQUIRE((a != nullptr && b != nullptr));
      CHECK((a->dtype == b->dtype && a->shape == b->shape && from.bytes(*a) == to.bytes(*b)));
    }
  };
  check(load<float>(folder.path));
  check(load<float>(folder.path, {.narrow = true}));
  check(load<double>(folder.path));
  // But no NaN: neither in a file, nor on its way into one.
  disk.tensors[prefix + "score.weight"].values[2] = std::numeric_limits<double>::quiet_NaN();
  disk.write_plain(folder.path);
  refused([&] { load<float>(folder.path); }, Code::non_finite, {"score.weight"});
  auto loaded = load_disk<float>(peft_lora());
  loaded.info.config["modules_to_save"] = {"score"};
  loaded.info.kept = {{prefix + "score.weight", Dtype::f16, {2}, {0, 0, 0, '\x7e'}}};
  refused([&] { save(loaded.set, second.path, loaded.info); }, Code::non_finite,
          {"score.weight", "number 1"});
  loaded.info.kept[0].bytes.pop_back();
  refused([&] { save(loaded.set, second.path, loaded.info); }, Code::shape_mismatch, {"3 bytes", "4"});
}

TEST_CASE("layers_to_transform, excluded modules and expressions decide which modules are meant", "[io]") {
  Disk disk = peft_lora();
  disk.config["layers_to_transform"] = {0, 1};
  check_round_trip(load_disk<float>(disk));
  disk.config["layers_pattern"] = "layers";
  check_round_trip(load_disk<float>(disk));
  disk.config["layers_pattern"] = nlohmann::json::array({"h", "layers"});
  check_round_trip(load_disk<float>(disk));
  disk.config["target_modules"] = R"(model\.layers\.[01]\.self_attn\.(q|v)_proj)";
  disk.config["layers_to_transform"] = nullptr;
  disk.config["exclude_modules"] = {"lm_head"};
  check_round_trip(load_disk<float>(disk));
  disk.config["target_modules"] = "all-linear";
  check_round_trip(load_disk<float>(disk));

  // A module that is named by its whole path is meant in any layer.
  disk = peft_lora();
  disk.config["layers_to_transform"] = {7};
  disk.config["target_modules"] = nlohmann::json::array();
  for (const char* layer : {"0", "1"})
    for (const char* projection : {"q_proj", "v_proj"})
      disk.config["target_modules"].push_back(std::string("model.layers.") + layer + ".self_attn." +
                                              projection);
  check_round_trip(load_disk<float>(disk));

  disk = peft_lora();
  check_refused(
      disk, {{89,
              "a layer that is not transformed",
              [](Disk& d) { d.config["layers_to_transform"] = 0; },
              Code::unexpected_tensor,
              {"layers.1"}},
             {89, "no layer has this pattern",
              [](Disk& d) {
                d.config["layers_to_transform"] = {0, 1};
                d.config["layers_pattern"] = "h";
              },
              Code::unexpected_tensor},
             {89,
              "excluded by name",
              [](Disk& d) { d.config["exclude_modules"] = {"v_proj"}; },
              Code::unexpected_tensor,
              {"v_proj"}},
             {89, "excluded by expression", [](Disk& d) { d.config["exclude_modules"] = ".*v_proj"; },
              Code::unexpected_tensor},
             {89,
              "not targeted",
              [](Disk& d) { d.config["target_modules"] = {"q_proj"}; },
              Code::unexpected_tensor,
              {"v_proj"}},
             {89, "an expression that means others",
              [](Disk& d) { d.config["target_modules"] = "model.layers.0.*"; }, Code::unexpected_tensor}});
}

TEST_CASE("a target that only other bases have is noted, as lists for several kinds of base are common",
          "[io]") {
  Disk disk = peft_lora();
  disk.config["target_modules"] = {"query", "q_proj", "v_proj"};
  const Loaded<float> loaded = load_disk<float>(disk);
  CHECK((bits(loaded.set) == bits(load_disk<float>(peft_lora()).set)));
  REQUIRE(loaded.report.notes.size() == 1);
  CHECK(loaded.report.notes[0].name == "query");
  check_round_trip(loaded);
  disk.config["target_modules"] = {"model.layers.2.self_attn.q_proj", "q_proj", "v_proj"};  // no other base
  refused([&] { load_disk<float>(disk); }, Code::missing_tensor, {"layers.2"});
}

TEST_CASE("a module whose path holds the name of a kept one is kept, as PEFT writes it", "[io]") {
  Disk disk = peft_lora();
  disk.config["modules_to_save"] = {"classifier"};
  disk.add(prefix + "pre_classifier.weight", {4, 12});
  const Loaded<float> loaded = load_disk<float>(disk);
  REQUIRE(loaded.info.kept.size() == 1);
  check_round_trip(loaded);
  for (const char* const other : {"classifiers", "pre", "class"}) {
    disk.config["modules_to_save"] = {other};
    refused([&] { load_disk<float>(disk); }, Code::unexpected_tensor, {"pre_classifier"});
  }
  // No tensor of an adapter is kept in place of being refused.
  disk.config["modules_to_save"] = {"classifier"};
  for (const auto& [name, code] :
       {std::pair{"classifier.lora_A.french.weight", Code::unexpected_tensor},
        {"classifier.lora_magnitude_vector.default.weight", Code::unsupported_option}}) {
    Disk bad = disk;
    bad.add(prefix + name, {3, 12});
    refused([&] { load_disk<float>(bad); }, code, {"classifier.lora_"});
  }
}

TEST_CASE("an adapter of another name lies in a sub-folder", "[io]") {
  const TemporaryFolder folder;
  peft_lora().write(folder.path / "french");
  const Loaded<float> loaded = load<float>(folder.path / "french");
  CHECK(loaded.set.modules() == 4);
  refused([&] { load<float>(folder.path); }, Code::io_open, {"french"});
  save(loaded.set, folder.path / "other", loaded.info);
  CHECK((bits(load<float>(folder.path / "other").set) == bits(loaded.set)));
}

TEST_CASE("many modules_to_save for long names are looked up in time, or refused", "[io]") {
  Disk disk = peft_lora();
  std::vector<std::string> saved(13000, "a");
  for (int i = 0; i < 3000; ++i) saved.push_back("a." + std::to_string(i));
  disk.config["modules_to_save"] = saved;
  std::string run;
  for (int i = 0; i < 1900; ++i) run += "aa.";
  for (int i = 0; i < 60; ++i) {
    disk.add(prefix + std::string(4000, 'a') + std::to_string(i) + ".a.weight", {1});
    disk.add(prefix + run.substr(0, 3900) + std::to_string(i) + ".17.a.weight", {1});
  }
  const std::clock_t start = std::clock();
  CHECK(load_disk<float>(disk).info.kept.size() == 120);
  for (int i = 0; i < 20000; ++i) saved.push_back("b" + std::to_string(i));
  saved.erase(saved.begin(), saved.begin() + 16000);
  disk.config["modules_to_save"] = saved;
  refused([&] { load_disk<float>(disk); }, Code::too_large, {"modules_to_save"});
  CHECK(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC < 5);
}

TEST_CASE("names as they stand in memory are taken under their own, and reported", "[io]") {
  Disk disk = peft_lora();
  Disk memory = disk;
  memory.tensors.clear();
  for (const auto& [name, t] : disk.tensors) {
    std::string with = name;
    with.insert(with.rfind(".weight"), ".default");
    memory.tensors[with] = t;
  }
  const Loaded<float> loaded = load_disk<float>(memory);
  CHECK((bits(loaded.set) == bits(load_disk<float>(disk).set)));
  CHECK(loaded.report.converted.size() == 8);
  memory.tensors[prefix + q0 + ".lora_A.weight"] = disk[prefix + q0 + ".lora_A.weight"];
  refused([&] { load_disk<float>(memory); }, Code::unexpected_tensor, {"second time"});
}

TEST_CASE("names of modules may hold the words of the format", "[io]") {  // PEFT 2772, 2699
  Disk disk = peft_lora();
  disk.tensors.clear();
  disk.config["target_modules"] = {"lora_A_weight", "weight"};
  for (const char* module : {"model.lora_A.default.weight", "lora_E.hada_.lora_A_weight"}) {
    disk.add(prefix + module + ".lora_A.weight", {3, 12});
    disk.add(prefix + module + ".lora_B.weight", {10, 3});
  }
  const Loaded<float> loaded = load_disk<float>(disk);
  REQUIRE(loaded.set.modules() == 2);
  CHECK(near(run_module(loaded.set, "model.lora_A.default.weight", some_input(12)),
             wanted_delta(disk, "model.lora_A.default.weight", 2)));
  CHECK(near(run_module(loaded.set, "lora_E.hada_.lora_A_weight", some_input(12)),
             wanted_delta(disk, "lora_E.hada_.lora_A_weight", 2)));
  check_round_trip(loaded);
}

TEST_CASE("load_into takes the same numbers, wherever the set's modules stand", "[io]") {
  const Disk disk = peft_lora();
  const TemporaryFolder folder;
  disk.write(folder.path);
  const Loaded<float> loaded = load<float>(folder.path);
  AdapterSet<float> set;
  for (const char* name : {"model.layers.1.self_attn.v_proj", "model.layers.0.self_attn.q_proj",
                           "model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.v_proj"}) {
    const bool q = std::string_view(name).substr(27) == "q_proj" ||
                   std::string_view(name).find("q_proj") != std::string_view::npos;
    set.add(name, lora<float>({.in = 12, .out = q ? 10 : 7, .rank = 3, .alpha = 6}));
  }
  refused([&] { load_into(set, folder.path); }, Code::state_error);
  set.init(3);
  const Report report = load_into(set, folder.path);
  CHECK((report.matched.size() == 8 && report.clean()));
  for (const auto& entry : set.entries())
    CHECK(run_module(set, entry.name, some_input(12)) == run_module(loaded.set, entry.name, some_input(12)));
}

TEST_CASE("a set that is not the adapter's is refused, and keeps its bits", "[io]") {
  const TemporaryFolder folder;
  peft_lora().write(folder.path);
  struct Other {
    const char* what;
    std::function<void(AdapterSet<float>&, const std::string&, bool)> add;
    Code code;
  };
  const Other others[] = {
      {"another width",
       [](auto& s, auto& n, bool q) {
         s.add(n, lora<float>({.in = 13, .out = q ? 10 : 7, .rank = 3, .alpha = 6}));
       },
       Code::shape_mismatch},
      {"another out",
       [](auto& s, auto& n, bool) { s.add(n, lora<float>({.in = 12, .out = 10, .rank = 3, .alpha = 6})); },
       Code::shape_mismatch},
      {"another rank",
       [](auto& s, auto& n, bool q) {
         s.add(n, lora<float>({.in = 12, .out = q ? 10 : 7, .rank = 4, .alpha = 8}));
       },
       Code::rank_mismatch},
      {"another scale",
       [](auto& s, auto& n, bool q) {
         s.add(n, lora<float>({.in = 12, .out = q ? 10 : 7, .rank = 3, .alpha = 7}));
       },
       Code::config_mismatch},
      {"another scaling",
       [](auto& s, auto& n, bool q) {
         s.add(n, lora<float>({.in = 12,
                               .out = q ? 10 : 7,
                               .rank = 3,
                               .alpha = 6,
                               .scaling = LoraScaling::alpha_over_sqrt_rank}));
       },
       Code::config_mismatch},
      {"biases",
       [](auto& s, auto& n, bool q) {
         s.add(n, lora<float>({.in = 12, .out = q ? 10 : 7, .rank = 3, .alpha = 6, .bias = true}));
       },
       Code::missing_tensor},
      {"another kind", [](auto& s, auto& n, bool) { s.add(n, ia3<float>({.features = 12})); },
       Code::adapter_kind},
      {"a mixture",
       [](auto& s, auto& n, bool q) {
         s.add(n, molora<float>({.in = 12, .out = q ? 10 : 7, .experts = 1, .rank = 3, .alpha = 6}));
       },
       Code::adapter_kind},
      {"other names",
       [](auto& s, auto& n, bool q) {
         s.add("x." + n, lora<float>({.in = 12, .out = q ? 10 : 7, .rank = 3, .alpha = 6}));
       },
       Code::nothing_matched},
      {"one module more",
       [](auto& s, auto& n, bool q) {
         s.add(n, lora<float>({.in = 12, .out = q ? 10 : 7, .rank = 3, .alpha = 6}));
         if (s.modules() == 4) s.add("more", lora<float>({.in = 1, .out = 1}));
       },
       Code::missing_tensor},
      {"one module less",
       [](auto& s, auto& n, bool q) {
         if (n != q0) s.add(n, lora<float>({.in = 12, .out = q ? 10 : 7, .rank = 3, .alpha = 6}));
       },
       Code::unexpected_tensor}};
  for (const Other& other : others) {
    INFO(other.what);
    AdapterSet<float> set;
    for (const char* layer : {"0", "1"})
      for (const char* projection : {"q_proj", "v_proj"})
        other.add(set, std::string("model.layers.") + layer + ".self_attn." + projection,
                  projection[0] == 'q');
    set.init(1);
    const std::string before = bits(set);
    refused([&] { load_into(set, folder.path); }, other.code);
    CHECK((bits(set) == before));
  }
}

TEST_CASE("the catalogue of tensors that do not fit", "[io]") {
  const auto a = [](Disk& d) -> Disk::Tensor& { return d.tensors[prefix + q0 + ".lora_A.weight"]; };
  const auto b = [](Disk& d) -> Disk::Tensor& { return d.tensors[prefix + q0 + ".lora_B.weight"]; };
  check_refused(
      peft_lora(),
      {
          {87, "no tensors", [](Disk& d) { d.tensors.clear(); }, Code::missing_tensor},
          {88,
           "no B",
           [](Disk& d) { d.tensors.erase(prefix + q0 + ".lora_B.weight"); },
           Code::missing_tensor,
           {q0, "B"}},
          {88,
           "no A",
           [](Disk& d) { d.tensors.erase(prefix + q0 + ".lora_A.weight"); },
           Code::missing_tensor,
           {q0, "A"}},
          {89,
           "one key too many",
           [](Disk& d) { d.add(prefix + "what", {3}); },
           Code::unexpected_tensor,
           {"what"}},
          {89, "a bias that the config does not know",
           [](Disk& d) { d.add(prefix + q0 + ".lora_B.bias", {10}); }, Code::unexpected_tensor},
          {89, "a kept module that is not in modules_to_save",
           [](Disk& d) {
             d.add(prefix + "score.weight", {2, 2});
           },
           Code::unexpected_tensor},
          {90,
           "another prefix",
           [](Disk& d) {
             Disk o = d;
             o.tensors.clear();
             for (auto& [n, t] : d.tensors) o.tensors[n.substr(prefix.size())] = t;
             d = o;
           },
           Code::nothing_matched,
           {"base_model.model."}},
          {90, "another program's names",
           [](Disk& d) {
             d.tensors.clear();
             d.add("lora_unet_down_blocks_0.lora_down.weight", {3, 3});
           },
           Code::nothing_matched},
          {91, "ranks of A and B differ",
           [b](Disk& d) {
             b(d).shape = {15, 2};
           },
           Code::rank_mismatch},
          {91,
           "rank of B",
           [](Disk& d) {
             d.add(prefix + q0 + ".lora_B.weight", {10, 2});
           },
           Code::rank_mismatch,
           {"[10, 2]", "[10, 3]"}},
          {92,
           "rank of both",
           [](Disk& d) {
             d.add(prefix + q0 + ".lora_A.weight", {4, 12});
             d.add(prefix + q0 + ".lora_B.weight", {10, 4});
           },
           Code::rank_mismatch,
           {"[4, 12]", "[3, 12]"}},
          {92, "rank of the config", [](Disk& d) { d.config["r"] = 8; }, Code::rank_mismatch},
          {92, "a rank far above", [](Disk& d) { d.config["r"] = 1 << 24; }, Code::rank_mismatch},
          {94,
           "A and B transposed",
           [](Disk& d) {
             for (auto& [n, t] : d.tensors) std::swap(t.shape[0], t.shape[1]);
           },
           Code::shape_mismatch,
           {"transposed"}},
          {94,
           "B transposed",
           [b](Disk& d) {
             b(d).shape = {3, 10};
           },
           Code::shape_mismatch,
           {"transposed"}},
          {94,
           "A and B swapped",
           [](Disk& d) {
             std::swap(d.tensors[prefix + q0 + ".lora_A.weight"], d.tensors[prefix + q0 + ".lora_B.weight"]);
           },
           Code::shape_mismatch,
           {"transposed"}},
          {95, "three dimensions",
           [a](Disk& d) {
             a(d).shape = {3, 12, 1};
           },
           Code::shape_mismatch},
          {95, "one dimension", [a](Disk& d) { a(d).shape = {36}; }, Code::shape_mismatch},
          {95, "no numbers",
           [](Disk& d) {
             d.add(prefix + q0 + ".lora_A.weight", {3, 0});
           },
           Code::shape_mismatch},
          {96, "F64 into float", [a](Disk& d) { a(d).dtype = Dtype::f64; }, Code::dtype_mismatch, {"narrow"}},
          {122,
           "DoRA's vector in a module that is kept",
           [](Disk& d) {
             d.config["modules_to_save"] = {"self_attn"};
             d.add(prefix + q0 + ".lora_magnitude_vector", {10});
           },
           Code::unsupported_option,
           {"DoRA"}},
          {89, "another format's tensor in a module that is kept",
           [](Disk& d) {
             d.config["modules_to_save"] = {"self_attn"};
             d.config["bias"] = "all";
             d.add(prefix + q0 + ".lora_B0.bias", {10});
           },
           Code::unexpected_tensor},
          {89, "a name in memory that PEFT does not give",
           [](Disk& d) {
             const std::string name = prefix + q0 + ".lora_A.weight";
             d.tensors[name + ".default"] = d[name];
             d.tensors.erase(name);
           },
           Code::missing_tensor},
          {116, "r in a list", [](Disk& d) { d.config["r"] = {3}; }, Code::config_type},
          {117, "alpha in a list", [](Disk& d) { d.config["lora_alpha"] = {6}; }, Code::config_type},
          {124, "num_experts", [](Disk& d) { d.config["num_experts"] = 8; }, Code::config_mismatch},
          {124, "top_k", [](Disk& d) { d.config["top_k"] = 2; }, Code::config_mismatch},
          {122, "OLoRA's start", [](Disk& d) { d.config["init_lora_weights"] = "OLoRA"; },
           Code::unsupported_option},
          {122, "an unknown start", [](Disk& d) { d.config["init_lora_weights"] = "qrlora"; },
           Code::unsupported_option},
          {122, "a start that is a number", [](Disk& d) { d.config["init_lora_weights"] = 1; },
           Code::unsupported_option},
          {121, "IA3's tensors",
           [](Disk& d) {
             d.tensors.clear();
             d.add(prefix + q0 + ".ia3_l", {10, 1});
           },
           Code::adapter_kind},
          {121, "IA3's config",
           [](Disk& d) {
             d.config["peft_type"] = "IA3";
             for (const char* k : {"r", "lora_alpha", "lora_dropout", "use_rslora", "lora_bias", "bias",
                                   "rank_pattern", "alpha_pattern"})
               d.config.erase(k);
           },
           Code::adapter_kind},
          {122,
           "DoRA's vector",
           [](Disk& d) { d.add(prefix + q0 + ".lora_magnitude_vector", {10}); },
           Code::unsupported_option,
           {"DoRA"}},
          {122,
           "an embedding",
           [](Disk& d) {
             d.add(prefix + "embed_tokens.lora_embedding_A", {3, 10});
           },
           Code::unsupported_option,
           {"embedding"}},
          {122,
           "X-LoRA's classifier",
           [](Disk& d) {
             d.add("base_model.internal_xlora_classifier.layers.0.weight", {3, 10});
           },
           Code::unsupported_option,
           {"X-LoRA"}},
          {122,
           "MixLoRA's experts",
           [](Disk& d) {
             d.add("mixlora.layers.0.mlp.moe_gate.weight", {3, 10});
           },
           Code::unsupported_option,
           {"MixLoRA"}},
      });
}

TEST_CASE("numbers that are none or too large are refused, at the last tensor too", "[io]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  disk.write(folder.path);
  Loaded<float> loaded = load<float>(folder.path);
  const std::string before = bits(loaded.set);
  const auto spoil = [&](const std::string& tensor, float number) {
    Disk bad = disk;
    for (auto& [name, t] : bad.tensors) t.values.back() += 1;
    bad.tensors[tensor].values.back() = static_cast<double>(number);
    bad.write_plain(folder.path);
  };
  using Limits = std::numeric_limits<float>;
  for (const auto& [tensor, t] : disk.tensors)
    for (const float number : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
      spoil(tensor, number);
      refused([&] { load<float>(folder.path); }, Code::non_finite, {tensor.substr(0, 70)});
      refused([&] { load_into(loaded.set, folder.path); }, Code::non_finite);
      refused([&] { load_into(loaded.set, folder.path, {.lenient = true}); }, Code::non_finite);
      CHECK((bits(loaded.set) == before));
    }
  spoil(disk.tensors.begin()->first, Limits::denorm_min());
  const Report report = load_into(loaded.set, folder.path);
  REQUIRE(report.notes.size() == 1);
  CHECK(report.notes[0].what == "1 subnormal number");

  disk.tensors[prefix + v1 + ".lora_B.weight"].dtype = Dtype::f64;
  disk.tensors[prefix + v1 + ".lora_B.weight"].values.back() = 1e300;
  disk.write(folder.path);
  refused([&] { load<float>(folder.path, {.narrow = true}); }, Code::value_range);
  CHECK_NOTHROW(load<double>(folder.path));
}

TEST_CASE("types are converted where float holds them, and where it is allowed", "[io]") {
  Disk disk = peft_lora();
  const std::string plain = bits(load_disk<float>(disk).set);
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::f64}) {
    for (auto& [name, t] : disk.tensors) t.dtype = dtype;
    const Loaded<float> loaded = load_disk<float>(disk, {.narrow = true});
    CHECK((bits(loaded.set) == plain));
    CHECK(loaded.report.converted.size() == 8);
    const TemporaryFolder folder;
    save(loaded.set, folder.path, loaded.info, {.dtype = dtype});
    CHECK(TensorFile::read(folder.path / tensors_name).tensors()[0].dtype == dtype);
    CHECK((bits(load<float>(folder.path, {.narrow = true}).set) == plain));
  }
}

namespace {

/// target_parameters over 3 experts, rank 2: two parameters of one module, the second's wrapper around the
/// first's; attention is a plain LoRA.
Disk parameters_disk() {
  Disk disk = peft_lora();
  disk.tensors.clear();
  disk.config.update({{"r", 2},
                      {"lora_alpha", 4},
                      {"lora_dropout", 0},
                      {"target_modules", {"q_proj"}},
                      {"target_parameters", {"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}}});
  const std::string experts = prefix + "model.layers.0.mlp.experts";
  disk.add(prefix + q0 + ".lora_A.weight", {2, 12});
  disk.add(prefix + q0 + ".lora_B.weight", {10, 2});
  disk.add(experts + ".base_layer.lora_A.weight", {6, 12});
  disk.add(experts + ".base_layer.lora_B.weight", {8, 6});
  disk.add(experts + ".lora_A.weight", {6, 4});
  disk.add(experts + ".lora_B.weight", {12, 6});
  return disk;
}

}  // namespace

TEST_CASE("target_parameters: A is (E, r, in), B is (out, r, E), and the base's router weighs", "[io]") {
  const Disk disk = parameters_disk();
  const Loaded<float> loaded = load_disk<float>(disk);
  REQUIRE(loaded.set.modules() == 3);
  for (const std::string module : {"model.layers.0.mlp.experts", "model.layers.0.mlp.experts.base_layer"}) {
    INFO(module);
    const auto& a = disk[prefix + module + ".lora_A.weight"];
    const auto& b = disk[prefix + module + ".lora_B.weight"];
    const Index in = a.shape[1], out = b.shape[0];
    const std::vector<double> gates{0.5, 0, -1.25}, x = some_input(in);
    std::vector<double> wanted(static_cast<std::size_t>(out), 0);
    for (Index e = 0; e < 3; ++e)
      for (Index k = 0; k < 2; ++k) {
        double h = 0;
        for (Index i = 0; i < in; ++i) h += a.at(e * 2 + k, i) * x[static_cast<std::size_t>(i)];
        for (Index o = 0; o < out; ++o)  // delta W_e = s sum over k of B[o, k, e] A[e, k, i]
          wanted[static_cast<std::size_t>(o)] +=
              gates[static_cast<std::size_t>(e)] * 2 * b.at(o, k * 3 + e) * h;
      }
    Cache<float> cache;
    Workspace<float> workspace;
    cache.routing.resize(1, 3, 1, 3);
    for (std::size_t e = 0; e < 3; ++e) cache.routing.gates[e] = static_cast<float>(gates[e]);
    cache.routing.choose_all(0);
    Matrix<float> input(1, in), y = Matrix<float>::Zero(1, out);
    for (Index i = 0; i < in; ++i) input(0, i) = static_cast<float>(x[static_cast<std::size_t>(i)]);
    loaded.set.forward(loaded.set.find(module), input, y, cache, workspace);
    CHECK(near({y.data(), y.data() + out}, wanted));
  }
  CHECK(near(run_module(loaded.set, q0, some_input(12)), wanted_delta(disk, q0, 2)));
  check_round_trip(loaded);
  const TemporaryFolder folder;
  save(loaded.set, folder.path, loaded.info);
  const TensorFile file = TensorFile::read(folder.path / tensors_name);
  for (const auto& [name, t] : disk.tensors) {
    REQUIRE(file.find(name) != nullptr);
    std::vector<double> values(t.values.size());
    file.load(*file.find(name), std::span<double>(values));
    CHECK((file.find(name)->shape == t.shape && values == t.values));
  }

  const std::string experts = prefix + "model.layers.0.mlp.experts";
  Disk bare = disk;
  bare.config["target_parameters"] = {"down_proj", "gate_up_proj"};
  CHECK((bits(load_disk<float>(bare).set) == bits(loaded.set)));
  check_refused(
      disk,
      {
          {92,
           "rows that are no multiple of the rank",
           [=](Disk& d) {
             d.add(experts + ".lora_A.weight", {5, 4});
           },
           Code::rank_mismatch,
           {"multiple"}},
          {91, "ranks of A and B differ",
           [=](Disk& d) {
             d.add(experts + ".lora_B.weight", {12, 4});
           },
           Code::rank_mismatch},
          {88, "no B", [=](Disk& d) { d.tensors.erase(experts + ".lora_B.weight"); }, Code::missing_tensor},
          {95, "one dimension", [=](Disk& d) { d.add(experts + ".lora_A.weight", {24}); },
           Code::shape_mismatch},
          {89, "a parameter of another module",
           [](Disk& d) { d.config["target_parameters"] = {"block.down_proj"}; }, Code::missing_tensor},
          {88,
           "a parameter without tensors",
           [](Disk& d) { d.config["target_parameters"].push_back("mlp.router.weight"); },
           Code::missing_tensor,
           {"mlp.router.weight"}},
          {88,
           "two parameters, the tensors of one",
           [=](Disk& d) {
             d.tensors.erase(experts + ".base_layer.lora_A.weight");
             d.tensors.erase(experts + ".base_layer.lora_B.weight");
           },
           Code::missing_tensor,
           {"1 of its 2"}},
          {122,
           "wrappers without target_parameters",
           [](Disk& d) { d.config["target_parameters"] = nullptr; },
           Code::unsupported_option,
           {"target_parameters"}},
          {122, "patterns beside it",
           [](Disk& d) {
             d.config["rank_pattern"] = {{"q_proj", 2}};
           },
           Code::unsupported_option},
          {116, "no list", [](Disk& d) { d.config["target_parameters"] = "mlp.experts.down_proj"; },
           Code::config_type},
      });
}
