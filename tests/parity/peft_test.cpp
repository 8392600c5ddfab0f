// SPDX-License-Identifier: MIT
// Against PyTorch and PEFT: two LoRA layers with a tanh between them, forward, backward and 100 optimizer steps.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/tolerances.hpp"

#include <lora/lora.hpp>

#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>

namespace {

using lora::Factors, lora::Index, lora::RowMatrix;
using lora::test::Golden;

/// Compares with the items of a file and remembers the largest difference.
template <class Scalar>
class Comparison {
 public:
  explicit Comparison(const Golden& golden) : golden_(golden) {}

  template <class Matrix>
  void check(const std::string& item, const Matrix& ours) {
    const auto& theirs = golden_[item];
    CAPTURE(golden_.file(), item);
    REQUIRE(ours.rows() == theirs.rows());
    REQUIRE(ours.cols() == theirs.cols());
    const double difference = (ours.template cast<double>() - theirs).norm() / theirs.norm();
    CHECK(difference < lora::test::parity<Scalar>);
    if (difference > largest_) {
      largest_ = difference;
      where_ = item;
    }
  }
  void check(const std::string& item, double ours) { check(item, Eigen::Matrix<double, 1, 1>(ours)); }

  void print() const {
    std::printf("%s: largest relative difference %.2e (%s), bound %.0e; made with %s\n", golden_.file().c_str(),
                largest_, where_.c_str(), lora::test::parity<Scalar>, golden_.comments().at(0).c_str());
  }

 private:
  const Golden& golden_;
  double largest_ = 0;
  std::string where_;
};

/// Y = layer2(tanh(layer1(X))) with the mean squared error over all elements.
template <lora::Real Scalar>
struct Network {
  using Layer = lora::LoraLinear<lora::OwnedBase<Scalar>>;

  explicit Network(const Golden& golden)
      : layer1(make_layer(golden, "layer1")),
        layer2(make_layer(golden, "layer2")),
        gradient1(layer1.zero_gradient()),
        gradient2(layer2.zero_gradient()) {}

  const RowMatrix<Scalar>& forward(const RowMatrix<Scalar>& X) {
    H.resize(X.rows(), layer1.out_features());
    Y.resize(X.rows(), layer2.out_features());
    layer1.forward(X, H, saved1);
    H = H.array().tanh().matrix().eval();
    layer2.forward(H, Y, saved2);
    return Y;
  }
  double loss(const RowMatrix<Scalar>& T) const {
    return (Y - T).template cast<double>().squaredNorm() / static_cast<double>(Y.size());
  }
  void backward(const RowMatrix<Scalar>& T) {
    gradient1.set_zero();
    gradient2.set_zero();
    const RowMatrix<Scalar> dY = (Y - T) * (Scalar{2} / static_cast<Scalar>(Y.size()));
    RowMatrix<Scalar> dH(H.rows(), H.cols());
    layer2.backward(dY, saved2, gradient2, dH);
    dH.array() *= 1 - H.array().square();
    dX.resize(H.rows(), layer1.in_features());
    layer1.backward(dH, saved1, gradient1, dX);
  }

  static Layer make_layer(const Golden& golden, const std::string& name) {
    const bool stabilized = golden.number("rank_stabilized") != 0;
    const lora::LoraConfig config{.rank = static_cast<Index>(golden.number("rank")),
                                  .alpha = golden.number("alpha"),
                                  .scaling = stabilized ? lora::Scaling::RankStabilized : lora::Scaling::Standard};
    Layer layer{lora::OwnedBase<Scalar>(golden.rows<Scalar>(name + ".W0")), config};
    const auto bias = golden.rows<Scalar>(name + ".bias");
    layer.set_bias({bias.data(), static_cast<std::size_t>(bias.size())});
    const Factors<Scalar> start{golden.rows<Scalar>(name + ".A"), golden.rows<Scalar>(name + ".B")};
    layer.set_factors(start);
    return layer;
  }

  Layer layer1, layer2;
  Factors<Scalar> gradient1, gradient2;
  RowMatrix<Scalar> H, Y, dX;
  typename Layer::Saved saved1, saved2;
};

/// The whole recorded run with one method (LoRA or LoRA+) in both layers.
template <class Scalar, class Method>
void follow(const Golden& golden, const Method& method) {
  Comparison<Scalar> comparison(golden);
  Network<Scalar> network(golden);
  const auto check_factors = [&](const std::string& name, const Factors<Scalar>& ours, const std::string& suffix) {
    comparison.check(name + ".A" + suffix, ours.A);
    comparison.check(name + ".B" + suffix, ours.B);
  };
  REQUIRE(network.layer1.scale() == Catch::Approx(golden.number("scale")).epsilon(1e-15));

  const auto X0 = golden.rows<Scalar>("batch0.X"), T0 = golden.rows<Scalar>("batch0.T");
  comparison.check("Y", network.forward(X0));
  comparison.check("loss", network.loss(T0));
  network.backward(T0);
  comparison.check("dX", network.dX);
  check_factors("layer1", network.gradient1, ".grad");
  check_factors("layer2", network.gradient2, ".grad");

  lora::Optimizer optimizer1{method, network.layer1}, optimizer2{method, network.layer2};
  const int steps = static_cast<int>(golden.number("steps"));
  lora::ColMatrix<double> losses(steps, 1);
  for (int step = 1; step <= steps; ++step) {
    const std::string batch = "batch" + std::to_string((step - 1) % 4);
    const auto X = golden.rows<Scalar>(batch + ".X"), T = golden.rows<Scalar>(batch + ".T");
    network.forward(X);
    losses(step - 1, 0) = network.loss(T);
    network.backward(T);
    optimizer1.step(network.layer1, network.gradient1);
    optimizer2.step(network.layer2, network.gradient2);
    if (step != 1 && step != 10 && step != 100) continue;
    const std::string suffix = ".step" + std::to_string(step);
    check_factors("layer1", std::as_const(network.layer1).factors(), suffix);
    check_factors("layer2", std::as_const(network.layer2).factors(), suffix);
    network.forward(X0);
    comparison.check("loss" + suffix, network.loss(T0));
  }
  comparison.check("train_losses", losses);

  comparison.check("layer1.merged", network.layer1.merged_weight());
  network.layer1.merge();
  network.layer2.merge();
  comparison.check("layer1.merged", network.layer1.base().weight());
  comparison.check("merged.Y", network.forward(X0));
  comparison.print();
}

}  // namespace

TEMPLATE_TEST_CASE("forward, backward and 100 steps agree with PyTorch and PEFT", "[parity]", float, double) {
  const std::string suffix = std::is_same_v<TestType, float> ? "_float32.txt" : "_float64.txt";
  const auto adamw = [](const Golden& golden) {
    return lora::AdamW{.learning_rate = golden.number("learning_rate"),
                       .beta1 = golden.number("beta1"),
                       .beta2 = golden.number("beta2"),
                       .epsilon = golden.number("eps"),
                       .weight_decay = golden.number("weight_decay")};
  };
  SECTION("LoRA with AdamW") {
    const auto golden = Golden::read("lora" + suffix);
    follow<TestType>(golden, lora::PerFactor{adamw(golden)});
  }
  SECTION("LoRA+ with AdamW") {
    const auto golden = Golden::read("lora_plus" + suffix);
    const double ratio = golden.number("ratio");
    REQUIRE(golden.number("layer1.B.learning_rate") == Catch::Approx(ratio * golden.number("layer1.A.learning_rate")));
    follow<TestType>(golden, lora::LoraPlus{adamw(golden), ratio});
  }
}
