// SPDX-License-Identifier: MIT
#include <moxie/core/version.hpp>
#include "other.hpp"

#include <string_view>

int main() {
  if (std::string_view(MOXIE_VERSION) != MOXIE_EXPECTED) return 1;
  const moxie::Matrix<float> x = moxie::Matrix<float>::Ones(2, 3);
  return rows(x) == 2 ? 0 : 2;
}
