// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "config.hpp"

namespace llama {

static_assert(std::endian::native == std::endian::little,
              "checkpoints are little-endian and read as they lie");

struct Checkpoint {
  Config config;
  std::vector<float> weights;  ///< in Layout's order
};

namespace detail {

[[noreturn]] inline void bad_file(const std::string& path, const std::string& what, const std::string& got,
                                  const std::string& wanted) {
  throw std::runtime_error(path + ": " + what + ": got " + got + ", wanted " + wanted);
}

/// Opens a file and says how long it is.
inline std::ifstream open(const std::string& path, std::uintmax_t& bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    bad_file(path, "file", "nothing there", "a regular file");
  bytes = std::filesystem::file_size(path, error);
  std::ifstream in(path, std::ios::binary);
  if (error || !in) bad_file(path, "file", "no way to open it", "a readable file");
  return in;
}

/// Floats of the two rotary tables that llama2.c's older files carry between the last norm and the head.
inline double table_count(const Config& c) { return double(c.context) * double(c.head_dim() / 2) * 2; }

}  // namespace detail

/// Writes the file beside `path` and renames it, so that no reader ever sees half of it. Throws
/// std::runtime_error, and leaves nothing behind then.
template <class Write>
void write_atomically(const std::string& path, Write&& write) {
  const std::string temporary = path + ".part";
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  if (out) write(out);
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(temporary, path, error);
  if (!out || error) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    detail::bad_file(path, "writing", error ? error.message() : "a failed write",
                     "a writable place with room");
  }
}

/// Reads a llama2.c checkpoint: seven int32 (dim, hidden, layers, heads, kv_heads, vocab, context; a negative
/// vocab marks a head of its own), then fp32 tensors; the rotary tables may be there or not, which the size
/// of the file tells. Throws std::runtime_error (path, what was got, what was wanted); allocates nothing that
/// the file's size does not cover.
inline Checkpoint read_checkpoint(const std::string& path) {
  std::uintmax_t bytes = 0;
  std::ifstream in = detail::open(path, bytes);
  std::array<std::int32_t, 7> header{};
  if (bytes < sizeof header)
    detail::bad_file(path, "size", std::to_string(bytes) + " bytes", "a header of 28 bytes and the weights");
  in.read(reinterpret_cast<char*>(header.data()), sizeof header);

  Checkpoint result;
  Config& c = result.config;
  c = {header[0], header[1],    header[2], header[3], header[4], std::abs(Index{header[5]}),
       header[6], header[5] > 0};
  check(c, path);
  const double without = 28 + 4 * weight_count(c), with = without + 4 * detail::table_count(c);
  if (double(bytes) != without && double(bytes) != with) {
    const auto exact = [](double v) {
      return v < 1e15 ? std::to_string(static_cast<long long>(v)) : std::to_string(v);
    };
    detail::bad_file(path, "size", std::to_string(bytes) + " bytes",
                     exact(with) + " bytes (or " + exact(without) + " without rotary tables) for its header");
  }

  const Layout layout(c);
  result.weights.resize(static_cast<std::size_t>(layout.size()));
  const Index head = c.tied ? 0 : c.vocab * c.dim, body = layout.size() - head;
  const auto read = [&](Index first, Index count) {
    in.read(reinterpret_cast<char*>(result.weights.data() + first), static_cast<std::streamsize>(count * 4));
  };
  read(0, body);
  if (double(bytes) == with) in.seekg(static_cast<std::streamoff>(4 * detail::table_count(c)), std::ios::cur);
  read(body, head);
  if (!in) detail::bad_file(path, "reading", "a failed read", std::to_string(bytes) + " bytes");
  for (const Tensor& t : tensors(c))
    for (Index i = 0; i < t.rows * t.cols; ++i)
      if (const float w = result.weights[static_cast<std::size_t>(t.offset + i)]; !std::isfinite(w))
        detail::bad_file(path, t.name + "[" + std::to_string(i) + "]", std::to_string(w), "a finite weight");
  return result;
}

/// Puts what llama2.c's run.c reads, with the rotary tables. `c` and `weights` fit each other.
inline void put_checkpoint(std::ostream& out, const Config& c, std::span<const float> weights) {
  std::array<std::int32_t, 7> header{};
  const Index values[] = {c.dim,    c.hidden, c.layers, c.heads, c.kv_heads, c.tied ? c.vocab : -c.vocab,
                          c.context};
  for (std::size_t i = 0; i < 7; ++i) header[i] = static_cast<std::int32_t>(values[i]);
  const std::size_t head = c.tied ? 0 : static_cast<std::size_t>(c.vocab * c.dim);
  const auto put = [&](const void* data, std::size_t count) {
    out.write(static_cast<const char*>(data), static_cast<std::streamsize>(count * 4));
  };
  put(header.data(), header.size());
  put(weights.data(), weights.size() - head);
  std::vector<float> table(static_cast<std::size_t>(c.context * (c.head_dim() / 2)));
  for (const bool sine : {false, true}) {
    for (Index pos = 0, i = 0; pos < c.context; ++pos)
      for (Index pair = 0; pair < c.head_dim() / 2; ++pair, ++i) {
        const double angle = double(pos) * std::pow(10000.0, -2.0 * double(pair) / double(c.head_dim()));
        table[static_cast<std::size_t>(i)] = static_cast<float>(sine ? std::sin(angle) : std::cos(angle));
      }
    put(table.data(), table.size());
  }
  put(weights.data() + (weights.size() - head), head);
}

/// The same as a file, through a temporary one and a rename.
inline void write_checkpoint(const std::string& path, const Config& c, std::span<const float> weights) {
  check(c, path);
  if (const Layout layout(c); static_cast<Index>(weights.size()) != layout.size())
    detail::bad_file(path, "weights", std::to_string(weights.size()), std::to_string(layout.size()));
  write_atomically(path, [&](std::ostream& out) { put_checkpoint(out, c, weights); });
}

}  // namespace llama
