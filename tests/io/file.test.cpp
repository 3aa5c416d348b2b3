// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <moxie/io/file.hpp>

#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>
#include <functional>

using namespace moxie;
using namespace moxie::io;
namespace fs = std::filesystem;

namespace {

/// A folder of its own, removed again.
struct Folder {
  Path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "moxie-io-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(path), fs::directory_iterator()));
  }
};

std::string content(const Path& path) { return read_file(path, 1 << 30); }

std::optional<Code> refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return std::nullopt;
}

/// Runs f in a process of its own; its status.
int in_child(const std::function<int()>& f) {
  const pid_t child = fork();
  if (child == 0) _exit(f());
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

}  // namespace

TEST_CASE("a save makes the file or replaces it, and leaves nothing beside it", "[io]") {
  const Folder folder;
  const Path file = folder.path / "adapter";
  save_file(file, std::string("first"));
  CHECK(content(file) == "first");
  fs::permissions(file, fs::perms::owner_read | fs::perms::owner_write);
  save_file(file, std::string("second, longer"));
  CHECK(content(file) == "second, longer");
  CHECK(fs::status(file).permissions() == (fs::perms::owner_read | fs::perms::owner_write));
  save_file(file, std::string());
  CHECK(content(file).empty());
  CHECK(folder.entries() == 1);
}

TEST_CASE("of a long path a message shows the end", "[io]") {
  const Path path = Path("/" + std::string(200, 'a')) / "adapter_model.safetensors";
  try {
    read_file(path, 1);
    FAIL("read");
  } catch (const Error& error) {
    const std::string_view text = error.what();
    CHECK(text.find("'...aaa") != std::string_view::npos);
    CHECK(text.find("aaa/adapter_model.safetensors': ") != std::string_view::npos);
  }
}

TEST_CASE("a reader keeps the bytes that a save replaces", "[io]") {
  const Folder folder;
  const Path file = folder.path / "adapter";
  save_file(file, std::string("old"));
  const FileReader reader(file);
  save_file(file, std::string("new!"));
  CHECK(reader.read(0, 3) == "old");
}

TEST_CASE("a link stays, its target is replaced", "[io]") {
  const Folder folder;
  save_file(folder.path / "target", std::string("old"));
  fs::create_symlink("target", folder.path / "link");
  save_file(folder.path / "link", std::string("new"));
  CHECK(fs::is_symlink(folder.path / "link"));
  CHECK(content(folder.path / "target") == "new");
  fs::create_symlink("nowhere", folder.path / "dangling");
  CHECK(refused([&] { save_file(folder.path / "dangling", std::string("x")); }) == Code::io_open);
}

TEST_CASE("what is no regular file is neither read nor replaced", "[io]") {
  const Folder folder;
  fs::create_directory(folder.path / "folder");
  REQUIRE(mkfifo((folder.path / "pipe").c_str(), 0600) == 0);
  for (const Path& path :
       {folder.path / "folder", folder.path / "pipe", Path("/dev/null"), Path("/dev/full")}) {
    INFO(path);
    CHECK(refused([&] { save_file(path, std::string("x")); }) == Code::not_regular_file);
    CHECK(refused([&] { FileReader reader(path); }) == Code::not_regular_file);
    CHECK(fs::exists(path));
  }
  CHECK(folder.entries() == 2);
}

TEST_CASE("paths that cannot be opened are refused", "[io]") {
  const Folder folder;
  const Path missing = folder.path / "missing" / "file";
  const Path paths[] = {missing, folder.path / std::string(5000, 'n'), Path(std::string("a\0b", 3))};
  for (const Path& path : paths) {
    CHECK(refused([&] { FileReader reader(path); }) == Code::io_open);
    CHECK(refused([&] { save_file(path, std::string("x")); }) == Code::io_open);
  }
  CHECK_FALSE(fs::exists(missing.parent_path()));
}

TEST_CASE("a file that changes its size while it is read is refused", "[io]") {
  const Folder folder;
  const Path file = folder.path / "file";
  save_file(file, std::string(100, 'x'));
  {
    const FileReader reader(file);
    fs::resize_file(file, 50);
    CHECK(refused([&] { reader.read(0, reader.size()); }) == Code::io_changed);
    CHECK(refused([&] { reader.expect_unchanged(); }) == Code::io_changed);
  }
  CHECK(refused([&] { read_file(file, 49); }) == Code::too_large);
  CHECK(refused([&] { FileReader(file).read(0, std::uint64_t{1} << 62); }) == Code::too_large);
}

TEST_CASE("where the disk is full the old file stays and nothing is left beside it", "[io]") {
  const Folder folder;
  const Path file = folder.path / "file";
  save_file(file, std::string("old"));
  const int status = in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    return refused([&] { save_file(file, std::string(10'000, 'x')); }) == Code::io_no_space ? 0 : 2;
  });
  CHECK(status == 0);
  CHECK(content(file) == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("a killed save leaves the old file or the new one", "[io]") {
  const Folder folder;
  const Path file = folder.path / "file";
  save_file(file, std::string(70'000, 'a'));
  for (int round = 0; round < 60; ++round) {
    const pid_t child = fork();
    if (child == 0)
      for (char c = 'b';; c = c == 'z' ? 'b' : static_cast<char>(c + 1))
        save_file(file, std::string(70'000, c));
    usleep(static_cast<useconds_t>(300 + 97 * round));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const std::string now = content(file);
    REQUIRE(now.size() == 70'000);
    REQUIRE(now == std::string(70'000, now[0]));
  }
}

TEST_CASE("of two savers one wins whole, and every reader sees a whole file", "[io]") {
  const Folder folder;
  const Path file = folder.path / "file";
  save_file(file, std::string(20'000, 'a'));
  const auto saver = [&](char c) {
    const pid_t child = fork();
    if (child != 0) return child;
    for (int i = 0; i < 100; ++i) save_file(file, std::string(20'000, c));
    _exit(0);
  };
  const pid_t one = saver('b'), two = saver('c');
  for (int i = 0; i < 200; ++i) {
    const std::string now = content(file);
    REQUIRE(now == std::string(20'000, now[0]));
  }
  for (const pid_t child : {one, two}) {
    int status = 1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
  }
  CHECK(folder.entries() == 1);
}
