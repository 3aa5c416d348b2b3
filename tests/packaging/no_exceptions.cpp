// SPDX-License-Identifier: MIT
// Compiled without exceptions and RTTI: a refused call reaches the program's own handler, by name and with
// the text.
#include <moxie/core/error.hpp>

#include <cstdlib>
#include <cstring>

int main() {
  moxie::error_handler() = [](moxie::Code code, const char* text) {
    std::exit(code == moxie::Code::shape_mismatch && std::strstr(text, "wanted [") ? 0 : 2);
  };
  const moxie::Matrix<float> x = moxie::Matrix<float>::Zero(2, 3);
  moxie::detail::expect_shape("x", moxie::In<float>(x), 2, 4);
  return 1;
}
