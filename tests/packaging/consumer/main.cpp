// SPDX-License-Identifier: MIT
#include "adapter.hpp"

#include <string_view>

int main() {
  if (std::string_view(MOXIE_VERSION) != MOXIE_EXPECTED) return 1;
  const auto adapter = moxie::lora<float>({.in = 3, .out = 3, .rank = 2});
  const moxie::Matrix<float> x = moxie::Matrix<float>::Ones(2, 3);
  return adapted(adapter, x) == x ? 0 : 2;  // B starts at zero
}
