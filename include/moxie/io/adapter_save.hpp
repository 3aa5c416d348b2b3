// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_load.hpp>
#include <moxie/io/adapter_write_config.hpp>
#include <moxie/io/safetensors_writer.hpp>

#include <sys/file.h>

namespace moxie::inline MOXIE_ABI::io {

struct SaveOptions {
  std::optional<Format> format = {};  ///< none: info.format, and without that the one that fits the set
  std::optional<Dtype> dtype = {};    ///< none: F32 of float, F64 of double. Kept tensors keep their own
  std::string adapter = {};  ///< a sub-folder, made where it is missing, as PEFT does for names but "default"
};

namespace detail {

/// The two files' content, and what their own reader makes of it.
template <Scalar S>
struct Written {
  std::string config;
  TensorWriter tensors;
};

template <Scalar S>
Written<S> write(const AdapterSet<S>& set, const AdapterInfo& info, const SaveOptions& options) {
  if (std::ssize(set.theta()) != set.size() || set.modules() == 0)
    fail(Code::state_error, "a set is saved before init(), or without modules");
  const Format format = options.format ? *options.format : info.format ? *info.format : format_for(set);
  const Dtype dtype = options.dtype.value_or(std::is_same_v<S, double> ? Dtype::f64 : Dtype::f32);
  const bool converted = info.format && format != *info.format;
  const nlohmann::json json = config_of(set, format, converted ? base_of(info.config) : info.config);
  Written<S> written{.config = json.dump(2, ' ', true, nlohmann::json::error_handler_t::replace),
                     .tensors = {}};
  const Path nowhere = "what would be saved";
  const Source source{nowhere};
  Report report;
  const AdapterConfig config = read_config(written.config, source, report);
  Matcher matcher(source);
  const std::vector<std::string> modules = names_of(set);
  const std::vector<bool> feedforward = matcher.apply_feedforward(config.feedforward, modules);

  std::vector<TensorInfo> listing;
  for (std::size_t m = 0; m < modules.size(); ++m) {
    const auto& entry = set.entries()[m];
    const std::span<const S> theta = set.theta(Module{static_cast<Index>(m)});
    const auto [prefix, path] = with_prefix(format, config, entry.name);
    for (const Piece& piece :
         std::visit([&](const auto& a) { return pieces_of(a, format, feedforward[m]); }, entry.adapter)) {
      listing.push_back({name_of(format, prefix, path, piece), dtype, piece.shape});
      written.tensors.add(listing.back().name, piece.shape, std::span<const S>(from_theta(piece, theta)),
                          dtype);
    }
  }
  if (config.json != json) source.refuse(Code::invalid_utf8, "the config holds what JSON cannot");
  for (const Kept& kept : info.kept) {
    listing.push_back({kept.name, kept.dtype, kept.shape});
    written.tensors.add_bytes(kept.name, kept.shape, kept.bytes, kept.dtype);
  }

  // What is written must be read as what it is: the reader looks at it as it will look at the files.
  auto plan = make_plan<S>(listing, config, {}, source, report);
  if (plan.format != format)
    source.refuse(Code::config_mismatch, moxie::detail::join({"would be read as ", io::name(plan.format),
                                                              ", wanted ", io::name(format)}));
  bind(plan, set, source, report);
  expect_clean(report, nowhere);
  return written;
}

}  // namespace detail

/// Writes a folder that `load` and the format's own program read: adapter_config.json and
/// adapter_model.safetensors, each replaced at once, together under a lock of the folder. After a kill at any
/// moment `load` finds the old pair or the new one. The same content makes the same bytes. The format is
/// options.format, or info.format, or PEFT's where the set is of plain LoRAs or IA3, the released MoLA's,
/// LoRAMoE's or HydraLoRA's where it is of those and they can hold it, and otherwise our own. Of a config in
/// another format than info.format only what it says of the base stays. Throws UnsupportedOption where the
/// format cannot hold the set, NonFinite, IoOpen where the folder is missing, and what save_file throws.
template <Scalar S>
void save(const AdapterSet<S>& set, const Path& dir, const AdapterInfo& info = {},
          const SaveOptions& options = {}) {
  detail::Written<S> written = detail::write(set, info, options);
  const detail::Folder folder(dir, options.adapter);
  const Path path = folder.config_path.parent_path();
  std::error_code error;
  if (!options.adapter.empty()) std::filesystem::create_directory(path, error);
  const detail::Descriptor lock(
      detail::uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (lock.get() < 0) detail::refuse_errno(Code::io_open, path, "open the folder", errno);
  if (detail::uninterrupted([&] { return ::flock(lock.get(), LOCK_EX); }) != 0)
    detail::refuse_errno(Code::io_open, path, "lock the folder", errno);
  written.tensors.metadata = {{"format", "pt"},
                              {std::string(detail::config_key), checksum_text(crc32c(written.config))}};
  const Path next = path / detail::next_config_name;
  save_file(next, written.config);
  written.tensors.save(folder.tensors_path);
  save_file(folder.config_path, written.config);
  std::filesystem::remove(next, error);
}

}  // namespace moxie::inline MOXIE_ABI::io
