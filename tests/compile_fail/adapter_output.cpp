// expect: moxie: a view needs row-major storage
// SPDX-License-Identifier: MIT
#include <moxie/presets.hpp>

#ifdef FAULT
using Tokens = Eigen::MatrixXf;
#else
using Tokens = moxie::Matrix<float>;
#endif

void f(const moxie::MoV<float>& adapter, std::span<const float> theta, const moxie::Matrix<float>& x,
       Tokens& y, moxie::Cache<float>& cache, moxie::Workspace<float>& workspace) {
  adapter.forward(theta, x, y, cache, workspace, {});
}
