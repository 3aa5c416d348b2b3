// expect: moxie: a view needs row-major storage
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

#ifdef FAULT
using Tokens = Eigen::MatrixXf;
#else
using Tokens = moxie::Matrix<float>;
#endif

moxie::Index f(const Tokens& tokens) { return moxie::In<float>(tokens).rows; }
