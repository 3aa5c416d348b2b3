// SPDX-License-Identifier: MIT
// Compiled without exceptions and RTTI: a set of adapters works, and a refused call reaches the program's own
// handler with its code and text.
#include <moxie/moxie.hpp>

#include <cstdlib>
#include <cstring>

int main() {
  moxie::error_handler() = [](moxie::Code code, const char* text) {
    std::exit(code == moxie::Code::shape_mismatch && std::strstr(text, "wanted [") ? 0 : 2);
  };
  moxie::AdapterSet<float> set;
  const moxie::Module q =
      set.add("q_proj", moxie::molora<float>({.in = 8, .out = 8, .experts = 2, .rank = 2}));
  set.init(1);

  moxie::Matrix<float> x = moxie::Matrix<float>::Ones(3, 8), y = x, dx = x;
  moxie::Buffer<float> dtheta(set.theta().size());
  moxie::Cache<float> cache;
  moxie::Workspace<float> workspace;
  set.forward(q, x, y, cache, workspace);
  set.backward(q, x, y, cache, workspace, {}, dx, dtheta);
  if (y != x) return 3;  // B starts at zero

  set.forward(q, x.leftCols(7), y, cache, workspace);
  return 1;
}
