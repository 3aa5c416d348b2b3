// expect: moxie: the scalar of the matrix differs from the scalar of the view
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

#ifdef FAULT
using S = float;
#else
using S = double;
#endif

moxie::Index f(const moxie::Matrix<S>& tokens) { return moxie::In<double>(tokens).rows; }
