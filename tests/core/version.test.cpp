// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <moxie/core/version.hpp>

TEST_CASE("the version's text is its three numbers") {
  const auto number = [](int n) { return std::to_string(n); };
  REQUIRE(MOXIE_VERSION == number(MOXIE_VERSION_MAJOR) + "." + number(MOXIE_VERSION_MINOR) + "." +
                               number(MOXIE_VERSION_PATCH));
}
