// SPDX-License-Identifier: MIT
#include "adapter.hpp"

moxie::Matrix<float> adapted(const moxie::Lora<float>& adapter, const moxie::Matrix<float>& x) {
  moxie::Buffer<float> theta(static_cast<std::size_t>(adapter.size()));
  adapter.init(theta, 1);
  moxie::Matrix<float> y = x;
  moxie::Cache<float> cache;
  moxie::Workspace<float> workspace;
  adapter.forward(theta, x, y, cache, workspace, {});
  return y;
}
