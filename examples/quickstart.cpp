// SPDX-License-Identifier: MIT
// Two kinds of tokens pass one frozen layer. Features 1 and 2 of the first kind should come out turned by
// 90 degrees, those of the second kind doubled. A mixture of two LoRAs learns both, and who needs which.
#include <moxie/moxie.hpp>

#include <cstdio>
#include <random>

int main() {
  constexpr int half = 64, tokens = 2 * half, d = 8;
  std::mt19937 random(1);
  moxie::Matrix<float> x(tokens, d), y(tokens, d);
  for (float& value : x.reshaped()) value = static_cast<float>(random() % 2001) / 1000 - 1;
  x.col(0) << Eigen::VectorXf::Ones(half), -Eigen::VectorXf::Ones(half);  // tells the kinds apart
  moxie::Matrix<float> wanted = x;
  wanted.topRows(half).col(1) = -x.topRows(half).col(2);
  wanted.topRows(half).col(2) = x.topRows(half).col(1);
  wanted.bottomRows(half).middleCols(1, 2) *= 2;

  const moxie::Matrix<float> weight = moxie::Matrix<float>::Identity(d, d);
  const moxie::AdaptedLinear layer(moxie::molora<float>({.in = d, .out = d, .experts = 2}), weight);
  moxie::Buffer<float> theta = moxie::make_theta(layer.adapter(), 1), gradient(theta.size());
  moxie::AdamW<float> adamw(moxie::parameter_groups(layer.adapter().fields()));
  moxie::LinearCache<float> cache;
  moxie::Workspace<float> workspace;
  for (int step = 0; step <= 100; ++step) {
    layer.forward(theta, x, y, cache, workspace);
    const moxie::Matrix<float> dy = (y - wanted) / tokens;
    const double loss = tokens * dy.squaredNorm() / 2;
    if (step % 20 == 0) std::printf("step %3d  loss %.3f\n", step, loss);
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    layer.backward(theta, x, dy, cache, workspace, {}, {}, gradient);
    if (!adamw.step(theta, gradient, {.learning_rate = 0.02, .loss = loss}).applied) return 1;
  }
  const Eigen::Map<const moxie::Matrix<float>> p(cache.adapter.routing.probs.data(), tokens, 2);
  for (const int kind : {0, 1})
    std::printf("%s  expert 0: %.2f  expert 1: %.2f\n", kind == 0 ? "turned " : "doubled",
                p.col(0).segment(kind * half, half).mean(), p.col(1).segment(kind * half, half).mean());
}
