// SPDX-License-Identifier: MIT
#include "sum.hpp"

moxie::Buffer<float> row_sums(moxie::In<float> x) {
  moxie::Buffer<float> sums(static_cast<std::size_t>(x.rows));
  for (moxie::Index t = 0; t < x.rows; ++t)
    for (moxie::Index i = 0; i < x.cols; ++i) sums[static_cast<std::size_t>(t)] += x.row(t)[i];
  return sums;
}
