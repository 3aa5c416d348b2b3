// SPDX-License-Identifier: MIT
// Adapters whose tensors are in a file of torch.save, and files that are looked at before they are loaded.
#include "support/catch.hpp"

#include "io/disk_bin.hpp"

#include <moxie/io/torch_adapter.hpp>

#include <cstring>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;

TEST_CASE("an adapter in a .bin is that of a safetensors file, where it is asked for", "[io]") {
  const TemporaryFolder folder;
  const Disk disk = peft_lora();
  disk.write(folder.path / "safe");
  write_torch(disk, folder.path / "bin");
  const auto safe = load<float>(folder.path / "safe"),
             bin = load<float>(read_torch_adapter(folder.path / "bin"));
  CHECK((bits(bin.set) == bits(safe.set)));
  CHECK(bin.info.config == safe.info.config);
  CHECK(bin.report.matched.size() == 8);
  auto target = safe.set;
  Rng(1).fill(target.theta(), -1, 1);
  CHECK(load_into(target, read_torch_adapter(folder.path / "bin")).clean());
  CHECK((bits(target) == bits(safe.set)));

  refused([&] { load<float>(folder.path / "bin"); }, Code::io_open,
          {"adapter_model.bin", "read_torch_adapter", "--torch-bin"});
  refused([&] { read_torch_adapter(folder.path / "safe"); }, Code::io_open, {"adapter_model.bin"});
  Rng(2).fill(target.theta(), -1, 1);
  const std::string before = bits(target);
  std::filesystem::resize_file(folder.path / "bin" / torch_tensors_name, 500);
  refused([&] { load_into(target, read_torch_adapter(folder.path / "bin")); }, Code::file_truncated);
  CHECK((bits(target) == before));
  std::filesystem::remove(folder.path / "bin" / config_name);
  write_torch(disk, folder.path / "other");
  std::filesystem::remove(folder.path / "other" / config_name);
  refused([&] { read_torch_adapter(folder.path / "other"); }, Code::io_open, {"adapter_config.json"});
}

TEST_CASE("tied tensors are two of the same numbers, and are saved as two", "[io]") {  // line 110
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  disk.config["modules_to_save"] = {"embed", "head"};
  disk.add("base_model.model.embed.weight", {5, 3});
  disk.tensors["base_model.model.head.weight"] = disk["base_model.model.embed.weight"];
  write_torch(disk, folder.path);
  const auto tied = load<float>(read_torch_adapter(folder.path));
  save(tied.set, folder.path, tied.info);
  const auto saved = load<float>(folder.path);
  for (const auto* const loaded : {&tied, &saved}) {
    REQUIRE(loaded->info.kept.size() == 2);
    CHECK(loaded->info.kept[0].name != loaded->info.kept[1].name);
    CHECK(loaded->info.kept[0].bytes == loaded->info.kept[1].bytes);
    float fifth = 0;
    std::memcpy(&fifth, loaded->info.kept[0].bytes.data() + 4 * sizeof fifth, sizeof fifth);
    CHECK(fifth == static_cast<float>(disk["base_model.model.head.weight"].values[4]));
  }
}

TEST_CASE("files are read as they are, and loaded later", "[io]") {
  const TemporaryFolder folder;
  peft_lora().write(folder.path);
  const AdapterFiles files = read_adapter(folder.path);
  CHECK(files.tensors.tensors().size() == 8);
  CHECK(files.config == content(folder.path / config_name));
  const auto loaded = load<float>(files);
  CHECK((bits(loaded.set) == bits(load<float>(folder.path).set)));
  // What is no adapter is found out by load alone.
  Disk other;
  other.config = {{"peft_type", "LORA"}, {"r", 1}, {"lora_alpha", 1}, {"target_modules", {"conv"}}};
  other.add("conv.weight", {2, 3});
  other.write(folder.path);
  const AdapterFiles none = read_adapter(folder.path);
  CHECK(none.tensors.tensors().size() == 1);
  refused([&] { load<float>(none); }, Code::nothing_matched);
}

TEST_CASE("NaN and infinities are taken where they are allowed, and noted", "[io]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  auto& [name, tensor] = *disk.tensors.begin();
  tensor.values[1] = std::numeric_limits<double>::quiet_NaN();
  tensor.values[2] = -std::numeric_limits<double>::infinity();
  disk.write_plain(folder.path);
  refused([&] { load<float>(folder.path); }, Code::non_finite, {"number 1", name});
  const auto loaded = load<float>(folder.path, {.allow_non_finite = true});
  REQUIRE(loaded.report.notes.size() == 1);
  CHECK(loaded.report.notes[0].name == name);
  CHECK(loaded.report.notes[0].what == "2 numbers are NaN or infinite");
  const auto theta = loaded.set.theta();
  CHECK(std::count_if(theta.begin(), theta.end(), [](float v) { return !std::isfinite(v); }) == 2);
  // What is only too large for the scalar is still refused.
  tensor.dtype = Dtype::f64;
  tensor.values[0] = 1e300;
  disk.write_plain(folder.path);
  refused([&] { load<float>(folder.path, {.narrow = true, .allow_non_finite = true}); }, Code::value_range);
}

TEST_CASE("a fault of the config names the config's file", "[io]") {
  const TemporaryFolder folder;
  const auto check = [&](const char* key, const nlohmann::json& value, Code code) {
    Disk disk = peft_lora();
    disk.config[key] = value;
    disk.write(folder.path);
    refused([&] { load<float>(folder.path); }, code, {"adapter_config.json", "/"});
  };
  check("what", true, Code::unknown_config_key);
  check("rank_pattern", {{"k_proj", 3}}, Code::pattern_unused);
  check("rank_pattern", {{"(*", 3}}, Code::pattern_syntax);
  check("target_modules", "(*", Code::pattern_syntax);
}
