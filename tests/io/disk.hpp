// SPDX-License-Identifier: MIT
#pragma once

#include "support/catch.hpp"
#include "support/folder.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/io/adapter_save.hpp>

#include <fstream>
#include <functional>
#include <map>

namespace moxie::test {

/// An adapter's folder as the official code of a method writes it, made by hand: the config's values and the
/// tensors by their names, in the shapes of PyTorch.
struct Disk {
  struct Tensor {
    std::vector<Index> shape;
    std::vector<double> values;
    io::Dtype dtype = io::Dtype::f32;
    std::string bytes = {};  ///< in place of values, where write_plain writes it
    double at(Index i, Index j) const { return values[static_cast<std::size_t>(i * shape[1] + j)]; }
  };
  nlohmann::json config;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata{{"format", "pt"}};

  /// Values that float and bfloat16 hold: multiples of 1/64 up to 2.
  void add(const std::string& name, std::vector<Index> shape, io::Dtype dtype = io::Dtype::f32) {
    Tensor t{std::move(shape), {}, dtype};
    Index count = 1;
    for (const Index n : t.shape) count *= n;
    Rng rng(7 + tensors.size());
    for (Index i = 0; i < count; ++i) t.values.push_back(std::round(rng.uniform(-2, 2) * 64) / 64);
    tensors[name] = std::move(t);
  }
  const Tensor& operator[](const std::string& name) const { return tensors.at(name); }

  void write(const io::Path& folder) const {
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "adapter_config.json") << config.dump(2);
    io::TensorWriter writer;
    writer.metadata = metadata;
    for (const auto& [name, t] : tensors)
      writer.add(name, t.shape, std::span<const double>(t.values), t.dtype);
    writer.save(folder / "adapter_model.safetensors");
  }
  /// The same without our checksums, as others write it, NaN and all.
  void write_plain(const io::Path& folder) const {
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "adapter_config.json") << config.dump(2);
    nlohmann::json header = {{"__metadata__", metadata}};
    std::string data;
    for (const auto& [name, t] : tensors) {
      const std::size_t begin = data.size(), size = io::facts(t.dtype).bits / 8;
      data += t.bytes;
      for (const double v : t.values) {
        data.resize(data.size() + size);
        io::detail::store_number(v, t.dtype, data.data() + data.size() - size);
      }
      header[name] = {
          {"dtype", io::name(t.dtype)}, {"shape", t.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string json = header.dump();
    std::string length(8, '\0');
    io::detail::store_little<std::uint64_t>(json.size(), length.data());
    std::ofstream(folder / "adapter_model.safetensors", std::ios::binary) << length << json << data;
  }
};

/// What PEFT 0.20 writes for a LoRA of rank 3 on two projections of two layers.
inline Disk peft_lora() {
  Disk disk;
  disk.config = {{"peft_type", "LORA"},
                 {"base_model_name_or_path", "some/base"},
                 {"task_type", "CAUSAL_LM"},
                 {"r", 3},
                 {"lora_alpha", 6},
                 {"lora_dropout", 0.25},
                 {"target_modules", {"q_proj", "v_proj"}},
                 {"use_rslora", false},
                 {"fan_in_fan_out", false},
                 {"lora_bias", false},
                 {"bias", "none"},
                 {"rank_pattern", nlohmann::json::object()},
                 {"alpha_pattern", nlohmann::json::object()},
                 {"modules_to_save", nullptr},
                 {"inference_mode", true}};
  for (const char* layer : {"0", "1"})
    for (const auto& [projection, out] : {std::pair{"q_proj", Index{10}}, std::pair{"v_proj", Index{7}}}) {
      const std::string module =
          std::string("base_model.model.model.layers.") + layer + ".self_attn." + projection;
      disk.add(module + ".lora_A.weight", {3, 12});
      disk.add(module + ".lora_B.weight", {out, 3});
    }
  return disk;
}

/// sum over the rank of B[o, k] (A[k, :] . x), as PyTorch's two linear layers compute it.
inline std::vector<double> lora_delta(const Disk::Tensor& a, const Disk::Tensor& b,
                                      std::span<const double> x) {
  std::vector<double> y(static_cast<std::size_t>(b.shape[0]), 0);
  for (Index k = 0; k < a.shape[0]; ++k) {
    double h = 0;
    for (Index i = 0; i < a.shape[1]; ++i) h += a.at(k, i) * x[static_cast<std::size_t>(i)];
    for (Index o = 0; o < b.shape[0]; ++o) y[static_cast<std::size_t>(o)] += b.at(o, k) * h;
  }
  return y;
}
inline std::vector<double> softmax(std::vector<double> z) {
  double most = z[0], sum = 0;
  for (const double v : z) most = std::max(most, v);
  for (double& v : z) sum += v = std::exp(v - most);
  for (double& v : z) v /= sum;
  return z;
}
/// The rows of a matrix times x: a router's logits.
inline std::vector<double> logits(const Disk::Tensor& g, std::span<const double> x) {
  std::vector<double> z(static_cast<std::size_t>(g.shape[0]), 0);
  for (Index e = 0; e < g.shape[0]; ++e)
    for (Index i = 0; i < g.shape[1]; ++i)
      z[static_cast<std::size_t>(e)] += g.at(e, i) * x[static_cast<std::size_t>(i)];
  return z;
}

/// y of one token through a module of a set, from y = 0.
template <class S>
std::vector<double> run_module(const AdapterSet<S>& set, const std::string& name,
                               const std::vector<double>& x) {
  const Module module = set.find(name);
  const auto [in, out] = std::visit(
      [](const auto& a) {
        return std::pair{a.in(), a.out()};
      },
      set.entry(module).adapter);
  Matrix<S> input(1, in), output = Matrix<S>::Zero(1, out);
  for (Index i = 0; i < in; ++i) input(0, i) = static_cast<S>(x[static_cast<std::size_t>(i)]);
  Cache<S> cache;
  Workspace<S> workspace;
  set.forward(module, input, output, cache, workspace);
  return {output.data(), output.data() + out};
}
inline std::vector<double> some_input(Index n) {
  Rng rng(99);
  std::vector<double> x;
  for (Index i = 0; i < n; ++i) x.push_back(std::round(rng.uniform(-1, 1) * 64) / 64);
  return x;
}
inline bool near(const std::vector<double>& a, const std::vector<double>& b, double bound = 1e-4) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - b[i]) <= bound)) return false;
  return true;
}

/// The bytes of theta.
template <class S>
std::string bits(const AdapterSet<S>& set) {
  return {reinterpret_cast<const char*>(set.theta().data()), set.theta().size_bytes()};
}

/// One line of the catalogue of bad adapters: what is done to a good one, and the code it is refused with.
struct BadAdapter {
  int line;
  std::string what;
  std::function<void(Disk&)> spoil;
  Code code;
  std::vector<std::string> words = {};  ///< of the message
};

/// Every bad adapter is refused by `load` and by `load_into`, which changes no bit of a set that the good one
/// goes into.
inline void check_refused(const Disk& good, const std::vector<BadAdapter>& bad,
                          const io::LoadOptions& options = {}) {
  const TemporaryFolder folder;
  good.write(folder.path / "good");
  auto loaded = io::load<float>(folder.path / "good", options);
  Rng(5).fill(loaded.set.theta(), -1, 1);
  const std::string before = bits(loaded.set);
  for (const BadAdapter& line : bad) {
    INFO("line " << line.line << ": " << line.what);
    Disk disk = good;
    line.spoil(disk);
    disk.write(folder.path / "bad");
    refused([&] { io::load<float>(folder.path / "bad", options); }, line.code, line.words);
    refused([&] { io::load_into(loaded.set, folder.path / "bad", options); }, line.code, line.words);
    CHECK((bits(loaded.set) == before));
  }
  CHECK_NOTHROW(io::load_into(loaded.set, folder.path / "good", options));
  CHECK((bits(loaded.set) != before));
}

template <class S>
io::Loaded<S> load_disk(const Disk& disk, const io::LoadOptions& options = {}) {
  const TemporaryFolder folder;
  disk.write(folder.path);
  return io::load<S>(folder.path, options);
}

/// Saves, loads, compares to the bit, and saves again: the same bytes.
template <class S>
void check_round_trip(const io::Loaded<S>& loaded, const io::LoadOptions& options = {}) {
  const TemporaryFolder folder;
  io::save(loaded.set, folder.path, loaded.info);
  const io::Loaded<S> again = io::load<S>(folder.path, options);
  CHECK((bits(again.set) == bits(loaded.set)));
  REQUIRE(again.set.modules() == loaded.set.modules());
  for (std::size_t m = 0; m < loaded.set.entries().size(); ++m) {
    const auto &a = loaded.set.entries()[m], &b = again.set.entries()[m];
    CHECK((a.name == b.name && a.method == b.method && a.adapter.index() == b.adapter.index()));
  }
  CHECK(again.info.format == loaded.info.format);
  REQUIRE(again.info.kept.size() == loaded.info.kept.size());
  for (std::size_t k = 0; k < loaded.info.kept.size(); ++k) {
    CHECK(again.info.kept[k].name == loaded.info.kept[k].name);
    CHECK(again.info.kept[k].dtype == loaded.info.kept[k].dtype);
    CHECK(again.info.kept[k].shape == loaded.info.kept[k].shape);
    CHECK(again.info.kept[k].bytes == loaded.info.kept[k].bytes);
  }
  const TemporaryFolder second;
  io::save(again.set, second.path, again.info);
  for (const std::string_view file : {io::config_name, io::tensors_name})
    CHECK((content(second.path / file) == content(folder.path / file)));
}

}  // namespace moxie::test
