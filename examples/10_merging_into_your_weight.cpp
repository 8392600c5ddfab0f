// SPDX-License-Identifier: MIT
// A mergeable base of your own: the adapter goes into the trainer's weight where it lies, and out again bit for bit.
#include <lora/lora.hpp>

#include <cstdio>
#include <vector>

// [base]
/// W0 in the trainer's buffer, m rows of n floats. `merge` writes there and keeps what it overwrites.
class TrainerWeight {
 public:
  using Scalar = float;

  TrainerWeight(std::vector<float>& buffer, lora::Index n, lora::Index m) : buffer_(&buffer), n_(n), m_(m) {}

  lora::Index rows() const { return n_; }
  lora::Index cols() const { return m_; }
  lora::ConstColumns<float> weight() const { return {buffer_->data(), n_, m_}; }
  void multiply(const lora::ConstRows<float>& X, lora::Rows<float> Y) const { lora::set_product(Y, 1, X, weight()); }
  void multiply_transposed(const lora::ConstRows<float>& dY, lora::Rows<float> dX) const {
    lora::set_product(dX, 1, dY, weight().transpose());
  }
  std::string describe() const { return "the trainer's weight"; }

  void merge(const lora::ConstFactorsView<float>& factors, double scale) {
    if (merged()) throw lora::StateError("TrainerWeight::merge: unmerge first");
    original_ = *buffer_;
    lora::add_product(lora::Columns<float>(buffer_->data(), n_, m_), scale, factors.A, factors.B);
  }
  void unmerge() {
    if (!merged()) throw lora::StateError("TrainerWeight::unmerge: nothing is merged");
    *buffer_ = std::move(original_);
    original_.clear();
  }
  bool merged() const { return !original_.empty(); }

 private:
  std::vector<float>* buffer_;
  lora::Index n_, m_;
  std::vector<float> original_;
};
static_assert(lora::MergeableBase<TrainerWeight>);
// [/base]

int main() {
  constexpr lora::Index n = 12, m = 6;
  lora::Random random{8};
  std::vector<float> weight(n * m);
  for (float& value : weight) value = static_cast<float>(random.normal());
  const std::vector<float> before = weight;

  // [use]
  lora::LoraLinear layer{TrainerWeight{weight, n, m}, {.rank = 2, .alpha = 2}};
  layer.initialize(lora::Gaussian{}, random);
  layer.factors().B.setOnes();  // as if it had been trained
  const auto difference = [&] {
    int count = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) count += weight[i] != before[i];
    return count;
  };
  layer.merge();
  std::printf("merged: %d of %d weights differ\n", difference(), static_cast<int>(weight.size()));
  try {
    layer.merge();
  } catch (const lora::StateError& error) {
    std::printf("merged twice: %s\n", error.what());
  }
  layer.unmerge();
  std::printf("unmerged: %d of %d weights differ\n", difference(), static_cast<int>(weight.size()));
  // [/use]
}
