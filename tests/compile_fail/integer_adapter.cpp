// expect: Scalar
// SPDX-License-Identifier: MIT
#include <moxie/presets.hpp>

#ifdef FAULT
using S = int;
#else
using S = float;
#endif

moxie::Index f(const moxie::MoLoRA<S>& adapter) { return adapter.size(); }
