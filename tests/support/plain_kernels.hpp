// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/kernels/combine.hpp>

#include <span>

/// Every kernel in plain Eigen, in double: what it computes, without a word on how.
namespace moxie::test::plain {

using Plain = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using List = std::span<const int>;

inline Plain rows_of(const Plain& m, List list) { return m(list, Eigen::all); }

/// h = x a^T
inline Plain dot(const Plain& x, const Plain& a) { return x * a.transpose(); }

/// h = x a^T in the listed rows alone
inline void dot(const Plain& x, List list, const Plain& a, Plain& h) {
  h(list, Eigen::all) = rows_of(x, list) * a.transpose();
}

/// h = (x * other) a^T, the first product element by element
inline Plain dot(const Plain& x, const Plain& other, const Plain& a) {
  return x.cwiseProduct(other) * a.transpose();
}

/// out = the end of c m: set, chain and add, multiply, multiply_add
inline void combine(kernels::Into into, const Plain& c, const Plain& m, Plain& out, const Plain& other = {},
                    double strength = 1) {
  const Plain sum = c * m, scale = (strength * (sum.array() - 1) + 1).matrix();
  switch (into) {
    case kernels::Into::set:
      out = sum;
      break;
    case kernels::Into::chain:
    case kernels::Into::add:
      out += sum;
      break;
    case kernels::Into::multiply:
      out = other.cwiseProduct(scale);
      break;
    case kernels::Into::multiply_add:
      out += other.cwiseProduct(scale);
  }
}

/// out += c m over the listed depths alone
inline void combine(const Plain& c, List list, const Plain& m, Plain& out) {
  out += c(Eigen::all, list) * rows_of(m, list);
}

/// out += c (x * other)
inline void combine(const Plain& c, const Plain& x, const Plain& other, Plain& out) {
  out += c * x.cwiseProduct(other);
}

/// out = add + start + c m in the listed rows
inline void combine_visits(const Plain& c, List list, const Plain& m, const Plain& start, const Plain& add,
                           Plain& out) {
  out(list, Eigen::all) = rows_of(add, list) + rows_of(start, list) + rows_of(c, list) * m;
}

inline Plain softmax(const Plain& z) {
  const Plain e = (z.colwise() - z.rowwise().maxCoeff()).array().exp();
  return e.array().colwise() / e.rowwise().sum().array();
}

/// to += strength from
inline void add(const Plain& from, Plain& to, double strength) { to += strength * from; }

}  // namespace moxie::test::plain
