// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <moxie/presets.hpp>

using namespace moxie;

TEST_CASE("presets have the published defaults", "[presets]") {
  const auto plain = lora<float>({.in = 12, .out = 10});
  CHECK((plain.experts().config().rank == 8 && plain.experts().scale(0) == 1 &&
         plain.experts().experts() == 1));
  CHECK((plain.experts().config().dropout == 0 && !plain.experts().config().bias &&
         plain.method == Method::lora));

  const auto vector = ia3<float>({.features = 12, .heads = 3});
  CHECK((vector.size() == 12 && vector.experts().rows_per_token() == 3 && vector.method == Method::ia3));

  const auto vectors = mov<float>({.features = 12, .heads = 3});
  CHECK((vectors.experts().experts() == 10 && vectors.router().config().init == Init::normal_002));
  CHECK((vectors.router().size() == 40 && vectors.method == Method::mov));

  const auto mixture = molora<float>({.in = 12, .out = 10});
  CHECK((mixture.experts().experts() == 10 && mixture.experts().config().rank == 4));
  CHECK((mixture.experts().scale(3) == 4 && mixture.experts().config().init == Init::normal_002));
  CHECK((mixture.experts().config().dropout == 0 && mixture.router().config().init == Init::normal_002));
  CHECK(mixture.method == Method::molora);

  const auto localized = loramoe<float>({.in = 12, .out = 10});
  CHECK((localized.experts().experts() == 8 && localized.experts().config().rank == 4));
  CHECK((localized.experts().scale(0) == 8 && localized.experts().config().dropout == 0.05));
  CHECK(
      (localized.experts().config().mask == DropoutMask::per_expert && localized.method == Method::loramoe));
  CHECK((localized.experts().config().init == Init::kaiming_uniform &&
         localized.router().config().init == Init::kaiming_uniform));
  CHECK((loramoe_balance<float>().config().delta == 0.1 && loramoe_balance_weight == 0.1));
  CHECK(loramoe_balance<float>().config().dispersion == Dispersion::cv_squared);

  const auto layered = mola<float>({.in = 12, .out = 10, .experts = 4});
  CHECK((layered.experts().config().rank == 8 && layered.experts().scale(0) == 2));
  CHECK(
      (layered.experts().config().dropout == 0.05 && layered.experts().config().mask == DropoutMask::shared));
  CHECK((layered.router().config().k == 2 && layered.router().config().weights == TopKWeights::renormalised));
  CHECK((layered.method == Method::mola && mola_balance_weight == 0.001));
  CHECK((mola_balance<float>().config().sum == ShareSum::one &&
         mola_balance<float>().config().pool == Pool::concatenate));
}

TEST_CASE("HydraLoRA has the settings of its script", "[presets]") {
  const auto shared = hydralora<float>({.in = 12, .out = 10});
  CHECK((shared.experts().experts() == 4 && shared.experts().rank() == 4 && shared.experts().scale() == 8));
  CHECK((shared.experts().config().dropout == 0.05 && shared.method == Method::hydralora));
  CHECK(shared.size() == 4 * 12 + 4 * 4 * 10 + 4 * 12);
}

TEST_CASE("every method has its name", "[presets]") {
  CHECK((name(Method::lora) == "LoRA" && name(Method::ia3) == "IA3" && name(Method::mov) == "MoV"));
  CHECK((name(Method::molora) == "MoLoRA" && name(Method::loramoe) == "LoRAMoE" &&
         name(Method::mola) == "MoLA"));
  CHECK((name(Method::hydralora) == "HydraLoRA" && name(Method::other) == "other"));
}
