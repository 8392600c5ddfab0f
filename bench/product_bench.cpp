// SPDX-License-Identifier: MIT
// X W0 and dY W0^T by every base, and by Eigen as it comes.
#include "measure.hpp"
#include "shapes.hpp"

#include <cstdint>
#include <memory>
#include <string>

namespace {

using bench::Heap, bench::Shape, bench::Work;
using lora::ConstRows, lora::Rows;

/// Plain Eigen, nothing of ours around it.
struct EigenBase {
  explicit EigenBase(const lora::ColMatrix<float>& weight) : W0(&weight) {}
  void multiply(const ConstRows<float>& X, Rows<float> Y) const { Y.noalias() = X * *W0; }
  void multiply_transposed(const ConstRows<float>& dY, Rows<float> dX) const { dX.noalias() = dY * W0->transpose(); }
  const lora::ColMatrix<float>* W0;
};
struct PackedOnce : lora::PackedBase<float> {
  explicit PackedOnce(const lora::ColMatrix<float>& weight) : PackedBase(weight, lora::Packs::Forward) {}
};
struct WidenedBf16 : lora::PackedBf16Base {
  explicit WidenedBf16(const lora::ColMatrix<float>& weight) : PackedBf16Base(weight, lora::Bf16Kernel::Widening) {}
};

template <class Base>
void add(const std::string& kind, double bytes_of_weight, Heap heap) {
  for (const Shape& shape : bench::product_shapes()) {
    const double activations = 4 * static_cast<double>(shape.b * (shape.n + shape.m));
    const Work work{shape.product_flops(), activations + bytes_of_weight * static_cast<double>(shape.n * shape.m)};
    struct Data {
      lora::RowMatrix<float> X, Y;
    };
    const auto make = [=](bool forward) {
      auto data = std::make_shared<Data>();
      data->X = bench::random_matrix<lora::RowMatrix<float>>(shape.b, forward ? shape.n : shape.m);
      data->Y.setZero(shape.b, forward ? shape.m : shape.n);
      return [=] {
        const Base& base = bench::base_of<Base>(shape);
        forward ? base.multiply(data->X, data->Y) : base.multiply_transposed(data->X, data->Y);
      };
    };
    bench::add("forward_product/" + kind + shape.product_name(), work, heap, [=] { return make(true); });
    bench::add("backward_product/" + kind + shape.product_name(), work, heap, [=] { return make(false); });
  }
}

/// Sums what is too large for every cache, fetched 8 KiB ahead: what memory gives to one core.
void add_memory() {
  constexpr lora::Index size = 64 << 20;  // floats
  bench::add("memory_read", {0, 4.0 * size}, Heap::Forbidden, [] {
    auto memory = std::make_shared<Eigen::VectorXf>(Eigen::VectorXf::Ones(size));
    return [memory] {
      constexpr lora::Index stretch = 1024;
      float sum = 0;
      for (lora::Index i = 0; i < size; i += stretch) {
        const lora::kernel::Ahead ahead{reinterpret_cast<std::uintptr_t>(memory->data() + i) + 8192, 64};
        for (lora::Index line = 0; line < stretch / 16; ++line) ahead.fetch(line, 1);
        sum += memory->segment<stretch>(i).sum();
      }
      benchmark::DoNotOptimize(sum);
    };
  });
}

[[maybe_unused]] const bool registered = [] {
  add_memory();
  add<EigenBase>("eigen", 4, Heap::Allowed);
  add<lora::ViewBase<float>>("view", 4, Heap::Forbidden);
  add<lora::PackedBase<float>>("packed", 4, Heap::Forbidden);
  add<PackedOnce>("packed_once", 4, Heap::Forbidden);
  add<WidenedBf16>("bf16_widened", 2, Heap::Forbidden);
  add<lora::PackedBf16Base>("bf16", 2, Heap::Forbidden);
  return true;
}();

}  // namespace
