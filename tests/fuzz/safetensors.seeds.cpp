// SPDX-License-Identifier: MIT
// safetensors.seeds FOLDER: files for the fuzzer to start from.
#include "io/tensor_corpus.hpp"

#include <moxie/io/safetensors_writer.hpp>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::vector<std::string> files;
  for (const auto& file : moxie::test::good_files()) files.push_back(file.bytes);
  for (const auto& file : moxie::test::bad_files()) files.push_back(file.bytes);
  const std::vector<float> values{1.5f, -2, 0.25f, 3};
  for (const auto dtype :
       {moxie::io::Dtype::f64, moxie::io::Dtype::f32, moxie::io::Dtype::f16, moxie::io::Dtype::bf16}) {
    moxie::io::TensorWriter writer;
    writer.metadata["format"] = "pt";
    writer.add<float>("layers.0.lora_A.weight", {2, 2}, values, dtype);
    writer.add<float>("layers.0.lora_B.weight", {4}, values, dtype);
    files.push_back(writer.bytes());
  }
  for (std::size_t i = 0; i < files.size(); ++i)
    if (files[i].size() <= 4096) moxie::io::save_file(moxie::io::Path(argv[1]) / std::to_string(i), files[i]);
}
