// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/report.hpp>
#include <moxie/io/safetensors.hpp>

#include <sys/file.h>

/// The two files of an adapter's folder, before anybody has found out whether they are one.
namespace moxie::inline MOXIE_ABI::io {

inline constexpr std::string_view config_name = "adapter_config.json",
                                  tensors_name = "adapter_model.safetensors",
                                  torch_tensors_name = "adapter_model.bin";
inline constexpr std::uint64_t most_config_bytes = 1 << 20;

/// An adapter's files in memory.
struct AdapterFiles {
  TensorFile tensors;
  std::string config;
  Path config_path;
  Report report = {};  ///< of the files alone; `load` goes on with it
};

namespace detail {

/// In the metadata of tensor files that we write: the checksum of the config that belongs to them. While a
/// save goes on, that config is also in a file of the second name, so that a folder always holds one pair.
inline constexpr std::string_view config_key = "adapter_config.crc32c",
                                  next_config_name = "adapter_config.json.next.tmp";

inline bool is_there(const Path& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

/// The folder under a lock, shared with readers or of a saver alone, until it goes; -1 where there is none.
inline Descriptor lock_folder(const Path& dir, int kind) {
  Descriptor folder(uninterrupted([&] { return ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (folder.get() >= 0 && uninterrupted([&] { return ::flock(folder.get(), kind); }) != 0)
    return Descriptor(-1);
  return folder;
}

/// Says what a folder is where it is known and not ours.
inline void expect_readable(const Path& dir) {
  const Path tensors = dir / tensors_name;
  if (is_there(dir / "xlora_config.json") || is_there(dir / "xlora_classifier.safetensors"))
    refuse(Code::unsupported_option, dir, "is of X-LoRA, which is not built");
  if (is_there(tensors)) return;
  if (is_there(dir / torch_tensors_name))
    refuse(Code::io_open, tensors,
           "is not there, but adapter_model.bin is: a pickle, which is read only where that is asked for "
           "(read_torch_adapter; of programs --torch-bin)");
  if (is_there(dir / "adapter_model.safetensors.index.json"))
    refuse(Code::unsupported_option, dir, "is sharded, wanted one adapter_model.safetensors");
  std::error_code error;
  std::filesystem::directory_iterator at(dir, error);
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) {
    const Path entry = at->path();
    if (entry.extension() == ".gguf")
      refuse(Code::unsupported_option, entry, "is a GGUF file, which is not built");
    if (is_there(entry / config_name))
      refuse(Code::io_open, tensors, "is not there, but the sub-folder ", shown(entry.filename().native()),
             " is an adapter's: load that");
  }
}

/// The config that belongs to the tensors. Throws PairMismatch unless `lenient`.
inline std::string config_of(const Path& dir, const TensorFile& tensors, bool lenient, Report& report) {
  const Path path = dir / config_name, next = dir / next_config_name;
  const auto wanted = tensors.metadata().find(std::string(config_key));
  if (wanted == tensors.metadata().end()) return read_file(path, most_config_bytes);
  const auto fits = [&](const std::string& text) { return checksum_text(crc32c(text)) == wanted->second; };
  if (is_there(next) && (!is_there(path) || !fits(read_file(path, most_config_bytes))))
    if (std::string text = read_file(next, most_config_bytes); fits(text)) {
      report.note(std::string(next_config_name), "was taken: a save was interrupted");
      return text;
    }
  std::string text = read_file(path, most_config_bytes);
  if (fits(text)) return text;
  const std::string what = "is not the config that was saved with " + shown(tensors_name);
  if (!lenient) refuse(Code::pair_mismatch, path, what + " (edited since? A lenient load takes it)");
  report.note(std::string(config_name), what);
  return text;
}

}  // namespace detail

/// adapter_config.json and adapter_model.safetensors of a folder. Throws what `load` throws of files.
inline AdapterFiles read_adapter(const Path& dir, const LoadOptions& options = {}) {
  // Not while a save replaces one file after the other. A folder that cannot be locked is read as it is.
  const detail::Descriptor lock = detail::lock_folder(dir, LOCK_SH);
  detail::expect_readable(dir);
  AdapterFiles files{TensorFile::read(dir / tensors_name), {}, dir / config_name};
  files.config = detail::config_of(dir, files.tensors, options.lenient, files.report);
  return files;
}

}  // namespace moxie::inline MOXIE_ABI::io
