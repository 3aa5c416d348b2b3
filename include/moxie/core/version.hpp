// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

/// The library's version, and the checks that must hold before anything else compiles.
#define MOXIE_VERSION_MAJOR 0
#define MOXIE_VERSION_MINOR 1
#define MOXIE_VERSION_PATCH 0
#define MOXIE_VERSION "0.1.0"

#if defined(_MSVC_LANG) ? _MSVC_LANG < 202002L : __cplusplus < 202002L
#  error "moxie needs C++20: compile with -std=c++20 or later"
#endif
#if !EIGEN_VERSION_AT_LEAST(3, 4, 0)
#  error "moxie needs Eigen 3.4 or later"
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#  error "moxie cannot keep its promises under -ffast-math: NaN checks and the order of sums are lost"
#endif

// Code compiled for another instruction set or with OpenMP switched otherwise must never be linked to ours by
// name, since alignment and inlined kernels differ; the inline namespace turns that into a link error.
#if defined(EIGEN_VECTORIZE_AVX512)
#  define MOXIE_ABI_SIMD avx512
#elif defined(EIGEN_VECTORIZE_AVX) && defined(EIGEN_VECTORIZE_FMA)
#  define MOXIE_ABI_SIMD avx_fma
#elif defined(EIGEN_VECTORIZE_AVX)
#  define MOXIE_ABI_SIMD avx
#elif defined(EIGEN_VECTORIZE)
#  define MOXIE_ABI_SIMD simd128
#else
#  define MOXIE_ABI_SIMD scalar
#endif
#if defined(_OPENMP)
#  define MOXIE_ABI_OPENMP openmp
#else
#  define MOXIE_ABI_OPENMP serial
#endif
#define MOXIE_ABI_NAME(simd, threads) v0_1_##simd##_##threads
#define MOXIE_ABI_EXPAND(simd, threads) MOXIE_ABI_NAME(simd, threads)
#define MOXIE_ABI MOXIE_ABI_EXPAND(MOXIE_ABI_SIMD, MOXIE_ABI_OPENMP)
