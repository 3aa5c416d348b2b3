// expect: moxie: a view needs contiguous features
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

#ifdef FAULT
using Tokens = Eigen::Map<moxie::Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, 2>>;
#else
using Tokens = Eigen::Map<moxie::Matrix<float>, 0, Eigen::OuterStride<>>;
#endif

moxie::Index f(Tokens& tokens) { return moxie::Out<float>(tokens).rows; }
