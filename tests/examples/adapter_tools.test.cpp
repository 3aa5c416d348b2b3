// SPDX-License-Identifier: MIT
// adapter_apply, adapter_inspect and adapter_convert, run as programs. What they compute is compared with
// sums over the tensors as they lie on disk.
#include "support/catch.hpp"

#include "io/disk_bin.hpp"
#include "io/mixture_disks.hpp"

#include <sys/wait.h>

#include <Eigen/SVD>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

struct Ran {
  int status = -1;
  std::string out, err;
};
Ran run(const std::string& program, const std::vector<std::string>& arguments) {
  const TemporaryFolder folder;
  std::string command = "'" + program + "'";
  for (const std::string& argument : arguments) command += " '" + argument + "'";
  command += " > '" + (folder.path / "out").string() + "' 2> '" + (folder.path / "err").string() + "'";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content(folder.path / "out"),
          content(folder.path / "err")};
}
const std::string apply = MOXIE_ADAPTER_APPLY, inspect = MOXIE_ADAPTER_INSPECT,
                  convert = MOXIE_ADAPTER_CONVERT;

/// Ended with 2 after one line "error: Code: message" that holds the words.
void check_error(const Ran& ran, std::string_view code, const std::vector<std::string>& words = {}) {
  INFO(ran.err);
  CHECK(ran.status == 2);
  CHECK(std::count(ran.err.begin(), ran.err.end(), '\n') == 1);
  CHECK(ran.err.starts_with("error: " + std::string(code) + ": "));
  CHECK(ran.err.ends_with('\n'));
  for (const std::string& word : words) CHECK(ran.err.find(word) != std::string::npos);
}

/// Tensor x, [T, d].
void write_x(const Path& path, Index rows, Index d, Dtype dtype = Dtype::f32, const std::string& name = "x") {
  Disk disk;
  disk.add(name, {rows, d}, dtype);
  TensorWriter writer;
  writer.add(name, {rows, d}, std::span<const double>(disk[name].values), dtype);
  writer.save(path);
}
Numbers values_of(const TensorFile& file, const std::string& name) {
  const TensorInfo* const t = file.find(name);
  REQUIRE(t != nullptr);
  Index count = 1;
  for (const Index n : t->shape) count *= n;
  Numbers values(static_cast<std::size_t>(count));
  file.load(*t, std::span<double>(values));
  return values;
}

/// Modules of one projection in the names of MoLA's fork or of MoE-PEFT, alike in both layers.
Disk top_k_disk(bool mola) {
  return mola ? mola_disk({4, 4}, {3, 3}, {"self_attn.q_proj"})
              : moe_peft_disk(true, {"self_attn.q_proj"}, 2);
}
const Names& top_k_names(bool mola) { return mola ? mola_names : moe_peft_mola_names; }
/// A LoRA's config where the rest does not matter.
json lora_config(const char* type, const std::vector<std::string>& targets, int r, int alpha) {
  json config = common(type, targets);
  config.update({{"r", r}, {"lora_alpha", alpha}});
  return config;
}

/// Applies and compares every row.
template <class F>
void check_apply(const Path& dir, const std::string& module, const Path& x, bool in_double,
                 const std::string& tensor, F&& row_of, const std::vector<std::string>& more = {}) {
  const TemporaryFolder folder;
  const std::string output = folder.path / "y.safetensors";
  std::vector<std::string> arguments{dir.string(), "--module", module, "--input",
                                     x.string(),   "--output", output};
  if (in_double) arguments.push_back("--double");
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Ran ran = run(apply, arguments);
  INFO(ran.err);
  REQUIRE(ran.status == 0);
  CHECK((ran.out.empty() && ran.err.empty()));
  const TensorFile in = TensorFile::read(x), out = TensorFile::read(output);
  REQUIRE(out.tensors().size() == 1);
  CHECK(out.tensors()[0].dtype == (in_double ? Dtype::f64 : Dtype::f32));
  const Numbers got = values_of(out, tensor), given = values_of(in, "x");
  const Index rows = in.find("x")->shape[0], d = in.find("x")->shape[1];
  CHECK(out.tensors()[0].shape[0] == rows);
  const auto width = static_cast<std::size_t>(out.tensors()[0].shape[1]);
  for (Index t = 0; t < rows; ++t) {
    const Numbers wanted = row_of(
        std::span<const double>(given).subspan(static_cast<std::size_t>(t * d), static_cast<std::size_t>(d)));
    REQUIRE(wanted.size() == width);
    const auto at = got.begin() + static_cast<std::ptrdiff_t>(t) * static_cast<std::ptrdiff_t>(width);
    CHECK(near(Numbers(at, at + static_cast<std::ptrdiff_t>(width)), wanted, in_double ? 1e-12 : 2e-4));
  }
}

}  // namespace

TEST_CASE("adapter_apply computes the delta of a LoRA", "[tools]") {
  const TemporaryFolder folder;
  const Disk disk = peft_lora();
  disk.write(folder.path / "lora");
  const std::string q1 = "model.layers.1.self_attn.q_proj";
  const auto delta = [&](std::span<const double> x) {
    Numbers y = lora_delta(disk[prefix + q1 + ".lora_A.weight"], disk[prefix + q1 + ".lora_B.weight"], x);
    for (double& v : y) v *= 2;
    return y;
  };
  for (const Dtype dtype : {Dtype::f32, Dtype::f64})
    for (const Index rows : {5, 1, 0}) {
      const Path x = folder.path / "x.safetensors";
      write_x(x, rows, 12, dtype);
      for (const bool in_double : {false, true})
        check_apply(folder.path / "lora", q1, x, in_double, "delta", delta);
    }
  // Any end of the name that no other module has.
  write_x(folder.path / "x.safetensors", 3, 12);
  for (const char* end : {"layers.1.self_attn.q_proj", "1.self_attn.q_proj"})
    check_apply(folder.path / "lora", end, folder.path / "x.safetensors", true, "delta", delta);
}

TEST_CASE("adapter_apply scales the activation of an IA3", "[tools]") {
  const TemporaryFolder folder;
  const Disk disk = ia3_disk();
  disk.write(folder.path / "ia3");
  for (const auto& [module, d] :
       {std::pair{"layers.0.self_attn.k_proj", Index{6}}, std::pair{"layers.0.mlp.down_proj", Index{12}}}) {
    write_x(folder.path / "x.safetensors", 4, d);
    const Numbers& l = disk[prefix + "model." + module + ".ia3_l"].values;
    check_apply(folder.path / "ia3", module, folder.path / "x.safetensors", true, "scaled", [&](auto x) {
      Numbers y(x.begin(), x.end());
      for (std::size_t i = 0; i < y.size(); ++i) y[i] *= l[i];
      return y;
    });
  }
}

TEST_CASE("adapter_apply takes the chosen experts' number from the file, the command line or MoLA",
          "[tools]") {
  const TemporaryFolder folder;
  write_x(folder.path / "x.safetensors", 20, 12);
  const auto check = [&](const Disk& disk, bool mola, Index layer, std::size_t k,
                         const std::vector<std::string>& more) {
    disk.write(folder.path / "moe");
    const Names& names = top_k_names(mola);
    check_apply(
        folder.path / "moe", std::to_string(layer) + ".self_attn.q_proj", folder.path / "x.safetensors", true,
        "delta",
        [&](auto x) { return mixture(disk, names, names.module(layer, "self_attn.q_proj"), k, {2}, x); },
        more);
  };
  const Disk mola = top_k_disk(true), moe_peft = top_k_disk(false);
  check(mola, true, 1, 2, {});
  check(mola, true, 1, 3, {"--top-k", "3"});
  check(mola, true, 0, 1, {"--top-k", "1,4"});
  check(mola, true, 1, 4, {"--top-k", "1,4"});
  check(moe_peft, false, 1, 3, {});
  check(moe_peft, false, 1, 3, {"--top-k", "3"});
}

TEST_CASE("adapter_apply reads a .bin where that is asked for", "[tools]") {
  const TemporaryFolder folder;
  const Path dir = folder.path / "mola", x = folder.path / "x.safetensors";
  const Disk disk = top_k_disk(true);
  write_torch(disk, dir);
  write_x(x, 6, 12);
  const std::string module = mola_names.module(0, "self_attn.q_proj");
  check_apply(dir, "0.self_attn.q_proj", x, true, "delta",
              [&](auto row) { return mixture(disk, mola_names, module, 2, {2}, row); }, {"--torch-bin"});
  const std::string output = folder.path / "y.safetensors";
  check_error(run(apply, {dir, "--module", "0.self_attn.q_proj", "--input", x, "--output", output}), "IoOpen",
              {"adapter_model.bin"});
  CHECK(!fs::exists(output));
}

TEST_CASE("adapter_apply refuses every wrong use in one line, and leaves no file behind", "[tools]") {
  const TemporaryFolder folder;
  const auto at = [&](const char* name) { return (folder.path / name).string(); };
  const Disk good = peft_lora();
  good.write(at("good"));
  ia3_disk().write(at("ia3"));
  top_k_disk(true).write(at("mola"));
  top_k_disk(false).write(at("moe_peft"));
  Disk bad = peft_lora();
  bad.config["use_dora"] = true;
  bad.write(at("dora"));
  write_x(at("x"), 2, 12);
  write_x(at("wide"), 2, 13);
  write_x(at("half"), 2, 12, Dtype::f16);
  write_x(at("y"), 2, 12, Dtype::f32, "y");
  std::ofstream(at("text")) << "no tensors";
  const std::string q1 = "layers.1.self_attn.q_proj", nowhere = at("missing") + "/y";
  struct Wrong {
    std::vector<std::string> arguments;
    std::string code;
    std::vector<std::string> words;
    std::string output = {};
  };
  const auto plain = [&](const std::string& dir, const std::string& module, const std::string& x) {
    return std::vector<std::string>{at(dir.c_str()), "--module", module, "--input", at(x.c_str())};
  };
  const auto with = [](std::vector<std::string> arguments, const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  const std::vector<Wrong> wrongs{
      {plain("good", "q_proj", "x"), "UnknownName", {"'q_proj'", "2 modules", "layers.0", "layers.1"}},
      {plain("good", "roj", "x"), "UnknownName", {"'roj'", "4 modules"}},
      {plain("good", "", "x"), "UnknownName", {}},
      {plain("good", ".q_proj", "x"), "UnknownName", {}},
      {plain("good", q1, "wide"), "ShapeMismatch", {"[2, 13]", "[T, 12]", "q_proj"}},
      {plain("good", q1, "half"), "DtypeMismatch", {"F16", "F32 or F64"}},
      {plain("good", q1, "y"), "MissingTensor", {"'x'"}},
      {plain("good", q1, "text"), "HeaderTooLarge", {}},
      {plain("good", q1, "none"), "IoOpen", {"none"}},
      {plain("none", q1, "x"), "IoOpen", {"none"}},
      {plain("dora", q1, "x"), "UnsupportedOption", {"use_dora"}},
      {with(plain("good", q1, "x"), {"--top-k", "2"}), "ConfigMismatch", {"--top-k"}},
      {with(plain("ia3", "0.self_attn.k_proj", "x"), {"--top-k", "2"}), "ConfigMismatch", {"--top-k"}},
      {with(plain("moe_peft", q1, "x"), {"--top-k", "2"}), "ConfigMismatch", {"top_k, 3"}},
      {with(plain("mola", q1, "x"), {"--top-k", "5"}), "ConfigRange", {"5", "4 experts"}},
      {with(plain("mola", q1, "x"), {"--top-k", "0"}), "Usage", {"--top-k"}},
      {with(plain("mola", q1, "x"), {"--top-k", "two"}), "Usage", {"--top-k"}},
      {with(plain("good", q1, "x"), {"--no-such"}), "Usage", {"--no-such"}},
      {{at("good"), "--module", q1}, "Usage", {"--input"}},
      {{}, "Usage", {}},
      {plain("good", q1, "x"), "IoOpen", {"missing"}, nowhere},
      {plain("good", q1, "x"), "NotRegularFile", {"good"}, at("good")},
      {plain("good", q1, "x"), "NotRegularFile", {"/dev/full"}, "/dev/full"},
  };
  for (const Wrong& wrong : wrongs)
    for (const bool there : {false, true}) {
      const std::string output = wrong.output.empty() ? at("out") : wrong.output;
      if (there && !wrong.output.empty()) continue;
      fs::remove(at("out"));
      if (there) std::ofstream(output) << "as it was";
      const auto before = std::distance(fs::directory_iterator(folder.path), fs::directory_iterator());
      check_error(run(apply, with(wrong.arguments, {"--output", output})), wrong.code, wrong.words);
      CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == before);
      if (there) CHECK(content(output) == "as it was");
    }
  // An output in the place of the input.
  check_apply(at("good"), q1, at("x"), false, "delta", [&](auto x) {
    Numbers y = lora_delta(good[prefix + "model." + q1 + ".lora_A.weight"],
                           good[prefix + "model." + q1 + ".lora_B.weight"], x);
    for (double& v : y) v *= 2;
    return y;
  });
  CHECK(run(apply, with(plain("good", q1, "x"), {"--output", at("x")})).status == 0);
  CHECK(TensorFile::read(at("x")).tensors()[0].name == "delta");
  const Ran help = run(apply, {"--help"});
  CHECK((help.status == 0 && help.err.empty() && help.out.find("--torch-bin") != std::string::npos));
}

TEST_CASE("adapter_apply on a real adapter of PEFT's", "[tools]") {
  const auto real = moxie::test::data("peft_gpt2_tigrinya_lora");
  if (!real) return;
  const TensorFile file = TensorFile::read(*real / "adapter_model.safetensors");
  const TemporaryFolder folder;
  write_x(folder.path / "x", 3, 3072);
  const std::string name = prefix + "transformer.h.11.mlp.c_proj.lora_";
  const Disk::Tensor a{{8, 3072}, values_of(file, name + "A.weight")},
      b{{768, 8}, values_of(file, name + "B.weight")};
  for (const bool in_double : {false, true})
    check_apply(*real, "h.11.mlp.c_proj", folder.path / "x", in_double, "delta", [&](auto x) {
      Numbers y = lora_delta(a, b, x);
      for (double& v : y) v *= 32.0 / 8;
      return y;
    });
}

namespace {

Eigen::MatrixXd product(const Disk::Tensor& a, const Disk::Tensor& b, double scale) {
  Eigen::MatrixXd u = Eigen::MatrixXd::Zero(b.shape[0], a.shape[1]);
  for (Index k = 0; k < a.shape[0]; ++k)
    for (Index o = 0; o < u.rows(); ++o)
      for (Index i = 0; i < u.cols(); ++i) u(o, i) += scale * b.at(o, k) * a.at(k, i);
  return u;
}
double effective_rank_of(const Eigen::MatrixXd& u) {
  const Eigen::VectorXd sigma = Eigen::JacobiSVD<Eigen::MatrixXd>(u).singularValues();
  double entropy = 0;
  for (const double s : sigma)
    if (s > 1e-12 * sigma[0]) entropy -= s / sigma.sum() * std::log(s / sigma.sum());
  return std::exp(entropy);
}
bool close(const json& got, double wanted) {
  return std::abs(got.get<double>() - wanted) <= 1e-10 * std::abs(wanted);
}

json inspected(const Path& path) {
  const Ran ran = run(inspect, {path.string(), "--json"});
  INFO(ran.err);
  REQUIRE((ran.status == 0 && ran.err.empty()));
  return json::parse(ran.out);
}

}  // namespace

TEST_CASE("adapter_inspect tells a LoRA's shapes, norms and effective ranks", "[tools]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  for (auto& [name, t] : disk.tensors) t.dtype = Dtype::bf16;
  disk.write(folder.path);
  const json j = inspected(folder.path);
  CHECK(j["format"] == "peft");
  CHECK((j["kind"] == "LoRA" && j["method"] == "LoRA" && j["base_model"] == "some/base"));
  REQUIRE(j["modules"].size() == 4);
  CHECK(j["warnings"].empty());
  CHECK(j["totals"] == json({{"modules", 4},
                             {"experts", 4},
                             {"parameters", 246},
                             {"tensors", 8},
                             {"dtypes", {{"BF16", 8}}},
                             {"bytes", 492}}));
  for (const json& m : j["modules"]) {
    const std::string name = prefix + m["name"].get<std::string>();
    INFO(name);
    const auto &a = disk[name + ".lora_A.weight"], &b = disk[name + ".lora_B.weight"];
    CHECK((m["in"] == 12 && m["out"] == b.shape[0] && m["dtype"] == json::array({"BF16"})));
    REQUIRE(m["experts"].size() == 1);
    const json& e = m["experts"][0];
    CHECK((e["rank"] == 3 && e["alpha"] == 6 && e["scale"] == 2));
    const Eigen::MatrixXd u = product(a, b, 2);
    CHECK(close(e["norm"], u.norm()));
    CHECK(close(e["effective_rank"], effective_rank_of(u)));
  }
  const Ran text = run(inspect, {folder.path});
  CHECK((text.status == 0 && text.err.empty()));
  for (const char* word :
       {"some/base", "BF16", "model.layers.1.self_attn.v_proj", "4 modules", "effective rank"})
    CHECK(text.out.find(word) != std::string::npos);
  // The file itself is as good as its folder.
  CHECK(inspected(folder.path / "adapter_model.safetensors")["modules"] == j["modules"]);
}

TEST_CASE("adapter_inspect tells a mixture's experts and draws how far they differ", "[tools]") {
  const TemporaryFolder folder;
  for (const bool mola : {true, false}) {
    const Disk disk = top_k_disk(mola);
    disk.write(folder.path);
    const std::string picture = folder.path / "map.svg";
    const Ran ran = run(inspect, {folder.path, "--json", "--svg", picture});
    INFO(ran.err);
    REQUIRE(ran.status == 0);
    const json j = json::parse(ran.out);
    CHECK((j["format"] == (mola ? "mola" : "moe-peft") && j["method"] == "MoLA"));
    REQUIRE(j["modules"].size() == 2);
    const std::string svg = content(picture);
    CHECK(svg.find("experts of each module differ") != std::string::npos);
    for (std::size_t l = 0; l < 2; ++l) {
      const json& m = j["modules"][l];
      CHECK((m["router"] == (mola ? "top-2 (assumed)" : "top-3") && m["experts"].size() == 4));
      CHECK(m["dtype"] == json::array({"F32"}));
      const Names& names = top_k_names(mola);
      const std::string module = names.module(static_cast<Index>(l), "self_attn.q_proj");
      std::vector<Eigen::MatrixXd> updates;
      for (std::size_t e = 0; e < 4; ++e) {
        updates.push_back(
            product(disk[module + of_expert(names.a, e)], disk[module + of_expert(names.b, e)], 2));
        CHECK(close(m["experts"][e]["norm"], updates.back().norm()));
        CHECK(close(m["experts"][e]["effective_rank"], effective_rank_of(updates.back())));
      }
      double mean = 0;
      for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t k = 0; k < i; ++k) mean += (updates[i] - updates[k]).norm() / 6;
      CHECK(close(m["mean_difference"], mean));
      char cell[32];
      std::snprintf(cell, sizeof cell, mean >= 100 ? ">%.0f<" : ">%.1f<", mean);
      INFO(cell);
      CHECK(svg.find(cell) != std::string::npos);
    }
  }
}

TEST_CASE("adapter_inspect warns of experts that change nothing and of NaN", "[tools]") {
  const TemporaryFolder folder;
  Disk disk = top_k_disk(true);
  const std::string module = prefix + "model.layers.1.self_attn.q_proj";
  for (double& v : disk.tensors.at(module + ".lora_B_2.weight").values) v = 0;
  disk.tensors.at(module + ".lora_A_3.weight").values[5] = std::numeric_limits<double>::quiet_NaN();
  disk.tensors.at(module + ".lora_A_3.weight").values[6] = -std::numeric_limits<double>::infinity();
  disk.write_plain(folder.path);
  const json j = inspected(folder.path);
  REQUIRE(j["warnings"].size() == 2);
  const std::string warnings = j["warnings"].dump();
  for (const char* words : {"layers.1.self_attn.q_proj.lora_A_3.weight': 2 numbers are NaN or infinite",
                            "layers.1.self_attn.q_proj, expert 2: B is all zeros"})
    CHECK(warnings.find(words) != std::string::npos);
  const json& experts = j["modules"][1]["experts"];
  CHECK((experts[2]["norm"] == 0 && experts[2]["effective_rank"] == 0));
  CHECK((experts[3]["norm"].is_null() && experts[3]["effective_rank"].is_null()));
  CHECK((experts[0]["norm"] > 0 && experts[1]["effective_rank"] > 1));
  const Ran ran = run(inspect, {folder.path, "--svg", folder.path / "map.svg"});
  CHECK(ran.status == 0);
  CHECK(ran.out.find("\nwarning: ") != std::string::npos);
  check_error(run(apply, {folder.path, "--module", "1.self_attn.q_proj", "--input", "x", "--output", "y"}),
              "NonFinite");

  ia3_disk().write(folder.path / "ia3");
  Disk ones = ia3_disk();
  for (double& v : ones.tensors.begin()->second.values) v = 1;
  ones.write(folder.path / "ia3");
  const json ia3 = inspected(folder.path / "ia3");
  CHECK((ia3["kind"] == "IA3" && ia3["method"] == "IA3" && ia3["warnings"].size() == 1));
  CHECK(ia3["modules"][1]["experts"][0].contains("norm"));
  CHECK(run(inspect, {folder.path / "ia3", "--svg", folder.path / "ia3.svg"}).status == 0);
}

TEST_CASE("adapter_inspect bounds what a file may ask of it", "[tools]") {
  const TemporaryFolder folder;
  // 3,000 experts would be 72 MB of pairs for each module.
  Disk many;
  many.config = common("MOV", {"k"});
  many.config["num_experts"] = 3000;
  many.add(prefix + "k.ia3_l", {3000, 1});
  many.add(prefix + "k.router.weight", {3000, 1});
  many.write(folder.path / "many");
  const json j = inspected(folder.path / "many");
  CHECK(j["modules"][0]["experts"].size() == 3000);
  CHECK(j["modules"][0]["mean_difference"].is_null());
  // 200 modules that have neither layer nor projection in common are 40,000 cells.
  Disk wide;
  wide.config = common("LORA", {});
  wide.config["r"] = wide.config["lora_alpha"] = 1;
  for (int m = 0; m < 200; ++m) {
    const std::string name = "a." + std::to_string(m) + ".p" + std::to_string(m);
    wide.config["target_modules"].push_back(name);
    wide.add(prefix + name + ".lora_A.weight", {1, 1});
    wide.add(prefix + name + ".lora_B.weight", {1, 1});
  }
  wide.config["base_model_name_or_path"] = "a\x1b[2Jbase";
  wide.write(folder.path / "wide");
  check_error(run(inspect, {folder.path / "wide", "--svg", folder.path / "map.svg"}), "TooLarge",
              {"200 layers by 200 projections"});
  CHECK(!std::filesystem::exists(folder.path / "map.svg"));
  const Ran ran = run(inspect, {folder.path / "wide"});
  CHECK(ran.status == 0);
  CHECK(ran.out.find('\x1b') == std::string::npos);
  CHECK(ran.out.find("a?[2Jbase") != std::string::npos);
}

TEST_CASE("adapter_inspect takes a file of a folder with the folder's own check", "[tools]") {
  const TemporaryFolder folder;
  peft_lora().write(folder.path / "in");
  REQUIRE(run(convert, {folder.path / "in", folder.path / "out", "--to", "peft"}).status == 0);
  const Path tensors = folder.path / "out" / "adapter_model.safetensors";
  CHECK(run(inspect, {tensors}).status == 0);
  json config = json::parse(content(folder.path / "out" / "adapter_config.json"));
  config["lora_alpha"] = 17;
  std::ofstream(folder.path / "out" / "adapter_config.json") << config.dump(2);
  for (const Path& path : {tensors, folder.path / "out"}) {
    check_error(run(inspect, {path}), "PairMismatch");
    CHECK(run(inspect, {path, "--lenient"}).status == 0);
  }
}

TEST_CASE("option --lenient leaves out what is not whole, with a warning", "[tools]") {
  const TemporaryFolder folder;
  Disk disk = peft_lora();
  const std::string gone = disk.tensors.begin()->first;
  disk.tensors.erase(gone);
  disk.write(folder.path / "in");
  check_error(run(inspect, {folder.path / "in"}), "MissingTensor");
  check_error(run(convert, {folder.path / "in", folder.path / "out", "--to", "peft"}), "MissingTensor");
  const Ran ran = run(convert, {folder.path / "in", folder.path / "out", "--to", "peft", "--lenient"});
  CHECK(ran.status == 0);
  CHECK(ran.err.starts_with("warning: MissingTensor: "));
  CHECK(run(inspect, {folder.path / "out"}).status == 0);
}

TEST_CASE("adapter_inspect lists the tensors of what is no adapter, and refuses it", "[tools]") {
  const TemporaryFolder folder;
  Disk disk;
  disk.add("conv.weight", {4, 2, 3});
  disk.add("conv.bias", {4}, Dtype::f16);
  disk.config = lora_config("LORA", {"conv"}, 4, 8);
  disk.write(folder.path / "folder");
  fs::copy_file(folder.path / "folder/adapter_model.safetensors", folder.path / "alone.safetensors");
  for (const char* path : {"folder", "alone.safetensors"}) {
    const Ran text = run(inspect, {folder.path / path}),
              as_json = run(inspect, {folder.path / path, "--json"});
    for (const Ran& ran : {text, as_json}) check_error(ran, "NothingMatched", {path});
    for (const char* word : {"conv.weight", "[4, 2, 3]", "conv.bias", "F16"})
      CHECK(text.out.find(word) != std::string::npos);
    const json j = json::parse(as_json.out);
    REQUIRE(j["tensors"].size() == 2);
    CHECK(j["tensors"][0] == json({{"name", "conv.weight"}, {"dtype", "F32"}, {"shape", {4, 2, 3}}}));
  }
}

TEST_CASE("adapter_inspect refuses every wrong use in one line", "[tools]") {
  const TemporaryFolder folder;
  peft_lora().write(folder.path / "good");
  const std::string good = folder.path / "good";
  std::ofstream(folder.path / "text") << "no tensors";
  fs::create_directory(folder.path / "empty");
  check_error(run(inspect, {folder.path / "none"}), "IoOpen", {"none"});
  check_error(run(inspect, {folder.path / "empty"}), "IoOpen", {"empty"});
  check_error(run(inspect, {folder.path / "text"}), "HeaderTooLarge", {"text"});
  check_error(run(inspect, {}), "Usage");
  check_error(run(inspect, {good, "--picture"}), "Usage");
  check_error(run(inspect, {good, "--svg", folder.path / "none/map.svg"}), "IoOpen");
  check_error(run(inspect, {good, "--svg", good}), "NotRegularFile");
  const std::string map = folder.path / "map.svg";
  std::ofstream(folder.path / "good/adapter_config.json") << "{";
  check_error(run(inspect, {good, "--svg", map}), "JsonSyntax");
  CHECK(!fs::exists(map));
}

TEST_CASE("adapter_inspect on real files", "[tools]") {
  const auto real = moxie::test::data("peft_gpt2_tigrinya_lora"),
             disney = moxie::test::data("sd_lora_lora_disney.safetensors"),
             silero = moxie::test::data("silero_vad_16k.safetensors");
  if (!real || !disney || !silero) return;
  const json j = inspected(*real);
  CHECK((j["base_model"] == "gpt2" && j["method"] == "LoRA" && j["modules"].size() == 36));
  CHECK((j["totals"]["tensors"] == 72 && j["totals"]["parameters"] == 811008));
  const TensorFile file = TensorFile::read(*real / "adapter_model.safetensors");
  for (const json& m : j["modules"]) {
    CHECK((m["experts"][0]["rank"] == 8 && m["experts"][0]["alpha"] == 32 && m["experts"][0]["scale"] == 4));
    CHECK(m["experts"][0]["effective_rank"] <= 8);
  }
  const std::string name = prefix + "transformer.h.0.attn.c_proj.lora_";
  const Disk::Tensor a{{8, 768}, values_of(file, name + "A.weight")},
      b{{768, 8}, values_of(file, name + "B.weight")};
  CHECK(j["modules"][1]["name"] == "transformer.h.0.attn.c_proj");
  CHECK(close(j["modules"][1]["experts"][0]["norm"], product(a, b, 4).norm()));
  for (const auto& [path, tensors, first] :
       {std::tuple{*disney, 386, "text_encoder:0:down"}, std::tuple{*silero, 15, "stft_conv.weight"}}) {
    const Ran ran = run(inspect, {path, "--json"});
    check_error(ran, "NothingMatched", {path.filename().string()});
    const json listed = json::parse(ran.out)["tensors"];
    CHECK(listed.size() == static_cast<std::size_t>(tensors));
    CHECK(std::any_of(listed.begin(), listed.end(),
                      [first = first](const json& t) { return t["name"] == first; }));
  }
}

namespace {

/// All tensors of a folder, by name.
std::map<std::string, Numbers> numbers(const Path& folder) {
  const TensorFile file = TensorFile::read(folder / "adapter_model.safetensors");
  std::map<std::string, Numbers> all;
  for (const TensorInfo& t : file.tensors()) all[t.name] = values_of(file, t.name);
  return all;
}
std::map<std::string, Numbers> numbers(const Disk& disk) {
  std::map<std::string, Numbers> all;
  for (const auto& [name, t] : disk.tensors) all[name] = t.values;
  return all;
}
json config_of(const Path& folder) { return json::parse(content(folder / "adapter_config.json")); }

void converts(const Path& in, const Path& out, const std::string& to,
              const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{in.string(), out.string(), "--to", to};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Ran ran = run(convert, arguments);
  INFO(ran.err);
  REQUIRE(ran.status == 0);
  CHECK(ran.out.find("to " + to) != std::string::npos);
}

}  // namespace

TEST_CASE("adapter_convert turns MoE-PEFT's MoLA into MoLA's own, and back, to the bit", "[tools]") {
  const TemporaryFolder folder;
  const Disk moe_peft = top_k_disk(false), mola = top_k_disk(true);
  moe_peft.write(folder.path / "in");
  converts(folder.path / "in", folder.path / "mola", "mola");
  std::map<std::string, Numbers> wanted;
  for (const auto& [name, t] : moe_peft.tensors) {
    std::string own = prefix + "model." + name.substr(5);
    if (const std::size_t at = own.find("experts."); at != std::string::npos) {
      const std::string e = own.substr(at + 8, 1);
      own = own.substr(0, at) + own.substr(at + 10, 6) + "_" + e + ".weight";
    } else {
      own.replace(own.find("moe_gate"), 8, "router.router");
    }
    wanted[own] = t.values;
    CHECK(mola.tensors.contains(own));
  }
  CHECK(numbers(folder.path / "mola") == wanted);
  CHECK(config_of(folder.path / "mola")["r"] == json({3, 3}));
  CHECK(!config_of(folder.path / "mola").contains("routing_strategy"));
  converts(folder.path / "mola", folder.path / "back", "moe-peft");
  CHECK(numbers(folder.path / "back") == numbers(moe_peft));
  for (const char* key : {"peft_type", "routing_strategy", "num_experts", "top_k", "r", "lora_alpha"})
    CHECK(config_of(folder.path / "back")[key] == moe_peft.config[key]);
  // The same deltas, with the top 3 that only one of them records in its own program's words.
  write_x(folder.path / "x", 9, 12);
  for (const char* name : {"in", "mola", "back"})
    check_apply(folder.path / name, "1.self_attn.q_proj", folder.path / "x", true, "delta", [&](auto x) {
      return mixture(moe_peft, moe_peft_mola_names, "mola.layers.1.self_attn.q_proj", 3, {2}, x);
    });
  // What MoLA does not record is said on the way.
  mola.write(folder.path / "plain");
  converts(folder.path / "plain", folder.path / "top", "moe-peft", {"--top-k", "1"});
  CHECK(config_of(folder.path / "top")["top_k"] == 1);
}

TEST_CASE("adapter_convert reads a .bin, and keeps the stored type", "[tools]") {
  const TemporaryFolder folder;
  Disk disk = top_k_disk(true);
  write_torch(disk, folder.path / "bin");
  converts(folder.path / "bin", folder.path / "mola", "mola");
  CHECK(numbers(folder.path / "mola") == numbers(disk));
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32, Dtype::f64}) {
    Disk lora = peft_lora();
    for (auto& [name, t] : lora.tensors) t.dtype = dtype;
    lora.write(folder.path / "lora");
    for (const char* to : {"peft", "moe-peft"}) {  // MoE-PEFT's plain LoRA is PEFT's
      converts(folder.path / "lora", folder.path / "out", to);
      CHECK(numbers(folder.path / "out") == numbers(lora));
      const TensorFile out = TensorFile::read(folder.path / "out/adapter_model.safetensors");
      for (const TensorInfo& t : out.tensors()) CHECK(t.dtype == dtype);
    }
  }
  Disk several =
      peft_lora();  // targets of several kinds of base: said, since the new config has them no more
  several.config["target_modules"] = {"c_attn", "q_proj", "v_proj"};
  several.write(folder.path / "several");
  const Ran ran =
      run(convert, {(folder.path / "several").string(), (folder.path / "out").string(), "--to", "moe-peft"});
  CHECK((ran.status == 0 && ran.err == "note: 'c_attn' is in target_modules, but no tensor is its\n"));
  // Our own format holds what the others do, and gives it back.
  loramoe_disk(true).write(folder.path / "hydra");
  for (const auto& [in, to] : {std::pair{"mola", "mixture"}, {"out", "mixture"}, {"hydra", "hydralora"}}) {
    converts(folder.path / in, folder.path / "own", to);
    CHECK(inspected(folder.path / "own")["format"] == to);
  }
  converts(folder.path / "mola", folder.path / "own", "mixture");
  converts(folder.path / "own", folder.path / "back", "mola");
  CHECK(numbers(folder.path / "back") == numbers(disk));
  ia3_disk().write(folder.path / "ia3");
  converts(folder.path / "ia3", folder.path / "out", "peft");
  CHECK(numbers(folder.path / "out") == numbers(ia3_disk()));
}

TEST_CASE("adapter_convert refuses what a format cannot hold, and leaves no folder behind", "[tools]") {
  const TemporaryFolder folder;
  const auto at = [&](const char* name) { return (folder.path / name).string(); };
  peft_lora().write(at("lora"));
  ia3_disk().write(at("ia3"));
  top_k_disk(true).write(at("mola"));
  Disk uneven = top_k_disk(true);
  const std::string layer = prefix + "model.layers.1.self_attn.q_proj";
  for (const char* part : {".lora_A_3.weight", ".lora_B_3.weight"}) uneven.tensors.erase(layer + part);
  uneven.add(layer + ".router.router.weight", {3, 12});
  uneven.write(at("uneven"));
  // Of PEFT's words MoE-PEFT reads few.
  Disk other = peft_lora();
  other.config["alpha_pattern"] = {{"v_proj", 12}};
  other.write(at("alphas"));
  other = peft_lora();
  other.config["modules_to_save"] = {"score"};
  other.add(prefix + "score.weight", {2, 2});
  other.write(at("kept"));
  other = peft_lora();
  other.tensors.clear();
  other.config["target_modules"] = {"c_attn"};
  other.add(prefix + "transformer.h.0.attn.c_attn.lora_A.weight", {3, 12});
  other.add(prefix + "transformer.h.0.attn.c_attn.lora_B.weight", {10, 3});
  other.write(at("gpt2"));
  struct Wrong {
    std::vector<std::string> arguments;
    std::string code;
  };
  const std::vector<Wrong> wrongs{{{at("alphas"), "--to", "moe-peft"}, "UnsupportedOption"},
                                  {{at("kept"), "--to", "moe-peft"}, "UnsupportedOption"},
                                  {{at("gpt2"), "--to", "moe-peft"}, "UnsupportedOption"},
                                  {{at("mola"), "--to", "peft"}, "UnsupportedOption"},
                                  {{at("mola"), "--to", "loramoe"}, "UnsupportedOption"},
                                  {{at("uneven"), "--to", "moe-peft"}, "UnsupportedOption"},
                                  {{at("lora"), "--to", "mola"}, "UnsupportedOption"},
                                  {{at("lora"), "--to", "loramoe"}, "UnsupportedOption"},
                                  {{at("ia3"), "--to", "mola"}, "UnsupportedOption"},
                                  {{at("ia3"), "--to", "moe-peft"}, "UnsupportedOption"},
                                  {{at("lora"), "--to", "gguf"}, "Usage"},
                                  {{at("lora")}, "Usage"},
                                  {{at("lora"), "--to", "peft", "--top-k", "2"}, "ConfigMismatch"},
                                  {{at("none"), "--to", "peft"}, "IoOpen"}};
  peft_lora().write(at("there"));
  const std::string config = content(folder.path / "there/adapter_config.json"),
                    tensors = content(folder.path / "there/adapter_model.safetensors");
  for (const Wrong& wrong : wrongs)
    for (const char* out : {"new", "there"}) {
      std::vector<std::string> arguments = wrong.arguments;
      INFO(arguments.front() << " " << arguments.back());
      arguments.insert(arguments.begin() + 1, at(out));
      check_error(run(convert, arguments), wrong.code);
      CHECK(!fs::exists(at("new")));
      CHECK((content(folder.path / "there/adapter_config.json") == config));
      CHECK((content(folder.path / "there/adapter_model.safetensors") == tensors));
      CHECK(std::distance(fs::directory_iterator(at("there")), fs::directory_iterator()) == 2);
    }
  check_error(run(convert, {at("lora"), at("no/such/folder"), "--to", "peft"}), "IoOpen");
}

TEST_CASE("experts that share one A are shown, and applied, like others", "[tools]") {
  const TemporaryFolder folder;
  const Disk disk = loramoe_disk(true);
  disk.write(folder.path / "hydra");
  const json j = inspected(folder.path / "hydra");
  CHECK((j["format"] == "hydralora" && j["method"] == "HydraLoRA"));
  const std::string module = hydralora_names.module(0, "mlp.up_proj");
  const json& up = j["modules"][1];
  CHECK(prefix + up["name"].get<std::string>() == module);
  std::vector<Eigen::MatrixXd> updates;
  for (const std::size_t e : {0u, 1u, 2u}) {
    updates.push_back(
        product(disk[module + hydralora_names.a], disk[module + of_expert(hydralora_names.b, e)], 8));
    const json& expert = up["experts"][e];
    CHECK((close(expert["norm"], updates[e].norm()) &&
           close(expert["effective_rank"], effective_rank_of(updates[e]))));
  }
  CHECK(close(up["mean_difference"], ((updates[0] - updates[1]).norm() + (updates[0] - updates[2]).norm() +
                                      (updates[1] - updates[2]).norm()) /
                                         3));
  write_x(folder.path / "x", 5, 12);
  check_apply(folder.path / "hydra", "up_proj", folder.path / "x", true, "delta",
              [&](auto x) { return mixture(disk, hydralora_names, module, 3, {8}, x); });
}

TEST_CASE("adapter_convert turns LoRAMoE's own names into MoE-PEFT's, and back, to the bit", "[tools]") {
  const TemporaryFolder folder;
  const Disk own = loramoe_disk(false),
             moe_peft = moe_peft_disk(false, {"mlp.gate_proj", "mlp.up_proj"}, 1, 3);
  own.write(folder.path / "own");
  converts(folder.path / "own", folder.path / "there", "moe-peft");
  const auto there = numbers(folder.path / "there");
  CHECK(there.size() == own.tensors.size());
  for (const auto& [name, t] : moe_peft.tensors) CHECK(there.contains(name));
  CHECK(there.at("loramoe.layers.0.mlp.up_proj.experts.1.lora_B.weight") ==
        own[prefix + "model.layers.0.mlp.up_proj.lora_B1.weight"].values);
  CHECK(config_of(folder.path / "there")["peft_type"] == "LORAMOE");
  converts(folder.path / "there", folder.path / "back", "loramoe");
  CHECK(numbers(folder.path / "back") == numbers(own));
  CHECK(config_of(folder.path / "back")["lora_nums"] == 3);
  const Disk hydra = loramoe_disk(true);
  hydra.write(folder.path / "hydra");
  for (const char* to : {"mola", "peft", "moe-peft"}) {
    check_error(run(convert, {folder.path / "hydra", folder.path / "new", "--to", to}), "UnsupportedOption");
    CHECK(!fs::exists(folder.path / "new"));
  }
}

TEST_CASE("adapter_apply leaves routers to programs that have them", "[tools]") {
  const TemporaryFolder folder;
  Disk disk;
  disk.config = lora_config("MOLORA", {"q"}, 2, 2);
  disk.config["router_type"] = "given";
  for (const char* e : {"0", "1"}) {
    disk.add(prefix + "h.0.q.lora_A." + e + ".weight", {2, 4});
    disk.add(prefix + "h.0.q.lora_B." + e + ".weight", {3, 2});
  }
  disk.write(folder.path);
  write_x(folder.path / "x", 2, 4);
  check_error(
      run(apply, {folder.path, "--module", "q", "--input", folder.path / "x", "--output", folder.path / "y"}),
      "UnsupportedOption", {"h.0.q"});
  CHECK(!fs::exists(folder.path / "y"));
  CHECK(inspected(folder.path)["modules"][0]["router"] == "given");
}
