// SPDX-License-Identifier: MIT
// In place of torch_peers.cpp where libtorch is not installed.
#include "problem.hpp"

namespace compare {

Contestants torch_peers(Problem&) { return {}; }
std::string torch_version() { return {}; }
void torch_threads(int) {}
void torch_product() {}

}  // namespace compare
