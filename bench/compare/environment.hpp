// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <string>
#include <vector>

/// The process around a run: libraries read their settings from the environment while they load, so the work
/// is done by children of this program that start with the right one.
namespace compare {

using Environment = std::map<std::string, std::string>;

/// Runs this program again, bound to `cores` processors, with these variables set unless the user has set
/// them: returns its exit status. With `output` its standard output is caught.
int run_self(const std::vector<std::string>& arguments, const Environment& environment, int cores,
             std::string* output = nullptr);

/// Settings under which libtorch, OpenBLAS and OpenMP are at their best with so many threads. `core_type` is
/// OpenBLAS's kernels, empty for its own choice.
Environment settings(int threads, const std::string& core_type);

/// Names of OpenBLAS's kernels that this processor can run and that are worth a try; empty on processors
/// other than x86-64.
std::vector<std::string> core_types();

/// Processors that this process may run on.
int processors();
/// Flushes denormals to zero on this thread and those it starts.
void flush_denormals();
/// Makes malloc keep freed memory: page faults of fresh tensors would be most of some peers' time.
void keep_memory();

std::string processor_name();
std::string compiler_name();

}  // namespace compare
