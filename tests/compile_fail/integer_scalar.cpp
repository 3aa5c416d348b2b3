// expect: Scalar
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

#ifdef FAULT
using S = int;
#else
using S = double;
#endif

moxie::Index f(moxie::In<S> x) { return x.rows; }
