// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/file.hpp>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace moxie::test {

/// A folder of its own, removed again.
struct TemporaryFolder {
  std::filesystem::path path;

  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "moxie-io-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

inline std::string content(const std::filesystem::path& path) { return io::read_file(path, 1 << 30); }

}  // namespace moxie::test
