// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_settings.hpp>

namespace moxie::inline MOXIE_ABI::io::detail {

/// What a module of a file is.
template <Scalar S>
struct Shape {
  AnyAdapter<S> adapter;
  Method method = Method::other;
  bool top_k_said = true;  ///< by the file, not by a default
};

/// The router over a bank.
template <class Bank>
std::optional<Shape<typename Bank::Scalar>> with_router(Bank bank, const std::string& module,
                                                        const AdapterConfig& c, const Settings& s,
                                                        Format format, bool single, Report& report) {
  using S = typename Bank::Scalar;
  const Index experts = bank.experts(), heads = bank.rows_per_token();
  const bool vectors = Bank::multiplicative;
  std::string kind = format == Format::mixture ? c.router : format == Format::mola ? "top_k" : "soft";
  if (format == Format::moe_peft) kind = c.router == "mola" ? "top_k" : "soft";
  if (single) kind = "uniform";
  if (s.parameter) kind = "given";
  const auto range = [&](std::string_view what, double got, std::string_view wanted) {
    report.mismatched.push_back(
        {Code::config_range, module,
         moxie::detail::join({"would have ", what, " ", moxie::detail::text(got), ", wanted ", wanted})});
    return std::nullopt;
  };
  if constexpr (std::same_as<Bank, HydraBank<S>>) {  // its kind has one router
    const Index in = bank.in();
    return Shape<S>{MoeAdapter(std::move(bank), SoftRouter<S>({.in = in, .experts = experts})),
                    Method::hydralora};
  } else {
    if (kind == "uniform")
      return Shape<S>{MoeAdapter(std::move(bank), UniformRouter<S>({.experts = experts, .heads = heads})),
                      experts > 1 ? Method::other
                      : vectors   ? Method::ia3
                                  : Method::lora};
    if (kind == "given")
      return Shape<S>{MoeAdapter(std::move(bank), GivenRouter<S>({.experts = experts, .heads = heads}))};
    if (!moxie::detail::finite_as<S>(1 / c.temperature))
      return range("a router temperature of", c.temperature, "one whose inverse is finite");
    if (kind == "soft") {
      const Method method = vectors                     ? Method::mov
                            : format == Format::mixture ? Method::molora
                                                        : Method::loramoe;
      const Index in = bank.in();
      return Shape<S>{MoeAdapter(std::move(bank), SoftRouter<S>({.in = in,
                                                                 .experts = experts,
                                                                 .heads = heads,
                                                                 .temperature = c.temperature,
                                                                 .jitter = c.jitter})),
                      method};
    }
    constexpr Index mola_k = 2;
    const Index k = s.top_k > 0 ? s.top_k : mola_k;
    if (k > experts)
      return range("top_k", static_cast<double>(k),
                   "at most its " + moxie::detail::text(experts) + " experts");
    const Index in = bank.in();
    const auto weights = c.weights == "masked"              ? TopKWeights::masked
                         : c.weights == "softmax_of_chosen" ? TopKWeights::softmax_of_chosen
                                                            : TopKWeights::renormalised;
    const auto noise = c.noise == "fixed"     ? RouterNoise::fixed
                       : c.noise == "learned" ? RouterNoise::learned
                                              : RouterNoise::none;
    if (noise == RouterNoise::fixed && !moxie::detail::finite_as<S>(c.noise_scale))
      return range("a noise of", c.noise_scale, "a finite number");
    return Shape<S>{MoeAdapter(std::move(bank), TopKRouter<S>({.in = in,
                                                               .experts = experts,
                                                               .k = k,
                                                               .heads = heads,
                                                               .weights = weights,
                                                               .temperature = c.temperature,
                                                               .jitter = c.jitter,
                                                               .noise = noise,
                                                               .noise_scale = c.noise_scale})),
                    vectors ? Method::other : Method::mola, s.top_k > 0};
  }
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
