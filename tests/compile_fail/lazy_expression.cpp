// expect: moxie: a view needs an object with memory
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

moxie::Index f(const moxie::Matrix<float>& a, const moxie::Matrix<float>& b) {
#ifdef FAULT
  return moxie::In<float>(a + b).rows;
#else
  return moxie::In<float>((a + b).eval()).rows;
#endif
}
