// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_files.hpp>
#include <moxie/io/torch_bin.hpp>

namespace moxie::inline MOXIE_ABI::io {

/// adapter_config.json and adapter_model.bin of a folder, for `load` and `load_into`. Nothing of the pickle
/// is run (torch_bin.hpp).
inline AdapterFiles read_torch_adapter(const Path& dir) {
  if (!detail::is_there(dir / torch_tensors_name)) detail::expect_readable(dir);
  AdapterFiles files{read_torch_bin(dir / torch_tensors_name), {}, dir / config_name};
  files.config = read_file(files.config_path, most_config_bytes);
  return files;
}

}  // namespace moxie::inline MOXIE_ABI::io
