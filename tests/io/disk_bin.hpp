// SPDX-License-Identifier: MIT
#pragma once

#include "io/disk.hpp"
#include "support/torch_file.hpp"

namespace moxie::test {

/// The folder of a disk with its tensors as torch.save writes them, adapter_model.bin, and no safetensors.
/// Tensors of equal bytes share a storage, as tied weights do.
inline void write_torch(const Disk& disk, const io::Path& folder) {
  disk.write(folder);
  std::filesystem::remove(folder / "adapter_model.safetensors");
  std::string text = pickle::proto + pickle::dict + pickle::mark;
  std::vector<std::string> storages;
  for (const auto& [name, t] : disk.tensors) {
    std::vector<std::int64_t> strides(t.shape.size(), 1);
    for (std::size_t i = strides.size(); i-- > 1;) strides[i - 1] = strides[i] * t.shape[i];
    std::string bytes;
    for (const double v : t.values) {
      const auto single = static_cast<float>(v);
      bytes.append(reinterpret_cast<const char*>(&single), sizeof single);
    }
    const auto at = std::find(storages.begin(), storages.end(), bytes);
    const std::string storage =
        pickle::storage("FloatStorage", std::to_string(at - storages.begin()), std::ssize(t.values));
    text += pickle::text(name) + pickle::tensor(storage, 0, {t.shape.begin(), t.shape.end()}, strides);
    if (at == storages.end()) storages.push_back(bytes);
  }
  std::ofstream(folder / "adapter_model.bin", std::ios::binary)
      << torch_file(text + pickle::set_items + pickle::stop, storages);
}

}  // namespace moxie::test
