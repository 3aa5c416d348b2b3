// expect: moxie: a view needs a row-major tensor of rank 3
// SPDX-License-Identifier: MIT
#include <moxie/tensor.hpp>

#ifdef FAULT
constexpr int layout = Eigen::ColMajor;
#else
constexpr int layout = Eigen::RowMajor;
#endif

moxie::Index f(const Eigen::TensorMap<Eigen::Tensor<float, 3, layout>>& tokens) {
  return moxie::rows(tokens).rows;
}
