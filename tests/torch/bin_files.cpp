// SPDX-License-Identifier: MIT
// For bin_files.py: prints what the reader of torch files makes of each file, or why it refuses it; or writes
// the file that our own tests are made of.
//
// usage: torch_bin_files read FILE... | write FILE
#include "support/torch_file.hpp"

#include <moxie/io/torch_bin.hpp>

#include <cstdio>
#include <fstream>

using namespace moxie;
using namespace moxie::test::pickle;

namespace {

void print(const io::TensorFile& file) {
  for (const io::TensorInfo& t : file.tensors()) {
    for (const char c : t.name) std::printf("%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    std::printf(" %s", std::string(name(t.dtype)).c_str());
    for (const Index n : t.shape) std::printf(" %ld", static_cast<long>(n));
    std::printf(" :");
    if (is_weight(t.dtype)) {
      std::vector<double> values((t.end - t.begin) / (facts(t.dtype).bits / 8));
      file.load<double>(t, values);
      for (const double x : values) std::printf(" %a", x);
    } else {
      for (const char c : file.bytes(t))
        std::printf(" %02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    }
    std::printf("\n");
  }
}

std::string example() {
  std::string floats;
  for (const float x : {0.f, 1.f, 2.f, 3.f, 4.f, 5.f})
    floats += test::little(std::bit_cast<std::uint32_t>(x), 4);
  const std::string six = storage("FloatStorage", "0", 6);
  return test::torch_file(proto + ordered_dict() + put(0) + mark + text("a.weight") +
                              tensor(six, 0, {2, 3}, {3, 1}) + text("a.transposed") +
                              tensor(six, 1, {2, 2}, {1, 3}) + text("b") +
                              parameter(tensor(storage("HalfStorage", "1", 2), 0, {2}, {1})) + set_items +
                              dict + text("_metadata") + ordered_dict() + set_item + build + stop,
                          {floats, test::little(0xc0003c00, 4)});
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "write" && argc == 3) {
    std::ofstream(argv[2], std::ios::binary) << example();
    return 0;
  }
  if (what != "read") return 2;
  for (int i = 2; i < argc; ++i) {
    std::printf("file %s\n", argv[i]);
    try {
      print(io::read_torch_bin(argv[i]));
    } catch (const Error& error) {
      std::printf("refused %s\n", error.what());
    }
  }
  return 0;
}
