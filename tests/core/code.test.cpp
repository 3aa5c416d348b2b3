// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <moxie/core/code.hpp>

#include <set>

using namespace moxie;

TEST_CASE("every code has a name of its own, in CamelCase", "[core]") {
  std::set<std::string_view> seen;
  for (int i = 0; i <= static_cast<int>(Code::pair_mismatch); ++i) {
    const std::string_view of = name(static_cast<Code>(i));
    CAPTURE(i, of);
    CHECK(seen.insert(of).second);
    CHECK((of.size() > 2 && of[0] >= 'A' && of[0] <= 'Z'));
    CHECK(of.find('_') == std::string_view::npos);
  }
  CHECK(name(Code::shape_mismatch) == "ShapeMismatch");
  CHECK(name(Code::value_range) == "ValueRange");
  CHECK(name(Code::not_state_dict) == "NotStateDict");
  CHECK(name(Code::missing_tensor) == "MissingTensor");
  CHECK(name(Code::pair_mismatch) == "PairMismatch");
}
