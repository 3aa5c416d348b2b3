// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <algorithm>

namespace moxie::inline MOXIE_ABI::kernels {

/// Columns of a panel: 256 bytes of float, so that a panel of 64 rows fits the first cache.
inline constexpr Index panel_columns = 64;

constexpr Index panels(Index columns) { return (columns + panel_columns - 1) / panel_columns; }

/// A matrix [rows, cols] as the kernels read it, panel by panel of its columns: element (j, i) lies at
/// data[i / 64 * panel + j * stride + i % 64]. Row-major memory is the case panel = 64; packed, the rows of
/// a panel lie one behind the other, so that rows a power of two apart do not fight for the same cache lines.
/// W is the storage of weights: the scalar, Eigen::bfloat16 or Eigen::half.
template <class W>
struct Panels {
  const W* data = nullptr;
  Index rows = 0, cols = 0;
  Index stride = 0;  ///< between the rows of a panel
  Index panel = panel_columns;

  Panels() = default;
  Panels(const W* p, Index r, Index c, Index between_rows, Index between_panels = panel_columns)
      : data(p), rows(r), cols(c), stride(between_rows), panel(between_panels) {}
  template <Scalar S>
  Panels(In<S> m) : Panels(m.data, m.rows, m.cols, m.stride) {}
  template <Scalar S>
  Panels(Out<S> m) : Panels(m.data, m.rows, m.cols, m.stride) {}

  Panels middle_rows(Index first, Index count) const {
    return {data + first * stride, count, cols, stride, panel};
  }
  /// `first` is a border of panels.
  Panels middle_cols(Index first, Index count) const {
    return {data + first / panel_columns * panel, rows, count, stride, panel};
  }
};

/// A matrix of a part's parameters. Forward combines the rows of some (LoRA's B, IA3's vectors) and takes
/// products with the rows of the others (LoRA's A, a router's G); backward the other way round.
struct MatrixShape {
  Index rows, cols;
  bool combined;  ///< by forward
  bool operator==(const MatrixShape&) const = default;
  Index size() const { return rows * cols; }
  Index packed_size() const { return rows * panels(cols) * panel_columns; }
};

/// Whether rows lie a multiple of 4 KiB apart: then pieces of many of them want the same few cache lines.
template <class S>
constexpr bool aliased_rows(Index stride) {
  return stride * static_cast<Index>(sizeof(S)) % 4096 == 0;
}

/// Whether a pass over `tokens` gains by packing a matrix whose rows it combines (4096 columns of float, 64
/// rows, 512 tokens: 86 against 107 of 118 GFLOP/s; 768 columns: no gain).
template <class S>
constexpr bool worth_packing(Index tokens, const MatrixShape& m) {
  return tokens >= 64 && aliased_rows<S>(m.cols);
}

/// Copies n scalars to weights' storage; zeros from there to `padded`.
template <class W, Scalar S>
void store_weights(const S* from, Index n, W* to, Index padded) {
  if constexpr (std::is_same_v<W, S>)
    std::copy_n(from, n, to);
  else
    for (Index i = 0; i < n; ++i) to[i] = static_cast<W>(static_cast<float>(from[i]));
  std::fill(to + n, to + padded, W(0));
}

/// Copies panel number p of a row-major matrix to its place in `packed`; zeros behind the last column.
template <class W, Scalar S>
void pack_panel(In<S> from, Index p, W* packed) {
  const Index first = p * panel_columns, columns = std::min(panel_columns, from.cols - first);
  W* to = packed + p * from.rows * panel_columns;
  for (Index j = 0; j < from.rows; ++j, to += panel_columns)
    store_weights(from.row(j) + first, columns, to, panel_columns);
}

template <class W>
Panels<W> packed_panels(const W* packed, const MatrixShape& m) {
  return {packed, m.rows, m.cols, panel_columns, m.rows * panel_columns};
}

/// Rows whose products are taken stay whole where they are prepared: a token alone then reads as many streams
/// of memory as it has chains, which a core fetches faster than one (2,048 rows of 4,096, beyond the third
/// cache: 29 against 8 GB/s). The odd multiple keeps rows from fighting for the same cache lines.
constexpr Index row_stride(Index columns) { return ((columns + 31) / 32 | 1) * 32; }
template <class W, Scalar S>
void space_rows(In<S> from, W* to) {
  const Index stride = row_stride(from.cols);
  for (Index j = 0; j < from.rows; ++j, to += stride) store_weights(from.row(j), from.cols, to, stride);
}
template <class W>
Panels<W> spaced_rows(const W* spaced, const MatrixShape& m) {
  return {spaced, m.rows, m.cols, row_stride(m.cols)};
}

template <Scalar S>
Panels<S> row_major_panels(const S* data, const MatrixShape& m) {
  return {data, m.rows, m.cols, m.cols};
}

}  // namespace moxie::inline MOXIE_ABI::kernels
