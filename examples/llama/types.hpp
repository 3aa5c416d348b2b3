// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

namespace llama {

using Index = Eigen::Index;

template <class S>
using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Row-major views with a row stride, read only and writable: tokens x features everywhere.
template <class S>
using In = Eigen::Map<const Matrix<S>, Eigen::Unaligned, Eigen::OuterStride<>>;
template <class S>
using Out = Eigen::Map<Matrix<S>, Eigen::Unaligned, Eigen::OuterStride<>>;

template <class S>
In<S> view(const S* data, Index rows, Index cols) {
  return In<S>(data, rows, cols, Eigen::OuterStride<>(cols));
}
template <class S>
Out<S> view(S* data, Index rows, Index cols) {
  return Out<S>(data, rows, cols, Eigen::OuterStride<>(cols));
}
template <class S>
In<S> view(const Matrix<S>& m) {
  return view<S>(m.data(), m.rows(), m.cols());
}
template <class S>
Out<S> view(Matrix<S>& m) {
  return view<S>(m.data(), m.rows(), m.cols());
}

/// Rows `[first, first + count)` and columns `[column, column + width)` of a view; `width < 0`: all columns.
template <class S>
In<S> part(const In<S>& m, Index first, Index count, Index column = 0, Index width = -1) {
  return In<S>(m.data() + first * m.outerStride() + column, count, width < 0 ? m.cols() : width,
               Eigen::OuterStride<>(m.outerStride()));
}
template <class S>
Out<S> part(const Out<S>& m, Index first, Index count, Index column = 0, Index width = -1) {
  return Out<S>(const_cast<S*>(m.data()) + first * m.outerStride() + column, count,
                width < 0 ? m.cols() : width, Eigen::OuterStride<>(m.outerStride()));
}
template <class S>
In<S> part(const Matrix<S>& m, Index first, Index count, Index column = 0, Index width = -1) {
  return part<S>(view(m), first, count, column, width);
}
template <class S>
Out<S> part(Matrix<S>& m, Index first, Index count, Index column = 0, Index width = -1) {
  return part<S>(view(m), first, count, column, width);
}

template <class S>
In<S> read_only(const Out<S>& m) {
  return In<S>(m.data(), m.rows(), m.cols(), Eigen::OuterStride<>(m.outerStride()));
}

/// The numbers of one row.
template <class S>
const S* row(const In<S>& m, Index t) {
  return m.data() + t * m.outerStride();
}
template <class S>
S* row(const Out<S>& m, Index t) {
  return const_cast<S*>(m.data()) + t * m.outerStride();
}

/// An empty view: "not wanted".
template <class S>
Out<S> nothing() {
  return Out<S>(nullptr, 0, 0, Eigen::OuterStride<>(0));
}

}  // namespace llama
