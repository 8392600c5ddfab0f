// SPDX-License-Identifier: MIT
// Merging: the adapter inside the weight, the weight back bit for bit, the scale at run time, the switch.
#include <lora/lora.hpp>

#include <cstdio>

using Matrix = lora::RowMatrix<double>;

int main() {
  lora::Random random{3};
  const auto normal = [&] { return random.normal(); };
  const lora::ColMatrix<double> W0 = Matrix::NullaryExpr(48, 24, normal);
  const Matrix X = Matrix::NullaryExpr(8, 48, normal);
  const auto yes = [](bool value) { return value ? "yes" : "no"; };

  // [owned]
  lora::LoraLinear layer{lora::ColMatrix<double>(W0),
                         {.rank = 4, .alpha = 6}};  // a temporary is taken over: an OwnedBase
  // [/owned]
  std::printf("%s\n", layer.describe().c_str());
  layer.initialize(lora::Gaussian{}, random);
  layer.factors().B = Matrix::NullaryExpr(4, 24, normal);  // as if it had been trained

  // [merge]
  lora::SavedState<double> saved;
  Matrix unmerged(8, 24), merged(8, 24), Y(8, 24);
  layer.forward(X, unmerged, saved);
  const lora::ColMatrix<double> copy = layer.merged_weight();  // W0 + s A B, in memory of its own
  layer.merge();                                               // from now on a forward costs the base product alone
  layer.forward(X, merged, saved);
  const bool in_place = layer.base().weight() == copy;
  const double difference = (merged - unmerged).norm() / unmerged.norm();
  layer.unmerge();
  const bool restored = layer.base().weight() == W0;  // no rounding stays behind: the original was kept
  // [/merge]
  std::printf("the merged base is merged_weight(): %s\n", yes(in_place));
  std::printf("relative difference of the outputs below 1e-14: %s\n", yes(difference < 1e-14));
  std::printf("W0 restored bit for bit: %s\n", yes(restored));

  // [switch]
  const double s = layer.scale();  // alpha / r
  for (const double factor : {0.0, 0.5, 1.0}) {
    layer.set_scale(factor * s);
    layer.forward(X, Y, saved);
    std::printf("scale %.2f: the branch is %.2f of the trained one\n", layer.scale(),
                (Y - X * W0).norm() / (unmerged - X * W0).norm());
  }
  layer.disable();  // the base alone; the factors stay
  layer.forward(X, Y, saved);
  // [/switch]
  std::printf("switched off, the layer is the base: %s\n", yes(Y.isApprox(X * W0, 1e-14)));
}
