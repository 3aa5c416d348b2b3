// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/types.hpp>

moxie::Index rows(moxie::In<float> x);
