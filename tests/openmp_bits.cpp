// SPDX-License-Identifier: MIT
// Prints a hash of every output and gradient of the list. Built with and without OpenMP, the two programs
// must print the same text.
#include "support/case_list.hpp"

#include <cstdio>

namespace moxie::test {
namespace {

/// FNV-1a over bytes.
class Hash {
 public:
  template <class S>
  void add(const S* p, Index n) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(p);
    for (std::size_t i = 0; i < naive::at(n) * sizeof(S); ++i) state_ = (state_ ^ bytes[i]) * 0x100000001b3u;
  }
  unsigned long long value() const { return state_; }

 private:
  unsigned long long state_ = 0xcbf29ce484222325u;
};

template <class S>
void print() {
  for (const Case<S>& c : cases<S>({.in = 70, .out = 133, .head = 37, .heads = 2}))
    for (const bool training : {false, true}) {
      Run run = training ? training_run() : Run{};
      run.threads = 3;
      const Outputs<S> out = evaluate(c, make_inputs(c, team_tokens(c.adapter->size()), 1, false, true), run);
      Hash hash;
      hash.add(out.y.data(), out.y.size());
      hash.add(out.dx.data(), out.dx.size());
      hash.add(out.dtheta.data(), std::ssize(out.dtheta));
      hash.add(out.routing.gates.data(), std::ssize(out.routing.gates));
      hash.add(out.routing.probs.data(), std::ssize(out.routing.probs));
      std::printf("%s%s %016llx\n", c.name.c_str(), training ? ", training" : "", hash.value());
    }
}

}  // namespace
}  // namespace moxie::test

int main() {
#if defined(_OPENMP)
  std::fprintf(stderr, "with OpenMP\n");
#else
  std::fprintf(stderr, "without OpenMP\n");
#endif
  moxie::test::print<float>();
  moxie::test::print<double>();
}
