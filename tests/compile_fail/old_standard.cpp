// expect: moxie needs C++20
// fault: -std=c++17
// SPDX-License-Identifier: MIT
#include <moxie/core/version.hpp>
