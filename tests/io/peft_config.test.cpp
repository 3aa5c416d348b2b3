// SPDX-License-Identifier: MIT
// The catalogue of bad configs: every line with its code, by load and by load_into.
#include "support/catch.hpp"

#include "io/disk.hpp"
#include "support/comma_locale.hpp"

#include <sys/resource.h>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;

namespace {

using nlohmann::json;

std::function<void(Disk&)> with(const std::string& key, json value) {
  return [key, value](Disk& disk) { disk.config[key] = value; };
}
std::function<void(Disk&)> without(const std::string& key) {
  return [key](Disk& disk) { disk.config.erase(key); };
}

/// Both loads of a good adapter's tensors beside this text as its config.
void refused_text(const std::string& text, Code code, const std::vector<std::string>& words = {}) {
  INFO(text.substr(0, 200));
  const TemporaryFolder folder;
  peft_lora().write(folder.path);
  auto loaded = load<float>(folder.path);
  const std::string before = bits(loaded.set);
  std::ofstream(folder.path / "adapter_config.json", std::ios::binary) << text;
  refused([&] { load<float>(folder.path); }, code, words);
  refused([&] { load_into(loaded.set, folder.path); }, code, words);
  CHECK((bits(loaded.set) == before));
}

}  // namespace

TEST_CASE("the catalogue of configs whose values are wrong", "[io]") {
  std::vector<BadAdapter> bad{
      {116, "no r", without("r"), Code::missing_field, {"'r'"}},
      {119, "no alpha", without("lora_alpha"), Code::missing_field, {"lora_alpha"}},
      {116, "r 2.5", with("r", 2.5), Code::config_range, {"2.5"}},
      {116, "r true", with("r", true), Code::config_type},
      {116, "r a text", with("r", "8"), Code::config_type, {"8"}},
      {116, "r null", with("r", nullptr), Code::missing_field},
      {116, "r an object", with("r", json::object()), Code::config_type},
      {116, "r a list", with("r", {3, 3}), Code::config_type},
      {117, "alpha a text", with("lora_alpha", "16"), Code::config_type},
      {117, "alpha negative", with("lora_alpha", -1), Code::config_range, {"-1"}},
      {117, "alpha too large for float", with("lora_alpha", 1e300), Code::config_range},
      {118, "use_rslora a text", with("use_rslora", "true"), Code::config_type},
      {118, "use_rslora 1", with("use_rslora", 1), Code::config_type},
      {118, "another scale by use_rslora", with("rank_pattern", {{"q_proj", 4}}), Code::rank_mismatch},
      {119, "lora_dropout 1", with("lora_dropout", 1), Code::config_range},
      {126, "lora_dropout negative", with("lora_dropout", -0.1), Code::config_range},
      {126, "lora_dropout a text", with("lora_dropout", "0.1"), Code::config_type},
      {120,
       "a rank pattern of no module",
       with("rank_pattern", {{"k_proj", 3}}),
       Code::pattern_unused,
       {"k_proj"}},
      {120, "an alpha pattern of no module", with("alpha_pattern", {{"k_proj", 3}}), Code::pattern_unused},
      {120, "a pattern that is none", with("rank_pattern", {{"(?=q)", 3}}), Code::pattern_syntax, {"(?=q)"}},
      {120, "target_modules that are none", with("target_modules", "(*"), Code::pattern_syntax},
      {120, "patterns that are no object", with("rank_pattern", {3}), Code::config_type},
      {120, "a pattern's rank", with("rank_pattern", {{"q_proj", 0}}), Code::config_range},
      {120, "a pattern's alpha", with("alpha_pattern", {{"q_proj", "x"}}), Code::config_type},
      {115, "an unknown key", with("lora_gamma", 3), Code::unknown_config_key, {"lora_gamma", "3"}},
      {121, "no peft_type", without("peft_type"), Code::missing_field},
      {121, "peft_type unknown", with("peft_type", "QORA"), Code::adapter_kind, {"QORA"}},
      {121, "peft_type in lower case", with("peft_type", "lora"), Code::adapter_kind},
      {121, "peft_type a number", with("peft_type", 1), Code::config_type},
      {123, "target_modules empty", with("target_modules", json::array()), Code::nothing_matched},
      {123, "target_modules null", with("target_modules", nullptr), Code::nothing_matched},
      {123,
       "target_modules of others",
       with("target_modules", {"k_proj"}),
       Code::nothing_matched,
       {"q_proj"}},
      {123, "an expression of others", with("target_modules", "nothing"), Code::nothing_matched, {"nothing"}},
      {123, "target_modules a number", with("target_modules", 3), Code::config_type},
      {123, "target_modules of numbers", with("target_modules", {3}), Code::config_type},
      {89, "bias unknown", with("bias", "some"), Code::config_range},
      {89, "layers_to_transform negative", with("layers_to_transform", {-1}), Code::config_range},
      {89, "lora_bias without biases", with("lora_bias", true), Code::missing_tensor, {"bias"}},
      {124, "top_k 0", with("top_k", 0), Code::config_range},
      {124, "top_k a text", with("top_k", "2"), Code::config_type},
      {124, "top_k 1.5", with("top_k", 1.5), Code::config_range},
      {127, "blc_weight negative", with("blc_weight", -1), Code::config_range},
  };
  for (const json& r :
       {json(0), json(-1), json(std::int64_t{1} << 31), json(1'000'000'000), json(~std::uint64_t{0})})
    bad.push_back({116, "r " + r.dump(), with("r", r), Code::config_range, {"r"}});
  check_refused(peft_lora(), bad);
}

TEST_CASE("every option that changes the result and is not built is refused by its name", "[io]") {
  std::vector<BadAdapter> bad;
  const std::pair<const char*, json> options[] = {{"use_dora", true},
                                                  {"use_qalora", true},
                                                  {"layer_replication", {{0, 4}, {2, 6}}},
                                                  {"trainable_token_indices", {1, 2}},
                                                  {"alora_invocation_tokens", {5}},
                                                  {"arrow_config", {{"top_k", 2}}},
                                                  {"use_bdlora", true},
                                                  {"velora_config", {{"a", 1}}},
                                                  {"monteclora_config", {{"a", 1}}},
                                                  {"kasa_config", {{"a", 1}}},
                                                  {"megatron_config", {{"a", 1}}},
                                                  {"ensure_weight_tying", true},
                                                  {"enable_lora", {true, false, true}},
                                                  {"init_lora_weights", "pissa"},
                                                  {"init_lora_weights", "pissa_niter_4"},
                                                  {"init_lora_weights", "olora"},
                                                  {"init_lora_weights", "corda"},
                                                  {"init_lora_weights", "loftq"},
                                                  {"init_lora_weights", "lora_ga"}};
  for (const auto& [key, value] : options)
    bad.push_back({122, key, with(key, value), Code::unsupported_option, {key}});
  for (const char* type : {"MIXLORA", "XLORA", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "POLY",
                           "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "LN_TUNING", "TRAINABLE_TOKENS"})
    bad.push_back({122, type, with("peft_type", type), Code::unsupported_option, {type}});
  check_refused(peft_lora(), bad);
  // Refused in the lenient mode too.
  check_refused(peft_lora(), bad, {.lenient = true});
}

TEST_CASE("options at their defaults, and those that change nothing, are accepted", "[io]") {
  Disk disk = peft_lora();
  // The whole of PEFT 0.20's LoraConfig.
  disk.config.update({{"alora_invocation_tokens", nullptr},
                      {"arrow_config", nullptr},
                      {"auto_mapping", nullptr},
                      {"corda_config", nullptr},
                      {"ensure_weight_tying", false},
                      {"eva_config", nullptr},
                      {"exclude_modules", nullptr},
                      {"init_lora_weights", true},
                      {"kasa_config", nullptr},
                      {"layer_replication", nullptr},
                      {"layers_pattern", nullptr},
                      {"layers_to_transform", nullptr},
                      {"loftq_config", json::object()},
                      {"lora_ga_config", nullptr},
                      {"megatron_config", nullptr},
                      {"megatron_core", "megatron.core"},
                      {"monteclora_config", nullptr},
                      {"peft_version", "0.20.0"},
                      {"qalora_group_size", 16},
                      {"revision", nullptr},
                      {"target_parameters", nullptr},
                      {"trainable_token_indices", nullptr},
                      {"use_bdlora", nullptr},
                      {"use_dora", false},
                      {"use_qalora", false},
                      {"velora_config", nullptr}});
  const TemporaryFolder folder;
  disk.write(folder.path);
  const auto loaded = load<float>(folder.path);
  CHECK(loaded.report.clean());
  save(loaded.set, folder.path, loaded.info);
  CHECK(content(folder.path / "adapter_config.json") == disk.config.dump(2));
  for (const char* init : {"gaussian", "eva", "orthogonal", "mica"}) {
    disk.config["init_lora_weights"] = init;
    disk.write(folder.path);
    CHECK_NOTHROW(load<float>(folder.path));
  }
}

TEST_CASE("layers_to_transform counts layers by the first number of a path", "[io]") {
  const auto adapter = [](const std::vector<std::string>& modules, const std::string& target) {
    Disk disk = peft_lora();
    disk.tensors.clear();
    for (const std::string& module : modules) {
      disk.add("base_model.model." + module + ".lora_A.weight", {3, 12});
      disk.add("base_model.model." + module + ".lora_B.weight", {10, 3});
    }
    disk.config["target_modules"] = {target};
    return disk;
  };
  const auto taken = [](const Disk& disk) {
    const TemporaryFolder folder;
    disk.write(folder.path);
    return load<float>(folder.path).set.modules();
  };
  Disk disk = adapter({"model.layers.1.mlp.experts.0.up_proj", "model.layers.1.mlp.experts.1.up_proj",
                       "model.layers.1.mlp.experts.2.up_proj"},
                      "up_proj");
  disk.config["layers_to_transform"] = {1};
  CHECK(taken(disk) == 3);
  disk.config["layers_pattern"] = "layers";
  CHECK(taken(disk) == 3);
  check_refused(disk, {{89,
                        "another layer of its pattern",
                        with("layers_pattern", "experts"),
                        Code::unexpected_tensor,
                        {"experts.0"}}});

  disk = adapter({"encoder.block.2.layer.0.SelfAttention.q"}, "q");
  disk.config["layers_to_transform"] = {2};
  CHECK(taken(disk) == 1);
  check_refused(
      disk, {{89, "another layer", with("layers_to_transform", {0}), Code::unexpected_tensor, {"block.2"}}});
  // PEFT asks for no layer where a module is listed by its whole path.
  disk.config["target_modules"] = {"encoder.block.2.layer.0.SelfAttention.q"};
  disk.config["layers_to_transform"] = {0};
  CHECK(taken(disk) == 1);
}

TEST_CASE("a MoLA adapter's lists are by the third part of the path", "[io]") {
  Disk disk = peft_lora();
  disk.tensors.clear();
  disk.config.update({{"r", {3, 2}}, {"target_modules", {"q_proj"}}, {"top_k", {1, 2}}});
  for (const auto& [module, rank] : {std::pair{"model.layers.0.block.1.q_proj", Index{3}},
                                     std::pair{"model.layers.1.block.0.q_proj", Index{2}}}) {
    const std::string path = std::string("base_model.model.") + module;
    for (const char* e : {"0", "1"}) {
      disk.add(path + ".lora_A_" + e + ".weight", {rank, 12});
      disk.add(path + ".lora_B_" + e + ".weight", {10, rank});
    }
    disk.add(path + ".router.router.weight", {2, 12});
  }
  const TemporaryFolder folder;
  disk.write(folder.path);
  const auto loaded = load<float>(folder.path);
  for (const auto& entry : loaded.set.entries()) {
    const bool first = entry.name == "model.layers.0.block.1.q_proj";
    const auto& adapter = std::get<MoLA<float>>(entry.adapter);
    CHECK(adapter.router().config().k == (first ? 1 : 2));
    CHECK(adapter.experts().rank(0) == (first ? 3 : 2));
  }
  // Written by the same rule.
  const TemporaryFolder again;
  save(loaded.set, again.path, loaded.info);
  const auto config = json::parse(content(again.path / "adapter_config.json"));
  CHECK(config["r"] == json{3, 2});
  CHECK(config["top_k"] == json{1, 2});
  CHECK((bits(load<float>(again.path).set) == bits(loaded.set)));
}

TEST_CASE("a config of large patterns keeps one of them at a time", "[io]") {
  const Disk disk = peft_lora();
  const TemporaryFolder folder;
  disk.write(folder.path);
  std::string large;  // of nearly as many states as a pattern may have
  for (int i = 0; i < 320; ++i) large += "a{99}";
  json config = disk.config;
  config["layers_pattern"] = std::vector<std::string>(500, large);
  const auto peak = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;  // KB
  };
  const auto load_it = [&] {
    return load<float>(
        AdapterFiles{TensorFile::read(folder.path / "adapter_model.safetensors"), config.dump(), "config"});
  };
  const auto before = peak();
  CHECK_NOTHROW(load_it());  // nobody asks for layers
  config["layers_to_transform"] = {0, 1};
  refused([&] { load_it(); }, Code::unexpected_tensor);
  // All of them at once are 500 MB and more.
  CHECK(peak() - before < 400'000);
}

TEST_CASE("the catalogue of configs that are not JSON, or not an object", "[io]") {
  refused_text("", Code::header_not_object);
  refused_text("[]", Code::header_not_object);
  refused_text("null", Code::header_not_object);
  refused_text("adapter", Code::header_not_object);
  refused_text("\xef\xbb\xbf" + peft_lora().config.dump(), Code::header_not_object);
  refused_text("{", Code::json_syntax);
  refused_text("{\"r\": 8,}", Code::json_syntax);
  refused_text("{\"r\": NaN}", Code::json_syntax);
  refused_text("{\"lora_alpha\": 1e400}", Code::config_range, {"1e400"});
  refused_text("{\"r\": " + std::string(5000, '1') + "}", Code::integer_range);
  refused_text("{} {}", Code::json_trailing);
  refused_text("{\"a\": \"\xff\"}", Code::invalid_utf8);
  refused_text("{\"a\": \"\\ud800\"}", Code::json_escape);
  refused_text("{\"r\": 3, \"r\": 3}", Code::duplicate_key, {"'r'"});
  refused_text("{\"r\": 3, \"\\u0072\": 3}", Code::duplicate_key);
  refused_text("{\"rank_pattern\": {\"a\": 1, \"a\": 2}}", Code::duplicate_key);
  refused_text("{\"a\": [{\"x\": 1}, {\"x\": 1, \"x\": 1}]}", Code::duplicate_key);
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += "{\"a\":";
  refused_text(deep, Code::json_depth);
  refused_text("{\"a\": \"" + std::string(1 << 20, 'x') + "\"}", Code::too_large);
  refused_text("{}", Code::missing_field);
}

TEST_CASE("an unknown option that is null is off, as PEFT writes all that are", "[io]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  disk.config["brand_new_option"] = nullptr;
  disk.write(folder.path);
  const Report report = load<float>(folder.path).report;
  CHECK(report.clean());
  REQUIRE(report.notes.size() == 1);
  CHECK(report.notes[0].name == "brand_new_option");
  for (const nlohmann::json& value : {nlohmann::json(false), nlohmann::json::object()}) {
    disk.config["brand_new_option"] = value;
    disk.write(folder.path);
    refused([&] { load<float>(folder.path); }, Code::unknown_config_key, {"brand_new_option"});
  }
}

TEST_CASE("every prefix of a config is refused, and Windows' line ends are not", "[io]") {
  const TemporaryFolder folder;
  const Disk disk = peft_lora();
  disk.write(folder.path);
  const TensorFile tensors = TensorFile::read(folder.path / "adapter_model.safetensors");
  const std::string text = disk.config.dump(2);
  for (std::size_t n = 0; n < text.size(); ++n)
    CHECK_THROWS_AS(load<float>(AdapterFiles{tensors, text.substr(0, n), "config"}), Error);
  std::string windows;
  for (const char c : text) windows += c == '\n' ? "\r\n" : std::string(1, c);
  CHECK_NOTHROW(load<float>(AdapterFiles{tensors, windows, "config"}));
}

TEST_CASE("a flipped bit of a config is refused or changes the value that it hits", "[io]") {
  const TemporaryFolder folder;
  const Disk disk = peft_lora();
  disk.write(folder.path);
  const TensorFile tensors = TensorFile::read(folder.path / "adapter_model.safetensors");
  const auto good = load<float>(AdapterFiles{tensors, disk.config.dump(), "config"});
  std::string text = disk.config.dump();
  int accepted = 0;
  for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ 1 << bit % 8);
    try {
      const auto other = load<float>(AdapterFiles{tensors, text, "config"});
      ++accepted;
      CHECK((bits(other.set) == bits(good.set)));  // the numbers are not the config's
      CHECK(other.set.modules() == 4);
    } catch (const Error&) {
    }
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ 1 << bit % 8);
  }
  CHECK(accepted > 0);
}

TEST_CASE("an alpha of 0 is taken with a note", "[io]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  disk.config["lora_alpha"] = 0;
  disk.write(folder.path);
  CHECK(load<float>(folder.path).report.notes.size() == 4);
}

TEST_CASE("numbers are read and written the same in a locale with decimal commas", "[io]") {  // line 128
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  disk.config["lora_alpha"] = 4.5;
  disk.write(folder.path);
  const auto loaded = load<float>(folder.path);
  save(loaded.set, folder.path, loaded.info);
  const std::string text = content(folder.path / "adapter_config.json");
  const CommaLocale commas;
  if (!commas.made()) return skip("no localedef that makes a locale with decimal commas");
  const auto again = load<float>(folder.path);
  save(again.set, folder.path, again.info);
  CHECK(content(folder.path / "adapter_config.json") == text);
  CHECK(std::get<Lora<float>>(again.set.entries()[0].adapter).experts().scale(0) == 1.5f);
}
