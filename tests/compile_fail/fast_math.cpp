// expect: moxie cannot keep its promises under -ffast-math
// fault: -ffast-math
// SPDX-License-Identifier: MIT
#include <moxie/core/types.hpp>
