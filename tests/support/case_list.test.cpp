// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/case_list.hpp"

namespace moxie::test {

template std::vector<Case<float>> cases(const Sizes&);
template std::vector<Case<double>> cases(const Sizes&);

}  // namespace moxie::test
