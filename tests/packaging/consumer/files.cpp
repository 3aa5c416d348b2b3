// SPDX-License-Identifier: MIT
#include <moxie/io/safetensors.hpp>
#include <moxie/io/safetensors_writer.hpp>

std::string empty_file() { return moxie::io::TensorWriter().bytes(); }
std::size_t tensors(std::string_view bytes) { return moxie::io::TensorFile::parse(bytes).tensors().size(); }
