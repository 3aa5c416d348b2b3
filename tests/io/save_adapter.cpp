// SPDX-License-Identifier: MIT
// save_adapter FOLDER old|new|third [SECONDS]: saves that adapter, once or again and again, for
// save_adapter_faults.sh to break. Calls of getppid() mark where it begins and ends. save_adapter FOLDER:
// loads it and says which one it is, to the bit. Exit 0, or 2 with the error's text.
#include "support/random.hpp"

#include <moxie/io/adapter_save.hpp>

#include <chrono>
#include <cstdio>
#include <cstring>

using namespace moxie;

namespace {

constexpr std::string_view names[] = {"old", "new", "third"};

/// Tensors of the same names and shapes under other configs, so that nothing but their values tells whether a
/// config and tensors belong together.
struct Sample {
  AdapterSet<float> set;
  io::AdapterInfo info{.config = {{"modules_to_save", {"score"}}}};

  explicit Sample(std::size_t which) {
    test::Rng rng(which);
    set.add("layers.0.q",
            lora<float>({.in = 128, .out = 96, .rank = 8, .alpha = 8.0 + static_cast<double>(which)}));
    set.init(1);
    rng.fill(set.theta(), -1, 1);
    std::vector<float> score(6);
    rng.fill(score, -1, 1);
    io::Bytes bytes(score.size() * sizeof score[0], '\0');
    std::memcpy(bytes.data(), score.data(), bytes.size());
    info.kept.push_back({"base_model.model.score.weight", io::Dtype::f32, {2, 3}, bytes});
  }
};

template <class A, class B>
bool same_bits(const A& a, const B& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
}

std::string_view held_by(const io::Loaded<float>& loaded) {
  const auto scale = [](const AdapterSet<float>& set) {
    return std::get<Lora<float>>(set.entries()[0].adapter).experts().scale(0);
  };
  for (std::size_t which = 0; which < std::size(names); ++which) {
    const Sample sample(which);
    if (same_bits(loaded.set.theta(), sample.set.theta()) && loaded.info.kept.size() == 1 &&
        loaded.info.kept[0].bytes == sample.info.kept[0].bytes && scale(loaded.set) == scale(sample.set))
      return names[which];
  }
  return "broken";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) return 64;
  try {
    if (argc == 2) {
      getppid();
      const auto loaded = io::load<float>(argv[1]);
      getppid();
      std::puts(std::string(held_by(loaded)).c_str());
      return 0;
    }
    const auto name = std::find(std::begin(names), std::end(names), argv[2]);
    if (name == std::end(names)) return 64;
    const Sample sample(static_cast<std::size_t>(name - names));
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::seconds(argc == 4 ? std::stoi(argv[3]) : 0);
    do {
      getppid();
      io::save(sample.set, argv[1], sample.info);
      getppid();
    } while (Clock::now() < end);
  } catch (const Error& error) {
    std::puts(error.what());
    return 2;
  }
}
