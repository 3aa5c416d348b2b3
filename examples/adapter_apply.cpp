// SPDX-License-Identifier: MIT
// What one module of a saved adapter does to rows of input: the delta that it adds to the module's output,
// or, for IA3 and MoV, the activation that it scales.

#include "adapter/tool.hpp"

#include <moxie/io/safetensors_writer.hpp>

namespace {

using adapter_tool::Index;
namespace io = moxie::io;

struct Options {
  std::string dir, module, input, output;
  bool in_double = false, torch_bin = false, lenient = false;
  std::vector<Index> top_k;
};

/// The module of that name; otherwise the only one whose name ends in it from a dot on.
template <moxie::Scalar S>
moxie::Module find(const moxie::AdapterSet<S>& set, const std::string& name) {
  std::vector<std::string> ends;
  for (const auto& entry : set.entries()) {
    if (entry.name == name) return set.find(name);
    if (!name.empty() && entry.name.ends_with("." + name)) ends.push_back(entry.name);
  }
  if (ends.size() == 1) return set.find(ends.front());
  std::string text = "--module " + io::detail::shown(name);
  if (ends.empty())
    text += " is the end of none of " + std::to_string(set.modules()) + " modules; the first is " +
            io::detail::shown(set.entries().front().name);
  else
    text += " is the end of " + std::to_string(ends.size()) + " modules, such as " +
            io::detail::shown(ends[0]) + " and " + io::detail::shown(ends[1]);
  moxie::fail(moxie::Code::unknown_name, text);
}

/// Tensor `x`, [T, d_in].
template <moxie::Scalar S>
moxie::Matrix<S> read_x(const io::Path& path, Index in, const std::string& module) {
  const io::TensorFile file = io::TensorFile::read(path);
  const io::TensorInfo* const x = file.find("x");
  const auto refuse = [&](moxie::Code code, const std::string& what) {
    moxie::fail(code, io::detail::shown(path.native()) + ": " + what);
  };
  if (x == nullptr) refuse(moxie::Code::missing_tensor, "has no tensor 'x'");
  if (x->dtype != io::Dtype::f32 && x->dtype != io::Dtype::f64)
    refuse(moxie::Code::dtype_mismatch,
           "tensor 'x' is " + std::string(io::name(x->dtype)) + ", wanted F32 or F64");
  if (x->shape.size() != 2 || x->shape[1] != in) {
    std::string shape;
    for (const Index n : x->shape) shape += (shape.empty() ? "" : ", ") + std::to_string(n);
    refuse(moxie::Code::shape_mismatch, "tensor 'x' is [" + shape + "], wanted [T, " + std::to_string(in) +
                                            "] for module " + io::detail::shown(module));
  }
  moxie::Matrix<S> rows(x->shape[0], in);
  file.load(*x, std::span<S>(rows.data(), static_cast<std::size_t>(rows.size())));
  return rows;
}

template <moxie::Scalar S>
void apply(const Options& o) {
  // Weights in F64 are rounded without --double: its results are of float.
  const auto loaded = io::load<S>(adapter_tool::read(o.dir, o.torch_bin, o.lenient),
                                  {.lenient = o.lenient, .narrow = true, .top_k = o.top_k});
  adapter_tool::warn(loaded.report);
  adapter_tool::expect_top_k(loaded, o.top_k);
  const moxie::Module module = find(loaded.set, o.module);
  const auto& entry = loaded.set.entry(module);
  std::visit(
      [&](const auto& adapter) {
        using Adapter = std::remove_cvref_t<decltype(adapter)>;
        if (std::same_as<typename Adapter::Router, moxie::GivenRouter<S>>)
          moxie::fail(moxie::Code::unsupported_option, "module " + io::detail::shown(entry.name) +
                                                           " has no router: its gates are the program's");
        const moxie::Matrix<S> x = read_x<S>(o.input, adapter.in(), entry.name);
        moxie::Matrix<S> y = moxie::Matrix<S>::Zero(x.rows(), adapter.out());
        moxie::Cache<S> cache;
        moxie::Workspace<S> workspace;
        loaded.set.forward(module, x, y, cache, workspace);
        io::TensorWriter writer;
        writer.add(Adapter::multiplicative ? "scaled" : "delta", {y.rows(), y.cols()},
                   std::span<const S>(y.data(), static_cast<std::size_t>(y.size())),
                   std::same_as<S, double> ? io::Dtype::f64 : io::Dtype::f32);
        writer.save(o.output);
      },
      entry.adapter);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app(
      "Applies one module of a saved adapter to the rows of tensor x, [T, d_in], of a safetensors file.\n"
      "Writes tensor delta, [T, d_out], which the module adds to its base's output; of IA3 and MoV\n"
      "tensor scaled, the scaled activation, for x the activation.");
  app.add_option("dir", o.dir, "the adapter's folder")->required();
  app.add_option("--module", o.module,
                 "the module's path in the base model, or an end of it that no other has: "
                 "layers.0.self_attn.q_proj")
      ->required();
  app.add_option("--input", o.input, "safetensors file with x, F32 or F64")->required();
  app.add_option("--output", o.output, "safetensors file to write, replaced where it exists")->required();
  app.add_flag("--double", o.in_double, "compute and write F64 in place of F32");
  adapter_tool::add_top_k(app, o.top_k);
  adapter_tool::add_lenient(app, o.lenient);
  app.add_flag("--torch-bin", o.torch_bin,
               "allow adapter_model.bin, where there is no adapter_model.safetensors; "
               "nothing of the pickle is run");
  return adapter_tool::run(app, argc, argv, [&] { o.in_double ? apply<double>(o) : apply<float>(o); });
}
