// expect: moxie: the scalar of the matrix differs from the scalar of the view
// SPDX-License-Identifier: MIT
#include <moxie/presets.hpp>

#ifdef FAULT
using S = float;
#else
using S = double;
#endif

void f(const moxie::MoLA<double>& adapter, std::span<const double> theta, const moxie::Matrix<S>& x,
       moxie::Matrix<double>& y, moxie::Cache<double>& cache, moxie::Workspace<double>& workspace) {
  adapter.forward(theta, x, y, cache, workspace, {});
}
