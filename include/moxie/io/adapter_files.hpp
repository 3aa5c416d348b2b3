// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_load.hpp>
#include <moxie/io/torch_bin.hpp>

/// Adapters whose tensors are in another file than PEFT's, or that are looked at before they are loaded.
namespace moxie::inline MOXIE_ABI::io {

inline constexpr std::string_view torch_tensors_name = "adapter_model.bin";

/// An adapter's files in memory, for `load_from` and `load_into_from`, which find out whether they are one.
struct AdapterFiles {
  TensorFile tensors;
  std::string config;
  Path config_path;
  Report report = {};  ///< of the files alone; pass it on
};

/// adapter_config.json and adapter_model.safetensors. Throws what `load` throws of files.
inline AdapterFiles read_adapter(const Path& dir, const LoadOptions& options = {}) {
  const detail::Folder folder(dir, options.adapter);
  folder.expect_readable();
  AdapterFiles files{TensorFile::read(folder.tensors_path), {}, folder.config_path};
  files.config = folder.config(files.tensors, options.lenient, files.report);
  return files;
}

/// adapter_config.json and adapter_model.bin, a pickle of which nothing is run (torch_bin.hpp).
inline AdapterFiles read_torch_adapter(const Path& dir, const LoadOptions& options = {}) {
  const detail::Folder folder(dir, options.adapter);
  const Path folder_path = folder.config_path.parent_path();
  AdapterFiles files{read_torch_bin(folder_path / torch_tensors_name), {}, folder.config_path};
  files.config = read_file(folder.config_path, detail::most_config_bytes);
  return files;
}

/// `load` of a folder whose tensors are in adapter_model.bin.
template <Scalar S>
Loaded<S> load_torch(const Path& dir, const LoadOptions& options = {}) {
  const AdapterFiles files = read_torch_adapter(dir, options);
  return load_from<S>(files.tensors, files.config, files.config_path, options, files.report);
}
/// `load_into` from a folder whose tensors are in adapter_model.bin.
template <Scalar S>
Report load_torch_into(AdapterSet<S>& set, const Path& dir, const LoadOptions& options = {}) {
  const AdapterFiles files = read_torch_adapter(dir, options);
  return load_into_from(set, files.tensors, files.config, files.config_path, options, files.report);
}

}  // namespace moxie::inline MOXIE_ABI::io
