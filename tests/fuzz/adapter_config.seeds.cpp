// SPDX-License-Identifier: MIT
// adapter_config.seeds FOLDER: a config of each format, behind the number of its tensors.
#include "fuzz/adapters.hpp"

int main(int argc, char** argv) {
  using namespace moxie;
  if (argc != 2) return 2;
  for (std::size_t i = 0; i < std::size(fuzz::samples); ++i) {
    MUST(fuzz::tensors(fuzz::samples[i].tensors));
    const io::AdapterFiles files{*fuzz::tensors(fuzz::samples[i].tensors), fuzz::samples[i].config, "config"};
    MUST(io::load<float>(files).report.clean());
    io::save_file(io::Path(argv[1]) / std::to_string(i),
                  std::string(1, static_cast<char>(i)) + fuzz::samples[i].config);
  }
}
