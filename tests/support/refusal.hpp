// SPDX-License-Identifier: MIT
#pragma once

#include "support/catch.hpp"

#include <moxie/core/error.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace moxie::test {

/// A message is one line that a terminal shows as it is, whatever the names of a file hold.
inline bool is_a_line(const std::string& message) {
  return message.size() < 4000 &&
         std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

/// Calls f, which must be refused with the code, and with a message that holds every one of `words`: the
/// thing, what was got, what was wanted.
template <class F>
void refused(F&& f, Code code, const std::vector<std::string>& words = {}) {
  try {
    f();
  } catch (const Error& error) {
    const std::string message = error.what();
    INFO(message);
    CHECK(is_a_line(message));
    CHECK(name(error.code()) == name(code));
    CHECK(message.find(std::string(name(code)) + ": ") == 0);
    for (const std::string& word : words) {
      INFO("wanted in the message: " << word);
      CHECK(message.find(word) != std::string::npos);
    }
    return;
  }
  INFO("wanted " << name(code) << (words.empty() ? "" : " with " + words.front()));
  FAIL_CHECK("it was not refused");
}

}  // namespace moxie::test
