// SPDX-License-Identifier: MIT
// adapter.seeds FOLDER: a pair of each format.
#include "fuzz/adapters.hpp"

int main(int argc, char** argv) {
  using namespace moxie;
  if (argc != 2) return 2;
  for (std::size_t i = 0; i < std::size(fuzz::samples); ++i)
    io::save_file(io::Path(argv[1]) / std::to_string(i),
                  std::string(fuzz::samples[i].config) + '\0' + fuzz::samples[i].tensors);
}
