// SPDX-License-Identifier: MIT
// Bytes as adapter_config.json beside the tensors of each format; the first byte says which.
#include "fuzz/adapters.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moxie::fuzz;
  static const std::vector<moxie::io::TensorFile> files = [] {
    std::vector<moxie::io::TensorFile> all;
    for (const Sample& sample : samples) all.push_back(*tensors(sample.tensors));
    return all;
  }();
  if (size == 0) return 0;
  check(files[data[0] % files.size()], {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
