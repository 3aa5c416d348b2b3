// SPDX-License-Identifier: MIT
// Writes an adapter in another program's format, where that format has words for all of it.

#include <moxie/io/adapter_save.hpp>

#include "adapter/tool.hpp"

namespace {

using adapter_tool::Index;
namespace io = moxie::io;

struct Options {
  std::string in, out, to;
  bool lenient = false;
  std::vector<Index> top_k;
};

/// The stored type that holds all of the adapter's numbers; kept tensors have their own.
io::Dtype widest(const std::vector<io::TensorInfo>& tensors, const std::vector<io::Kept>& kept) {
  std::optional<io::Dtype> all;
  for (const io::TensorInfo& t : tensors) {
    if (std::any_of(kept.begin(), kept.end(), [&](const io::Kept& k) { return k.name == t.name; })) continue;
    if (!all || t.dtype == io::Dtype::f64)
      all = t.dtype;
    else if (*all != t.dtype && *all != io::Dtype::f64)
      all = io::Dtype::f32;  // F16 beside BF16 too
  }
  return all.value_or(io::Dtype::f32);
}

std::map<std::string, io::Format> formats() {
  std::map<std::string, io::Format> all;
  for (const io::Format format : {io::Format::peft, io::Format::mixture, io::Format::mola,
                                  io::Format::loramoe, io::Format::hydralora, io::Format::moe_peft})
    all[std::string(io::name(format))] = format;
  return all;
}

void run(const Options& o) {
  const io::AdapterFiles files = adapter_tool::read(o.in, true, o.lenient);
  auto loaded =
      io::load<double>(files, {.lenient = o.lenient, .top_k = o.top_k});  // double holds every number
  adapter_tool::warn(loaded.report);
  const io::Dtype dtype = widest(files.tensors.tensors(), loaded.info.kept);
  adapter_tool::expect_top_k(loaded, o.top_k);
  const io::Format from = loaded.info.format.value(), to = formats().at(o.to);
  io::save(loaded.set, o.out, loaded.info, {.format = to, .dtype = dtype});
  std::printf("%s: %s to %s, %s modules, %zu tensors as %s\n", o.out.c_str(),
              std::string(io::name(from)).c_str(), std::string(io::name(to)).c_str(),
              std::to_string(loaded.set.modules()).c_str(), files.tensors.tensors().size(),
              std::string(io::name(dtype)).c_str());
  adapter_tool::tell(loaded.report, files.tensors);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app(
      "Converts an adapter's folder: adapter_config.json with adapter_model.safetensors or, where that is\n"
      "missing, adapter_model.bin (nothing of the pickle is run). Writes safetensors, with the numbers and\n"
      "the stored type as they are. Refused is a format that cannot hold the adapter's method.");
  app.add_option("in", o.in, "the adapter's folder")->required();
  app.add_option("out", o.out, "folder to write, made where it is missing")->required();
  app.add_option("--to", o.to, "format of the folder that is written")
      ->required()
      ->check(CLI::IsMember(formats()));
  adapter_tool::add_top_k(app, o.top_k);
  adapter_tool::add_lenient(app, o.lenient);
  return adapter_tool::run(app, argc, argv, [&] { run(o); });
}
