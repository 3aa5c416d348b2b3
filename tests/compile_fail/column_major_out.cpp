// expect: moxie: a view needs row-major storage
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

#ifdef FAULT
using Tokens = Eigen::MatrixXd;
#else
using Tokens = moxie::Matrix<double>;
#endif

moxie::Index f(Tokens& tokens) { return moxie::Out<double>(tokens).rows; }
