// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/version.hpp>

#include <Eigen/Core>

#include <cstddef>
#include <new>
#include <type_traits>
#include <vector>

namespace moxie::inline MOXIE_ABI {

using Index = Eigen::Index;

/// The scalars that moxie computes in.
template <class S>
concept Scalar = std::is_same_v<S, float> || std::is_same_v<S, double>;

/// Row-major matrix, the only storage order of the library: rows are tokens, columns are features.
template <class S>
using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Row vector, so that features are contiguous here too.
template <class S>
using Vector = Eigen::Matrix<S, 1, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

/// Aligned to a cache line whatever the instruction set, so that objects may cross translation units.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{64};
  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), alignment)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, alignment); }
  bool operator==(const CacheLineAllocator&) const { return true; }
};

template <class D>
concept DenseObject = std::is_base_of_v<Eigen::DenseBase<D>, D>;

template <class D>
constexpr bool has_memory = (int(Eigen::internal::traits<D>::Flags) & Eigen::DirectAccessBit) != 0;

template <class D, class S>
constexpr void check_viewable() {
  static_assert(
      has_memory<D>,
      "moxie: a view needs an object with memory; evaluate the lazy expression into a Matrix first");
  if constexpr (has_memory<D>) {
    static_assert(
        std::is_same_v<typename D::Scalar, S>,
        "moxie: the scalar of the matrix differs from the scalar of the view (float against double?)");
    static_assert(
        bool(D::IsRowMajor) || (int(D::ColsAtCompileTime) == 1 && int(D::RowsAtCompileTime) == 1),
        "moxie: a view needs row-major storage (moxie::Matrix); column-major would be copied in silence");
    static_assert(int(D::InnerStrideAtCompileTime) == 1,
                  "moxie: a view needs contiguous features (inner stride 1)");
  }
}

}  // namespace detail

/// Growable storage on cache-line borders; resizing to a smaller size keeps the memory.
template <class T>
using Buffer = std::vector<T, detail::CacheLineAllocator<T>>;

/// Read-only view [rows, cols] of row-major memory whose rows are `stride` scalars apart. Made from a
/// row-major Eigen object or from a pointer; never copies. Empty by default.
template <Scalar S>
struct In {
  const S* data = nullptr;
  Index rows = 0, cols = 0, stride = 0;

  In() = default;
  In(const S* p, Index r, Index c) : In(p, r, c, c) {}
  In(const S* p, Index r, Index c, Index between_rows) : data(p), rows(r), cols(c), stride(between_rows) {}
  template <detail::DenseObject D>
  In(const D& m) {
    detail::check_viewable<D, S>();
    *this = In(m.derived().data(), m.rows(), m.cols(), m.rows() > 1 ? m.outerStride() : m.cols());
  }

  const S* row(Index t) const { return data + t * stride; }
  In middle_rows(Index first, Index count) const { return {data + first * stride, count, cols, stride}; }
  bool empty() const { return rows == 0 || cols == 0; }
};

/// Writable view, otherwise as In.
template <Scalar S>
struct Out {
  S* data = nullptr;
  Index rows = 0, cols = 0, stride = 0;

  Out() = default;
  Out(S* p, Index r, Index c) : Out(p, r, c, c) {}
  Out(S* p, Index r, Index c, Index between_rows) : data(p), rows(r), cols(c), stride(between_rows) {}
  template <detail::DenseObject D>
  Out(D& m) {
    detail::check_viewable<D, S>();
    static_assert(!std::is_const_v<std::remove_pointer_t<decltype(m.derived().data())>>,
                  "moxie: an output view needs a writable object");
    *this = Out(m.derived().data(), m.rows(), m.cols(), m.rows() > 1 ? m.outerStride() : m.cols());
  }
  /// Temporaries that name memory (blocks and maps) may be written through.
  template <detail::DenseObject D>
  requires(!std::is_base_of_v<Eigen::PlainObjectBase<D>, D>) Out(D&& m) : Out(static_cast<D&>(m)) {}

  S* row(Index t) const { return data + t * stride; }
  Out middle_rows(Index first, Index count) const { return {data + first * stride, count, cols, stride}; }
  bool empty() const { return rows == 0 || cols == 0; }
  operator In<S>() const { return {data, rows, cols, stride}; }
};

}  // namespace moxie::inline MOXIE_ABI
