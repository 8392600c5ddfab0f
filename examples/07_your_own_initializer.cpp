// SPDX-License-Identifier: MIT
// Starts of your own: one with an offset, and one that looks at the gradient of a batch without forming it.
#include <lora/lora.hpp>

#include <cmath>
#include <cstdio>

using Matrix = lora::RowMatrix<double>;

// [initializer]
/// A0 and B0 both normal and small. Their product is subtracted, so training starts at W0 and A moves from step 1.
struct BothNormal {
  template <lora::FrozenBase Base>
  lora::Start<typename Base::Scalar> operator()(const Base& base, lora::Index rank, double,
                                                lora::Random& random) const {
    auto factors = lora::Factors<typename Base::Scalar>::zero(base.rows(), base.cols(), rank);
    for (auto& a : factors.A.reshaped()) a = static_cast<typename Base::Scalar>(0.1 * random.normal());
    for (auto& b : factors.B.reshaped()) b = static_cast<typename Base::Scalar>(0.1 * random.normal());
    return {factors, lora::Offset::SubtractInitial};
  }
};
static_assert(lora::Initializer<BothNormal, lora::ViewBase<float>>);
// [/initializer]

// [gradient_operator]
/// G = X^T diag(w) dY (n x m), the gradient of a batch in which every token has a weight of its own, known by its
/// products alone: b (n + m) numbers, not n m.
struct WeightedGradient {
  using Scalar = double;
  const Matrix& X;           // b x n
  const Matrix& dY;          // b x m
  const Eigen::VectorXd& w;  // b

  lora::Index rows() const { return X.cols(); }
  lora::Index cols() const { return dY.cols(); }
  void multiply(const lora::ConstRows<double>& in, lora::Rows<double> out) const {
    out = (in * X.transpose() * w.asDiagonal()) * dY;
  }
  void multiply_transposed(const lora::ConstRows<double>& in, lora::Rows<double> out) const {
    out = (in * dY.transpose() * w.asDiagonal()) * X;
  }
};
static_assert(lora::LinearOperator<WeightedGradient>);
// [/gradient_operator]

// [gradient_initializer]
/// A0: an orthogonal basis of the range of G Omega, Omega (m x r) normal, as long as Kaiming's columns; B0 = 0.
struct GradientRange {
  template <lora::FrozenBase Base, lora::LinearOperator Gradient>
  lora::Start<double> operator()(const Base& base, const Gradient& G, lora::Index rank, double,
                                 lora::Random& random) const {
    const Matrix omega = Matrix::NullaryExpr(rank, G.cols(), [&] { return random.normal(); });
    Matrix sketch(rank, G.rows());
    G.multiply_transposed(omega, sketch);
    for (lora::Index k = 0; k < rank; ++k) {  // Gram-Schmidt
      for (lora::Index j = 0; j < k; ++j) sketch.row(k) -= sketch.row(k).dot(sketch.row(j)) * sketch.row(j);
      sketch.row(k).normalize();
    }
    return {{sketch.transpose() / std::sqrt(3.0), Matrix::Zero(rank, base.cols())}};
  }
};
static_assert(lora::GradientInitializer<GradientRange, lora::ViewBase<double>, WeightedGradient>);
// [/gradient_initializer]

int main() {
  lora::Random random{2};
  const auto normal = [&] { return random.normal(); };
  const Matrix W0 = Matrix::NullaryExpr(64, 32, normal), X = Matrix::NullaryExpr(96, 64, normal);
  const Matrix target = X * W0 + X.leftCols(4) * Matrix::NullaryExpr(4, 32, normal);
  const Matrix first_dY = (X * W0 - target) / 96;
  const Eigen::VectorXd w = first_dY.rowwise().norm().cwiseInverse();  // every token counts alike

  const auto train = [&](const char* name, const auto& start) {
    lora::LoraLinear layer{W0, {.rank = 4, .alpha = 4}};
    start(layer);
    lora::Optimizer optimizer{lora::PerFactor{lora::AdamW{.learning_rate = 0.02}}, layer};
    auto gradient = layer.zero_gradient();
    lora::SavedState<double> saved;
    Matrix Y(96, 32), dY;
    std::printf("%-16s", name);
    for (int step = 0; step <= 60; ++step) {
      layer.forward(X, Y, saved);
      dY = (Y - target) / 96;
      if (step % 20 == 0) std::printf("  %2d: %6.3f", step, dY.squaredNorm() * 48);
      gradient.set_zero();
      layer.backward(dY, saved, gradient);
      optimizer.step(layer, gradient);
    }
    std::printf("\n");
  };
  std::printf("loss after so many steps\n");
  // [use]
  train("KaimingUniform", [&](auto& layer) { layer.initialize(lora::KaimingUniform{}, random); });
  train("BothNormal", [&](auto& layer) { layer.initialize(BothNormal{}, random); });
  train("GradientRange", [&](auto& layer) {
    layer.initialize(GradientRange{}, WeightedGradient{X, first_dY, w}, random);
  });
  // [/use]
}
