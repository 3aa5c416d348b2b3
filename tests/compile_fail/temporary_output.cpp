// expect: no match
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

moxie::Matrix<float> make();
moxie::Index f() {
#ifdef FAULT
  return moxie::Out<float>(make()).rows;
#else
  moxie::Matrix<float> made = make();
  return moxie::Out<float>(made).rows;
#endif
}
