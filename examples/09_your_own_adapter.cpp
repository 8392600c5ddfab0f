// SPDX-License-Identifier: MIT
// An adapter of your own: Y = X + s (X A) B on a residual stream, where there is no weight at all.
#include <lora/lora.hpp>

#include <cstdio>

using Matrix = lora::RowMatrix<double>;

// [adapter]
/// The identity with trainable factors (n = m). `P` of the saved state is s X A, as in LoraLinear.
class ResidualLora {
 public:
  using Scalar = double;
  using Saved = lora::SavedState<double>;

  ResidualLora(lora::Index n, lora::Index rank, double scale)
      : factors_(lora::Factors<double>::zero(n, n, rank)), scale_(scale) {}

  lora::Index rows() const { return factors_.in_features(); }
  lora::Index cols() const { return factors_.out_features(); }
  lora::FactorsView<double> factors() { return factors_; }
  const lora::Factors<double>& factors() const { return factors_; }
  double scale() const { return scale_; }

  void multiply(const lora::ConstRows<double>& X, lora::Rows<double> Y) const {
    Y = X + scale_ * (X * factors_.A) * factors_.B;
  }
  void multiply_transposed(const lora::ConstRows<double>& dY, lora::Rows<double> dX) const {
    dX = dY + scale_ * (dY * factors_.B.transpose()) * factors_.A.transpose();
  }
  void forward(const lora::ConstRows<double>& X, lora::Rows<double> Y, Saved& saved) const {
    saved.remember(X);
    auto P = saved.P.reshape(X.rows(), factors_.rank());
    P = scale_ * (X * factors_.A);
    Y = X + P * factors_.B;
  }
  void backward(const lora::ConstRows<double>& dY, Saved& saved, lora::FactorsView<double> gradient) const {
    gradient.A += saved.input().transpose() * (scale_ * dY * factors_.B.transpose());
    gradient.B += saved.P.view().transpose() * dY;
  }
  void backward(const lora::ConstRows<double>& dY, Saved& saved, const lora::FactorsView<double>& gradient,
                lora::Rows<double> dX) const {
    backward(dY, saved, gradient);
    multiply_transposed(dY, dX);
  }

 private:
  lora::Factors<double> factors_;
  double scale_;
};
static_assert(lora::Adapter<ResidualLora>);
// [/adapter]

int main() {
  lora::Random random{4};
  const auto normal = [&] { return random.normal(); };
  const Matrix X = Matrix::NullaryExpr(64, 20, normal);
  const Matrix target = X + X.leftCols(2) * Matrix::NullaryExpr(2, 20, normal);

  ResidualLora layer{20, 4, 2.0};
  layer.factors().A = Matrix::NullaryExpr(20, 4, normal) / 5;
  lora::Optimizer optimizer{lora::LoraPlus{lora::AdamW{.learning_rate = 4e-3}, 8}, layer};
  auto gradient = lora::Factors<double>::zero(20, 20, 4);
  lora::SavedState<double> saved;
  Matrix Y(64, 20), dY;
  for (int step = 0; step <= 90; ++step) {
    layer.forward(X, Y, saved);
    dY = (Y - target) / 64;
    if (step % 30 == 0) std::printf("step %2d  loss %.3f\n", step, dY.squaredNorm() * 32);
    gradient.set_zero();
    layer.backward(dY, saved, gradient);
    optimizer.step(layer, gradient);
  }
}
