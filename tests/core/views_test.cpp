// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/core/views.hpp>

#include <algorithm>
#include <vector>

using namespace lora;
using namespace lora::test;

TEMPLATE_TEST_CASE("a view of a matrix has its address, shape and stride", "[core][views]", float, double) {
  RowMatrix<TestType> rows = RowMatrix<TestType>::Zero(3, 4);
  ColMatrix<TestType> columns = ColMatrix<TestType>::Zero(3, 4);

  const Rows<TestType> row_view = rows;
  CHECK(row_view.data() == rows.data());
  CHECK(row_view.rows() == 3);
  CHECK(row_view.cols() == 4);
  CHECK(row_view.outerStride() == 4);
  const ConstColumns<TestType> column_view = columns;
  CHECK(column_view.data() == columns.data());
  CHECK(column_view.outerStride() == 3);
}

TEST_CASE("views bind maps and blocks without a copy", "[core][views]") {
  std::vector<float> memory(40);
  Eigen::Map<RowMatrix<float>> map(memory.data(), 5, 8);
  CHECK(Rows<float>(map).data() == memory.data());
  Eigen::Map<const RowMatrix<float>, 0, Eigen::OuterStride<>> strided_map(memory.data(), 4, 3,
                                                                          Eigen::OuterStride<>(10));
  CHECK(ConstRows<float>(strided_map).outerStride() == 10);

  RowMatrix<float> wide_matrix(5, 8);
  Rows<float> block = wide_matrix.block(1, 2, 3, 4);
  CHECK(block.data() == &wide_matrix(1, 2));
  CHECK(block.outerStride() == 8);
  CHECK(Rows<float>(block.middleCols(1, 2)).data() == &wide_matrix(1, 3));
  CHECK(Rows<float>(wide_matrix.row(2)).data() == &wide_matrix(2, 0));

  ColMatrix<float> tall(8, 5);
  CHECK(Columns<float>(tall.col(3)).data() == &tall(0, 3));
  CHECK(Columns<float>(tall.bottomRows(3)).outerStride() == 8);
}

TEST_CASE("a vector is a view with one element a row or one row", "[core][views]") {
  Eigen::VectorXd column = Eigen::VectorXd::LinSpaced(4, 0, 3);
  const Rows<double> tokens = column;  // 4 x 1
  CHECK(tokens.rows() == 4);
  CHECK(tokens.cols() == 1);
  CHECK(tokens(3, 0) == 3);
  CHECK(tokens.data() == column.data());
  CHECK(Columns<double>(column).rows() == 4);

  Eigen::RowVectorXd row = Eigen::RowVectorXd::LinSpaced(4, 0, 3);
  const Rows<double> token = row;  // 1 x 4
  CHECK(token.rows() == 1);
  CHECK(token(0, 2) == 2);
  CHECK(Columns<double>(row).cols() == 4);

  RowMatrix<double> matrix = RowMatrix<double>::Zero(3, 5);
  matrix(2, 4) = 7;
  const Rows<double> one_column = matrix.col(4);  // stride 5 from row to row
  CHECK(one_column.outerStride() == 5);
  CHECK(one_column(2, 0) == 7);
}

TEST_CASE("callers without Eigen types write pointer, rows, columns and stride", "[core][views]") {
  const std::vector<float> memory{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const ConstRows<float> rows{memory.data(), 2, 3, 5};
  CHECK(rows(1, 2) == 7);
  const ConstRows<float> packed{memory.data(), 2, 3};
  CHECK(packed(1, 2) == 5);
  const ConstColumns<float> columns{memory.data(), 2, 3};
  CHECK(columns(1, 2) == 5);
  CHECK(columns(0, 1) == 2);
  const ConstRows<float> spread{memory.data(), 1, 3, 0};  // a single row: the stride is never used
  CHECK(spread(0, 2) == 2);
  const ConstRows<float> nothing{nullptr, 0, 3};
  CHECK(nothing.size() == 0);
}

TEST_CASE("assigning to a view writes through, and never rebinds", "[core][views]") {
  Strided<float> target(RowMatrix<float>::Zero(2, 3));
  RowMatrix<float> source(2, 3);
  source << 1, 2, 3, 4, 5, 6;

  Rows<float> view = target.view();
  view = source;
  CHECK(target.view() == source);
  RowMatrix<float> other = 2 * source;
  Rows<float> other_view = other;
  view = other_view;  // view to view copies elements too
  CHECK(target.view() == other);
  CHECK(view.data() == target.view().data());
  view = source.array().exp().matrix();
  CHECK(target.view()(0, 1) == std::exp(2.0F));
  CHECK(target.border_untouched());
}

TEST_CASE("a view that writes turns into one that only reads", "[core][views]") {
  RowMatrix<float> matrix(2, 2);
  const Rows<float> writable = matrix;
  const ConstRows<float> readable = writable;
  CHECK(readable.data() == matrix.data());
  CHECK(sizeof(Rows<float>) <= 5 * sizeof(void*));
}

TEST_CASE("transposed shows the same memory by columns", "[core][views]") {
  Random random{1};
  Strided<double> strided(random_rows<double>(3, 4, random));
  const Columns<double> columns = transposed(strided.view());
  CHECK(columns.data() == strided.view().data());
  CHECK(columns == strided.view().transpose());
  const ConstColumns<double> read_only = transposed(ConstRows<double>(strided.view()));
  CHECK(read_only.outerStride() == strided.stride());
}

TEST_CASE("a view of impossible memory is refused", "[core][views][errors]") {
  float element = 0;
  CHECK(message_of<ShapeError>([&] { Rows<float>(&element, -1, 2); }) ==
        "View: sizes must not be negative, got -1 x 2");
  CHECK(message_of<ShapeError>([&] { Columns<float>(&element, 1, -2); }) ==
        "View: sizes must not be negative, got 1 x -2");
  CHECK(message_of<ShapeError>([&] { Rows<float>(&element, 2, 3, 2); }) == "View: stride must be at least 3, got 2");
  CHECK(message_of<ShapeError>([&] { Columns<float>(&element, 4, 2, 3); }) == "View: stride must be at least 4, got 3");
  CHECK(message_of<ShapeError>([&] { ConstRows<double>(nullptr, 2, 3); }) ==
        "View: pointer must not be null for 2 x 3 elements, got null");

  ColMatrix<float> columns(3, 4);
  CHECK(message_of<ShapeError>([&] { Rows<float> view(columns.row(1)); }) ==
        "View: elements of a row (column) must be adjacent, got an inner stride of 3");
}

TEST_CASE("views of one stride overlap exactly where they share an element", "[core][views]") {
  std::vector<float> memory(64);
  float* const middle = memory.data() + 24;
  const auto elements = [](const ConstRows<float>& view) {
    std::vector<const float*> all;
    for (Index i = 0; i < view.rows(); ++i) {
      for (Index j = 0; j < view.cols(); ++j) all.push_back(view.data() + i * view.outerStride() + j);
    }
    return all;
  };
  Index checked = 0, wrong = 0;
  for (const Index stride : {1, 3, 5}) {
    for (Index left_cols = 1; left_cols <= stride; ++left_cols) {
      for (Index right_cols = 1; right_cols <= stride; ++right_cols) {
        for (const Index left_rows : {1, 3}) {
          for (const Index right_rows : {1, 2}) {
            for (Index shift = -20; shift <= 20; ++shift) {
              const ConstRows<float> left{middle, left_rows, left_cols, stride},
                  right{middle + shift, right_rows, right_cols, stride};
              const auto one = elements(left), two = elements(right);
              const bool shared = std::find_first_of(one.begin(), one.end(), two.begin(), two.end()) != one.end();
              wrong += detail::overlap(left, right) != shared || detail::overlap(right, left) != shared ? 1 : 0;
              ++checked;
            }
          }
        }
      }
    }
  }
  INFO(wrong << " of " << checked << " pairs of views judged wrongly");
  CHECK(wrong == 0);
}

TEST_CASE("views of different strides overlap where their address ranges meet", "[core][views]") {
  std::vector<double> memory(40);
  const ConstRows<double> wide_rows{memory.data(), 3, 2, 6};                         // up to element 13
  CHECK(detail::overlap(wide_rows, ConstRows<double>{memory.data() + 2, 2, 2, 5}));  // in a gap: on the safe side
  CHECK_FALSE(detail::overlap(wide_rows, ConstRows<double>{memory.data() + 14, 2, 2, 5}));
  CHECK(detail::overlap(wide_rows, ConstColumns<double>{memory.data() + 13, 1, 1}));
  CHECK(detail::overlap(wide_rows, transposed(wide_rows)));

  // Gaps of a fused output: same stride, nothing shared.
  const ConstRows<double> queries{memory.data(), 3, 4, 12}, keys{memory.data() + 4, 3, 4, 12};
  CHECK_FALSE(detail::overlap(queries, keys));
  CHECK(detail::overlap(queries, ConstRows<double>{memory.data() + 3, 3, 4, 12}));

  const ConstRows<double> nothing{memory.data(), 0, 4}, null{nullptr, 0, 0};
  CHECK_FALSE(detail::overlap(queries, nothing));
  CHECK_FALSE(detail::overlap(null, queries));
}
