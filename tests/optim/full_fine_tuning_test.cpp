// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/optim/adamw.hpp>
#include <lora/optim/full_fine_tuning.hpp>
#include <lora/optim/sgd.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;

TEMPLATE_TEST_CASE("full fine-tuning is the rule on the weight, in either storage order", "[optim]", float, double) {
  const FullFineTuning method{AdamW{.learning_rate = 0.01, .weight_decay = 0.1}};
  Random random{31};
  ColMatrix<TestType> columns = random_columns<TestType>(17, 12, random), by_rule = columns;
  RowMatrix<TestType> rows = columns;
  auto state_columns = method.init(columns);
  auto state_rows = method.init(rows);
  auto state_rule = method.rule.template init<TestType>(17, 12);
  for (int step = 0; step < 20; ++step) {
    const auto gradient = random_columns<TestType>(17, 12, random);
    const RowMatrix<TestType> gradient_rows = gradient;
    const double rate = 1 - 0.02 * step;
    method.step(state_columns, columns, gradient, rate);
    method.step(state_rows, rows, gradient_rows, rate);
    method.rule.step(state_rule, by_rule, gradient, rate);
  }
  CHECK(same_bits(columns, by_rule));
  CHECK(same_bits(rows, ColMatrix<TestType>(columns)));
  CHECK(state_columns.rule == state_rule);
}

TEMPLATE_TEST_CASE("a bias is stepped as one column, a weight through a view or a block", "[optim]", float, double) {
  const FullFineTuning method{Sgd{.learning_rate = 1}};
  Eigen::VectorX<TestType> bias = Eigen::VectorX<TestType>::Constant(5, 3);
  const Eigen::VectorX<TestType> one = Eigen::VectorX<TestType>::Ones(5);
  auto state = method.init(bias);
  method.step(state, bias, one);
  CHECK((bias.array() == 2).all());

  RowMatrix<TestType> wide = RowMatrix<TestType>::Zero(4, 9);
  const RowMatrix<TestType> gradient = RowMatrix<TestType>::Ones(4, 3);
  auto block = wide.middleCols(2, 3);
  auto block_state = method.init(block);
  method.step(block_state, block, gradient);
  CHECK((block.array() == -1).all());
  CHECK(wide.sum() == -12);
}

TEST_CASE("full fine-tuning says what is wrong with a step", "[optim]") {
  const FullFineTuning<> method;
  ColMatrix<double> weight = ColMatrix<double>::Zero(4, 3);
  const ColMatrix<double> gradient = weight;
  auto state = method.init(weight);
  ColMatrix<double> other = ColMatrix<double>::Zero(3, 4);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(message_of<ShapeError>([&] { method.step(state, other, gradient); }) ==
        "FullFineTuning::step: weight must be 4 x 3, got 3 x 4");
  CHECK(message_of<ShapeError>([&] { method.step(state, weight, other); }) ==
        "FullFineTuning::step: gradient must be 4 x 3, got 3 x 4");
  CHECK(message_of<ShapeError>([&] { method.step(state, weight, weight); }) ==
        "FullFineTuning::step: weight and gradient must lie apart, got overlapping memory");
  CHECK(message_of<ConfigError>([&] { method.step(state, weight, gradient, -1); }) ==
        "FullFineTuning::step: rate must be finite and not negative, got -1");
  CHECK(message_of<ConfigError>([&] { method.step(state, weight, gradient, nan); }) ==
        "FullFineTuning::step: rate must be finite and not negative, got nan");
  FullFineTuning bad{AdamW{.epsilon = 0}};
  CHECK(message_of<ConfigError>([&] { bad.init(weight); }) ==
        "AdamW: epsilon must be positive, in float too, and finite, got 0");
  CHECK(message_of<ConfigError>([&] { bad.step(state, weight, gradient); }) ==
        "AdamW: epsilon must be positive, in float too, and finite, got 0");
}

TEST_CASE("a row-major weight is described to its owner as it was handed over", "[optim]") {
  const FullFineTuning<> method;
  RowMatrix<double> weight = RowMatrix<double>::Zero(4, 3);
  auto state = method.init(weight);
  RowMatrix<double> other = RowMatrix<double>::Zero(4, 5);
  CHECK(message_of<ShapeError>([&] { method.step(state, other, weight); }) ==
        "FullFineTuning::step: weight must be 4 x 3, got 4 x 5");
}
