// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_load.hpp>
#include <moxie/io/adapter_write_config.hpp>
#include <moxie/io/safetensors_writer.hpp>

namespace moxie::inline MOXIE_ABI::io {

struct SaveOptions {
  std::optional<Format> format = {};  ///< none: info.format, and without that the one that fits the set
  std::optional<Dtype> dtype = {};    ///< none: F32 of float, F64 of double. Kept tensors keep their own
};

namespace detail {

/// The two files' content.
struct Written {
  std::string config;
  TensorWriter tensors;
};

template <Scalar S>
Written write(const AdapterSet<S>& set, const AdapterInfo& info, const SaveOptions& options) {
  if (std::ssize(set.theta()) != set.size() || set.modules() == 0)
    fail(Code::state_error, "a set is saved before init(), or without modules");
  const std::vector<Described> all = describe(set);
  Format format = options.format ? *options.format : info.format ? *info.format : format_for(set, all);
  const Dtype dtype = options.dtype.value_or(std::is_same_v<S, double> ? Dtype::f64 : Dtype::f32);
  const bool converted = info.format && format != *info.format;
  nlohmann::json base = converted ? base_of(info.config) : info.config;
  if (format == Format::moe_peft && std::all_of(all.begin(), all.end(), is_plain)) {
    // MoE-PEFT's plain LoRA lies in PEFT's files, but what it cannot say there either is refused.
    expect_held(format, all);
    base = base_of(info.config);
    set_projections(base, all);
    if (!info.kept.empty())
      fail(Code::unsupported_option, join("the format moe-peft cannot hold ", shown(info.kept.front().name),
                                          ", which is kept beside the adapter"));
    format = Format::peft;
  }
  const nlohmann::json json = config_of(all, format, base);
  Written written{.config = json.dump(2, ' ', true, nlohmann::json::error_handler_t::replace), .tensors = {}};
  const Path nowhere = "what would be saved";
  const Source source{nowhere};
  Report report;
  const AdapterConfig config = read_config(written.config, nowhere, report);
  Matcher matcher(source);
  std::vector<std::string> modules;
  for (const Described& d : all) modules.push_back(d.name);
  const std::vector<bool> feedforward = matcher.apply_feedforward(config.feedforward, modules);

  std::vector<TensorInfo> listing;
  for (std::size_t m = 0; m < modules.size(); ++m) {
    const auto& entry = set.entries()[m];
    const std::span<const S> theta = set.theta(Module{static_cast<Index>(m)});
    for (const Piece& piece :
         std::visit([&](const auto& a) { return pieces_of(a, format, feedforward[m]); }, entry.adapter)) {
      listing.push_back({name_of(format, prefix_of(format, config), path_in_file(format, entry.name), piece),
                         dtype, piece.shape});
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
    source.refuse(Code::config_mismatch, "would be read as ", io::name(plan.format), ", wanted ",
                  io::name(format));
  bind(plan, set, source, report);
  expect_clean(report, nowhere, nowhere);
  return written;
}

/// A folder under a lock. Made where it is missing; what a save has left in it when it fails is taken away.
class LockedFolder {
 public:
  explicit LockedFolder(const Path& path) : next(path / next_config_name), path_(path), lock_(open()) {
    if (lock_.get() < 0) refuse_errno(Code::io_open, path_, "open and lock the folder", errno);
  }
  LockedFolder(const LockedFolder&) = delete;
  LockedFolder& operator=(const LockedFolder&) = delete;
  ~LockedFolder() {
    std::error_code error;
    if (wrote_next && !replaced_tensors) std::filesystem::remove(next, error);
    if (made_) std::filesystem::remove(path_, error);  // which only takes an empty one
  }
  const Path next;                ///< the config that a save is about to put in place
  bool wrote_next = false;        ///< it is ours
  bool replaced_tensors = false;  ///< and needed for the pair, until the config is replaced too

  /// An interrupted save may have left tensors whose config is only in `next`: that is put in place before
  /// another one is written there. By the text of the header alone, since the file may be damaged.
  void finish_interrupted() {
    if (const std::string text = interrupted(); !text.empty()) save_file(path_ / config_name, text);
  }

 private:
  /// The config in `next` that belongs to the folder's tensors; empty where it does not.
  std::string interrupted() const {
    const Path tensors = path_ / tensors_name;
    std::error_code error;
    if (!std::filesystem::is_regular_file(next, error) || !std::filesystem::is_regular_file(tensors, error) ||
        std::filesystem::file_size(next, error) > most_config_bytes)
      return {};
    const FileReader file(tensors);
    const std::string head = file.read(0, std::min<std::uint64_t>(file.size(), 4096)),
                      text = read_file(next, most_config_bytes);
    const bool fits =
        head.find(join("\"", config_key, "\":\"", checksum_text(crc32c(text)), "\"")) != std::string::npos;
    return fits ? text : std::string();
  }
  Descriptor open() {
    if (has_nul(path_)) refuse(Code::io_open, path_, "a path with a NUL");
    std::error_code error;
    made_ = std::filesystem::create_directory(path_, error);
    if (error && !is_there(path_)) refuse_errno(Code::io_open, path_, "make the folder", error.value());
    return lock_folder(path_, LOCK_EX);
  }

  Path path_;
  bool made_ = false;
  Descriptor lock_;
};

}  // namespace detail

/// Writes a folder that `load` reads: adapter_config.json and adapter_model.safetensors, each replaced at
/// once, together under a lock of the folder, which is made where it is missing. After an error or a kill at
/// any moment `load` finds the old pair or the new one. The same content makes the same bytes. The format is
/// options.format, or info.format (of plain LoRAs MoE-PEFT's is PEFT's), or PEFT's where the set is of plain
/// LoRAs or IA3, the released MoLA's, LoRAMoE's or HydraLoRA's where it is of those and they can hold it, and
/// otherwise our own. Of a config in another format than info.format only what it says of the base stays.
/// PEFT and MoLA read the folder; the other programs open adapter_model.bin alone (include/moxie/io/README.md
/// says how to make it). Throws UnsupportedOption where the format cannot hold the set, NonFinite, IoOpen
/// where the folder cannot be made, and what save_file throws.
template <Scalar S>
void save(const AdapterSet<S>& set, const Path& dir, const AdapterInfo& info = {},
          const SaveOptions& options = {}) {
  detail::Written written = detail::write(set, info, options);
  written.tensors.metadata = {{"format", "pt"},
                              {std::string(detail::config_key), checksum_text(crc32c(written.config))}};
  detail::LockedFolder folder(dir);
  folder.finish_interrupted();
  save_file(folder.next, written.config, &folder.wrote_next);
  written.tensors.save(dir / tensors_name, &folder.replaced_tensors);
  save_file(dir / config_name, written.config);
  folder.replaced_tensors = false;
}

}  // namespace moxie::inline MOXIE_ABI::io
