// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/moxie.hpp>

/// x plus what the adapter, freshly made, adds to it; defined in another file than main().
moxie::Matrix<float> adapted(const moxie::Lora<float>& adapter, const moxie::Matrix<float>& x);
