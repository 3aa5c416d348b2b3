// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_compare.hpp>
#include <moxie/io/adapter_files.hpp>
#include <moxie/io/adapter_plan.hpp>

namespace moxie::inline MOXIE_ABI::io {

/// A tensor that an adapter's folder holds beside the adapter: a module that was trained whole
/// (modules_to_save), a bias of the base. Nothing here computes with it; its bytes are kept and written back.
struct Kept {
  std::string name;  ///< as in the file
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape = {};
  Bytes bytes = {};
};

/// What a folder says beside what its modules are: `load` gives it, `save` takes it.
struct AdapterInfo {
  std::optional<Format> format = {};                 ///< whose config it is; none: made by hand
  nlohmann::json config = nlohmann::json::object();  ///< adapter_config.json; `save` sets what the set knows
  std::vector<Kept> kept = {};
};

template <Scalar S>
struct Loaded {
  AdapterSet<S> set;  ///< the modules in the order of their names, by their paths in the base model
  AdapterInfo info;
  Report report;
};

namespace detail {

/// A tensor's numbers in the adapter's scalar; converted ones are reported. Throws DtypeMismatch where that
/// would round and is not allowed, and what TensorFile::load throws.
template <Scalar S>
std::vector<S> read_numbers(const TensorFile& file, const TensorInfo& t, const LoadOptions& options,
                            Report& report) {
  constexpr Dtype own = std::is_same_v<S, double> ? Dtype::f64 : Dtype::f32;
  if (t.dtype == Dtype::f64 && own == Dtype::f32 && !options.narrow)
    refuse(Code::dtype_mismatch, file.path(), "tensor ", shown(t.name),
           " is F64, wanted numbers that float holds (the option narrow rounds them)");
  std::size_t count = 1;
  for (const Index n : t.shape) count *= static_cast<std::size_t>(n);
  std::vector<S> values(is_weight(t.dtype) ? count : 0);
  file.load(t, std::span<S>(values), options.allow_non_finite);
  if (t.dtype != own) report.convert(t.name, io::name(t.dtype), " to ", io::name(own));
  const auto note = [&](auto&& which, std::string_view one, std::string_view many) {
    const auto n = std::count_if(values.begin(), values.end(), which);
    if (n > 0) report.note(t.name, n, n == 1 ? one : many);
  };
  note([](S v) { return !std::isfinite(v); }, " number is NaN or infinite", " numbers are NaN or infinite");
  note([](S v) { return std::fpclassify(v) == FP_SUBNORMAL; }, " subnormal number", " subnormal numbers");
  report.matched.push_back(t.name);
  return values;
}

/// The numbers of a plan's modules to their places in the theta of a set that has them.
template <Scalar S>
void read_modules(const TensorFile& file, const Plan<S>& plan, const AdapterSet<S>& set, std::span<S> theta,
                  const LoadOptions& options, Report& report) {
  for (const PlannedModule<S>& module : plan.modules) {
    const auto& entry = set.entry(set.find(module.name));
    const std::span<S> own =
        theta.subspan(static_cast<std::size_t>(entry.offset), static_cast<std::size_t>(entry.size()));
    for (const auto& [piece, tensor] : module.pieces)
      to_theta(piece, std::span<const S>(read_numbers<S>(file, *tensor, options, report)), own);
  }
}

/// What is in the folder beside the modules.
template <Scalar S>
AdapterInfo read_info(const TensorFile& file, const Plan<S>& plan, const AdapterConfig& config,
                      const LoadOptions& options, Report& report) {
  AdapterInfo info{.format = plan.format, .config = config.json};
  for (const TensorInfo* const t : plan.kept) {
    if (is_weight(t->dtype)) file.expect_finite<double>(*t, options.allow_non_finite);
    info.kept.push_back({t->name, t->dtype, t->shape, Bytes(file.bytes(*t))});
    report.matched.push_back(t->name);
    report.note(t->name, "is kept beside the adapter");
  }
  return info;
}

/// At least one module is left. Only a lenient load can come here without.
template <Scalar S>
void expect_modules(const Plan<S>& plan, const Report& report, const Path& path) {
  if (!plan.modules.empty()) return;
  std::string text = "no module of it can be taken";
  for (const auto* const faults : {&report.mismatched, &report.missing, &report.unexpected})
    if (!faults->empty())
      text.append(", as ").append(shown(faults->front().name)).append(" ").append(faults->front().what);
  refuse(Code::nothing_matched, path, text);
}

}  // namespace detail

/// An adapter from its files (read_adapter, read_torch_adapter). Throws what `load` of a folder throws but
/// for files.
template <Scalar S>
Loaded<S> load(const AdapterFiles& files, const LoadOptions& options = {}) {
  Loaded<S> loaded;
  Report& report = loaded.report = files.report;
  const detail::Source source{files.tensors.path()};
  const detail::AdapterConfig config = detail::read_config(files.config, files.config_path, report);
  const auto plan = detail::make_plan<S>(files.tensors.tensors(), config, options, source, report);
  if (!options.lenient) detail::expect_clean(report, source.path, config.path);
  detail::expect_modules(plan, report, source.path);
  for (const detail::PlannedModule<S>& module : plan.modules)
    std::visit(
        [&](const auto& adapter) {
          loaded.set.add(module.name,
                         Preset<std::remove_cvref_t<decltype(adapter)>>(adapter, module.shape.method));
        },
        module.shape.adapter);
  Buffer<S> theta(static_cast<std::size_t>(loaded.set.size()));
  detail::read_modules(files.tensors, plan, loaded.set, std::span<S>(theta), options, report);
  loaded.set.init(std::move(theta));
  loaded.info = detail::read_info(files.tensors, plan, config, options, report);
  return loaded;
}

/// Takes an adapter's numbers into an existing set, all of it or, after an error, nothing. Its modules must
/// be those of the files: name, shape, rank, scale, router. Throws also StateError before the set's `init`.
template <Scalar S>
Report load_into(AdapterSet<S>& set, const AdapterFiles& files, const LoadOptions& options = {}) {
  Report report = files.report;
  const detail::Source source{files.tensors.path()};
  if (std::ssize(set.theta()) != set.size() || set.modules() == 0)
    fail(Code::state_error, "a set is loaded into before init()");
  const detail::AdapterConfig config = detail::read_config(files.config, files.config_path, report);
  auto plan = detail::make_plan<S>(files.tensors.tensors(), config, options, source, report);
  if (!options.lenient)
    detail::expect_clean(report, source.path, config.path);  // the folder's own faults first
  detail::bind(plan, set, source, report);
  if (!options.lenient) detail::expect_clean(report, source.path, config.path);
  detail::expect_modules(plan, report, source.path);
  Buffer<S> theta(set.theta().begin(), set.theta().end());
  detail::read_modules(files.tensors, plan, set, std::span<S>(theta), options, report);
  std::copy(theta.begin(), theta.end(), set.theta().begin());
  for (const TensorInfo* const t : plan.kept) report.note(t->name, "is not of the set");
  return report;
}

/// An adapter's folder as PEFT and others write it, from the files alone: adapter_config.json and
/// adapter_model.safetensors. Every fault is an error unless `options.lenient`; what is refused with which
/// code is in tests/io/README.md.
template <Scalar S>
Loaded<S> load(const Path& dir, const LoadOptions& options = {}) {
  return load<S>(read_adapter(dir, options), options);
}
/// The same into an existing set. After an error no bit of the set has changed.
template <Scalar S>
Report load_into(AdapterSet<S>& set, const Path& dir, const LoadOptions& options = {}) {
  return load_into(set, read_adapter(dir, options), options);
}

}  // namespace moxie::inline MOXIE_ABI::io
