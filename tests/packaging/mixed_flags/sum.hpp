// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/types.hpp>

/// Memory of ours that one file allocates and another frees.
moxie::Buffer<float> row_sums(moxie::In<float> x);
