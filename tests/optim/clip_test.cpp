// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/core/factors.hpp>
#include <lora/optim/clip.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

template <Real Scalar>
std::vector<Factors<Scalar>> three_layers() {
  Random random{41};
  std::vector<Factors<Scalar>> gradients;
  for (const Index size : {300, 17, 64}) gradients.push_back(random_factors<Scalar>(size, 40, 4, random));
  return gradients;
}

constexpr Index elements = 4 * (300 + 17 + 64 + 3 * 40);  // of three_layers, more than in any other test with a bound

template <class Gradients>
double exact_norm(const Gradients& gradients) {
  long double sum = 0;
  for (const auto& gradient : gradients) sum += wide(gradient.A).squaredNorm() + wide(gradient.B).squaredNorm();
  return static_cast<double>(std::sqrt(sum));
}

}  // namespace

TEMPLATE_TEST_CASE("clipping scales all layers by one factor to the global norm and returns the norm before", "[optim]",
                   float, double) {
  auto gradients = three_layers<TestType>();
  const auto before = gradients;
  const double norm = exact_norm(before);
  CHECK(clip_global_norm(gradients, norm / 8) == Catch::Approx(norm).epsilon(rounding_bound<double>(elements)));
  CHECK(exact_norm(gradients) == Catch::Approx(norm / 8).epsilon(clip_bound<TestType>(elements)));
  for (std::size_t layer = 0; layer < 3; ++layer) {
    CHECK(relative_error(wide(gradients[layer].A), Wide(wide(before[layer].A) / 8)) < clip_bound<TestType>(elements));
    CHECK(relative_error(wide(gradients[layer].B), Wide(wide(before[layer].B) / 8)) < clip_bound<TestType>(elements));
  }
}

TEMPLATE_TEST_CASE("gradients at or below the limit stay as they are", "[optim]", float, double) {
  auto gradients = three_layers<TestType>();
  const auto before = gradients;
  const double norm = clip_global_norm(gradients, std::numeric_limits<double>::infinity());
  CHECK(clip_global_norm(gradients, 1.001 * norm) == norm);
  CHECK(clip_global_norm(gradients, norm) == norm);
  for (std::size_t layer = 0; layer < 3; ++layer) CHECK(same_bits(gradients[layer], before[layer]));
}

TEMPLATE_TEST_CASE("a vector, an array, a span and views of foreign memory are clipped alike", "[optim]", float,
                   double) {
  auto vector = three_layers<TestType>();
  std::array<Factors<TestType>, 3> array{vector[0], vector[1], vector[2]}, spanned = array, viewed = array;
  std::vector<FactorsView<TestType>> views(viewed.begin(), viewed.end());
  const std::vector<FactorsView<TestType>> const_views(viewed.begin(), viewed.end());

  const double norm = clip_global_norm(vector, 1);
  CHECK(clip_global_norm(array, 1) == norm);
  CHECK(clip_global_norm(std::span(spanned), 1) == norm);
  CHECK(clip_global_norm(views, 1) == norm);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    CHECK(same_bits(array[layer], vector[layer]));
    CHECK(same_bits(spanned[layer], vector[layer]));
    CHECK(same_bits(viewed[layer], vector[layer]));
  }
  clip_global_norm(const_views, 0.5);  // the views are const, what they show is not
  CHECK(exact_norm(viewed) == Catch::Approx(0.5).epsilon(clip_bound<TestType>(elements)));
}

TEST_CASE("views with gaps are clipped without touching the gaps", "[optim]") {
  Random random{42};
  const auto gradient = random_factors<float>(20, 30, 3, random);
  Strided<float, Eigen::ColMajor> A(gradient.A);
  Strided<float, Eigen::RowMajor> B(gradient.B);
  const std::array<FactorsView<float>, 1> views{FactorsView<float>{A.view(), B.view()}};
  clip_global_norm(views, 0.25);
  CHECK(exact_norm(views) == Catch::Approx(0.25).epsilon(clip_bound<float>(elements)));
  CHECK(A.border_untouched());
  CHECK(B.border_untouched());
}

TEMPLATE_TEST_CASE("the dense gradients of a head are clipped jointly with the factors", "[optim]", float, double) {
  Random random{43};
  std::array<Factors<TestType>, 2> gradients{random_factors<TestType>(20, 30, 3, random),
                                             random_factors<TestType>(7, 5, 2, random)};
  RowMatrix<TestType> head = random_rows<TestType>(30, 10, random);
  std::vector<TestType> bias(10, TestType(0.25));
  const auto before = gradients;
  const RowMatrix<TestType> head_before = head;
  const double dense_norm = static_cast<double>(wide(head).squaredNorm()) + 10 * 0.0625;
  const double norm = std::sqrt(exact_norm(gradients) * exact_norm(gradients) + dense_norm);
  const std::array dense{std::span<TestType>(head.data(), 300), std::span<TestType>(bias)};
  CHECK(clip_global_norm(gradients, dense, 2 * norm) ==
        Catch::Approx(norm).epsilon(2 * rounding_bound<double>(elements)));
  CHECK(same_bits(head, head_before));
  clip_global_norm(gradients, dense, norm / 8);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(relative_error(wide(gradients[i].A), Wide(wide(before[i].A) / 8)) < clip_bound<TestType>(elements));
  }
  CHECK(relative_error(wide(head), Wide(wide(head_before) / 8)) < clip_bound<TestType>(elements));
  CHECK(bias[9] == Catch::Approx(0.25 / 8).epsilon(clip_bound<TestType>(elements)));

  std::vector<Factors<TestType>> none;
  CHECK(clip_global_norm(none, std::array{std::span<TestType>(bias)}, 1) ==
        Catch::Approx(0.25 / 8 * std::sqrt(10.0)).epsilon(clip_bound<TestType>(elements)));
  const auto clipped = gradients;
  bias[3] = std::numeric_limits<TestType>::quiet_NaN();
  CHECK(message_of<NumericalError>([&] { clip_global_norm(gradients, dense, norm / 100); }) ==
        "clip_global_norm: dense gradient must be finite, got NaN or infinity");
  CHECK(gradients == clipped);
}

TEST_CASE("the norm of a float gradient is right where its squares leave the range of float", "[optim]") {
  for (const float size : {1e-30F, 1e30F}) {
    std::array<Factors<float>, 1> gradients{Factors<float>{ColMatrix<float>::Constant(8, 1, size),  //
                                                           RowMatrix<float>::Constant(1, 8, size)}};
    CHECK(clip_global_norm(gradients, size) == Catch::Approx(4.0 * double{size}).epsilon(rounding_bound<double>(16)));
    CHECK(gradients[0].A(0) == Catch::Approx(size / 4).epsilon(clip_bound<float>(elements)));
  }
}

TEST_CASE("the norm of a million floats is summed in double", "[optim]") {
  std::array<Factors<float>, 1> gradients{Factors<float>{ColMatrix<float>::Constant(1000000, 1, 0.1F),  //
                                                         RowMatrix<float>::Zero(1, 1)}};
  CHECK(clip_global_norm(gradients, 1e9) ==
        Catch::Approx(1000.0 * double{0.1F}).epsilon(rounding_bound<double>(1000000)));
}

TEST_CASE("no layers and zero gradients have norm 0", "[optim]") {
  std::vector<Factors<float>> gradients;
  CHECK(clip_global_norm(gradients, 1) == 0);
  gradients.push_back(Factors<float>::zero(4, 3, 2));
  CHECK(clip_global_norm(gradients, 1) == 0);
  CHECK(gradients[0] == Factors<float>::zero(4, 3, 2));
}

TEST_CASE("a norm beyond the range of double is refused, not clipped to zero", "[optim]") {
  std::array<Factors<double>, 1> gradients{Factors<double>{ColMatrix<double>::Constant(2, 1, 1e200),  //
                                                           RowMatrix<double>::Zero(1, 2)}};
  CHECK(message_of<NumericalError>([&] { clip_global_norm(gradients, 1); }) ==
        "clip_global_norm: norm must be finite, got inf");
  CHECK(gradients[0].A(0) == 1e200);
}

TEST_CASE("clipping refuses a limit that is not positive", "[optim]") {
  std::vector<Factors<float>> gradients;
  const auto refused = [&](double limit) {
    return message_of<ConfigError>([&] { clip_global_norm(gradients, limit); });
  };
  CHECK(refused(0) == "clip_global_norm: max_norm must be positive, got 0");
  CHECK(refused(-1) == "clip_global_norm: max_norm must be positive, got -1");
  CHECK(refused(std::numeric_limits<double>::quiet_NaN()) == "clip_global_norm: max_norm must be positive, got nan");
}
