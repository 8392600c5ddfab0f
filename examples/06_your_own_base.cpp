// SPDX-License-Identifier: MIT
// A base of your own: W0 in int8 with a scale per column; and a base that the trainer multiplies before it calls us.
#include <lora/lora.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

using Matrix = lora::RowMatrix<float>;

// [base]
/// W0 (n x m) ~ codes diag(scales): a byte a weight, each column scaled to [-127, 127].
class Int8Base {
 public:
  using Scalar = float;

  explicit Int8Base(const Matrix& W)
      : scales_(W.cwiseAbs().colwise().maxCoeff() / 127),
        codes_((W * scales_.asDiagonal().inverse()).array().round().cast<std::int8_t>()) {}

  lora::Index rows() const { return codes_.rows(); }
  lora::Index cols() const { return codes_.cols(); }
  void multiply(const lora::ConstRows<float>& X, lora::Rows<float> Y) const {
    Y.setZero();
    for (lora::Index i = 0; i < rows(); ++i) Y += X.col(i) * codes_.row(i).cast<float>();
    Y *= scales_.asDiagonal();
  }
  void multiply_transposed(const lora::ConstRows<float>& dY, lora::Rows<float> dX) const {
    const Matrix scaled = dY * scales_.asDiagonal();
    for (lora::Index i = 0; i < rows(); ++i) dX.col(i) = scaled * codes_.row(i).cast<float>().transpose();
  }
  std::string describe() const { return "int8 with a scale per column"; }

 private:
  Eigen::RowVectorXf scales_;
  Eigen::Matrix<std::int8_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> codes_;
};
static_assert(lora::FrozenBase<Int8Base>);
// [/base]

int main() {
  lora::Random random{11};
  const auto normal = [&] { return static_cast<float>(random.normal()); };
  const Matrix W0 = Matrix::NullaryExpr(40, 20, normal), X = Matrix::NullaryExpr(60, 40, normal);
  const Matrix target = X * W0 + X.leftCols(2) * Matrix::NullaryExpr(2, 20, normal);

  const Int8Base base{W0};
  lora::LoraLinear layer{base, {.rank = 4, .alpha = 8}};
  std::printf("%s, relative error of the weight %.4f\n", layer.describe().c_str(),
              static_cast<double>((lora::to_dense(base) - W0).norm() / W0.norm()));
  layer.initialize(lora::KaimingUniform{}, random);
  lora::Optimizer optimizer{lora::LoraPlus{lora::AdamW{.learning_rate = 5e-3}, 8}, layer};
  auto gradient = layer.zero_gradient();
  lora::SavedState<float> saved;
  Matrix Y(60, 20), dY;
  for (int step = 0; step <= 90; ++step) {
    layer.forward(X, Y, saved);
    dY = (Y - target) / 60;
    if (step % 30 == 0) std::printf("step %2d  loss %.3f\n", step, static_cast<double>(dY.squaredNorm() * 30));
    gradient.set_zero();
    layer.backward(dY, saved, gradient);
    optimizer.step(layer, gradient);
  }

  // [branch]
  // The trainer multiplies with its own kernel, on its own device; the layer adds s (X A) B to what it finds in Y.
  lora::LoraLinear branch{lora::low_rank_branch<float>(40, 20), {.rank = 4, .alpha = 8}};
  branch.set_factors(layer.factors());
  Matrix Y_branch(60, 20);
  base.multiply(X, Y_branch);
  branch.forward(X, Y_branch, saved);
  // [/branch]
  layer.forward(X, Y, saved);
  std::printf("the branch on the trainer's product gives the same bits: %s\n", Y_branch == Y ? "yes" : "no");
}
