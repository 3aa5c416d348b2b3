// SPDX-License-Identifier: MIT
// A config and a listing of tensors, a NUL between them: names, types and shapes change as the config does,
// always in a sound file, so that what does not fit together is what is tried.
#include "fuzz/adapters.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const std::size_t end = std::min(all.find('\0'), size);
  if (const auto file = moxie::fuzz::tensors(all.substr(std::min(end + 1, size))))
    moxie::fuzz::check(*file, all.substr(0, end));
  return 0;
}
