// expect: no match
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

#ifdef FAULT
using Tokens = const moxie::Matrix<float>;
#else
using Tokens = moxie::Matrix<float>;
#endif

moxie::Index f(Tokens& tokens) { return moxie::Out<float>(tokens).rows; }
