// SPDX-License-Identifier: MIT
// The folder as a whole: real adapters, the lenient mode, what a save leaves, and what it refuses.
#include "support/catch.hpp"

#include "io/disk.hpp"

#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;
namespace fs = std::filesystem;

namespace {

const std::string prefix = "base_model.model.", q0 = "model.layers.0.self_attn.q_proj";

AdapterSet<float> lora_set(Index modules = 2, double alpha = 6) {
  AdapterSet<float> set;
  for (Index m = 0; m < modules; ++m)
    set.add("layers." + std::to_string(m) + ".q",
            lora<float>({.in = 4, .out = 5, .rank = 3, .alpha = alpha}));
  set.init(1);
  Rng(2).fill(set.theta(), -1, 1);
  return set;
}

}  // namespace

TEST_CASE("a real adapter of PEFT's loads, and its config is written back byte by byte", "[io]") {
  const auto real = data("peft_gpt2_tigrinya_lora");
  if (!real) return;
  const auto loaded = load<float>(*real);
  CHECK(loaded.set.modules() == 36);
  CHECK(loaded.set.size() == 811008);
  CHECK((loaded.report.clean() && loaded.report.matched.size() == 72));
  CHECK(loaded.set.entries()[33].name == "transformer.h.11.attn.c_attn");  // 11 comes behind 2

  // The same product from the file's own numbers.
  const TensorFile file = TensorFile::read(*real / tensors_name);
  const std::string module = "transformer.h.7.mlp.c_proj";
  Disk disk;
  for (const char* part : {".lora_A.weight", ".lora_B.weight"}) {
    const TensorInfo& t = *file.find(prefix + module + part);
    Disk::Tensor& to = disk.tensors[part];
    to.shape = t.shape;
    to.values.resize(static_cast<std::size_t>(t.shape[0] * t.shape[1]));
    file.load(t, std::span<double>(to.values));
  }
  const std::vector<double> x = some_input(3072);
  std::vector<double> wanted = lora_delta(disk[".lora_A.weight"], disk[".lora_B.weight"], x);
  for (double& v : wanted) v *= 32.0 / 8;
  CHECK(near(run_module(loaded.set, module, x), wanted, 1e-3));

  const TemporaryFolder folder;
  save(loaded.set, folder.path, loaded.info);
  CHECK((content(folder.path / config_name) == content(*real / config_name)));
  const TensorFile ours = TensorFile::read(folder.path / tensors_name);
  REQUIRE(ours.tensors().size() == file.tensors().size());
  for (const TensorInfo& t : file.tensors()) {
    REQUIRE(ours.find(t.name) != nullptr);
    CHECK(ours.bytes(*ours.find(t.name)) == file.bytes(t));
  }
}

TEST_CASE("real tensor files that are no adapters are refused", "[io]") {
  for (const char* name : {"sd_lora_lora_disney.safetensors", "silero_vad_16k.safetensors"}) {
    const auto real = data(name);
    if (!real) return;
    const TensorFile file = TensorFile::read(*real);
    CHECK(file.tensors().size() > 5);
    refused(
        [&] {
          load<float>(AdapterFiles{file, peft_lora().config.dump(), "config"});
        },
        Code::nothing_matched, {"base_model.model."});
  }
}

TEST_CASE("the same content makes the same bytes, and a second load the same set", "[io]") {
  const AdapterSet<float> set = lora_set();
  const TemporaryFolder a, b;
  save(set, a.path);
  save(set, b.path);
  save(set, b.path);
  for (const std::string_view file : {config_name, tensors_name})
    CHECK((content(a.path / file) == content(b.path / file)));
  CHECK(std::distance(fs::directory_iterator(b.path), fs::directory_iterator()) == 2);
  CHECK((bits(load<float>(a.path).set) == bits(load<float>(a.path).set)));
  CHECK((bits(load<float>(a.path).set) == bits(set)));
}

TEST_CASE("a set without a history is written as PEFT would: patterns, and names that are ends of others",
          "[io]") {
  AdapterSet<float> set;
  const std::pair<const char*, Index> modules[] = {
      {"q", 3}, {"a.q", 4}, {"b.a.q", 3}, {"c(1).v+", 5}, {"c.x", 3}};
  for (const auto& [name, rank] : modules)
    set.add(name, lora<float>({.in = 4, .out = 5, .rank = rank, .alpha = rank == 4 ? 7.0 : 6.0}));
  set.init(1);
  const TemporaryFolder folder;
  save(set, folder.path);
  const auto loaded = load<float>(folder.path);
  for (const auto& [name, rank] : modules) {
    INFO(name);
    const auto& bank = std::get<Lora<float>>(loaded.set.entry(loaded.set.find(name)).adapter).experts();
    CHECK(bank.rank(0) == rank);
    CHECK(bank.scale(0) == static_cast<float>((rank == 4 ? 7.0 : 6.0) / static_cast<double>(rank)));
  }
  const auto config = nlohmann::json::parse(content(folder.path / config_name));
  CHECK(config["rank_pattern"] == nlohmann::json{{"^a.q", 4}, {"c\\(1\\).v\\+", 5}});
}

TEST_CASE("scales that were given are written as the alpha that gives them", "[io]") {
  const auto check = [](auto scalar, Index rank, double scale) {
    using S = decltype(scalar);
    AdapterSet<S> set;
    set.add("q",
            Lora<S>(LoraBank<S>(
                        {.in = 4, .out = 5, .rank = rank, .scaling = LoraScaling::fixed, .scales = {scale}}),
                    UniformRouter<S>({.experts = 1})));
    set.init(1);
    const TemporaryFolder folder;
    save(set, folder.path);
    const auto loaded = load<S>(folder.path);
    const auto of = [](const AdapterSet<S>& s) {
      return std::get<Lora<S>>(s.entries()[0].adapter).experts().scale(0);
    };
    CHECK(of(loaded.set) == of(set));
  };
  Rng rng(3);
  for (int round = 0; round < 50; ++round) {
    const Index rank = rng.integer(1, 50);
    check(float{}, rank, rng.uniform(0.01, 9));
    check(double{}, rank, rng.uniform(0.01, 99) / static_cast<double>(rank));
  }
}

TEST_CASE("what a format cannot hold is refused before anything is written", "[io]") {
  const TemporaryFolder folder;
  const auto refused_set = [&](auto&& add, Code code, AdapterInfo info = {}, bool ready = true,
                               std::optional<Format> format = {}) {
    AdapterSet<float> set;
    add(set);
    if (ready) set.init(1);
    refused([&] { save(set, folder.path, info, {.format = format}); }, code);
    CHECK(fs::is_empty(folder.path));
  };
  refused_set([](auto&) {}, Code::state_error);
  refused_set([](auto& s) { s.add("q", lora<float>({.in = 4, .out = 5})); }, Code::state_error, {}, false);
  refused_set(
      [](auto& s) {
        s.add("q", lora<float>({.in = 4, .out = 5}));
        s.add("k", ia3<float>({.features = 4}));
      },
      Code::unsupported_option);
  refused_set(
      [](auto& s) {
        s.add("q", lora<float>({.in = 4, .out = 5}));
        s.add("k", lora<float>({.in = 4, .out = 5, .dropout = 0.5}));
      },
      Code::unsupported_option);
  refused_set([](auto& s) { s.add("q", molora<float>({.in = 4, .out = 5})); }, Code::unsupported_option, {},
              true, Format::peft);
  refused_set([](auto& s) { s.add("", lora<float>({.in = 4, .out = 5})); }, Code::nothing_matched);
  refused_set([](auto& s) { s.add("a\nb", lora<float>({.in = 4, .out = 5})); }, Code::bad_name);
  refused_set([](auto& s) { s.add("a\xff", lora<float>({.in = 4, .out = 5})); }, Code::bad_name);
  refused_set([](auto& s) { s.add(std::string(5000, 'a'), lora<float>({.in = 4, .out = 5})); },
              Code::name_too_long);
  refused_set([](auto& s) { s.add("x.base_layer", lora<float>({.in = 4, .out = 5})); },
              Code::unsupported_option);
  // A config of the caller's that does not mean the set.
  const auto q = [](auto& s) { s.add("q", lora<float>({.in = 4, .out = 5})); };
  refused_set(q, Code::nothing_matched, {.config = {{"target_modules", {"v"}}}});
  refused_set(q, Code::unsupported_option, {.config = {{"use_dora", true}}});
  refused_set(q, Code::invalid_utf8, {.config = {{"base_model_name_or_path", "\xff"}}});
  refused_set(q, Code::unknown_config_key, {.config = {{"what", true}}});
  refused_set(q, Code::unexpected_tensor,
              {.kept = {{"base_model.model.score.weight", Dtype::f32, {1}, io::Bytes(4, '\0')}}});
  refused_set(q, Code::name_taken,
              {.kept = {{"base_model.model.q.lora_A.weight", Dtype::f32, {1}, io::Bytes(4, '\0')}}});
  AdapterSet<float> set = lora_set();
  set.theta()[5] = std::numeric_limits<float>::quiet_NaN();
  refused([&] { save(set, folder.path); }, Code::non_finite);
  set.theta()[5] = 1e6f;
  refused([&] { save(set, folder.path, {}, {.dtype = Dtype::f16}); }, Code::value_range);
  refused([&] { save(set, folder.path, {}, {.dtype = Dtype::i8}); }, Code::unsupported_dtype);
  CHECK(fs::is_empty(folder.path));
}

TEST_CASE("folders that are no place for an adapter are refused", "[io]") {
  const TemporaryFolder folder;
  const AdapterSet<float> set = lora_set();
  refused([&] { save(set, folder.path / "no" / "folder"); }, Code::io_open, {"make the folder", "No such"});
  refused([&] { save(set, folder.path / "none", {}, {.dtype = Dtype::i8}); }, Code::unsupported_dtype);
  CHECK(fs::is_empty(folder.path));
  save(set, folder.path / "made");
  CHECK((bits(load<float>(folder.path / "made").set) == bits(set)));
  std::ofstream(folder.path / "file") << "x";
  refused([&] { save(set, folder.path / "file"); }, Code::io_open);
  fs::create_directories(folder.path / "taken" / tensors_name);
  refused([&] { save(set, folder.path / "taken"); }, Code::not_regular_file);
  CHECK(std::distance(fs::directory_iterator(folder.path / "taken"), fs::directory_iterator()) == 1);
  refused([&] { save_file(folder.path / "no" / "file", std::string("x")); }, Code::io_open,
          {"folder does not exist"});
  refused([&] { load<float>(folder.path / "missing"); }, Code::io_open);
  refused([&] { load<float>(folder.path / "taken"); }, Code::not_regular_file);
  refused([&] { load<float>(Path(std::string("a\0b", 3))); }, Code::io_open);
  refused([&] { save(set, folder.path / std::string("a\0b", 3)); }, Code::io_open, {"NUL"});
  CHECK_FALSE(fs::exists(folder.path / "a"));
}

TEST_CASE("folders of other programs are refused by name", "[io]") {
  const TemporaryFolder folder;
  const auto with = [&](const std::string& file) {
    fs::remove_all(folder.path / "a");
    fs::create_directories(folder.path / "a");
    std::ofstream(folder.path / "a" / "adapter_config.json") << peft_lora().config.dump();
    std::ofstream(folder.path / "a" / file) << "x";
    return folder.path / "a";
  };
  refused([&] { load<float>(with("xlora_config.json")); }, Code::unsupported_option, {"X-LoRA"});
  refused([&] { load<float>(with("xlora_classifier.safetensors")); }, Code::unsupported_option, {"X-LoRA"});
  refused([&] { load<float>(with("adapter.gguf")); }, Code::unsupported_option, {"GGUF"});
  refused([&] { load<float>(with("adapter_model.safetensors.index.json")); }, Code::unsupported_option,
          {"sharded"});
  refused([&] { load<float>(with("adapter_model.bin")); }, Code::io_open, {"adapter_model.bin", "pickle"});
  refused([&] { load<float>(with("README.md")); }, Code::io_open, {"adapter_model.safetensors"});
  std::ofstream(with("adapter_model.safetensors") / tensors_name) << "GGUF and more";
  refused([&] { load<float>(folder.path / "a"); }, Code::not_safetensors, {"GGUF"});
  Disk disk = peft_lora();
  disk.write(folder.path / "b");
  fs::remove(folder.path / "b" / config_name);
  refused([&] { load<float>(folder.path / "b"); }, Code::io_open, {"adapter_config.json"});
}

TEST_CASE("a config that was not saved with the tensors is found", "[io]") {
  const TemporaryFolder a, b;
  AdapterSet<float> one = lora_set(), other = lora_set(2, 8);
  save(one, a.path);
  save(other, b.path);
  fs::copy_file(b.path / config_name, a.path / config_name, fs::copy_options::overwrite_existing);
  refused([&] { load<float>(a.path); }, Code::pair_mismatch, {"adapter_config.json"});
  const std::string before = bits(one);
  refused([&] { load_into(one, a.path); }, Code::pair_mismatch);
  CHECK((bits(one) == before));
  const auto lenient = load<float>(a.path, {.lenient = true});
  CHECK(std::get<Lora<float>>(lenient.set.entries()[0].adapter).experts().scale(0) == 8.0f / 3);
  CHECK(lenient.report.notes.size() == 1);
}

TEST_CASE("a save that is stopped between any two files leaves the old pair or the new one", "[io]") {
  const AdapterSet<float> old_set = lora_set(2, 6), new_set = lora_set(3, 8);
  const TemporaryFolder before, after;
  save(old_set, before.path);
  save(new_set, after.path);
  const auto stopped = [&](const char* next, const Path& tensors, const char* config) {
    const TemporaryFolder folder;
    const auto copy = [&](const Path& from, std::string_view as) { fs::copy_file(from, folder.path / as); };
    if (next != nullptr) copy(next, io::detail::next_config_name);
    if (!tensors.empty()) copy(tensors, tensors_name);
    if (config != nullptr) copy(config, config_name);
    const auto loaded = load<float>(folder.path);
    save(loaded.set, folder.path, loaded.info);  // and the next save clears up
    CHECK_FALSE(fs::exists(folder.path / io::detail::next_config_name));
    return bits(loaded.set);
  };
  const std::string old_config = before.path / config_name, new_config = after.path / config_name;
  const Path old_tensors = before.path / tensors_name, new_tensors = after.path / tensors_name;
  CHECK(stopped(new_config.c_str(), old_tensors, old_config.c_str()) == bits(old_set));
  CHECK(stopped(new_config.c_str(), new_tensors, old_config.c_str()) == bits(new_set));
  CHECK(stopped(new_config.c_str(), new_tensors, new_config.c_str()) == bits(new_set));
  CHECK(stopped(new_config.c_str(), new_tensors, nullptr) == bits(new_set));
}

TEST_CASE("a save that fails leaves the pair that can be loaded, and nothing else", "[io]") {
  const AdapterSet<float> old_set = lora_set(2, 6), new_set = lora_set(3, 8), third = lora_set(40, 9);
  const TemporaryFolder folder;
  const auto entries = [&] {
    return std::distance(fs::directory_iterator(folder.path), fs::directory_iterator());
  };
  const auto blocked = [&](std::string_view file,
                           const AdapterSet<float>& set) {  // which then cannot be replaced
    fs::rename(folder.path / file, folder.path / "aside");
    fs::create_directory(folder.path / file);
    refused([&] { save(set, folder.path); }, Code::not_regular_file, {std::string(file)});
    fs::remove(folder.path / file);
    fs::rename(folder.path / "aside", folder.path / file);
  };
  save(old_set, folder.path);
  blocked(tensors_name, new_set);
  CHECK(entries() == 2);
  CHECK((bits(load<float>(folder.path).set) == bits(old_set)));
  blocked(config_name, new_set);  // behind the tensors: the new pair counts
  CHECK((bits(load<float>(folder.path).set) == bits(new_set)));
  // Another one that fails must not take its config away: the disk is full at its tensors.
  const TemporaryFolder elsewhere;
  save(third, elsewhere.path);
  struct rlimit limit {
  }, before{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  limit = before;
  limit.rlim_cur = fs::file_size(elsewhere.path / tensors_name) - 1;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  refused([&] { save(third, folder.path); }, Code::io_no_space, {"adapter_model.safetensors"});
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(entries() == 2);
  CHECK((bits(load<float>(folder.path).set) == bits(new_set)));
  save(third, folder.path);
  CHECK(entries() == 2);
  CHECK((bits(load<float>(folder.path).set) == bits(third)));
}

TEST_CASE("of two savers at once one wins whole, and a killed one leaves a pair", "[io]") {
  const TemporaryFolder folder;
  const AdapterSet<float> one = lora_set(2, 6), other = lora_set(3, 8);
  save(one, folder.path);
  pid_t children[2];
  for (int c = 0; c < 2; ++c) {
    children[c] = fork();
    if (children[c] == 0) {
      for (;;) save(c == 0 ? one : other, folder.path);
    }
  }
  for (int round = 0; round < 60; ++round) {
    usleep(3000);
    const auto loaded = load<float>(folder.path);
    CHECK((bits(loaded.set) == bits(one) || bits(loaded.set) == bits(other)));
  }
  for (const pid_t child : children) kill(child, SIGKILL);
  for (const pid_t child : children) waitpid(child, nullptr, 0);
  const auto loaded = load<float>(folder.path);  // at rest there is a pair
  CHECK((bits(loaded.set) == bits(one) || bits(loaded.set) == bits(other)));
}

TEST_CASE("a link to the folder's file stays, and permissions are kept", "[io]") {
  const TemporaryFolder folder, elsewhere;
  const AdapterSet<float> set = lora_set();
  save(set, elsewhere.path);
  fs::permissions(elsewhere.path / tensors_name, fs::perms::owner_read | fs::perms::owner_write);
  for (const std::string_view file : {config_name, tensors_name})
    fs::create_symlink(elsewhere.path / file, folder.path / file);
  const AdapterSet<float> other = lora_set(3, 8);
  save(other, folder.path);
  CHECK(fs::is_symlink(folder.path / tensors_name));
  CHECK((bits(load<float>(elsewhere.path).set) == bits(other)));
  CHECK(fs::status(elsewhere.path / tensors_name).permissions() ==
        (fs::perms::owner_read | fs::perms::owner_write));
}

TEST_CASE("the lenient mode reports every fault, and takes what has none", "[io]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  disk.write(folder.path / "good");
  const std::string v0 = "model.layers.0.self_attn.v_proj", q1 = "model.layers.1.self_attn.q_proj";
  disk.add(prefix + q0 + ".lora_B.weight", {10, 2});
  disk.tensors.erase(prefix + q1 + ".lora_B.weight");
  disk.add(prefix + "what", {3});
  disk.config["lora_gamma"] = 1;
  disk.config["rank_pattern"] = {{"k_proj", 3}};
  disk.write(folder.path / "bad");
  const auto loaded = load<float>(folder.path / "bad", {.lenient = true});
  REQUIRE(loaded.set.modules() == 2);
  CHECK(loaded.set.entries()[0].name == v0);
  const Report& r = loaded.report;
  REQUIRE(r.mismatched.size() == 1);
  CHECK((r.mismatched[0].code == Code::rank_mismatch &&
         r.mismatched[0].name == prefix + q0 + ".lora_B.weight"));
  REQUIRE(r.missing.size() == 1);
  CHECK((r.missing[0].code == Code::missing_tensor && r.missing[0].name == q1));
  REQUIRE(r.unexpected.size() == 3);
  CHECK(r.matched.size() == 4);
  CHECK_FALSE(r.clean());

  // Into a set: the modules without faults are taken, the others keep their bits.
  auto set = load<float>(folder.path / "good").set;
  std::fill(set.theta().begin(), set.theta().end(), 9.0f);
  const Report into = load_into(set, folder.path / "bad", {.lenient = true});
  CHECK(into.matched.size() == 4);
  for (const auto& entry : set.entries()) {
    const auto theta = set.theta(set.find(entry.name));
    const bool kept = std::all_of(theta.begin(), theta.end(), [](float v) { return v == 9.0f; });
    CHECK(kept == (entry.name == q0 || entry.name == q1));
  }
  CHECK(into.missing.size() >= 2);

  // Nothing left to take is an error here too.
  disk.config["r"] = 4;
  disk.write(folder.path / "bad");
  refused([&] { load<float>(folder.path / "bad", {.lenient = true}); }, Code::nothing_matched);
  const std::string before = bits(set);
  refused([&] { load_into(set, folder.path / "bad", {.lenient = true}); }, Code::nothing_matched);
  CHECK((bits(set) == before));
}

TEST_CASE("a message lists at most twenty faults and counts the others", "[io]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  for (int i = 0; i < 30; ++i) disk.add("x" + std::to_string(i), {1});
  disk.write(folder.path);
  refused([&] { load<float>(folder.path); }, Code::unexpected_tensor, {"and 10 more", "'x0'"});
}

TEST_CASE("all prefixes of an adapter's tensor file are refused, and every flipped bit is found", "[io]") {
  const TemporaryFolder folder;
  AdapterSet<float> set = lora_set(1), target = lora_set(1);
  Rng(8).fill(target.theta(), -1, 1);
  save(set, folder.path);
  const std::string before = bits(target), text = content(folder.path / config_name);
  std::string file = content(folder.path / tensors_name);
  const auto check = [&](std::string_view bytes) {
    CHECK_THROWS_AS(load_into(target, AdapterFiles{TensorFile::parse(bytes), text, "config"}), Error);
  };
  for (std::size_t n = 0; n < file.size(); ++n) check(std::string_view(file).substr(0, n));
  for (std::size_t bit = 0; bit < 8 * file.size(); bit += 5) {
    file[bit / 8] = static_cast<char>(file[bit / 8] ^ 1 << bit % 8);
    check(file);
    file[bit / 8] = static_cast<char>(file[bit / 8] ^ 1 << bit % 8);
  }
  CHECK((bits(target) == before));
  CHECK_NOTHROW(load_into(target, AdapterFiles{TensorFile::parse(file), text, "config"}));
  CHECK((bits(target) == bits(set)));
}
