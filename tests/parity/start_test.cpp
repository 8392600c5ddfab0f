// SPDX-License-Identifier: MIT
// LoRA-GA, PiSSA and OLoRA: factors and offset base against PEFT, and exactly against full decompositions.
#include "parity/network.hpp"
#include "support/starts.hpp"

#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

using Direction = GradientSvd::Direction;
using Size = GradientSvd::Size;

const std::array directions{std::pair{"ArB2r", Direction::ArB2r}, std::pair{"A2rBr", Direction::A2rBr},
                            std::pair{"ArBr", Direction::ArBr}};
const std::array sizes{std::pair{"stable", Size::Stable}, std::pair{"gd_scale", Size::InverseScale},
                       std::pair{"weight_svd", Size::Weight}, std::pair{"unit", Size::Unit}};

/// An item that was a float, in the precision of the test.
template <Real Scalar>
RowMatrix<Scalar> floats(const Golden& golden, const std::string& name) {
  return golden.rows<float>(name).template cast<Scalar>();
}

/// One layer on the recorded W0, and the mean gradient of the recorded batches.
template <Real Scalar>
struct Subject {
  explicit Subject(const Golden& golden)
      : layer{OwnedBase<Scalar>(floats<Scalar>(golden, "W0")),
              {.rank = static_cast<Index>(golden.number("rank")),
               .alpha = golden.number("alpha"),
               .scaling = Scaling::RankStabilized}},
        gradient(layer.in_features(), layer.out_features()) {
    for (const char* batch : {"batch0", "batch1"}) {
      const std::string name = batch;
      const auto X = floats<Scalar>(golden, name + ".X"), dY = floats<Scalar>(golden, name + ".dY");
      gradient.add(X, dY);
    }
  }

  LoraLinear<OwnedBase<Scalar>> layer;
  DenseGradient<Scalar> gradient;
  Random random{7};
};

/// A singular vector's sign is free: where a column of A, or a row of B, points against theirs, it is turned. In a pair
/// of disjoint bands every sign is independent of the others, so this is all the freedom that there is.
template <Real Scalar>
Factors<Scalar> turned_to(const Factors<Scalar>& theirs, Factors<Scalar> ours) {
  REQUIRE(ours.rank() == theirs.rank());
  for (Index k = 0; k < ours.rank(); ++k) {
    if (ours.A.col(k).dot(theirs.A.col(k)) < 0) ours.A.col(k) *= -1;
    if (ours.B.row(k).dot(theirs.B.row(k)) < 0) ours.B.row(k) *= -1;
  }
  return ours;
}

template <class Pair>
RowMatrix<double> product(const Pair& pair) {
  return pair.A.template cast<double>() * pair.B.template cast<double>();
}

/// The factors' product, and the base W0 - s A0 B0 of a layer that starts there.
void compare_start(Comparison<float>& comparison, Subject<float>& subject, const Golden& golden,
                   const std::string& prefix, const Factors<float>& ours) {
  comparison.check(prefix + "A B", product(ours), product(recorded_factors<float>(golden, prefix)));
  Subject<float> changed = subject;
  changed.layer.initialize(Given<float>{ours, Offset::SubtractInitial}, changed.random);
  changed.layer.bake();
  comparison.check(prefix + "base", changed.layer.base().weight());
}

}  // namespace

TEST_CASE("LoRA-GA in PEFT's convention starts where PEFT starts, for each direction and size", "[parity]") {
  const auto golden = Golden::read("starts_float32.txt");
  const double gamma = golden.number("gamma");
  for (const auto& [direction_name, direction] : directions) {
    for (const auto& [size_name, size] : sizes) {
      const std::string name = std::string(direction_name) + "." + size_name, prefix = name + ".";
      Subject<float> subject(golden);
      Comparison<float> comparison(golden, float_start, name);
      const GradientSvd init{
          .convention = GradientSvd::Convention::Peft, .direction = direction, .size = size, .gamma = gamma};
      subject.layer.initialize(init, subject.gradient, subject.random);
      const auto theirs = recorded_factors<float>(golden, prefix);
      const auto ours = turned_to(theirs, subject.layer.initial_factors());
      comparison.check(prefix + "A", ours.A);
      comparison.check(prefix + "B", ours.B);
      compare_start(comparison, subject, golden, prefix, ours);
      comparison.print();
    }
  }
}

TEST_CASE("PEFT's random LoRA-GA start is made of the triplets that it drew, and so is ours", "[parity]") {
  const auto golden = Golden::read("starts_float32.txt");
  for (const auto& [size_name, size] : sizes) {
    const std::string name = std::string("random.") + size_name, prefix = name + ".";
    Subject<float> subject(golden);
    const Index r = subject.layer.rank();
    const auto svd = truncated_svd(subject.gradient, 2 * r, subject.random);
    const auto weight = truncated_svd(subject.layer.base(), r, subject.random);
    // c sum of sigma_i u_i v_i^T over the drawn i; c is what the size multiplies the product by.
    const auto expected = [&, size = size](const auto& indices) {
      const double s = subject.layer.scale();
      double c = 1;
      if (size == Size::Stable) c = std::pow(static_cast<double>(svd.cols()), 0.25) / std::sqrt(golden.number("gamma"));
      if (size == Size::InverseScale) c = 1 / (s * s);
      if (size == Size::Weight) c = static_cast<double>(weight.S(0) / svd.S(indices.front()));
      RowMatrix<double> sum = RowMatrix<double>::Zero(svd.rows(), svd.cols());
      for (const Index i : indices) {
        const Eigen::VectorXd u = svd.U.col(i).template cast<double>(), v = svd.Vt.row(i).template cast<double>();
        sum += c * static_cast<double>(svd.S(i)) * u * v.transpose();
      }
      return sum;
    };

    Comparison<float> comparison(golden, float_start, name);
    std::vector<Index> drawn;
    for (const double i : golden[prefix + "indices"].reshaped()) drawn.push_back(static_cast<Index>(i));
    comparison.check(prefix + "A B", expected(drawn), product(recorded_factors<double>(golden, prefix)));

    const GradientSvd init{.convention = GradientSvd::Convention::Peft,
                           .direction = Direction::Random,
                           .size = size,
                           .gamma = golden.number("gamma")};
    subject.layer.initialize(init, subject.gradient, subject.random);
    const auto& ours = subject.layer.initial_factors();
    drawn.clear();
    for (Index k = 0; k < r; ++k) {  // column k of A is the left vector that it is parallel to
      Index i = 0;
      (svd.U.transpose() * ours.A.col(k)).cwiseAbs().maxCoeff(&i);
      drawn.push_back(i);
    }
    comparison.check("ours, A B", product(ours), expected(drawn));
    comparison.print();
  }
}

TEST_CASE("PiSSA and OLoRA start where PEFT starts", "[parity]") {
  const auto golden = Golden::read("starts_float32.txt");
  const auto follow = [&](const std::string& name, const std::string& part, const auto& init) {
    Subject<float> subject(golden);
    Comparison<float> comparison(golden, float_start, part);
    subject.layer.initialize(init, subject.random);
    compare_start(comparison, subject, golden, name + ".", subject.layer.initial_factors());
    comparison.print();
  };
  follow("pissa", "pissa, exact", PrincipalSvd{SvdEffort::exact()});
  follow("pissa", "pissa, fast", PrincipalSvd{});
  follow("olora", "olora", QrInit{});
}

TEST_CASE("LoRA-GA, PiSSA and OLoRA start exactly where full decompositions in double put them", "[parity]") {
  const auto recorded = Golden::read("starts_float32.txt"), golden = Golden::read("starts_float64.txt");
  const auto compare = [&](Comparison<double>& comparison, const std::string& prefix, const auto& ours) {
    comparison.check(prefix + "A", ours.A);
    comparison.check(prefix + "B", ours.B);
    comparison.check(prefix + "A B", product(ours), product(recorded_factors<double>(golden, prefix)));
  };
  for (const auto convention : {GradientSvd::Convention::Authors, GradientSvd::Convention::Peft}) {
    const std::string owner = convention == GradientSvd::Convention::Authors ? "authors" : "peft";
    Comparison<double> comparison(golden, exact_start, owner);
    for (const auto& [direction_name, direction] : directions) {
      for (const auto& [size_name, size] : sizes) {
        const std::string prefix = owner + "." + direction_name + "." + size_name + ".";
        Subject<double> subject(recorded);
        const GradientSvd init{.convention = convention,
                               .direction = direction,
                               .size = size,
                               .gamma = recorded.number("gamma"),
                               .effort = SvdEffort::exact()};
        subject.layer.initialize(init, subject.gradient, subject.random);
        const auto theirs = recorded_factors<double>(golden, prefix);
        compare(comparison, prefix, turned_to(theirs, subject.layer.initial_factors()));
      }
    }
    comparison.print();
  }
  Comparison<double> comparison(golden, exact_start, "pissa and olora");
  const auto follow = [&](const std::string& prefix, const auto& init) {
    Subject<double> subject(recorded);
    subject.layer.initialize(init, subject.random);
    compare(comparison, prefix, turned_to(recorded_factors<double>(golden, prefix), subject.layer.initial_factors()));
  };
  follow("pissa.", PrincipalSvd{SvdEffort::exact()});
  follow("olora.", QrInit{});
  comparison.print();
}
