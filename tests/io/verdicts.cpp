// SPDX-License-Identifier: MIT
// What our reader says of every file of the corpus, and what another one says, as the tables of README.md;
// compiled with -DMOXIE_PEER_SAFETENSORS=FOLDER, where FOLDER has safetensors.hh of
// github.com/syoyo/safetensors-cpp. The peer judges every file in a process of its own, under the address and
// undefined-behaviour sanitizers.
#include "io/tensor_corpus.hpp"

#if __has_include(<safetensors.hh>)
#  define SAFETENSORS_CPP_IMPLEMENTATION
#  include <safetensors.hh>
#endif

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <map>

namespace {

using moxie::test::refusal_of;

struct Case {
  std::string what, bytes, wanted;  // wanted: the code's name, or "read"
  std::string reference;            // what the reference does, by its source
};
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& file : moxie::test::good_files()) all.push_back({file.what, file.bytes, "read", "reads"});
  for (const auto& file : moxie::test::bad_files())
    all.push_back({"line " + std::to_string(file.line) + ": " + file.what, file.bytes,
                   std::string(name(file.code)), file.stricter ? "reads" : "refuses"});
  return all;
}

/// "reads" or "refuses", with what a sanitizer said, or "crashes".
[[maybe_unused]] std::string in_child(const std::function<bool()>& reads) {
  int ends[2];
  if (pipe(ends) != 0) return "?";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    alarm(60);
    _exit(reads() ? 10 : 11);
  }
  close(ends[1]);
  std::string said;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
    said.append(buffer, static_cast<std::size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const bool ended = WIFEXITED(status) && (WEXITSTATUS(status) == 10 || WEXITSTATUS(status) == 11);
  if (!ended) return said.find("stack-overflow") != std::string::npos ? "crashes: stack overflow" : "crashes";
  std::string verdict = WEXITSTATUS(status) == 10 ? "reads" : "refuses";
  if (said.find("runtime error") != std::string::npos) verdict += ", undefined behaviour";
  return verdict;
}

std::string ours(const std::string& bytes) {
  const auto code = refusal_of(bytes);
  return code ? std::string(name(*code)) : "read";
}
std::optional<std::string> peers([[maybe_unused]] const std::string& bytes) {
#if __has_include(<safetensors.hh>)
  return in_child([&] {
    safetensors::safetensors_t file;
    std::string warning, error;
    return safetensors::load_from_memory(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(),
                                         "file", &file, &warning, &error) &&
           safetensors::validate_data_offsets(file, error);
  });
#else
  return std::nullopt;
#endif
}

}  // namespace

int main() {
  std::map<std::pair<std::string, std::string>, int> sums;  // of what the reference does, and who does what
  std::string differences;
  int wrong = 0;
  for (const Case& c : cases()) {
    const std::string us = ours(c.bytes);
    wrong += us != c.wanted;
    if (us != c.wanted)
      std::printf("WRONG: %s: %s, wanted %s\n", c.what.c_str(), us.c_str(), c.wanted.c_str());
    ++sums[{c.reference, us == "read" ? "moxie reads" : "moxie refuses"}];
    const std::optional<std::string> peer = peers(c.bytes);
    if (!peer) continue;
    ++sums[{c.reference, "peer " + *peer}];
    if (*peer != c.reference)
      differences += "| " + c.what + " | " + c.reference + " | " + us + " | " + *peer + " |\n";
  }
  for (const auto& [who, n] : sums)
    std::printf("%4d files that the reference %s: %s\n", n, who.first.c_str(), who.second.c_str());
  if (!differences.empty())
    std::printf("\n| file | reference | moxie | peer |\n|---|---|---|---|\n%s", differences.c_str());
  return wrong == 0 ? 0 : 1;
}
