// SPDX-License-Identifier: MIT
// The network of the golden data, its training, and the comparison with what was recorded.
#pragma once

#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/tolerances.hpp"

#include <lora/lora.hpp>

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

namespace lora::test {

/// What the files of a precision end with.
template <Real Scalar>
inline const std::string precision = std::is_same_v<Scalar, float> ? "_float32.txt" : "_float64.txt";

/// Compares with recorded matrices and remembers the largest difference.
template <class Scalar>
class Comparison {
 public:
  explicit Comparison(const Golden& golden, double bound = parity<Scalar>, const std::string& part = {})
      : golden_(golden), name_(golden.file() + (part.empty() ? "" : ", " + part)), bound_(bound) {}

  template <class Matrix>
  void check(const std::string& item, const Matrix& ours) {
    check(item, ours, golden_[item]);
  }
  void check(const std::string& item, double ours) { check(item, Eigen::Matrix<double, 1, 1>(ours)); }
  template <class Matrix>
  void check(const std::string& what, const Matrix& ours, const RowMatrix<double>& theirs) {
    CAPTURE(name_, what);
    REQUIRE(ours.rows() == theirs.rows());
    REQUIRE(ours.cols() == theirs.cols());
    const double difference = (ours.template cast<double>() - theirs).norm() / theirs.norm();
    CHECK(difference < bound_);
    if (difference > largest_) {
      largest_ = difference;
      where_ = what;
    }
  }

  void print() const {
    std::printf("%s: largest relative difference %.2e (%s), bound %.0e; made with %s\n", name_.c_str(), largest_,
                where_.c_str(), bound_, golden_.comments().at(0).c_str());
  }

 private:
  const Golden& golden_;
  std::string name_;
  double bound_;
  double largest_ = 0;
  std::string where_;
};

/// The pair of the items `prefix`A and `prefix`B.
template <Real Scalar>
Factors<Scalar> recorded_factors(const Golden& golden, const std::string& prefix) {
  return {golden.rows<Scalar>(prefix + "A"), golden.rows<Scalar>(prefix + "B")};
}

/// Y = layer2(tanh(layer1(X))) with the mean squared error over all elements.
template <Real Scalar>
struct Network {
  using Layer = LoraLinear<OwnedBase<Scalar>>;

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
    const LoraConfig config{.rank = static_cast<Index>(golden.number("rank")),
                            .alpha = golden.number("alpha"),
                            .scaling = stabilized ? Scaling::RankStabilized : Scaling::Standard};
    Layer layer{OwnedBase<Scalar>(golden.rows<Scalar>(name + ".W0")), config};
    const auto bias = golden.rows<Scalar>(name + ".bias");
    layer.set_bias({bias.data(), static_cast<std::size_t>(bias.size())});
    layer.set_factors(recorded_factors<Scalar>(golden, name + "."));
    return layer;
  }

  Layer layer1, layer2;
  Factors<Scalar> gradient1, gradient2;
  RowMatrix<Scalar> H, Y, dX;
  typename Layer::Saved saved1, saved2;
};

/// Trains both layers with one method on the batches of `start`, and compares with the items `prefix`... of a run.
template <Real Scalar, class Method>
void train(Network<Scalar>& network, const Method& method, const Golden& start, int steps,
           std::initializer_list<int> recorded, Comparison<Scalar>& comparison, const std::string& prefix = {}) {
  const auto check_factors = [&](const std::string& name, const Factors<Scalar>& ours, const std::string& suffix) {
    comparison.check(prefix + name + ".A" + suffix, ours.A);
    comparison.check(prefix + name + ".B" + suffix, ours.B);
  };
  const auto X0 = start.rows<Scalar>("batch0.X"), T0 = start.rows<Scalar>("batch0.T");
  Optimizer optimizer1{method, network.layer1}, optimizer2{method, network.layer2};
  ColMatrix<double> losses(steps, 1);
  for (int step = 1; step <= steps; ++step) {
    const std::string batch = "batch" + std::to_string((step - 1) % 4);
    const auto X = start.rows<Scalar>(batch + ".X"), T = start.rows<Scalar>(batch + ".T");
    network.forward(X);
    losses(step - 1, 0) = network.loss(T);
    network.backward(T);
    optimizer1.step(network.layer1, network.gradient1);
    optimizer2.step(network.layer2, network.gradient2);
    if (std::find(recorded.begin(), recorded.end(), step) == recorded.end()) continue;
    const std::string suffix = ".step" + std::to_string(step);
    check_factors("layer1", std::as_const(network.layer1).factors(), suffix);
    check_factors("layer2", std::as_const(network.layer2).factors(), suffix);
    network.forward(X0);
    comparison.check(prefix + "loss" + suffix, network.loss(T0));
  }
  comparison.check(prefix + "train_losses", losses);
}

}  // namespace lora::test
