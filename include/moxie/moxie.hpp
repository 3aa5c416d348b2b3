// SPDX-License-Identifier: MIT
#pragma once

/// The core of moxie: everything but the leaves (tensor.hpp, plot/, io/).
#include <moxie/adapter_set.hpp>
#include <moxie/allocation.hpp>
#include <moxie/analysis.hpp>
#include <moxie/linear.hpp>
#include <moxie/losses/importance.hpp>
#include <moxie/losses/load_balance.hpp>
#include <moxie/losses/localized.hpp>
#include <moxie/losses/z.hpp>
#include <moxie/optim/adamw.hpp>
#include <moxie/optim/schedule.hpp>
#include <moxie/optim/sgd.hpp>
#include <moxie/presets.hpp>
#include <moxie/route.hpp>
