// SPDX-License-Identifier: MIT
// An update rule of your own (Lion, arXiv:2302.06675) and a factor optimizer of your own (A stays, B moves).
#include <lora/lora.hpp>

#include <cmath>
#include <cstdio>

using Matrix = lora::RowMatrix<double>;

// [rule]
/// p <- p - lr sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g. Half of Adam's state.
struct Lion {
  double learning_rate = 1e-4, beta1 = 0.9, beta2 = 0.99;

  template <lora::Real Scalar>
  using State = lora::ColMatrix<Scalar>;

  void check() const {
    if (!(learning_rate >= 0)) throw lora::ConfigError("Lion: learning_rate must not be negative");
  }
  template <lora::Real Scalar>
  State<Scalar> init(lora::Index rows, lora::Index cols) const {
    return State<Scalar>::Zero(rows, cols);
  }
  template <lora::Real Scalar>
  void step(lora::ColMatrix<Scalar>& m, lora::Columns<Scalar> p, const lora::ConstColumns<Scalar>& g,
            double rate) const {
    const auto lr = static_cast<Scalar>(rate * learning_rate);
    const auto b1 = static_cast<Scalar>(beta1), b2 = static_cast<Scalar>(beta2);
    p -= lr * (b1 * m + (1 - b1) * g).cwiseSign();
    m = b2 * m + (1 - b2) * g;
  }
};
static_assert(lora::UpdateRule<Lion, float>);
// [/rule]

// [optimizer]
/// Trains B alone, with any rule: half of the moments, and backward's gradient of A is not looked at.
template <class Rule>
struct OnlyB {
  Rule rule;

  template <lora::Real Scalar>
  using State = typename Rule::template State<Scalar>;

  template <lora::Real Scalar>
  State<Scalar> init(lora::Index, lora::Index m, lora::Index r) const {
    rule.check();
    return rule.template init<Scalar>(m, r);  // for B^T: rules walk contiguous columns
  }
  template <lora::Real Scalar>
  void step(State<Scalar>& state, const lora::FactorsView<Scalar>& factors,
            const lora::ConstFactorsView<Scalar>& gradient, double /*scale*/, double rate) const {
    if (!lora::all_finite(gradient.B)) throw lora::NumericalError("OnlyB: gradient B must be finite");
    rule.step(state, lora::transposed(factors.B), lora::transposed(gradient.B), rate);
  }
};
static_assert(lora::FactorOptimizer<OnlyB<lora::AdamW>, float>);
// [/optimizer]

int main() {
  const auto train = [](const char* name, const auto& method) {
    lora::Random random{9};
    const auto normal = [&] { return random.normal(); };
    const Matrix W0 = Matrix::NullaryExpr(32, 16, normal), X = Matrix::NullaryExpr(64, 32, normal);
    const Matrix target = X * W0 + X.leftCols(2) * Matrix::NullaryExpr(2, 16, normal);
    lora::LoraLinear layer{W0, {.rank = 4, .alpha = 8}};
    layer.initialize(lora::KaimingUniform{}, random);
    lora::Optimizer optimizer{method, layer};
    auto gradient = layer.zero_gradient();
    lora::SavedState<double> saved;
    Matrix Y(64, 16), dY;
    std::printf("%-18s", name);
    for (int step = 0; step <= 100; ++step) {
      layer.forward(X, Y, saved);
      dY = (Y - target) / 64;
      if (step % 50 == 0) std::printf("  step %3d loss %6.3f", step, dY.squaredNorm() * 32);
      gradient.set_zero();
      layer.backward(dY, saved, gradient);
      optimizer.step(layer, gradient);
    }
    std::printf("\n");
  };
  train("AdamW", lora::PerFactor{lora::AdamW{.learning_rate = 0.02}});
  train("Lion", lora::PerFactor{Lion{.learning_rate = 0.01}});
  train("LoRA+ on Lion", lora::LoraPlus{Lion{.learning_rate = 0.005}, 4});
  train("AdamW on B alone", OnlyB<lora::AdamW>{{.learning_rate = 0.02}});
}
