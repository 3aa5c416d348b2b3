// expect: moxie: a view needs an object with memory
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>

moxie::Index f(moxie::Matrix<float>& a) {
#ifdef FAULT
  return moxie::Out<float>(a.reverse()).rows;
#else
  return moxie::Out<float>(a.topRows(1)).rows;
#endif
}
