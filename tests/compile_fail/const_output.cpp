// expect: moxie: an output view needs a writable object
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

#ifdef FAULT
using Tokens = Eigen::Map<const moxie::Matrix<float>>;
#else
using Tokens = Eigen::Map<moxie::Matrix<float>>;
#endif

moxie::Index f(Tokens& tokens) { return moxie::Out<float>(tokens).rows; }
