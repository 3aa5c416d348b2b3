// expect: ExpertBank
// SPDX-License-Identifier: MIT
#include <moxie/presets.hpp>

#ifdef FAULT
using Experts = moxie::UniformRouter<float>;
#else
using Experts = moxie::LoraBank<float>;
#endif

moxie::Index f(const moxie::MoeAdapter<Experts, moxie::SoftRouter<float>>& adapter) { return adapter.size(); }
