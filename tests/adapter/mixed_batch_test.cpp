// SPDX-License-Identifier: MIT
// Batches in which each row names its adapter, against each adapter's own layer.
#include "support/allocations.hpp"
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/finite_difference.hpp"
#include "support/matrices.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/mixed_batch.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 37, m = 29, adapters = 4;
constexpr std::array<Index, adapters> ranks{2, 5, 1, 8};

/// Two layers that share a bound in their distance to the exact result: it holds twice between them.
constexpr double two_sided = 2;
/// A gradient, X^T (s dY B^T) or (s X A)^T dY over `rows`: the inner product, then the sum over the rows.
constexpr Index gradient_roundings(Index inner, Index rows) {
  return product_roundings(inner) + product_roundings(rows);
}

enum class Pattern { Interleaved, Contiguous, Random, WithGaps, OneAdapter, BaseOnly };
constexpr std::array patterns{Pattern::Interleaved, Pattern::Contiguous, Pattern::Random,
                              Pattern::WithGaps,    Pattern::OneAdapter, Pattern::BaseOnly};

/// The adapter of each of `b` rows. Only three of the patterns leave rows without one.
std::vector<Index> assignment(Pattern pattern, Index b, Random& random) {
  const auto draw = [&](Index count) { return static_cast<Index>(random.uniform() * static_cast<double>(count)); };
  std::vector<Index> rows;
  for (Index i = 0; i < b; ++i) {
    switch (pattern) {
      case Pattern::Interleaved:
        rows.push_back(i % adapters);
        break;
      case Pattern::Contiguous:
        rows.push_back(adapters * i / b);
        break;
      case Pattern::Random:
        rows.push_back(draw(adapters + 1) - 1);
        break;
      case Pattern::WithGaps:
        rows.push_back(draw(2) == 0 ? RowGroups::base_only : 3 * draw(2));  // adapters 1 and 2 have none
        break;
      case Pattern::OneAdapter:
        rows.push_back(1);
        break;
      case Pattern::BaseOnly:
        rows.push_back(RowGroups::base_only);
        break;
    }
  }
  return rows;
}

/// A base and four layers on it with one bias: ranks and scales differ, one has an offset, one a negative scale.
template <class Base>
struct Fixture {
  using Scalar = typename Base::Scalar;
  Random random{71};
  BaseCase<Base> of{n, m, random};
  std::vector<Scalar> bias;
  std::vector<LoraLinear<Base>> layers;
  MixedLinear<Base> mixed{of.base};

  Fixture() {
    for (Index j = 0; j < m; ++j) bias.push_back(static_cast<Scalar>(random.uniform() - 0.5));
    for (const Index r : ranks) {
      layers.emplace_back(of.base, LoraConfig{.rank = r, .alpha = 3});
      if (r == 5) layers.back().initialize(RandomOffset{}, random);
      layers.back().set_factors(random_factors<Scalar>(n, m, r, random));
      layers.back().set_bias(bias);
    }
    layers[2].set_scale(-0.7);
    mixed.set_bias(bias);
  }

  /// |M| of the weight of a row: |W0| + |s| (|A| |B| + |A0| |B0|).
  Wide magnitude(Index adapter) const {
    if (adapter == RowGroups::base_only) return of.magnitude;
    const auto& layer = layers[static_cast<std::size_t>(adapter)];
    const auto change = layer.delta();
    return of.magnitude + std::abs(static_cast<long double>(layer.scale())) *
                              product(absolute(wide(change.A)), absolute(wide(change.B)));
  }
  double gamma(Index depth) const {
    return two_sided * rounding_bound<Scalar>(layer_roundings(depth, ranks.back()) + of.roundings);
  }
  /// The layer of a row; switched off where it has none.
  LoraLinear<Base> layer_of(Index adapter) const {
    if (adapter != RowGroups::base_only) return layers[static_cast<std::size_t>(adapter)];
    auto layer = layers[0];
    layer.disable();
    return layer;
  }
};

/// One zero gradient an adapter.
template <Real Scalar>
std::vector<Factors<Scalar>> zero_gradients() {
  return {Factors<Scalar>::zero(n, m, ranks[0]), Factors<Scalar>::zero(n, m, ranks[1]),
          Factors<Scalar>::zero(n, m, ranks[2]), Factors<Scalar>::zero(n, m, ranks[3])};
}

template <Real Scalar>
RowMatrix<Scalar> rows_of(const RowMatrix<Scalar>& all, const std::vector<Index>& adapter_of_row, Index adapter) {
  RowMatrix<Scalar> part(std::ranges::count(adapter_of_row, adapter), all.cols());
  Index next = 0;
  for (Index i = 0; i < all.rows(); ++i) {
    if (adapter_of_row[static_cast<std::size_t>(i)] == adapter) part.row(next++) = all.row(i);
  }
  return part;
}

}  // namespace

TEST_CASE("rows are grouped by adapter, in their order, and even distances are found", "[adapter][mixed]") {
  const std::vector<Index> adapter_of_row{3, 0, -1, 0, 5, 0, 5, 5, 3};
  const RowGroups groups{adapter_of_row, 7};
  CHECK(groups.tokens() == 9);
  CHECK(groups.adapters() == 7);
  REQUIRE(groups.size() == 3);
  const auto rows = [&](Index i) {
    const auto span = groups[i].rows;
    return std::vector<Index>(span.begin(), span.end());
  };
  CHECK((groups[0].adapter == 0 && rows(0) == std::vector<Index>{1, 3, 5} && groups[0].step == 2));
  CHECK((groups[1].adapter == 3 && rows(1) == std::vector<Index>{0, 8} && groups[1].step == 8));
  CHECK((groups[2].adapter == 5 && rows(2) == std::vector<Index>{4, 6, 7} && groups[2].step == 0));

  const std::vector<Index> contiguous{1, 1, 1, -1, 0};
  RowGroups reused{contiguous, 2};
  CHECK((reused[0].step == 1 && reused[1].step == 1 && reused[1].rows.front() == 0));
  CHECK(reused != groups);
  reused.assign(adapter_of_row, 7);
  CHECK(reused == groups);
  const auto copy = std::make_unique<RowGroups>(reused);
  reused.assign(contiguous, 2);
  CHECK(*copy == groups);  // spans of a copy lead into the copy

  reused.assign({}, 0);
  CHECK((reused.tokens() == 0 && reused.size() == 0 && reused.adapters() == 0));
  CHECK(reused == RowGroups{});
  const std::vector<Index> none(4, RowGroups::base_only);
  reused.assign(none, 0);
  CHECK((reused.tokens() == 4 && reused.size() == 0));
}

TEMPLATE_TEST_CASE("each row of a mixed batch is what its own layer makes of it", "[adapter][mixed]", OwnedBase<float>,
                   (OwnedBase<double, Eigen::RowMajor>), ViewBase<double>, (ViewBase<float, Eigen::RowMajor>),
                   CallbackBase<double>, LoraLinear<OwnedBase<float>>) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  RowGroups groups;
  MixedState<Scalar> saved;
  for (const Pattern pattern : patterns) {
    for (const Index b : {0, 1, 2, 7, 48, 65}) {
      const auto adapter_of_row = assignment(pattern, b, fixture.random);
      const auto X = random_rows<Scalar>(b, n, fixture.random);
      RowMatrix<Scalar> Y = RowMatrix<Scalar>::Constant(b, m, 99), expected(b, m);
      groups.assign(adapter_of_row, adapters);
      fixture.mixed.forward(X, Y, fixture.layers, groups, saved);

      Wide terms(b, m);
      SavedState<Scalar> own;
      for (Index i = 0; i < b; ++i) {
        const Index adapter = adapter_of_row[static_cast<std::size_t>(i)];
        fixture.layer_of(adapter).forward(X.row(i), expected.row(i), own);
        terms.row(i) = product(absolute(wide(X.row(i))), fixture.magnitude(adapter));
        for (Index j = 0; j < m; ++j) terms(i, j) += std::abs(fixture.bias[static_cast<std::size_t>(j)]);
      }
      const double ratio = worst_ratio(Y, wide(expected), fixture.gamma(n) * terms);
      INFO("pattern " << static_cast<int>(pattern) << ", b = " << b << ": worst error is " << ratio << " of the bound");
      CHECK(ratio <= 1);
    }
  }
}

TEMPLATE_TEST_CASE("gradients and dX of a mixed batch are those of the layers on their own rows", "[adapter][mixed]",
                   OwnedBase<float>, (OwnedBase<double, Eigen::RowMajor>), ViewBase<double>,
                   LoraLinear<OwnedBase<float>>) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  MixedState<Scalar> saved;
  for (const Pattern pattern : patterns) {
    for (const Index b : {0, 1, 7, 65}) {
      const auto adapter_of_row = assignment(pattern, b, fixture.random);
      const RowGroups groups{adapter_of_row, adapters};
      const auto X = random_rows<Scalar>(b, n, fixture.random), dY = random_rows<Scalar>(b, m, fixture.random);
      RowMatrix<Scalar> Y(b, m), dX = RowMatrix<Scalar>::Constant(b, n, 99);
      auto start = zero_gradients<Scalar>();  // backward adds to what is there
      for (auto& factors : start) factors = random_factors<Scalar>(n, m, factors.rank(), fixture.random);
      auto gradients = start, without_dX = start;
      fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
      fixture.mixed.backward(dY, saved, without_dX);
      fixture.mixed.backward(dY, saved, gradients, dX);
      CAPTURE(static_cast<int>(pattern), b);

      for (Index adapter = -1; adapter < adapters; ++adapter) {
        const auto X_a = rows_of(X, adapter_of_row, adapter), dY_a = rows_of(dY, adapter_of_row, adapter);
        const auto layer = fixture.layer_of(adapter);
        RowMatrix<Scalar> Y_a(X_a.rows(), m), expected_dX(X_a.rows(), n);
        SavedState<Scalar> own;
        const auto at = static_cast<std::size_t>(std::max(adapter, Index{0}));
        auto expected = start[at];
        layer.forward(X_a, Y_a, own);
        layer.backward(dY_a, own, expected, expected_dX);

        const Wide dX_terms = product(absolute(wide(dY_a)), fixture.magnitude(adapter).transpose());
        const double X_ratio =
            worst_ratio(rows_of(dX, adapter_of_row, adapter), wide(expected_dX), fixture.gamma(m) * dX_terms);
        INFO("adapter " << adapter << ": worst error of dX is " << X_ratio << " of the bound");
        CHECK(X_ratio <= 1);
        if (adapter == RowGroups::base_only) continue;

        CHECK(same_bits(gradients[at], without_dX[at]));
        if (X_a.rows() == 0) {
          CHECK(same_bits(gradients[at], start[at]));
          continue;
        }
        const long double s = std::abs(layer.scale());
        const Wide A = absolute(wide(layer.factors().A)), B = absolute(wide(layer.factors().B));
        const Wide x = absolute(wide(X_a)), dy = absolute(wide(dY_a));
        const Wide A_terms = absolute(wide(start[at].A)) + s * product(x.transpose(), product(dy, B.transpose()));
        const Wide B_terms = absolute(wide(start[at].B)) + s * product(product(x, A).transpose(), dy);
        const double A_bound = two_sided * rounding_bound<Scalar>(gradient_roundings(m, X_a.rows()));
        const double B_bound = two_sided * rounding_bound<Scalar>(gradient_roundings(n, X_a.rows()));
        const double A_ratio = worst_ratio(gradients[at].A, wide(expected.A), A_bound * A_terms);
        const double B_ratio = worst_ratio(gradients[at].B, wide(expected.B), B_bound * B_terms);
        INFO("adapter " << adapter << ": worst errors are " << A_ratio << " and " << B_ratio << " of their bounds");
        CHECK(A_ratio <= 1);
        CHECK(B_ratio <= 1);
      }
    }
  }
}

TEST_CASE("gradients of all adapters and of X agree with central differences", "[adapter][mixed]") {
  constexpr Index b = 9, small_n = 8, small_m = 6;
  Random random{72};
  const auto W0 = random_columns<double>(small_n, small_m, random);
  std::array layers{LoraLinear{W0, {.rank = 2, .alpha = 3}}, LoraLinear{W0, {.rank = 4, .alpha = 5}},
                    LoraLinear{W0, {.rank = 1, .alpha = 2}}};
  layers[1].initialize(RandomOffset{}, random);
  for (auto& layer : layers) layer.set_factors(random_factors<double>(small_n, small_m, layer.rank(), random));
  const std::vector<Index> adapter_of_row{1, 0, -1, 1, 2, 2, 0, 1, 2};
  const RowGroups groups{adapter_of_row, 3};
  REQUIRE((groups[0].step == 5 && groups[1].step == 0 && groups[2].step == 0));

  const MixedLinear mixed{W0};
  auto X = random_rows<double>(b, small_n, random);
  const auto weights = random_rows<double>(b, small_m, random);
  RowMatrix<double> Y(b, small_m), dX(b, small_n);
  MixedState<double> saved;
  const auto loss = [&] {
    mixed.forward(X, Y, layers, groups, saved);
    return weights.cwiseProduct(Y.array().sin().matrix()).sum();
  };
  loss();
  std::array gradients{layers[0].zero_gradient(), layers[1].zero_gradient(), layers[2].zero_gradient()};
  const RowMatrix<double> dY = weights.array() * Y.array().cos();
  mixed.backward(dY, saved, gradients, dX);
  for (std::size_t a = 0; a < 3; ++a) {
    const double error_A = relative_error(gradients[a].A, numerical_gradient(layers[a].factors().A, loss));
    const double error_B = relative_error(gradients[a].B, numerical_gradient(layers[a].factors().B, loss));
    INFO("adapter " << a << ": relative errors of A " << error_A << ", B " << error_B);
    CHECK(std::max(error_A, error_B) < gradient_check);
  }
  const double error_X = relative_error(dX, numerical_gradient(X, loss));
  INFO("relative error of X " << error_X);
  CHECK(error_X < gradient_check);
}

TEMPLATE_TEST_CASE("strided activations and gradients in foreign memory give the same bits", "[adapter][mixed]", float,
                   double) {
  Fixture<OwnedBase<TestType>> fixture;
  for (const Pattern pattern : patterns) {
    for (const Index b : {0, 1, 40}) {
      const auto adapter_of_row = assignment(pattern, b, fixture.random);
      const RowGroups groups{adapter_of_row, adapters};
      const auto X = random_rows<TestType>(b, n, fixture.random), dY = random_rows<TestType>(b, m, fixture.random);
      RowMatrix<TestType> Y(b, m), dX(b, n);
      auto gradients = zero_gradients<TestType>(), strided_gradients = gradients;
      const std::vector<FactorsView<TestType>> views(strided_gradients.begin(), strided_gradients.end());
      MixedState<TestType> saved;
      fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
      fixture.mixed.backward(dY, saved, gradients, dX);

      const Strided<TestType> wide_X(X), wide_dY(dY);
      Strided<TestType> wide_Y(2 * Y), wide_dX(2 * dX);
      fixture.mixed.forward(wide_X.view(), wide_Y.view(), fixture.layers, groups, saved);
      fixture.mixed.backward(wide_dY.view(), saved, std::span<const FactorsView<TestType>>(views), wide_dX.view());
      CAPTURE(static_cast<int>(pattern), b);
      CHECK(same_bits(wide_Y.view(), Y));
      CHECK(same_bits(wide_dX.view(), dX));
      CHECK((wide_Y.border_untouched() && wide_dX.border_untouched()));
      for (std::size_t a = 0; a < ranks.size(); ++a) CHECK(same_bits(strided_gradients[a], gradients[a]));
    }
  }
}

TEMPLATE_TEST_CASE("where the rows of a group lie changes no bit of its branch and gradients", "[adapter][mixed]",
                   float, double) {
  constexpr Index b = 30;
  Fixture<OwnedBase<TestType>> fixture;
  const MixedLinear branch{low_rank_branch<TestType>(n, m)};
  for (auto& layer : fixture.layers) layer.set_bias({});
  const auto sorted_X = random_rows<TestType>(b, n, fixture.random),
             sorted_dY = random_rows<TestType>(b, m, fixture.random);
  const auto sorted_Y = random_rows<TestType>(b, m, fixture.random),
             sorted_dX = random_rows<TestType>(b, n, fixture.random);

  struct Result {
    RowMatrix<TestType> Y, dX;
    std::vector<Factors<TestType>> gradients;
  };
  // Rows 0-9 of the sorted batch belong to adapter 1, 10-19 to adapter 3, the others to none; `place` moves them.
  const auto run = [&](const auto& place, Index step) {
    std::vector<Index> adapter_of_row(b);
    RowMatrix<TestType> X(b, n), dY(b, m), Y(b, m), dX(b, n);
    for (Index i = 0; i < b; ++i) {
      adapter_of_row[static_cast<std::size_t>(place(i))] = i < 10 ? 1 : i < 20 ? 3 : RowGroups::base_only;
      X.row(place(i)) = sorted_X.row(i);
      dY.row(place(i)) = sorted_dY.row(i);
      Y.row(place(i)) = sorted_Y.row(i);
      dX.row(place(i)) = sorted_dX.row(i);
    }
    auto gradients = zero_gradients<TestType>();
    MixedState<TestType> saved;
    const RowGroups groups{adapter_of_row, adapters};
    REQUIRE((groups[0].step == step && groups[1].step == step));
    branch.forward(X, Y, fixture.layers, groups, saved);
    branch.backward(dY, saved, gradients, dX);
    Result result{RowMatrix<TestType>(b, m), RowMatrix<TestType>(b, n), gradients};
    for (Index i = 0; i < b; ++i) {
      result.Y.row(i) = Y.row(place(i));
      result.dX.row(i) = dX.row(place(i));
    }
    return result;
  };
  const auto contiguous = run([](Index i) { return i; }, 1);
  const auto interleaved = run([](Index i) { return i % 10 * 3 + i / 10; }, 3);
  const auto uneven =
      run([](Index i) { return i / 10 == 2 ? i % 10 : 10 + i % 10 * 2 + (i / 10 + i % 10 / 3) % 2; }, 0);
  CHECK(same_bits(contiguous.Y.bottomRows(10), sorted_Y.bottomRows(10)));  // without adapter: untouched
  CHECK(same_bits(contiguous.dX.bottomRows(10), sorted_dX.bottomRows(10)));
  for (const auto* other : {&interleaved, &uneven}) {
    CHECK(same_bits(other->Y, contiguous.Y));
    CHECK(same_bits(other->dX, contiguous.dX));
    for (std::size_t a = 0; a < ranks.size(); ++a) CHECK(same_bits(other->gradients[a], contiguous.gradients[a]));
  }
}

TEMPLATE_TEST_CASE("branches from layers, from buffers and from a kept delta are one and the same", "[adapter][mixed]",
                   float, double) {
  constexpr Index b = 12;
  Fixture<OwnedBase<TestType>> fixture;
  auto& layers = fixture.layers;
  const auto adapter_of_row = assignment(Pattern::Random, b, fixture.random);
  const RowGroups groups{adapter_of_row, adapters};
  const auto X = random_rows<TestType>(b, n, fixture.random);
  RowMatrix<TestType> expected(b, m), Y(b, m);
  MixedState<TestType> saved;
  fixture.mixed.forward(X, expected, layers, groups, saved);

  std::vector<LowRankBranch<TestType>> branches(layers.begin(), layers.end());
  fixture.mixed.forward(X, Y, branches, groups, saved);
  CHECK(same_bits(Y, expected));

  // Assigning binds to other factors and writes to none.
  const auto before = std::as_const(layers[0]).factors();
  std::swap(branches[0], branches[3]);
  std::swap(branches[0], branches[3]);
  branches[0] = branches[3];
  branches[0] = branches[0];
  CHECK(branches[0].factors.A.data() == std::as_const(layers[3]).factors().A.data());
  branches[0] = LowRankBranch{layers[0].factors(), layers[0].scale()};
  CHECK(same_bits(before, std::as_const(layers[0]).factors()));
  const auto kept = layers[2].delta();
  branches[2] = LowRankBranch{kept, layers[2].scale()};
  fixture.mixed.forward(X, Y, branches, groups, saved);
  CHECK(same_bits(Y, expected));

  const auto offset = layers[1].delta();  // of rank 10: other sums
  branches[1] = LowRankBranch{offset, layers[1].scale()};
  fixture.mixed.forward(X, Y, branches, groups, saved);
  Wide terms(b, m);
  for (Index i = 0; i < b; ++i) {
    terms.row(i) = product(absolute(wide(X.row(i))), fixture.magnitude(adapter_of_row[static_cast<std::size_t>(i)]));
  }
  CHECK(worst_ratio(Y, wide(expected), fixture.gamma(n) * (terms.array() + 0.5L).matrix()) <= 1);
}

TEMPLATE_TEST_CASE("a layer that is switched off or baked counts as it does alone", "[adapter][mixed]", float, double) {
  constexpr Index b = 9;
  Fixture<OwnedBase<TestType>> fixture;
  const std::vector<Index> rows{1, 1, 0, 1, 0, 1, 1, 0, 0};
  const RowGroups groups{rows, adapters};
  const auto X = random_rows<TestType>(b, n, fixture.random);
  RowMatrix<TestType> before(b, m), Y(b, m), base(b, m);
  MixedState<TestType> saved;
  fixture.mixed.forward(X, before, fixture.layers, groups, saved);
  fixture.layers[1].bake();  // its base has changed, ours has not
  fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
  CHECK(same_bits(Y, before));

  fixture.layers[0].disable();
  fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
  const std::vector<Index> none(b, RowGroups::base_only);
  fixture.mixed.forward(X, base, fixture.layers, RowGroups{none, adapters}, saved);
  for (Index i = 0; i < b; ++i)
    CHECK(same_bits(Y.row(i), rows[static_cast<std::size_t>(i)] == 1 ? before.row(i) : base.row(i)));

  fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
  auto gradients = zero_gradients<TestType>();
  const auto zero = gradients;
  fixture.mixed.backward(Y, saved, gradients);
  CHECK(same_bits(gradients[0], zero[0]));
  CHECK_FALSE(gradients[1] == zero[1]);
}

TEMPLATE_TEST_CASE("an adapter that has gone to NaN harms its own rows alone", "[adapter][mixed]", float, double) {
  constexpr Index b = 24;
  Fixture<OwnedBase<TestType>> fixture;
  const auto adapter_of_row = assignment(Pattern::Random, b, fixture.random);
  const RowGroups groups{adapter_of_row, adapters};
  const auto X = random_rows<TestType>(b, n, fixture.random), dY = random_rows<TestType>(b, m, fixture.random);
  RowMatrix<TestType> Y(b, m), dX(b, n), expected(b, m), expected_dX(b, n);
  auto gradients = zero_gradients<TestType>();
  auto expected_gradients = gradients;
  MixedState<TestType> saved;
  fixture.mixed.forward(X, expected, fixture.layers, groups, saved);
  fixture.mixed.backward(dY, saved, expected_gradients, expected_dX);
  fixture.layers[2].factors().A.setConstant(std::numeric_limits<TestType>::quiet_NaN());
  fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
  fixture.mixed.backward(dY, saved, gradients, dX);
  REQUIRE(std::ranges::count(adapter_of_row, 2) > 0);
  for (Index i = 0; i < b; ++i) {
    const bool harmed = adapter_of_row[static_cast<std::size_t>(i)] == 2;
    CHECK(same_bits(Y.row(i), expected.row(i)) != harmed);
    CHECK(same_bits(dX.row(i), expected_dX.row(i)) != harmed);
  }
  for (const std::size_t a : {0U, 1U, 3U}) CHECK(same_bits(gradients[a], expected_gradients[a]));
}

TEMPLATE_TEST_CASE("a forward keeps its own groups and scales for its backward", "[adapter][mixed]", float, double) {
  static constexpr Index b = 20;
  Fixture<OwnedBase<TestType>> fixture;
  struct Use {
    std::vector<Index> adapter_of_row;
    RowMatrix<TestType> X, dY, Y{b, m}, dX{b, n};
    MixedState<TestType> saved;
  };
  const auto make = [&](Pattern pattern) {
    auto rows = assignment(pattern, b, fixture.random);
    auto X = random_rows<TestType>(b, n, fixture.random);
    return Use{.adapter_of_row = std::move(rows),
               .X = std::move(X),
               .dY = random_rows<TestType>(b, m, fixture.random),
               .saved = {}};
  };
  std::array uses{make(Pattern::Random), make(Pattern::WithGaps)}, alone = uses;
  auto gradients = zero_gradients<TestType>();
  auto expected = gradients;
  RowGroups groups;
  for (Use& use : alone) {
    groups.assign(use.adapter_of_row, adapters);
    fixture.mixed.forward(use.X, use.Y, fixture.layers, groups, use.saved);
    fixture.mixed.backward(use.dY, use.saved, expected, use.dX);
  }
  for (Use& use : uses) {
    groups.assign(use.adapter_of_row, adapters);
    fixture.mixed.forward(use.X, use.Y, fixture.layers, groups, use.saved);
  }
  groups.assign({}, 0);
  fixture.layers[3].set_scale(40);
  fixture.layers[0].disable();
  for (Use& use : uses) fixture.mixed.backward(use.dY, use.saved, gradients, use.dX);
  for (std::size_t i = 0; i < 2; ++i) CHECK(same_bits(uses[i].dX, alone[i].dX));
  for (std::size_t a = 0; a < ranks.size(); ++a) CHECK(same_bits(gradients[a], expected[a]));
}

TEST_CASE("two threads share a layer, its adapters and the groups", "[adapter][mixed][threads]") {
  constexpr Index b = 33;
  Fixture<OwnedBase<double>> fixture;
  const auto adapter_of_row = assignment(Pattern::Random, b, fixture.random);
  const RowGroups groups{adapter_of_row, adapters};
  const auto X = random_rows<double>(b, n, fixture.random), dY = random_rows<double>(b, m, fixture.random);
  const auto train = [&](RowMatrix<double>& Y, std::vector<Factors<double>>& gradients) {
    MixedState<double> saved;
    for (int step = 0; step < 50; ++step) {
      fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
      fixture.mixed.backward(dY, saved, gradients);
    }
  };
  std::array<RowMatrix<double>, 3> Y;
  Y.fill(RowMatrix<double>(b, m));
  std::array gradients{zero_gradients<double>(), zero_gradients<double>(), zero_gradients<double>()};
  train(Y[0], gradients[0]);
  std::thread first([&] { train(Y[1], gradients[1]); }), second([&] { train(Y[2], gradients[2]); });
  first.join();
  second.join();
  for (const std::size_t i : {1U, 2U}) {
    CHECK(same_bits(Y[i], Y[0]));
    for (std::size_t a = 0; a < ranks.size(); ++a) CHECK(same_bits(gradients[i][a], gradients[0][a]));
  }
}

TEMPLATE_TEST_CASE("a gradient without A asks for B's alone, and X may then be gone", "[adapter][mixed]", float,
                   double) {
  constexpr Index b = 21;
  Fixture<OwnedBase<TestType>> fixture;
  const auto adapter_of_row = assignment(Pattern::Random, b, fixture.random);
  const RowGroups groups{adapter_of_row, adapters};
  auto X = random_rows<TestType>(b, n, fixture.random);
  const auto dY = random_rows<TestType>(b, m, fixture.random);
  RowMatrix<TestType> Y(b, m), dX(b, n);
  auto both = zero_gradients<TestType>(), only_B = both;
  for (auto& gradient : only_B) gradient.A.resize(0, gradient.rank());
  MixedState<TestType> saved;
  fixture.mixed.forward(X, Y, fixture.layers, groups, saved);
  fixture.mixed.backward(dY, saved, both, dX);
  X.setConstant(std::numeric_limits<TestType>::quiet_NaN());
  fixture.mixed.backward(dY, saved, only_B, X);  // dX in the place of X, which is not read again
  CHECK(same_bits(X, dX));
  for (std::size_t a = 0; a < ranks.size(); ++a) CHECK(same_bits(only_B[a].B, both[a].B));
}

TEMPLATE_TEST_CASE("warm groups, forwards and backwards allocate nothing", "[adapter][mixed][allocations]", float,
                   double) {
  if (!allocations_are_counted) {
    WARN(not_counted);
    return;
  }
  constexpr Index wide_n = 300, wide_m = 200, b = 96;
  Random random{73};
  const auto W0 = random_columns<TestType>(wide_n, wide_m, random);
  std::vector<LoraLinear<ViewBase<TestType>>> layers;
  std::vector<Factors<TestType>> gradients;
  for (const Index r : ranks) {
    layers.emplace_back(ViewBase<TestType>(W0), LoraConfig{.rank = r});
    layers.back().initialize(RandomOffset{}, random);
    gradients.push_back(layers.back().zero_gradient());
  }
  MixedLinear mixed{W0};
  mixed.set_bias(std::vector<TestType>(wide_m, TestType(0.5)));
  const auto X = random_rows<TestType>(b, wide_n, random);
  RowMatrix<TestType> Y(b, wide_m), dX(b, wide_n);
  RowGroups groups;
  MixedState<TestType> saved;
  const auto allocations_of_step = [&](const std::vector<Index>& adapter_of_row) {
    const auto rows = std::ssize(adapter_of_row);
    const auto x = X.topRows(rows);
    auto y = Y.topRows(rows), dx = dX.topRows(rows);
    return allocations_in([&] {
      groups.assign(adapter_of_row, adapters);
      mixed.forward(x, y, layers, groups, saved);
      mixed.backward(y, saved, gradients, dx);
      mixed.backward(y, saved, gradients);
    });
  };
  // The largest of all: every adapter used, and nearly all rows with the highest rank at uneven distances.
  std::vector<Index> largest(b, adapters - 1);
  for (Index a = 0; a + 1 < adapters; ++a) largest[static_cast<std::size_t>(10 + 7 * a)] = a;
  const long cold = allocations_of_step(largest);
  allocations_of_step(std::vector<Index>(b, adapters - 1));
  long warm = 0;
  for (const Pattern pattern : patterns) {
    for (const Index rows : {Index{0}, Index{1}, Index{5}, b - 1, b}) {
      const auto adapter_of_row = assignment(pattern, rows, random);
      allocations_of_step(adapter_of_row);  // packing memory of products with these shapes
      warm += allocations_of_step(adapter_of_row);
    }
  }
  INFO("heap allocations: " << cold << " at first, then " << warm);
  CHECK(warm == 0);
}
