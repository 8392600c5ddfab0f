// SPDX-License-Identifier: MIT
// The estimate against layers, optimizers and steps that really ran: sizes of their matrices to the byte, the heap to
// within what malloc adds, flops against the list of products.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/analysis/estimate.hpp>
#include <lora/base/callback_base.hpp>
#include <lora/base/packed_base.hpp>
#include <lora/base/packed_bf16_base.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/weight_space.hpp>

#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;
using Mode = LoraPro::Mode;

// A rule and an optimizer of a user's, with their costs beside them.
namespace mine {

struct Averaged {};
lora::OptimizerCost optimizer_cost(const Averaged& /*rule*/, double rows, double cols) {
  return {.state = rows * cols + rows, .flops = 3 * rows * cols};
}

struct Frozen {};
lora::OptimizerCost optimizer_cost(const Frozen& /*method*/, double n, double /*m*/, double r) {
  return {.scratch = n * r, .doubles = r, .flops = 1, .trains = lora::OptimizerCost::Trains::B};
}

}  // namespace mine

namespace {

constexpr double s = 1.5;

// ---- sizes of matrices

template <class Derived>
Index bytes_of(const Eigen::DenseBase<Derived>& matrix) {
  return matrix.size() * Index{sizeof(typename Derived::Scalar)};
}
template <Real Scalar>
Index bytes_of(const Factors<Scalar>& factors) {
  return bytes_of(factors.A) + bytes_of(factors.B);
}
template <Real Scalar>
Index bytes_of(const SavedState<Scalar>& saved) {
  return bytes_of(saved.P.view()) + bytes_of(saved.Q.view()) + bytes_of(saved.mask.view()) +
         bytes_of(saved.masked.view());
}
/// Of what a state compares by, which is what outlives a step; of all optimizers of the library.
template <class State>
Index bytes_of_state(const State& state) {
  if constexpr (requires { state.mean; }) {  // AdamW
    return bytes_of(state.mean) + bytes_of(state.square);
  } else if constexpr (requires { state.velocity; }) {  // Sgd
    return bytes_of(state.velocity);
  } else if constexpr (requires { state.momentum; }) {  // LoraPro
    Index bytes = bytes_of_state(state.pair) + bytes_of(state.momentum) + bytes_of(state.previous) +
                  bytes_of(state.row_squares) + bytes_of(state.column_squares);
    for (const auto& block : state.blocks) bytes += bytes_of_state(block);
    return bytes;
  } else if constexpr (requires { state.pair; }) {  // Riemannian
    return bytes_of_state(state.pair);
  } else if constexpr (requires { state.A; }) {  // PerFactor, LoraPlus
    return bytes_of_state(state.A) + bytes_of_state(state.B);
  } else if constexpr (requires { state.B; }) {  // LoraFa
    return bytes_of_state(state.B);
  } else {  // FullFineTuning
    return bytes_of_state(state.rule);
  }
}

/// Of the list in which LoRA-Pro's `Full` has its moments, some 60 to 120 bytes for 48 columns: in no estimate.
template <class State>
long list_bytes(const State& state) {
  if constexpr (requires { state.blocks; }) return static_cast<long>(state.blocks.capacity() * sizeof state.blocks[0]);
  return 0;
}

// ---- the heap

/// What a block may take beyond its own bytes. malloc adds 8 and rounds up to 16, to 32 at least (20 bytes at most),
/// and gives away a rest of 16, too small for a block of its own; with AVX Eigen aligns by itself. Blocks of 128 KiB
/// and more would take whole pages: the shapes here stay below.
constexpr long most_overhead = 20 + 16 + (EIGEN_MALLOC_ALREADY_ALIGNED ? 0 : EIGEN_DEFAULT_ALIGN_BYTES);

/// What `call` leaves on the heap, in how many allocations at most.
struct Heap {
  long bytes = 0, blocks = 0;
};
template <class Call>
Heap left_by(const Call& call) {
  Heap heap{-live_bytes.load(), 0};
  heap.blocks = allocations_in(call);
  heap.bytes += live_bytes.load();
  return heap;
}

void check_heap(const Heap& heap, Index estimated) {
  if (!allocations_are_counted) return;
  INFO(heap.bytes << " bytes in " << heap.blocks << " blocks at most, estimated " << estimated);
  CHECK(heap.bytes >= estimated);
  CHECK(heap.bytes <= estimated + heap.blocks * most_overhead);
}

/// Calls `check(method)` for every optimizer of the pair and every mode of it.
template <class Check>
void for_every_method(const Check& check) {
  const AdamW adamw{.learning_rate = 1e-3};
  const Sgd plain{.learning_rate = 1e-3}, heavy{.learning_rate = 1e-3, .momentum = 0.9};
  check("AdamW", PerFactor{adamw});
  check("Sgd", PerFactor{plain});
  check("Sgd with momentum", PerFactor{heavy});
  check("LoRA+", LoraPlus{adamw});
  check("LoRA+ on Sgd with momentum", LoraPlus{heavy});
  check("Riemannian", Riemannian{adamw});
  check("Riemannian on Sgd", Riemannian{plain});
  check("LoRA-FA", LoraFa{adamw});
  check("LoRA-FA on Sgd", LoraFa{plain});
  for (const auto mode : {Mode::Sgd, Mode::Efficient, Mode::Full, Mode::Factored}) {
    for (const auto freedom : {Freedom::Sylvester, Freedom::Symmetric, Freedom::Zero, Freedom::ReleasedSymmetric}) {
      const int which = static_cast<int>(mode), of_C = static_cast<int>(freedom);
      check("LoRA-Pro, mode " + std::to_string(which) + ", freedom " + std::to_string(of_C),
            LoraPro{.mode = mode, .freedom = freedom});
    }
  }
}

// ---- flops

struct Product {
  Index rows, depth, cols;
};
using Products = std::vector<Product>;

Index flops_of(const Products& products) {
  Index flops = 0;
  for (const auto& [rows, depth, cols] : products) flops += 2 * rows * depth * cols;
  return flops;
}
Products operator+(Products left, const Products& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

/// The products of `EquivalentGradient::direction`, in its order.
Products direction(Freedom freedom, Index n, Index m, Index r) {
  Products all{{r, m, r}, {n, r, r}, {r, r, m}, {r, r, m}};
  if (freedom != Freedom::Zero) all.push_back({n, r, r});
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("every part of a layer weighs what was estimated, to the byte", "[analysis]", float, double) {
  using Scalar = TestType;
  const auto shape = GENERATE(values<LayerShape>(
      {{6, 5, 2, 0}, {6, 5, 1, 1}, {20, 33, 5, 7}, {96, 40, 16, 64}, {40, 96, 40, 3}, {5, 5, 5, 4}, {1, 1, 1, 1}}));
  const auto offset = GENERATE(OffsetStart::None, OffsetStart::Carried, OffsetStart::Baked);
  const double dropout = GENERATE(0.0, 0.25);
  const bool gradient_of_A = GENERATE(true, false), input_gradient = GENERATE(true, false);
  const auto [n, m, r, b] = shape;
  Random random{1};
  LoraLinear layer{random_columns<Scalar>(n, m, random), {.rank = r, .dropout = dropout}};
  if (offset == OffsetStart::None) {
    layer.initialize(KaimingUniform{}, random);
  } else {
    layer.initialize(RandomOffset{}, random);
  }
  if (offset == OffsetStart::Baked) layer.bake();
  const auto X = random_rows<Scalar>(b, n, random);
  RowMatrix<Scalar> Y(b, m), dX(b, n);
  SavedState<Scalar> saved;
  auto gradient = layer.zero_gradient();
  if (!gradient_of_A) gradient.A.resize(0, r);
  layer.forward(X, Y, saved, random);
  if (input_gradient) {
    layer.backward(Y, saved, gradient, dX);
  } else {
    layer.backward(Y, saved, gradient);
  }

  CAPTURE(n, m, r, b, dropout, static_cast<int>(offset), gradient_of_A, input_gradient);
  const auto bytes = estimate<Scalar>(shape, LoraFa{},
                                      {.storage = BaseStorage::Owned,
                                       .offset = offset,
                                       .dropout = dropout,
                                       .input_gradient = input_gradient,
                                       .gradient_of_A = gradient_of_A})
                         .bytes;
  CHECK(bytes.base == bytes_of(layer.base().weight()));
  CHECK(bytes.factors == bytes_of(std::as_const(layer).factors()));
  CHECK(bytes.initial_factors == bytes_of(layer.initial_factors()));
  CHECK(bytes.gradient == bytes_of(gradient));
  CHECK(bytes.saved_state == bytes_of(saved));
}

TEMPLATE_TEST_CASE("a layer in training takes the estimated heap, on a view, on an owned weight and once merged",
                   "[analysis]", float, double) {
  using Scalar = TestType;
  if (!allocations_are_counted) WARN(not_counted);
  const auto shape = GENERATE(values<LayerShape>({{90, 70, 5, 33}, {60, 125, 8, 20}, {7, 5, 5, 64}}));
  const bool offset = GENERATE(false, true);
  const double dropout = GENERATE(0.0, 0.25);
  const auto [n, m, r, b] = shape;
  CAPTURE(n, m, r, b, offset, dropout);
  Random random{2};
  const auto W0 = random_columns<Scalar>(n, m, random);
  const auto X = random_rows<Scalar>(b, n, random);
  RowMatrix<Scalar> Y(b, m), dX(b, n);
  const PerFactor method{AdamW{}};
  const auto train = [&, r = r]<class Base>(Base base, const auto& merge) {
    LoraLinear<Base> layer(std::move(base), {.rank = r, .dropout = dropout});
    if (offset) {
      layer.initialize(RandomOffset{}, random);
    } else {
      layer.initialize(KaimingUniform{}, random);
    }
    auto gradient = layer.zero_gradient();
    Optimizer optimizer{method, layer};
    SavedState<Scalar> saved;
    for (int step = 0; step < 3; ++step) {
      gradient.set_zero();
      layer.forward(X, Y, saved, random);
      layer.backward(Y, saved, gradient, dX);
      optimizer.step(layer, gradient);
    }
    merge(layer);
  };
  // The peak of a training; of its blocks more than are there at once.
  const auto peak_of = [&](const auto& call) {
    call();  // fills the packing memory of this thread
    Heap heap;
    heap.blocks = allocations_in([&] { heap.bytes = peak_bytes_in(call); });
    return heap;
  };
  const auto no_merge = [](const auto&) {};
  EstimateConfig config{.offset = offset ? OffsetStart::Carried : OffsetStart::None, .dropout = dropout};
  check_heap(peak_of([&] { train(ViewBase(W0), no_merge); }), estimate<Scalar>(shape, method, config).bytes.total());
  config.storage = BaseStorage::Owned;
  check_heap(peak_of([&] { train(OwnedBase<Scalar>(W0), no_merge); }),
             estimate<Scalar>(shape, method, config).bytes.total());

  // Inside a merge the pair that is merged is there once more: the heap after it counts.
  config.merged = true;
  Heap merged;
  const auto train_and_merge = [&] {
    const long before = live_bytes.load();
    train(OwnedBase<Scalar>(W0), [&](auto& layer) {
      layer.merge();
      merged.bytes = live_bytes.load() - before;
    });
  };
  train_and_merge();  // fills the packing memory of this thread
  merged.blocks = allocations_in(train_and_merge);
  check_heap(merged, estimate<Scalar>(shape, method, config).bytes.total());
}

TEMPLATE_TEST_CASE("every optimizer keeps the estimated state, to the byte, and the estimated scratch", "[analysis]",
                   float, double) {
  using Scalar = TestType;
  if (!allocations_are_counted) WARN(not_counted);
  for (const auto& [n, m, r, b] : std::vector<LayerShape>{{65, 47, 5, 0}, {30, 70, 30, 0}, {300, 400, 2, 0}}) {
    Random random{3};
    auto factors = random_factors<Scalar>(n, m, r, random);
    const auto gradient = random_factors<Scalar>(n, m, r, random);
    const auto check_method = [&, n = n, m = m, r = r]<class Method>(const std::string& name, const Method& method) {
      CAPTURE(name, n, m, r);
      const auto bytes = estimate<Scalar>({n, m, r, 0}, method).bytes;
      Optimizer<Method, Scalar> optimizer(method, n, m, r);
      CHECK(bytes.optimizer_state == bytes_of_state(optimizer.state()));
      optimizer.step(factors, gradient, s, 1);  // fills the packing memory of this thread
      CHECK(bytes.optimizer_state == bytes_of_state(optimizer.state()));

      std::optional<Optimizer<Method, Scalar>> counted;
      auto heap = left_by([&] {
        counted.emplace(method, n, m, r);
        counted->step(factors, gradient, s, 1);
      });
      heap.bytes -= list_bytes(counted->state());
      check_heap(heap, bytes.optimizer_state + bytes.optimizer_scratch);
      CHECK(allocations_in([&] { counted->step(factors, gradient, s, 1); }) == 0);
    };
    for_every_method(check_method);
  }
}

TEMPLATE_TEST_CASE("a trained weight takes itself, its gradient and what its optimizer keeps", "[analysis]", float,
                   double) {
  using Scalar = TestType;
  if (!allocations_are_counted) WARN(not_counted);
  constexpr Index n = 45, m = 61, r = 6;
  const LayerShape shape{n, m, r, 10};
  Random random{4};
  auto W = random_columns<Scalar>(n, m, random);
  const auto G = random_columns<Scalar>(n, m, random);
  for (const auto rule : {Sgd{}, Sgd{.momentum = 0.5}}) {
    const FullFineTuning full{rule};
    auto state = full.init(W);
    full.step(state, W, G);
    const auto bytes = estimate<Scalar>(shape, full, {.storage = BaseStorage::Owned}).bytes;
    CHECK(bytes ==
          MemoryEstimate{.base = bytes_of(W), .gradient = bytes_of(G), .optimizer_state = bytes_of_state(state)});
  }
  const auto bytes = estimate<Scalar>(shape, FullFineTuning{}, {.storage = BaseStorage::View}).bytes;
  CHECK(bytes == MemoryEstimate{.gradient = bytes_of(G), .optimizer_state = bytes_of_state(FullFineTuning{}.init(W))});

  for_every_method([&]<class Method>(const std::string& name, const Method& method) {
    CAPTURE(name);
    const auto start = random_factors<Scalar>(n, m, r, random);
    WeightSpace<Method, Scalar>(method, start, s).step(W, G);
    std::optional<WeightSpace<Method, Scalar>> counted;
    auto heap = left_by([&] {
      counted.emplace(method, start, s);
      counted->step(W, G);
    });
    heap.bytes -= list_bytes(counted->state().method);
    const auto inside = estimate<Scalar>(shape, InWeightSpace{method}).bytes;
    CHECK(inside.optimizer_state == bytes_of(counted->factors()) + bytes_of(counted->initial_factors()) +
                                        bytes_of_state(counted->state().method));
    CHECK(inside.factors + inside.initial_factors + inside.saved_state + inside.base == 0);
    CHECK(inside.gradient == bytes_of(G));
    check_heap(heap, inside.optimizer_state + inside.optimizer_scratch);
  });
}

TEMPLATE_TEST_CASE("a packed base takes whole panels, twice over while an adapter is merged", "[analysis]", float,
                   double) {
  using Scalar = TestType;
  if (!allocations_are_counted) WARN(not_counted);
  for (const auto& [n, m] : {std::pair<Index, Index>{1, 1}, {32, 64}, {65, 127}, {33, 150}, {150, 33}}) {
    Random random{6};
    const auto W0 = random_columns<Scalar>(n, m, random);
    const auto pair = random_factors<Scalar>(n, m, 1, random);
    const auto base = [n = n, m = m](const EstimateConfig& config) {
      return estimate<Scalar>({n, m, 1, 1}, PerFactor{AdamW{}}, config).bytes.base;
    };
    for (const auto packs : {Packs::Forward, Packs::Both}) {
      const auto storage = packs == Packs::Both ? BaseStorage::PackedBoth : BaseStorage::PackedForward;
      CAPTURE(n, m, packs == Packs::Both);
      PackedBase<Scalar>(W0, packs).merge(pair, s);  // fills the packing memory of this thread
      std::optional<PackedBase<Scalar>> packed;
      const auto heap = left_by([&] { packed.emplace(W0, packs); });
      check_heap(heap, base({.storage = storage}));
      const auto merge = left_by([&] { packed->merge(pair, s); });
      check_heap({heap.bytes + merge.bytes, heap.blocks + merge.blocks}, base({.storage = storage, .merged = true}));
    }
    if constexpr (std::is_same_v<Scalar, float>) {
      std::optional<PackedBf16Base> packed;
      check_heap(left_by([&] { packed.emplace(W0); }), base({.storage = BaseStorage::PackedBf16}));
    }
  }

  // And counted out: panels of two vectors, in bf16 of rows by 32.
  constexpr Index width = 2 * Eigen::internal::packet_traits<Scalar>::size, size = sizeof(Scalar);
  const auto base = [](BaseStorage storage) {
    return estimate<Scalar>({2 * width + 1, 3 * width - 1, 1, 1}, PerFactor{Sgd{}}, {.storage = storage}).bytes.base;
  };
  CHECK(base(BaseStorage::PackedForward) == size * (2 * width + 1) * 3 * width);
  CHECK(base(BaseStorage::PackedBoth) == size * ((2 * width + 1) + (3 * width - 1)) * 3 * width);
}

TEST_CASE("the products with the base are those that a step asks of it", "[analysis]") {
  Index flops = 0;
  const auto [n, m, r, b] = LayerShape{13, 7, 3, 11};
  const auto count = [&](const ConstRows<double>& in, Rows<double> out) {
    flops += 2 * in.rows() * in.cols() * out.cols();
    out.setZero();
  };
  LoraLinear layer{CallbackBase<double>(n, m, count, count), {.rank = r}};
  Random random{5};
  const auto X = random_rows<double>(b, n, random);
  RowMatrix<double> Y(b, m), dX(b, n);
  SavedState<double> saved;
  auto gradient = layer.zero_gradient();
  const auto counted = [&](const auto& call) {
    flops = 0;
    call();
    return flops;
  };
  const auto with = estimate<double>({n, m, r, b}, PerFactor{AdamW{}}).flops;
  const auto without = estimate<double>({n, m, r, b}, PerFactor{AdamW{}}, {.input_gradient = false}).flops;
  CHECK(with.base_forward == counted([&] { layer.forward(X, Y, saved); }));
  CHECK(with.base_backward == counted([&] { layer.backward(Y, saved, gradient, dX); }));
  CHECK(without.base_forward == with.base_forward);
  CHECK(without.base_backward == counted([&] { layer.backward(Y, saved, gradient); }));

  const auto full = estimate<double>({n, m, r, b}, FullFineTuning{}).flops;
  CHECK(full.base_forward == with.base_forward);
  CHECK(full.base_backward == flops_of({{b, m, n}, {n, b, m}}));  // dY W^T and X^T dY
  CHECK(full.branch_forward + full.branch_backward == 0);
}

TEST_CASE("the branch costs its products", "[analysis]") {
  for (const auto& [n, m, r, b] : std::vector<LayerShape>{{13, 7, 3, 11}, {5, 9, 1, 1}, {8, 8, 8, 0}}) {
    const auto flops = [n = n, m = m, r = r, b = b](const EstimateConfig& config) {
      return estimate<float>({n, m, r, b}, LoraFa{}, config).flops;
    };
    const Products X_A_B{{b, n, r}, {b, r, m}}, Q_and_B{{b, m, r}, {r, b, m}}, A{{n, b, r}}, to_X{{b, r, n}};
    const Products dY_B0_A0{{b, m, r}, {b, r, n}};
    const auto plain = flops({});
    CHECK(plain.branch_forward == flops_of(X_A_B));
    CHECK(plain.branch_backward == flops_of(Q_and_B + A + to_X));
    CHECK(plain.branch_forward + plain.branch_backward == 6 * b * r * (n + m));
    CHECK(flops({.storage = BaseStorage::Owned, .offset = OffsetStart::Baked, .dropout = 0.5}) == plain);
    CHECK(flops({.input_gradient = false}).branch_backward == flops_of(Q_and_B + A));
    CHECK(flops({.gradient_of_A = false}).branch_backward == flops_of(Q_and_B + to_X));
    CHECK(flops({.input_gradient = false, .gradient_of_A = false}).branch_backward == flops_of({{r, b, m}}));

    const auto offset = flops({.offset = OffsetStart::Carried});
    CHECK(offset.branch_forward == flops_of(X_A_B + X_A_B));
    CHECK(offset.branch_backward == flops_of(Q_and_B + A + to_X + dY_B0_A0));
    CHECK(offset.total() - plain.total() == 4 * b * r * (n + m));
    CHECK(flops({.offset = OffsetStart::Carried, .input_gradient = false}).branch_backward == flops_of(Q_and_B + A));
  }
}

TEST_CASE("a step of an optimizer costs its products, its decompositions and its rule", "[analysis]") {
  for (const auto& [n, m, r, b] : std::vector<LayerShape>{{130, 70, 3, 0}, {9, 11, 9, 0}}) {
    const Index one = n * r + m * r, gram = 5 * r * r * r;
    const auto step = [n = n, m = m, r = r](const auto& method) {
      return estimate<float>({n, m, r, 0}, method).flops.optimizer_step;
    };
    CAPTURE(n, m, r);
    // An element of AdamW: m 3, v 4, the root and its correction 3, the quotient 1, p 3. Of Sgd: d 2, p 2, u 2, d +
    // u 2.
    CHECK(step(PerFactor{AdamW{}}) == 14 * one);
    CHECK(step(LoraPlus{AdamW{}}) == 14 * one);
    CHECK(step(PerFactor{Sgd{}}) == 4 * one);
    CHECK(step(PerFactor{Sgd{.momentum = 0.9}}) == 6 * one);
    CHECK(step(PerFactor{Sgd{.momentum = 0.9, .kind = Sgd::Momentum::Nesterov}}) == 8 * one);

    const Products grams{{r, n, r}, {r, m, r}};
    CHECK(step(Riemannian{AdamW{}}) == flops_of(grams + Products{{n, r, r}, {r, r, m}}) + 2 * gram + 14 * one);
    CHECK(step(LoraFa{AdamW{}}) == flops_of({{r, n, r}, {r, r, m}}) + gram + 14 * m * r);
    CHECK(step(FullFineTuning{AdamW{}}) == 14 * n * m);
    const Products weight_space{{n, m, r}, {r, n, m}, {n, r, m}, {n, r, m}};
    CHECK(step(InWeightSpace{LoraPlus{Sgd{}}}) == flops_of(weight_space) + 4 * one);

    // Symmetric ones by blocks of 12 rows: these ranks have one block alone; see the next test.
    const Products full{{n, 2 * r, m}, {n, m, r}, {r, n, m}};  // Gt, s g B^T, s A^T g
    const Products sums_of_rows{{n, r, r}, {r, m, r}, {n, r, r}};
    const Products sums_of_columns{{r, n, r}, {r, r, m}, {r, n, r}, {r, r, m}, {r, r, m}};
    const Products seen{{r, m, r}, {r, m, r}, {r, n, r}, {r, n, r}};  // the momentum, from factors and gradient
    const Products moved{{n, r, r}, {n, r, r}, {r, r, m}, {r, r, m}, {r, r, m}};
    const Products factored = sums_of_rows + sums_of_columns + seen + moved + seen + moved;
    for (const auto freedom : {Freedom::Sylvester, Freedom::Symmetric, Freedom::Zero, Freedom::ReleasedSymmetric}) {
      const auto pro = [&](Mode mode) { return step(LoraPro{.mode = mode, .freedom = freedom}); };
      const Products once = grams + direction(freedom, n, m, r), zero = direction(Freedom::Zero, n, m, r);
      const Products C = freedom == Freedom::Zero ? Products{} : Products{{n, r, r}};
      const Index small = 2 * gram + (freedom == Freedom::Sylvester ? 7 * r * r * r : 0);
      CHECK(pro(Mode::Sgd) == flops_of(once) + small);
      CHECK(pro(Mode::Efficient) == flops_of(once) + small + 14 * one);
      CHECK(pro(Mode::Full) == flops_of(once + zero + full) + small + 14 * n * m);
      CHECK(pro(Mode::Factored) == flops_of(grams + zero + factored + C) + small);
    }
  }
}

TEST_CASE("a symmetric product costs its blocks from the diagonal on", "[analysis]") {
  CHECK(detail::symmetric_product_flops(12, 10) == 2 * 10 * 12 * 12);
  CHECK(detail::symmetric_product_flops(16, 10) == 2 * 10 * (12 * 16 + 4 * 4));
  CHECK(detail::symmetric_product_flops(64, 1) == 2 * (12 * (64 + 52 + 40 + 28 + 16) + 4 * 4));
}

TEST_CASE("the example of docs/estimate.md says what that page says", "[analysis]") {
  // [example]
  const lora::LayerShape shape{.in_features = 4096, .out_features = 4096, .rank = 16, .tokens = 2048};
  const auto adapter = lora::estimate<float>(shape, lora::LoraPlus{lora::AdamW{}});  // on a view of W0
  const auto full = lora::estimate<float>(shape, lora::FullFineTuning{}, {.storage = lora::BaseStorage::Owned});
  const bool fits = 32 * adapter.bytes.total() < 128 * 1024 * 1024;  // 32 such layers
  // [/example]
  CHECK(fits);
  CHECK(adapter.bytes ==
        MemoryEstimate{.factors = 524'288, .gradient = 524'288, .optimizer_state = 1'048'576, .saved_state = 262'144});
  CHECK(adapter.bytes.total() == 2'359'296);
  CHECK(adapter.flops == FlopEstimate{.base_forward = 68'719'476'736,
                                      .base_backward = 68'719'476'736,
                                      .branch_forward = 536'870'912,
                                      .branch_backward = 1'073'741'824,
                                      .optimizer_step = 1'835'008});
  CHECK(adapter.flops.total() == 139'051'401'216);
  CHECK(full.bytes == MemoryEstimate{.base = 67'108'864, .gradient = 67'108'864, .optimizer_state = 134'217'728});
  CHECK(full.bytes.total() == 268'435'456);
  CHECK(full.flops ==
        FlopEstimate{.base_forward = 68'719'476'736, .base_backward = 137'438'953'472, .optimizer_step = 234'881'024});

  const auto factored = estimate<float>(shape, LoraPro{});
  CHECK(factored.bytes.optimizer_state == 1'081'344);
  CHECK(factored.bytes.optimizer_scratch == 1'663'152);
  CHECK(factored.flops.optimizer_step == 66'916'352);
  CHECK(factored.bytes.total() == 4'055'216);
  CHECK(estimate<float>(shape, LoraPro{.mode = Mode::Full}).bytes.optimizer_state == 134'217'728);
}

TEST_CASE("rules and optimizers of one's own bring their cost along", "[analysis]") {
  const LayerShape shape{.in_features = 10, .out_features = 20, .rank = 3, .tokens = 1};
  const auto rule = estimate<double>(shape, PerFactor{mine::Averaged{}});
  CHECK(rule.bytes.optimizer_state == 8 * (10 * 3 + 10 + 20 * 3 + 20));
  CHECK(rule.flops.optimizer_step == 3 * (10 * 3 + 20 * 3));
  const auto method = estimate<float>(shape, mine::Frozen{}, {.gradient_of_A = false});
  CHECK(method.bytes.optimizer_state == 0);
  CHECK(method.bytes.optimizer_scratch == 4 * 10 * 3 + 8 * 3);
  CHECK(method.bytes.gradient == 4 * 20 * 3);
  CHECK(method.flops.optimizer_step == 1);
}

TEST_CASE("estimate says what is wrong with its arguments", "[analysis]") {
  const PerFactor adamw{AdamW{}};
  const auto shape_error = [&](const LayerShape& shape, const EstimateConfig& config = {}) {
    return message_of<ShapeError>([&] { estimate<float>(shape, adamw, config); });
  };
  const auto config_error = [&](const auto& method, const EstimateConfig& config, Index rank = 2) {
    return message_of<ConfigError>([&] { estimate<float>({6, 5, rank, 4}, method, config); });
  };
  CHECK(shape_error({0, 5, 2, 4}) == "estimate: in_features and out_features must be at least 1, got 0 and 5");
  CHECK(shape_error({6, -5, 2, 4}) == "estimate: in_features and out_features must be at least 1, got 6 and -5");
  CHECK(shape_error({6, 5, 2, -1}) == "estimate: tokens must not be negative, got -1");
  CHECK(config_error(adamw, {}, 0) == "estimate: rank must lie in [1, min(n, m)] = [1, 5], got 0");
  CHECK(config_error(adamw, {}, 6) == "estimate: rank must lie in [1, min(n, m)] = [1, 5], got 6");
  CHECK(config_error(adamw, {.dropout = 1}) == "estimate: dropout must lie in [0, 1), got 1");
  CHECK(config_error(adamw, {.dropout = -0.5}) == "estimate: dropout must lie in [0, 1), got -0.5");
  CHECK(config_error(adamw, {.dropout = std::numeric_limits<double>::quiet_NaN()}) ==
        "estimate: dropout must lie in [0, 1), got nan");
  for (const auto storage : {BaseStorage::View, BaseStorage::PackedBoth, BaseStorage::PackedBf16}) {
    CHECK(config_error(adamw, {.storage = storage, .offset = OffsetStart::Baked}) ==
          "estimate: a baked offset needs an owned base, got another storage");
  }
  for (const auto storage : {BaseStorage::View, BaseStorage::PackedBf16}) {
    CHECK(config_error(adamw, {.storage = storage, .merged = true}) ==
          "estimate: a merge needs an owned base or one packed in full precision, got another storage");
  }
  CHECK(config_error(adamw, {.gradient_of_A = false}) ==
        "estimate: a gradient of B alone needs a method that leaves A as it is, got another");
  CHECK(message_of<ConfigError>([&] {
          estimate<double>({6, 5, 2, 4}, adamw, {.storage = BaseStorage::PackedBf16});
        }) == "estimate: a bf16 base serves layers of float, got double");
  for (const EstimateConfig config : {EstimateConfig{.storage = BaseStorage::Owned, .merged = true},
                                      EstimateConfig{.storage = BaseStorage::PackedForward},
                                      EstimateConfig{.offset = OffsetStart::Carried}, EstimateConfig{.dropout = 0.1}}) {
    CHECK(config_error(InWeightSpace{adamw}, config) ==
          "estimate: a trained weight must be dense, without merge, offset or dropout, got another config");
    CHECK(config_error(FullFineTuning{}, config) ==
          "estimate: a trained weight must be dense, without merge, offset or dropout, got another config");
  }
  CHECK(config_error(LoraPlus{AdamW{.beta1 = 1}}, {}) == "AdamW: beta1 must lie in [0, 1), got 1");
  CHECK(config_error(Riemannian{Sgd{.momentum = 2}}, {}) == "Sgd: momentum must lie in [0, 1), got 2");
  CHECK(config_error(LoraPro{.trust = 0}, {}) == "LoraPro: trust must be positive, got 0");
}

TEST_CASE("estimate refuses counts that do not fit, and wraps around nowhere", "[analysis]") {
  const auto message = [](const LayerShape& shape, const auto& method, const EstimateConfig& config = {}) {
    return message_of<ShapeError>([&] { estimate<float>(shape, method, config); });
  };
  constexpr Index large = Index{1} << 40, most = std::numeric_limits<Index>::max();
  const PerFactor adamw{AdamW{}};
  CHECK(message({large, large, 1, 0}, adamw) == "[no error]");  // a view, and nothing runs
  CHECK(message({large, large, 1, 0}, adamw, {.storage = BaseStorage::Owned}) ==
        "estimate: bytes of the base must stay below 2^60, got 4.835703278458517e+24");
  CHECK(message({large, large, 1, 1}, adamw) ==
        "estimate: flops of the base's forward must stay below 2^60, got 2.4178516392292583e+24");
  CHECK(message({most, most, most, most}, adamw) ==
        "estimate: bytes of the factors must stay below 2^60, got 6.80564733841877e+38");
  CHECK(message({large, large, 1, 0}, FullFineTuning{}) ==
        "estimate: bytes of the gradient must stay below 2^60, got 4.835703278458517e+24");
  CHECK(message({large, large, 1 << 16, 0}, adamw) ==
        "estimate: bytes of the optimizer's state must stay below 2^60, got 1152921504606846976");
  CHECK(message({large, large, 1, 0}, LoraPro{.mode = Mode::Full}) ==
        "estimate: bytes of the optimizer's state must stay below 2^60, got 9.671406556917033e+24");
  CHECK(message({1, 1, 1, most}, adamw) ==
        "estimate: bytes of the saved state must stay below 2^60, got 73786976294838206464");
}
