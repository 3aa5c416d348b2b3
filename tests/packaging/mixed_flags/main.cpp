// SPDX-License-Identifier: MIT
#include "sum.hpp"

int main() {
  const moxie::Matrix<float> x = moxie::Matrix<float>::Ones(3, 5);
  return row_sums(x) == moxie::Buffer<float>{5, 5, 5} ? 0 : 1;
}
