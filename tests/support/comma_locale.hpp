// SPDX-License-Identifier: MIT
#pragma once

#include "support/folder.hpp"

#include <clocale>
#include <cstdlib>
#include <fstream>
#include <iomanip>

namespace moxie::test {

/// While it lives, numbers of the C library have decimal commas, if `made()`. The locale is compiled here,
/// with a character map of its own, since few machines have one installed.
class CommaLocale {
 public:
  CommaLocale() {
    std::ofstream map(folder_.path / "ascii");
    map << "<code_set_name> \"ASCII\"\n<escape_char> /\n<mb_cur_max> 1\nCHARMAP\n"
        << std::hex << std::setfill('0');
    for (int c = 0; c < 128; ++c) map << "<U" << std::setw(4) << c << "> /x" << std::setw(2) << c << "\n";
    map << "END CHARMAP\n";
    map.close();
    std::ofstream(folder_.path / "numbers")
        << "LC_NUMERIC\ndecimal_point \",\"\nthousands_sep \".\"\ngrouping 3;3\nEND LC_NUMERIC\n";
    const std::string at = "'" + folder_.path.native() + "/";
    const std::string command = "localedef -c --no-archive -f " + at + "ascii' -i " + at + "numbers' " + at +
                                "commas' >/dev/null 2>&1";
    // It warns of the categories that are not there, by its exit status too.
    if (std::system(command.c_str()) == -1) return;
    ::setenv("LOCPATH", folder_.path.c_str(), 1);
    std::setlocale(LC_NUMERIC, "commas");
    ::unsetenv("LOCPATH");
  }
  CommaLocale(const CommaLocale&) = delete;
  CommaLocale& operator=(const CommaLocale&) = delete;
  ~CommaLocale() { std::setlocale(LC_NUMERIC, "C"); }

  static bool made() { return std::localeconv()->decimal_point == std::string(","); }

 private:
  TemporaryFolder folder_;
};

}  // namespace moxie::test
