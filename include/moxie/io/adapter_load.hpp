// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter_set.hpp>
#include <moxie/io/adapter_compare.hpp>
#include <moxie/io/adapter_plan.hpp>
#include <moxie/io/safetensors.hpp>

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

/// Named tensors of any file: what TensorFile is.
template <class File>
concept TensorSource = requires(const File& file, const TensorInfo& tensor, std::span<float> to) {
  { file.path() } -> std::convertible_to<const Path&>;
  { file.tensors() } -> std::convertible_to<const std::vector<TensorInfo>&>;
  file.load(tensor, to);
};

inline constexpr std::string_view config_name = "adapter_config.json",
                                  tensors_name = "adapter_model.safetensors";

namespace detail {

inline constexpr std::uint64_t most_config_bytes = 1 << 20;
/// In the metadata of tensor files that we write: the checksum of the config that belongs to them. While a
/// save goes on, that config is also in a file of the second name, so that a folder always holds one pair.
inline constexpr std::string_view config_key = "adapter_config.crc32c",
                                  next_config_name = "adapter_config.json.next.tmp";

/// A tensor's numbers in the adapter's scalar; converted ones are reported. Throws DtypeMismatch where that
/// would round and is not allowed, and what TensorFile::load throws.
template <Scalar S, TensorSource File>
std::vector<S> read_numbers(const File& file, const TensorInfo& t, const LoadOptions& options,
                            Report& report) {
  constexpr Dtype own = std::is_same_v<S, double> ? Dtype::f64 : Dtype::f32;
  if (t.dtype == Dtype::f64 && own == Dtype::f32 && !options.narrow)
    refuse(Code::dtype_mismatch, file.path(),
           moxie::detail::join({"tensor ", shown(t.name),
                                " is F64, wanted numbers that float holds "
                                "(LoadOptions::narrow rounds them)"}));
  std::size_t count = 1;
  for (const Index n : t.shape) count *= static_cast<std::size_t>(n);
  std::vector<S> values(is_weight(t.dtype) ? count : 0);
  file.load(t, std::span<S>(values));
  if (t.dtype != own)
    report.converted.push_back({t.name, moxie::detail::join({io::name(t.dtype), " to ", io::name(own)})});
  const auto small =
      std::count_if(values.begin(), values.end(), [](S v) { return std::fpclassify(v) == FP_SUBNORMAL; });
  if (small > 0) report.notes.push_back({t.name, moxie::detail::text(small) + " subnormal numbers"});
  report.matched.push_back(t.name);
  return values;
}

template <Scalar S, TensorSource File>
void read_module(const File& file, const PlannedModule<S>& module, std::span<S> theta,
                 const LoadOptions& options, Report& report) {
  for (const auto& [piece, tensor] : module.pieces) {
    const std::vector<S> values = read_numbers<S>(file, *tensor, options, report);
    to_theta(piece, std::span<const S>(values), theta);
  }
}

template <Scalar S, TensorSource File>
AdapterInfo read_info(const File& file, const Plan<S>& plan, const AdapterConfig& config, Report& report) {
  AdapterInfo info{.format = plan.format, .config = config.json};
  for (const TensorInfo* const t : plan.kept) {
    const std::string_view bytes = file.bytes(*t);
    if (is_weight(t->dtype)) file.template expect_finite<double>(*t);
    info.kept.push_back({t->name, t->dtype, t->shape, Bytes(bytes)});
    report.matched.push_back(t->name);
    report.notes.push_back({t->name, "is kept beside the adapter"});
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

/// The folder's two files.
struct Folder {
  Path config_path, tensors_path;

  explicit Folder(const Path& dir, const std::string& adapter) {
    const Path folder = adapter.empty() ? dir : dir / adapter;
    if (adapter.find('/') != std::string::npos || adapter == "..")
      refuse(Code::bad_name, dir, "adapter " + shown(adapter) + ", wanted the name of a sub-folder");
    config_path = folder / config_name;
    tensors_path = folder / tensors_name;
  }
  bool has(std::string_view name) const {
    std::error_code error;
    return std::filesystem::exists(config_path.parent_path() / name, error);
  }
  /// Says what the folder is where it is known and not ours.
  void expect_readable() const {
    const Path folder = config_path.parent_path();
    if (has("xlora_config.json") || has("xlora_classifier.safetensors"))
      refuse(Code::unsupported_option, folder, "is of X-LoRA, which is not built");
    if (has(tensors_name)) return;
    if (has("adapter_model.bin"))
      refuse(Code::io_open, tensors_path,
             "is not there, but adapter_model.bin is: a pickle, which is read only where that is asked for");
    if (has("adapter_model.safetensors.index.json"))
      refuse(Code::unsupported_option, folder, "is sharded, wanted one adapter_model.safetensors");
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      if (entry.path().extension() == ".gguf")
        refuse(Code::unsupported_option, entry.path(), "is a GGUF file, which is not built");
      if (std::filesystem::exists(entry.path() / config_name, error))
        refuse(
            Code::io_open, tensors_path,
            moxie::detail::join({"is not there, but the sub-folder ", shown(entry.path().filename().native()),
                                 " is an adapter's (LoadOptions::adapter)"}));
    }
  }
  /// The config that belongs to the tensors. Throws PairMismatch unless `lenient`.
  std::string config(const TensorFile& tensors, bool lenient, Report& report) const {
    const auto wanted = tensors.metadata().find(std::string(config_key));
    const auto read = [](const Path& path) { return read_file(path, most_config_bytes); };
    if (wanted == tensors.metadata().end()) return read(config_path);
    const auto fits = [&](const std::string& text) { return checksum_text(crc32c(text)) == wanted->second; };
    if (has(next_config_name) && (!has(config_name) || !fits(read(config_path))))
      if (std::string text = read(config_path.parent_path() / next_config_name); fits(text)) {
        report.notes.push_back({std::string(next_config_name), "was taken: a save was interrupted"});
        return text;
      }
    std::string text = read(config_path);
    if (fits(text)) return text;
    const std::string what = "is not the config that was saved with " + shown(tensors_name);
    if (!lenient)
      refuse(Code::pair_mismatch, config_path, what + " (edited since? LoadOptions::lenient takes it)");
    report.notes.push_back({std::string(config_name), what});
    return text;
  }
};

}  // namespace detail

/// An adapter from its tensors and the text of its config. Throws what `load` throws but for files.
template <Scalar S, TensorSource File>
Loaded<S> load_from(const File& file, std::string_view config_text, const Path& config_path,
                    const LoadOptions& options = {}, Report report = {}) {
  const detail::Source config_source{config_path}, source{file.path()};
  const detail::AdapterConfig config = detail::read_config(config_text, config_source, report);
  const auto plan = detail::make_plan<S>(file.tensors(), config, options, source, report);
  if (!options.lenient) detail::expect_clean(report, file.path());
  detail::expect_modules(plan, report, file.path());
  Loaded<S> loaded;
  for (const detail::PlannedModule<S>& module : plan.modules)
    std::visit(
        [&](const auto& adapter) {
          loaded.set.add(module.name,
                         Preset<std::remove_cvref_t<decltype(adapter)>>(adapter, module.shape.method));
        },
        module.shape.adapter);
  Buffer<S> theta(static_cast<std::size_t>(loaded.set.size()));
  for (std::size_t m = 0; m < plan.modules.size(); ++m) {
    const auto& entry = loaded.set.entries()[m];
    detail::read_module(file, plan.modules[m],
                        std::span<S>(theta).subspan(static_cast<std::size_t>(entry.offset),
                                                    static_cast<std::size_t>(entry.size())),
                        options, report);
  }
  loaded.info = detail::read_info(file, plan, config, report);
  loaded.set.init(std::move(theta));
  loaded.report = std::move(report);
  return loaded;
}

/// Takes an adapter's numbers into an existing set, all of it or, after an error, nothing. Throws also
/// StateError before the set's `init`.
template <Scalar S, TensorSource File>
Report load_into_from(AdapterSet<S>& set, const File& file, std::string_view config_text,
                      const Path& config_path, const LoadOptions& options = {}, Report report = {}) {
  const detail::Source config_source{config_path}, source{file.path()};
  if (std::ssize(set.theta()) != set.size() || set.modules() == 0)
    fail(Code::state_error, "a set is loaded into before init()");
  const detail::AdapterConfig config = detail::read_config(config_text, config_source, report);
  auto plan = detail::make_plan<S>(file.tensors(), config, options, source, report);
  if (!options.lenient) detail::expect_clean(report, file.path());  // the folder's own faults first
  detail::bind(plan, set, source, report);
  if (!options.lenient) detail::expect_clean(report, file.path());
  detail::expect_modules(plan, report, file.path());
  std::vector<Buffer<S>> staged;
  for (const detail::PlannedModule<S>& module : plan.modules) {
    staged.emplace_back(set.theta(set.find(module.name)).size());
    detail::read_module(file, module, std::span<S>(staged.back()), options, report);
  }
  for (std::size_t m = 0; m < plan.modules.size(); ++m)
    std::copy(staged[m].begin(), staged[m].end(), set.theta(set.find(plan.modules[m].name)).begin());
  for (const TensorInfo* const t : plan.kept) report.notes.push_back({t->name, "is not of the set"});
  return report;
}

/// An adapter's folder as PEFT and others write it, from the files alone: adapter_config.json and
/// adapter_model.safetensors. Every fault is an error unless `options.lenient`; what is refused with which
/// code is in tests/io/README.md.
template <Scalar S>
Loaded<S> load(const Path& dir, const LoadOptions& options = {}) {
  const detail::Folder folder(dir, options.adapter);
  folder.expect_readable();
  const TensorFile file = TensorFile::read(folder.tensors_path);
  Report report;
  const std::string config = folder.config(file, options.lenient, report);
  return load_from<S>(file, config, folder.config_path, options, std::move(report));
}

/// The same into an existing set, whose modules must be those of the folder: name, shape, rank, scale,
/// router. After an error no bit of the set has changed.
template <Scalar S>
Report load_into(AdapterSet<S>& set, const Path& dir, const LoadOptions& options = {}) {
  const detail::Folder folder(dir, options.adapter);
  folder.expect_readable();
  const TensorFile file = TensorFile::read(folder.tensors_path);
  Report report;
  const std::string config = folder.config(file, options.lenient, report);
  return load_into_from(set, file, config, folder.config_path, options, std::move(report));
}

}  // namespace moxie::inline MOXIE_ABI::io
