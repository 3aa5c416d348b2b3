// SPDX-License-Identifier: MIT
// Catch2 2.13 and 3 behind one include. Both have WithinAbs, WithinRel, StartsWith and EndsWith in
// Catch::Matchers; `Approx` and `Contains` differ, so tests use neither.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#  include <catch2/catch_all.hpp>
#else
#  include <catch2/catch.hpp>
#endif

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

namespace moxie::test {

/// Tells ctest, which counts such tests as skipped, why the rest of this test is left out; then `return`.
/// (Catch2 2 has no SKIP.) Say it before anything that may fail.
inline void skip(std::string_view reason) {
  std::cout << "SKIPPED: " << reason << std::endl;
  SUCCEED();
}

/// Path of a file of optional real data, or nothing after a call of `skip`:
///   const auto file = moxie::test::data("tok512.bin");
///   if (!file) return;
inline std::optional<std::filesystem::path> data(std::string_view name) {
  const char* folder = std::getenv("MOXIE_DATA");
  if (folder != nullptr && std::filesystem::exists(std::filesystem::path(folder) / name))
    return std::filesystem::path(folder) / name;
  skip("no " + std::string(name) + " (MOXIE_DATA names the folder of optional data)");
  return std::nullopt;
}

}  // namespace moxie::test
