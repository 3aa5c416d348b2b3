// SPDX-License-Identifier: MIT
// Adapters whose tensors are in a file of torch.save, and files that are looked at before they are loaded.
#include "support/catch.hpp"

#include "io/disk_bin.hpp"

#include <moxie/io/adapter_files.hpp>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;

TEST_CASE("an adapter in a .bin is that of a safetensors file, where it is asked for", "[io]") {
  const TemporaryFolder folder;
  const Disk disk = peft_lora();
  disk.write(folder.path / "safe");
  write_torch(disk, folder.path / "bin");
  const auto safe = load<float>(folder.path / "safe"), bin = load_torch<float>(folder.path / "bin");
  CHECK((bits(bin.set) == bits(safe.set)));
  CHECK(bin.info.config == safe.info.config);
  CHECK(bin.report.matched.size() == 8);
  auto target = safe.set;
  Rng(1).fill(target.theta(), -1, 1);
  CHECK(load_torch_into(target, folder.path / "bin").clean());
  CHECK((bits(target) == bits(safe.set)));

  refused([&] { load<float>(folder.path / "bin"); }, Code::io_open, {"adapter_model.bin"});
  refused([&] { load_torch<float>(folder.path / "safe"); }, Code::io_open, {"adapter_model.bin"});
  refused([&] { load_torch<float>(folder.path / "bin", {.adapter = "../bin"}); }, Code::bad_name);
  Rng(2).fill(target.theta(), -1, 1);
  const std::string before = bits(target);
  std::filesystem::resize_file(folder.path / "bin" / torch_tensors_name, 500);
  refused([&] { load_torch_into(target, folder.path / "bin"); }, Code::file_truncated);
  CHECK((bits(target) == before));
  std::filesystem::remove(folder.path / "bin" / config_name);
  write_torch(disk, folder.path / "other");
  std::filesystem::remove(folder.path / "other" / config_name);
  refused([&] { load_torch<float>(folder.path / "other"); }, Code::io_open, {"adapter_config.json"});
}

TEST_CASE("tied tensors are two of the same numbers, and are saved as two", "[io]") {  // line 110
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  disk.config["modules_to_save"] = {"embed", "head"};
  disk.add("base_model.model.embed.weight", {5, 3});
  disk.tensors["base_model.model.head.weight"] = disk["base_model.model.embed.weight"];
  write_torch(disk, folder.path);
  const auto tied = load_torch<float>(folder.path);
  save(tied.set, folder.path, tied.info);
  const auto saved = load<float>(folder.path);
  for (const auto* const loaded : {&tied, &saved}) {
    REQUIRE(loaded->info.kept.size() == 2);
    CHECK(loaded->info.kept[0].name != loaded->info.kept[1].name);
    CHECK(loaded->info.kept[0].values == loaded->info.kept[1].values);
    CHECK(loaded->info.kept[0].values[4] == disk["base_model.model.head.weight"].values[4]);
  }
}

TEST_CASE("files are read as they are, and loaded later", "[io]") {
  const TemporaryFolder folder;
  peft_lora().write(folder.path);
  const AdapterFiles files = read_adapter(folder.path);
  CHECK(files.tensors.tensors().size() == 8);
  CHECK(files.config == content(folder.path / config_name));
  const auto loaded = load_from<float>(files.tensors, files.config, files.config_path);
  CHECK((bits(loaded.set) == bits(load<float>(folder.path).set)));
  // What is no adapter is found out by load_from alone.
  Disk other;
  other.config = {{"peft_type", "LORA"}, {"r", 1}, {"lora_alpha", 1}, {"target_modules", {"conv"}}};
  other.add("conv.weight", {2, 3});
  other.write(folder.path);
  const AdapterFiles none = read_adapter(folder.path);
  CHECK(none.tensors.tensors().size() == 1);
  refused([&] { load_from<float>(none.tensors, none.config, none.config_path); }, Code::nothing_matched);
}

TEST_CASE("a number of a tensor is given as it is, NaN too", "[io]") {
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})";
  const TensorFile file = TensorFile::parse(little(header.size(), 8) + header +
                                            std::string("\0\0\xc0\x7f\0\0\x20\xc0", 8) + "\1");
  const TensorInfo &a = *file.find("a"), &b = *file.find("b");
  CHECK(std::isnan(file.number(a, 0)));
  CHECK(file.number(a, 1) == -2.5);
  refused([&] { file.number(a, 2); }, Code::shape_mismatch, {"'a'", "2"});
  refused([&] { file.number(b, 0); }, Code::unsupported_dtype, {"'b'", "U8"});
}
