// expect: constraint
// SPDX-License-Identifier: MIT
#include <moxie/presets.hpp>

#ifdef FAULT
using Router = moxie::SoftRouter<double>;
#else
using Router = moxie::SoftRouter<float>;
#endif

moxie::Index f(const moxie::MoeAdapter<moxie::LoraBank<float>, Router>& adapter) { return adapter.size(); }
